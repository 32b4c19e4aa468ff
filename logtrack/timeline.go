package logtrack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// ErrNotFound says that the store has no fact about a message.
var ErrNotFound = errors.New("no such message")

// Levels of timeline entries.
const (
	levelInfo    = "info"
	levelWarning = "warning"
	levelError   = "error"
)

// lookup is a snapshot of everything that may tell of one message.
func (s *Store) lookup(id string) (*snapshot, position, error) {
	if up := strings.ToUpper(id); mail.ValidID(up) {
		id = up
	}
	acc := acceptMS(id)
	sn, err := s.snapshot(func(m *meta) bool { return m.HasMsg && m.MinAcc <= acc && acc <= m.MaxAcc })
	return sn, position{acc, id}, err
}

// Message is one message with its timeline: every fact about it, in a sentence
// each. It returns ErrNotFound when there is none. The queue ID may be that of
// another server, whose log was imported; the newest such message is meant.
func (s *Store) Message(ctx context.Context, queueID string) (*trackapi.Timeline, error) {
	tl, err := s.message(ctx, queueID)
	if errors.Is(err, ErrNotFound) && len(queueID) < 26 {
		list, lerr := s.Messages(ctx, trackapi.Query{ExternalID: queueID, Limit: 1})
		if lerr == nil && len(list.Messages) == 1 {
			return s.message(ctx, list.Messages[0].QueueID)
		}
	}
	return tl, err
}

