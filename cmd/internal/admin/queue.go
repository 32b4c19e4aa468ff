package admin

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"waybill/cmd/internal/config"
	"waybill/logtrack/trackapi"
	"waybill/logtrack/trackhttp"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/route"
)

// What the queue understands.
var (
	actions = append(queue.Actions(), "resend")
	states  = []string{"queued", "active", "deferred", "held", "unroutable", "poison", "relayed"}
)

// queues answers with one row per next hop, the oldest mail first.
func (h *Handler) queues(w http.ResponseWriter, _ *http.Request) {
	now := time.Now()
	levels := h.opts.Queue.Levels()
	answer := trackapi.Queues{Queues: []trackapi.Queue{}, Messages: levels.Messages, Accepts: true, Kept: levels.Kept, KeptSize: levels.KeptBytes}
	if err := h.opts.Ready(); err != nil {
		answer.Accepts, answer.Why = false, err.Error()
	}
	for _, s := range h.opts.Queue.Hops() {
		in, out := h.rates.perMinute(now, s)
		row := trackapi.Queue{
			Name: s.Hop.Name, Connector: s.Hop.Connector, State: s.State,
			Messages: s.Queued + s.Active + s.Deferred + s.Held + s.Poison, Queued: s.Queued, Active: s.Active, Deferred: s.Deferred, Held: s.Held,
			Bytes: s.Bytes, DueLag: s.DueLag.Seconds(), LastError: s.LastError, LastClass: string(s.LastClass), LastRule: s.LastRule, LastMeans: s.LastMeans, LastAt: s.LastAt, Next: s.Next,
			InRate: in, OutRate: out, Velocity: out - in, HeldBy: s.HeldBy, HeldUntil: s.HeldUntil,
		}
		if !s.Oldest.IsZero() {
			row.OldestAge = now.Sub(s.Oldest).Seconds()
		}
		h.slowed(s.Hop, &row)
		answer.Queues = append(answer.Queues, row)
	}
	slices.SortStableFunc(answer.Queues, func(a, b trackapi.Queue) int {
		switch {
		case a.OldestAge != b.OldestAge:
			if a.OldestAge > b.OldestAge {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	trackhttp.WriteJSON(w, http.StatusOK, answer)
}

// queueMessages lists queued messages by queue ID, oldest first.
func (h *Handler) queueMessages(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f, p := queryFilter(q)
	if p != nil {
		trackhttp.WriteProblem(w, p)
		return
	}
	limit := 100
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > 1000 {
			trackhttp.WriteProblem(w, trackapi.BadParameter("limit", "limit must be a number from 1 to 1000", ""))
			return
		}
		limit = n
	}
	after := mail.QueueID(q.Get("cursor"))
	if after != "" && !mail.ValidID(string(after)) {
		trackhttp.WriteProblem(w, trackapi.BadParameter("cursor", "not a cursor of this list", "leave it out to begin again"))
		return
	}
	find := h.opts.Queue.List
	if f.State == mail.Relayed.String() {
		find = h.opts.Queue.Kept
	}
	list, err := find(r.Context(), f, after, limit)
	if err != nil {
		fail(w, err)
		return
	}
	answer := trackapi.QueuedMessages{Messages: []trackapi.QueuedMessage{}}
	for _, m := range list {
		row := h.queuedMessage(m)
		h.explain(m, row.Recipients)
		h.explainHold(m, &row)
		answer.Messages = append(answer.Messages, row)
	}
	if len(list) == limit {
		answer.Cursor = string(list[len(list)-1].ID)
	}
	trackhttp.WriteJSON(w, http.StatusOK, answer)
}

// content writes the message as it would leave, trace fields first.
func (h *Handler) content(w http.ResponseWriter, r *http.Request) {
	id := mail.QueueID(r.PathValue("queue_id"))
	rc, err := h.opts.Queue.Content(id)
	if err != nil {
		fail(w, err)
		return
	}
	defer func() { _ = rc.Close() }() // opened for reading
	h.opts.Emitter.Source(event.SourceAdmin).Message(id, "").Emit(event.AdminActed{
		Actor: actor(r), Action: "export", Filter: "queue_id=" + string(id), Affected: 1, Result: "ok", ClientIP: clientIP(r),
	})
	w.Header().Set("Content-Type", "message/rfc822")
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="%s.eml"`, id))
	_, _ = io.Copy(w, rc) // the caller went away
}

// act changes what a filter selects. The queue states the fact.
func (h *Handler) act(w http.ResponseWriter, r *http.Request) {
	var in trackapi.QueueAction
	if !decodeBody(w, r, &in) {
		return
	}
	f, p := actionFilter(in.Filter)
	if p != nil {
		trackhttp.WriteProblem(w, p)
		return
	}
	if !slices.Contains(actions, in.Action) {
		problem(w, http.StatusBadRequest, "Unknown action", in.Action, "action", "one of "+strings.Join(actions, ", "))
		return
	}
	if !in.Until.IsZero() && (in.Action != "hold" || in.Until.Before(time.Now())) {
		trackhttp.WriteProblem(w, trackapi.BadParameter("until", "until is a time to come, and only for hold", ""))
		return
	}
	if in.DSN && in.Action != "remove" {
		trackhttp.WriteProblem(w, trackapi.BadParameter("dsn", "dsn is only for remove; bounce always makes one", ""))
		return
	}
	act := queue.Action{
		Action: in.Action, Filter: f, Actor: actor(r), Client: clientIP(r), Reason: in.Reason, Until: in.Until, Via: in.Via, Report: in.DSN, DryRun: in.DryRun,
	}
	switch {
	case in.Action == "redirect":
		if act.To, p = h.nextHop(in.To, in.Via); p != nil {
			trackhttp.WriteProblem(w, p)
			return
		}
	case in.To != "" || in.Via != "":
		trackhttp.WriteProblem(w, trackapi.BadParameter("to", "to and via are only for redirect", ""))
		return
	}
	lasting := lasts(in.Action, f, h.opts.Queue.Holds())
	do := h.opts.Queue.Act
	if in.Action == "resend" {
		do = h.opts.Queue.Resend
	}
	if h.opts.Acted != nil && !in.DryRun && in.Action == "retry" { // so that what waits for a hop goes while the others are still being changed
		h.opts.Acted()
	}
	done, err := do(r.Context(), act)
	if errors.Is(err, queue.ErrRefused) {
		problem(w, http.StatusBadRequest, "Nothing was changed", err.Error(), "", "")
		return
	}
	if err != nil {
		fail(w, err)
		return
	}
	if h.opts.Acted != nil && !in.DryRun && slices.Contains([]string{"retry", "release", "reroute", "redirect"}, in.Action) {
		h.opts.Acted()
	}
	answer := trackapi.QueueActed{Messages: done.Messages, Bytes: done.Bytes, DryRun: in.DryRun, Lasting: lasting}
	for _, id := range done.IDs {
		answer.IDs = append(answer.IDs, string(id))
	}
	trackhttp.WriteJSON(w, http.StatusOK, answer)
}

func queryFilter(q url.Values) (queue.Filter, *trackapi.Problem) {
	for key := range q {
		if !slices.Contains([]string{"queue_id", "sender", "recipient", "domain", "queue", "connector", "connector_in", "state", "older_than", "limit", "cursor"}, key) {
			return queue.Filter{}, trackapi.BadParameter(key, "unknown parameter", "queue_id, sender, recipient, domain, queue, connector, connector_in, state, older_than, limit, cursor")
		}
	}
	return convertFilter(trackapi.QueueFilter{
		QueueID: q.Get("queue_id"), Sender: q.Get("sender"), Recipient: q.Get("recipient"), Domain: q.Get("domain"),
		Queue: q.Get("queue"), Connector: q.Get("connector"), Receive: q.Get("connector_in"), State: q.Get("state"), OlderThan: q.Get("older_than"),
	})
}

// actionFilter is convertFilter for changes: an empty filter must say that it
// means everything, and the beginning of a queue ID, which can mean everything
// too, is not enough.
func actionFilter(in trackapi.QueueFilter) (queue.Filter, *trackapi.Problem) {
	if in == (trackapi.QueueFilter{}) {
		return queue.Filter{}, trackapi.BadParameter("filter", "an empty filter would select the whole queue", "say so with \"all\": true")
	}
	if in.QueueID != "" && !mail.ValidID(strings.ToUpper(in.QueueID)) {
		return queue.Filter{}, trackapi.BadParameter("queue_id", "not a whole queue ID", "GET /api/v1/queue/messages?queue_id= finds it by its beginning")
	}
	return convertFilter(in)
}

func convertFilter(in trackapi.QueueFilter) (queue.Filter, *trackapi.Problem) {
	f := queue.Filter{
		ID: mail.QueueID(strings.ToUpper(in.QueueID)), Sender: in.Sender, Recipient: in.Recipient, Domain: in.Domain,
		Hop: in.Queue, Connector: in.Connector, Receive: in.Receive, State: in.State, All: in.All,
	}
	if in.OlderThan != "" {
		var d config.Duration
		if err := d.UnmarshalText([]byte(in.OlderThan)); err != nil || d < 0 {
			return f, trackapi.BadParameter("older_than", "not a duration", "such as 90s, 15m, 4h or 2d")
		}
		f.OlderThan = time.Duration(d)
	}
	if in.State != "" && !slices.Contains(states, in.State) {
		return f, trackapi.BadParameter("state", "unknown state", strings.Join(states, ", "))
	}
	return f, nil
}

func (h *Handler) queuedMessage(m *queue.Message) trackapi.QueuedMessage {
	out := trackapi.QueuedMessage{
		QueueID: string(m.ID), UID: m.UID, Time: m.AcceptedAt, Expires: m.ExpiresAt, Age: time.Since(m.AcceptedAt).Seconds(),
		Sender: event.Sender(m.Envelope.Sender), MessageID: m.Header.MessageID, Size: m.Size, Connector: m.Origin.Connector,
		AuthUser: m.Origin.User, State: stateOf(m), Priority: m.Priority.String(),
		HeldBy: m.HeldBy, HeldWhy: m.HeldWhy, HeldUntil: m.HeldUntil, Recipients: []trackapi.QueuedRecipient{},
	}
	if m.Origin.Client.IsValid() {
		out.ClientIP = m.Origin.Client.Addr().String()
	}
	if h.opts.Ends != nil {
		if end := h.opts.Ends(m); !end.IsZero() {
			out.Expires = end
		}
	}
	for i, s := range m.States {
		if s.Disposition.Final() || s.Disposition == mail.Held || m.HeldBy != "" || s.Hop == route.Unroutable {
			s.Due = time.Time{} // there is no next attempt, or none until the release or another routing table
		}
		out.Recipients = append(out.Recipients, trackapi.QueuedRecipient{
			Address: m.Envelope.Recipients[i].Address.String(), State: s.Disposition.String(), Queue: s.Hop.Name, Attempts: s.Attempts,
			Next: s.Due, Reply: s.Last.String(), Class: string(s.LastClass), Host: s.LastHost,
		})
	}
	return out
}

// stateOf is the message's state in one word: that of the recipient that is worst off.
func stateOf(m *queue.Message) string {
	switch {
	case m.Poison != "":
		return "poison"
	case m.HeldBy != "":
		return "held"
	}
	state, open := "queued", false
	for _, s := range m.States {
		open = open || !s.Disposition.Final()
		switch {
		case s.Disposition.Final():
		case s.Hop == route.Unroutable:
			return "unroutable"
		case s.Disposition == mail.Held:
			return "held"
		case s.Disposition == mail.Deferred:
			state = "deferred"
		}
	}
	if !open {
		return mail.Relayed.String() // it is kept
	}
	return state
}
