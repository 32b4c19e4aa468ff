package app

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"waybill/cmd/internal/admin"
	"waybill/logtrack/trackapi"
	"waybill/relay/queue"
	"waybill/relay/route"
)

// drain hands the whole queue to another host: nothing is accepted, and every
// recipient that waits is routed there, whatever the table says.
type drain struct {
	admin.Drain
	since   time.Time
	started int // messages at its beginning
}

// divert turns the table's decision d into the way to the other host.
func (dr *drain) divert(table *route.Table, q *route.Query, d route.Decision) route.Decision {
	connector := dr.Via
	if connector == "" {
		connector = d.Hop.Connector
	}
	if connector == "" {
		return d // nothing is known about how to speak for it
	}
	q.Via = route.RedirectTo(connector, dr.To)
	d = table.Route(*q)
	if d.Hop.Target() != "" {
		d.Hop = route.DrainTo(d.Hop.Connector, dr.To)
		d.Why = "the queue is being drained to " + dr.To
	}
	return d
}

// Drain begins to hand the queue over, or ends that when order has no host.
func (a *App) Drain(order admin.Drain) error {
	a.drainMu.Lock()
	defer a.drainMu.Unlock()
	was := a.routes.drain.Load()
	if order.To == "" {
		if was == nil {
			return errors.New("the queue is not being drained")
		}
		a.routes.drain.Store(nil)
		a.queue.Shut("")
		a.queue.Reroute()
		a.deliver.ProbeNow()
		act := queue.Action{Action: "drain", Actor: order.Actor, Client: order.Client, Reason: strings.TrimSuffix("ended: "+order.Reason, ": "), Filter: queue.Filter{All: true}}
		return a.queue.Acted(&act, a.queue.Brief().Messages, nil)
	}
	if order.Via != "" {
		if _, ok := a.routes.now.Load().connectors[order.Via]; !ok {
			return fmt.Errorf("there is no send connector %q", order.Via)
		}
	}
	now := &drain{Drain: order, since: time.Now(), started: a.queue.Brief().Messages}
	a.routes.drain.Store(now)
	a.queue.Shut("draining to " + order.To)
	a.queue.Reroute()
	a.deliver.ProbeNow()
	return a.queue.Acted(&queue.Action{Action: "drain", To: order.To, Actor: order.Actor, Client: order.Client, Reason: order.Reason, Filter: queue.Filter{All: true}}, now.started, nil)
}

// Drained says how far a drain has come.
func (a *App) Drained() trackapi.QueueDrain {
	dr := a.routes.drain.Load()
	if dr == nil {
		return trackapi.QueueDrain{}
	}
	l := a.queue.Levels()
	d := trackapi.QueueDrain{
		Draining: true, To: dr.To, Via: dr.Via, By: dr.Actor, Reason: dr.Reason, Since: dr.since.UTC(), Started: dr.started,
		Left: l.Messages, Bytes: l.Bytes,
	}
	for _, h := range a.queue.Hops() {
		d.Held += h.Held
		d.Poison += h.Poison
		switch {
		case h.Hop == route.Unroutable:
			d.Unroutable += h.Queued
		case h.Hop.Target() == dr.To && !h.Hop.Redirected():
			d.Moving += h.Queued + h.Active + h.Deferred
			if h.LastAt.After(dr.since) && h.LastAt.After(d.LastAt) {
				d.LastError, d.LastAt = h.LastError, h.LastAt
			}
			if !h.Next.IsZero() && (d.Next.IsZero() || h.Next.Before(d.Next)) {
				d.Next = h.Next
			}
		default: // what is being attempted elsewhere comes when the attempt ends
			d.Moving += h.Queued + h.Active + h.Deferred
		}
	}
	d.Done = d.Moving == 0
	return d
}

// acted follows a change of the queue that lets messages go.
func (a *App) acted() {
	if a.routes.drain.Load() != nil {
		a.queue.Reroute() // what was held by its hop has not gone along
	}
	a.deliver.RetryNow()
}

// sendConnectors lists the names of the send connectors in use.
func (a *App) sendConnectors() []string {
	var names []string
	for name := range a.routes.now.Load().connectors {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