func (s *Store) message(ctx context.Context, queueID string) (*trackapi.Timeline, error) {
	sn, pos, err := s.lookup(queueID)
	if err != nil {
		return nil, err
	}
	defer sn.release()
	defer s.observe("timeline", sn)
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	fo, err := sn.one(ctx, pos)
	if err != nil {
		return nil, err
	}
	out := &trackapi.Timeline{Message: fo.message(), Timeline: []trackapi.Entry{}}
	out.Message.Recipients = fo.understood()
	var previous time.Time // when the last attempt ended, or the message was accepted
	for i := range fo.recs {
		r := &fo.recs[i]
		raw, err := r.MarshalJSON()
		if err != nil {
			return nil, err
		}
		e := trackapi.Entry{Time: r.Time, Event: event.Name(r.Event), Record: raw}
		e.Summary, e.Level = describe(r)
		e.Stages = stagesOf(r, previous)
		if name := e.Event; name == "message_queued" || name == "attempt_finished" {
			previous = r.Time
		}
		out.Timeline = append(out.Timeline, e)
		addSections(out, r, e.Stages)
	}
	out.Related, err = sn.related(ctx, fo)
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (sn *snapshot) one(ctx context.Context, pos position) (*fold, error) {
	folds, err := sn.fold(ctx, []position{pos}, readAll)
	if err != nil {
		return nil, err
	}
	fo := folds[pos.id]
	if fo == nil {
		return nil, ErrNotFound
	}
	return fo, nil
}

// related lists the messages that belong to one: its reports, its parent, its
// children, and others with the same Message-ID.
func (sn *snapshot) related(ctx context.Context, fo *fold) ([]trackapi.Related, error) {
	var list []trackapi.Related
	seen := map[string]bool{fo.msg.QueueID: true, "": true}
	add := func(id, kind string) {
		if !seen[id] && len(list) < 100 {
			seen[id] = true
			list = append(list, trackapi.Related{QueueID: id, Kind: kind})
		}
	}
	for i := range fo.recs {
		if ev, ok := fo.recs[i].Event.(event.DSNQueued); ok {
			add(string(ev.DSN), "dsn")
		}
	}
	add(fo.msg.Parent, "parent")
	var children, same []trackapi.Related
	look := func(field string, post byte, value string, found func(r *event.Record)) error {
		if value == "" {
			return nil
		}
		key := value
		if post == postMessageID {
			key = trimID(value)
		}
		p := &pred{term: trackapi.Term{Field: field}, field: fields[field], post: post, keys: []string{key}}
		p.text = func(s string) bool { return s == value }
		q := &pred{term: trackapi.Term{Field: "event"}, field: fields["event"], fact: func(name string) bool { return name == "message_queued" }}
		return sn.allFacts(ctx, []*pred{p, q}, time.UnixMicro(-1<<62), time.UnixMicro(1<<62), found)
	}
	err := look("parent", postParent, fo.msg.QueueID, func(r *event.Record) {
		kind := "split"
		switch ev, ok := r.Event.(event.MessageQueued); {
		case ok && ev.MailFrom == event.NullSender && fo.msg.Sender != event.NullSender:
			kind = "dsn"
		case r.Session == "" && r.Source != event.SourceImport: // nobody handed it in
			kind = "resend"
		}
		children = append(children, trackapi.Related{QueueID: string(r.Message), Kind: kind})
	})
	if err == nil {
		err = look("message_id", postMessageID, fo.msg.MessageID, func(r *event.Record) {
			same = append(same, trackapi.Related{QueueID: string(r.Message), Kind: "same_message_id"})
		})
	}
	for _, more := range [][]trackapi.Related{children, same} {
		slices.SortFunc(more, func(a, b trackapi.Related) int { return cmp.Compare(a.QueueID, b.QueueID) })
		for _, r := range more {
			add(r.QueueID, r.Kind)
		}
	}
	return list, err
}

// stagesOf turns a fact's durations into stretches of time. previous is the end
// of what the message waited behind.
func stagesOf(r *event.Record, previous time.Time) []trackapi.Stage {
	var list []trackapi.Stage
	switch ev := r.Event.(type) { //nolint:gochecksumtype // the other facts have no stages
	case event.MessageQueued:
		accept := r.Time.Add(-time.Duration(ev.TAccept))
		list = stage(list, "receive", accept.Add(-time.Duration(ev.TReceive)), ev.TReceive, 0)
		list = stage(list, "accept", accept, ev.TAccept, 0)
	case event.AttemptFinished:
		parts := []struct {
			name string
			took event.Seconds
		}{
			{"dns", ev.TDNS},
			{"connect", ev.TConnect},
			{"banner", ev.TBanner},
			{"tls", ev.TTLS},
			{"auth", ev.TAuth},
			{"envelope", ev.TEnvelope},
			{"data", ev.TData},
			{"reply", ev.TReply},
		}
		begun := r.Time
		for _, p := range parts {
			begun = begun.Add(-time.Duration(p.took))
		}
		due := begun.Add(-time.Duration(ev.TSched))
		// A moment before the first attempt is that of the hand-over, nobody's intention.
		if wait := event.Since(previous, due); wait > 0 && (ev.Attempt > 1 || wait >= event.Secs(time.Second)) {
			list = stage(list, "backoff", previous, wait, ev.Attempt)
		}
		list = stage(list, "sched", due, ev.TSched, ev.Attempt)
		for _, p := range parts {
			list = stage(list, p.name, begun, p.took, ev.Attempt)
			begun = begun.Add(time.Duration(p.took))
		}
	}
	return list
}

func stage(list []trackapi.Stage, name string, start time.Time, took event.Seconds, attempt int) []trackapi.Stage {
	if took <= 0 {
		return list
	}
	return append(list, trackapi.Stage{Name: name, Start: start.UTC(), Seconds: took.Float(), Attempt: attempt})
}

func describeAttempt(r *event.Record, ev *event.AttemptFinished) (summary, level string) {
	if mixed := describeMixed(r, ev); mixed != "" {
		return mixed, map[bool]string{true: levelError, false: levelWarning}[ev.Disposition == mail.Bounced]
	}
	switch ev.Disposition { //nolint:exhaustive // the rest reads the same
	case mail.Relayed:
		summary = fmt.Sprintf("Relayed %s to %s in %s: %s", recipients(ev.Recipients), where(ev.Hop), span(sum(ev.Stages)), said(ev.Answer))
		if ev.Converted != "" { // RFC 6152 section 3
			summary += "; content was encoded for it (" + ev.Converted + ")"
		}
		return summary, levelInfo
	case mail.Deferred:
		summary = fmt.Sprintf("Deferred by %s: %s%s", where(ev.Hop), said(ev.Answer), meaning(ev.Answer))
		if !ev.NextAttempt.IsZero() {
			summary += "; next attempt in " + span(event.Since(r.Time, ev.NextAttempt))
		}
		return summary, levelWarning
	case mail.Bounced:
		return fmt.Sprintf("Refused for good by %s: %s%s", where(ev.Hop), said(ev.Answer), meaning(ev.Answer)), levelError
	}
	return fmt.Sprintf("Attempt %d at %s ended %s: %s", ev.Attempt, where(ev.Hop), ev.Disposition, said(ev.Answer)), levelWarning
}

// describeMixed says what became of each recipient of an attempt that did not
// end the same way for all of them, the worst off first. It is empty for others.
func describeMixed(r *event.Record, ev *event.AttemptFinished) string {
	by := map[mail.Disposition][]event.Recipient{}
	for _, rc := range ev.Recipients {
		if rc.Disposition == 0 {
			rc.Disposition = ev.Disposition
		}
		by[rc.Disposition] = append(by[rc.Disposition], rc)
	}
	if len(by) < 2 {
		return ""
	}
	var parts []string
	for _, d := range worst {
		list := by[d]
		if len(list) == 0 {
			continue
		}
		first := event.Answer{Code: list[0].Code, Enhanced: list[0].Enhanced, Reply: list[0].Reply}
		if d == ev.Disposition { // the answer of the attempt is that of one of these
			first = ev.Answer
		}
		switch who, why := recipients(list), said(first)+meaning(first); d { //nolint:exhaustive // the rest reads the same
		case mail.Relayed:
			parts = append(parts, "took "+who+": "+why)
		case mail.Deferred:
			if !ev.NextAttempt.IsZero() {
				why += ", next attempt in " + span(event.Since(r.Time, ev.NextAttempt))
			}
			parts = append(parts, "deferred "+who+": "+why)
		case mail.Bounced:
			parts = append(parts, "refused "+who+" for good: "+why)
		default:
			parts = append(parts, fmt.Sprintf("ended %s %s: %s", d, who, why))
		}
	}
	return where(ev.Hop) + " " + strings.Join(parts, "; ")
}

func sum(s event.Stages) event.Seconds {
	return s.TDNS + s.TConnect + s.TBanner + s.TTLS + s.TAuth + s.TEnvelope + s.TData + s.TReply
}

func totals(ev *event.MessageRetired) string {
	var parts []string
	for _, p := range []struct {
		n    int
		word string
	}{{ev.Relayed, "relayed"}, {ev.Bounced, "bounced"}, {ev.Expired, "expired"}, {ev.Dropped, "dropped"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.word))
		}
	}
	return or(strings.Join(parts, ", "), "nothing left")
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func because(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}

func where(h event.Hop) string {
	if host := hostOf(h.RemoteName, h.RemoteIP); host != "" {
		return host
	}
	return or(h.Queue, "no host")
}

func said(a event.Answer) string {
	return or(mail.Reply{Code: a.Code, Enhanced: a.Enhanced, Text: a.Reply}.String(), "no answer")
}

func recipients(list []event.Recipient) string {
	switch len(list) {
	case 0:
		return "nobody"
	case 1:
		return list[0].Address
	case 2:
		return list[0].Address + " and " + list[1].Address
	}
	return fmt.Sprintf("%s and %d others", list[0].Address, len(list)-1)
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func octets(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d octets", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// span writes a duration as people say it: 340 ms, 12 s, 5 m, 2 h 30 m.
func span(s event.Seconds) string {
	d := time.Duration(s)
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + " s"
	}
	d = d.Round(time.Second)
	var parts []string
	for _, u := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		if n := d / u.size; n > 0 && len(parts) < 2 {
			parts = append(parts, fmt.Sprintf("%d %s", n, u.name))
			d -= n * u.size
		} else if len(parts) > 0 {
			break
		}
	}
	return strings.Join(parts, " ")
}
