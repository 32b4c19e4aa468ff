package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"

	"github.com/dgraph-io/badger/v4"
)

// poisonAfter is how often a message may break its worker before it is isolated.
const poisonAfter = 3

func fromMicro(us int64) time.Time { return time.UnixMicro(us).UTC() }

// Claim waits for the next due group of recipients and leases it. Hops take
// turns; within a hop, high priority comes before normal before low, and then
// the one that has been due longest. It fails only when ctx is done, when the
// queue is closed, or when storage has failed (ErrStorage).
//
// A group whose hop is route.Unroutable is due when its lifetime has ended, so
// that the claimant can settle it as expired.
func (q *Queue) Claim(ctx context.Context) (*Lease, error) {
	for {
		switch l, err := q.tryClaim(); {
		case err != nil:
			return nil, err
		case l != nil:
			return l, nil
		}
		select {
		case <-q.due:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-q.closing:
			return nil, ErrClosed
		case <-q.broken:
			return nil, fmt.Errorf("%w: %w", ErrStorage, q.failure())
		}
	}
}

func (q *Queue) tryClaim() (*Lease, error) {
	for {
		if err := q.failure(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrStorage, err)
		}
		select {
		case <-q.closing:
			return nil, ErrClosed
		default:
		}
		if q.guard.critical.Load() { // not even a settlement could be written
			return nil, nil
		}
		now := time.Now()
		q.lookAtClock(now)
		q.mu.Lock()
		got := q.sched.pick(now.UnixMicro())
		g := got.group
		if g == nil {
			q.rearm(now)
			q.mu.Unlock()
			return nil, nil
		}
		e, h := q.sched.message(g), q.sched.hopOf(g)
		l := &Lease{
			Hop: h.hop, Due: fromMicro(min(got.since, now.UnixMicro())), Claimed: now.UTC().Truncate(time.Microsecond),
			queue: q, id: e.id, prio: int(e.prio), group: g, hop: h, number: g.lease, version: e.version, routing: q.routing.Load(), spread: g.spread, probe: got.probe,
		}
		if q.sched.ring != nil {
			q.ring() // there is more: wake another claimant
		}
		accepted := e.accepted
		q.mu.Unlock()

		m, err := l.read()
		if err == nil && l.fill(m) {
			l.Shift = time.Duration(accepted-m.AcceptedAt.UnixMicro()) * time.Microsecond
			q.flight.enter(l)
			return l, nil
		}
		l.Release()
		switch {
		case err == nil, errors.Is(err, ErrNotFound): // settled or removed in between
		case errors.Is(err, ErrClosed):
			return nil, err
		case errors.Is(err, errRecord):
			q.isolate(l.id, err)
		default:
			q.fail(err)
		}
	}
}

// read reads the record that the lease is for.
func (l *Lease) read() (*stored, error) {
	if l.version == 0 { // nothing was changed since it came, or since the start
		if m := l.queue.recent.record(l.id); m != nil {
			return m, nil
		}
	}
	return l.queue.read(l.id)
}

// fill takes from m what the lease is for, and reports whether anything is.
func (l *Lease) fill(m *stored) bool {
	l.stored, l.Message = m, &m.Message
	l.Index = make([]int, 0, len(m.States))
	for i := range m.States {
		if s := &m.States[i]; !s.Disposition.Final() && s.Hop == l.Hop {
			l.Index = append(l.Index, i)
			l.Attempt = max(l.Attempt, s.Attempts+1)
			if l.spread && s.Due.Before(l.Due) { // it was due before we put it off
				l.Due = s.Due
			}
		}
	}
	return len(l.Index) > 0
}

// unclaim ends the lease in memory.
func (l *Lease) unclaim() {
	if l.ended.Swap(true) {
		return
	}
	q := l.queue
	q.flight.leave(l)
	now := time.Now()
	q.mu.Lock()
	l.end(now.UnixMicro())
	q.rearm(now)
	q.mu.Unlock()
}

// end ends the lease in the schedule. q.mu is held.
func (l *Lease) end(now int64) {
	if s := l.queue.sched; l.freed {
		s.settled(l.group, l.hop, l.number, now)
	} else {
		s.done(l.group, l.hop, l.prio, l.number, now)
	}
}

// Free gives back the memory of a lease that has ended, for a message to come: that of
// Message and its States, which nobody may use any more. Strings, recipients and the
// trace stay as they are. Who does not call it leaves the memory to the collector.
func (l *Lease) Free() {
	m := l.stored
	if m == nil || !l.ended.Load() {
		return
	}
	l.stored, l.Message = nil, nil
	m.recycle()
}

// free lets the hop have another lease while this one is settled.
func (l *Lease) free() {
	q := l.queue
	now := time.Now()
	q.mu.Lock()
	if !l.ended.Load() && !l.freed && q.sched.free(l.hop, l.prio, now.UnixMicro()) {
		l.freed = true
		q.rearm(now)
	}
	q.mu.Unlock()
}

// read reads the record of a message that is not finished, as the last commit left
// it that memory may know of.
func (q *Queue) read(id ident) (*stored, error) {
	m, err := q.readRecord(id)
	if err == nil && m.done {
		return nil, ErrNotFound
	}
	return m, err
}

// readRecord reads the record of a message.
func (q *Queue) readRecord(id ident) (*stored, error) {
	var m *stored
	err := q.record(messageKey(id.QueueID()), func(v []byte) (err error) {
		m, err = decodeRecord(v)
		return err
	})
	switch {
	case errors.Is(err, badger.ErrKeyNotFound):
		return nil, ErrNotFound
	case err != nil:
		return nil, fmt.Errorf("read message %s: %w", id.QueueID(), err)
	}
	return m, nil
}

// isolate takes a message whose record cannot be read out of the schedule.
func (q *Queue) isolate(id ident, err error) {
	now := time.Now().UnixMicro()
	q.mu.Lock()
	e := q.sched.find(id)
	first := e != nil && !e.poison
	if first {
		e.poison = true
		q.sched.refreshAll(e, now)
	}
	q.mu.Unlock()
	if first {
		q.opts.Emitter.Message(id.QueueID(), "").Emit(event.MessagePoisoned{Error: clip(err.Error(), maxReply)})
	}
}

// lock takes the message for a change. Its record does not change until unlock.
func (q *Queue) lock(id ident) (unlock func()) {
	s := &q.stripes[stripe(id)]
	s.Lock()
	return s.Unlock
}

func stripe(id ident) byte { return id[15] ^ id[5]<<4 ^ id[6]*31 }

// Open returns the content, without Trace. A content that is not what was
// accepted isolates the message: the error wraps ErrDamaged, and the lease can
// only be released.
func (l *Lease) Open() (io.ReadCloser, error) {
	q := l.queue
	id := l.id
	if buf, n := q.recent.contentOf(id); buf != nil {
		return &bufferReader{buf: buf, rest: buf.b[contentHeader:][:n], is: contentTraits(buf.b)}, nil
	}
	r, err := q.contents.open(id, l.stored.loc, l.stored.Size)
	if !errors.Is(err, ErrDamaged) {
		return r, err
	}
	m, rerr := q.read(id) // it may have been copied forward since it was claimed
	if rerr != nil {
		return nil, rerr
	}
	if r, err = q.contents.open(id, m.loc, m.Size); errors.Is(err, ErrDamaged) {
		return nil, errors.Join(err, q.poison(id, err, true))
	}
	return r, err
}

// Release gives the lease back without an attempt. The group is due as before,
// and if it was to see whether the next hop is back, that is still to be seen.
func (l *Lease) Release() {
	q := l.queue
	q.mu.Lock()
	if l.probe && !l.ended.Load() {
		q.sched.call(l.hop, time.Now().UnixMicro())
	}
	q.mu.Unlock()
	l.unclaim()
}

// ReleaseUntil gives the lease back without an attempt, for a wait that is
// short enough to be forgotten in a crash, such as that for a rate limit.
func (l *Lease) ReleaseUntil(due time.Time) {
	q := l.queue
	q.mu.Lock()
	if g := l.group; g.leased(l.hop, l.number) && !l.ended.Load() {
		g.wait(when{max(g.due, due.UnixMicro()), g.latest.micro()})
		g.spread = false
	}
	q.mu.Unlock()
	l.unclaim()
}

// Park gives the lease back without an attempt, because the next hop cannot be
// reached. Nothing that waits for it is claimed before the hop is back, which the
// [Settlement] of an attempt says, but at its latest: this group at deadline, the
// others when [Options.Latest] said. From probe on one of them is claimed, to see
// whether the hop is back. Like [Lease.ReleaseUntil], it is forgotten in a crash.
func (l *Lease) Park(probe, deadline time.Time) {
	q := l.queue
	q.mu.Lock()
	if !l.ended.Load() {
		q.sched.park(l.group, l.hop, l.number, probe.UnixMicro(), deadline.UnixMicro(), time.Now().UnixMicro())
	}
	q.mu.Unlock()
	l.unclaim()
}

// Probe lets every next hop that cannot be reached be tried at once.
func (q *Queue) Probe() {
	now := time.Now()
	q.mu.Lock()
	q.sched.probe(now.UnixMicro())
	q.rearm(now)
	q.mu.Unlock()
}

// Poison gives the lease back because the message broke its worker. After the
// third time the message is isolated, so that it cannot break the others' work.
func (l *Lease) Poison(cause error) error {
	defer l.unclaim()
	err := l.queue.poison(l.id, cause, false)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// poison counts a break of message id, or isolates it at once.
func (q *Queue) poison(id ident, cause error, atOnce bool) error {
	defer q.lock(id)()
	m, err := q.read(id)
	if err != nil || m.Poison != "" {
		return err
	}
	now := time.Now().UTC()
	m = m.clone()
	m.panics++
	c := &change{}
	if m.panics >= poisonAfter || atOnce {
		m.Poison = clip(cause.Error(), maxReply)
		if m.Poison == "" {
			m.Poison = "unknown"
		}
		emit := q.opts.Emitter.Message(m.ID, m.UID)
		if err := q.state(c, emit, event.MessagePoisoned{Info: infoOf(&m.Message), Error: m.Poison}); err != nil {
			return err
		}
	} else {
		for i := range m.States { // a pause, in case something else was to blame
			if s := &m.States[i]; !s.Disposition.Final() {
				s.Due = later(s.Due, now.Add(time.Duration(m.panics)*time.Minute))
			}
		}
	}
	q.replace(c, id, m)
	return q.submit(c)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// replace adds to c that m is the record of id from now on, or that nothing of
// it is left to do. The caller holds the stripe of id.
func (q *Queue) replace(c *change, id ident, m *stored) {
	key := messageKey(m.ID)
	finished := !m.open()
	keep := false
	if finished {
		var value []byte
		value, keep = q.encodeFinished(m)
		c.set = append(c.set, pair{key: key, value: value})
	} else {
		c.set = append(c.set, pair{key: key, value: encodeRecord(make([]byte, 0, 1024), m)})
	}
	var ws []wait
	if !finished {
		ws, _ = q.waits(m, nil)
	}
	c.after(func() {
		e := q.sched.find(id)
		if e == nil {
			return
		}
		now := time.Now().UnixMicro()
		e.version++
		if finished {
			q.letGo(e, m, keep)
			q.sched.remove(e, now)
			delete(q.until, id)
			return
		}
		e.held, e.poison = m.HeldBy != "", m.Poison != ""
		e.late = e.late || m.excused || allLate(m)
		if m.HeldBy != "" && !m.HeldUntil.IsZero() {
			q.until[id] = m.HeldUntil.UnixMicro()
		} else {
			delete(q.until, id)
		}
		shift := e.shifted(m).Microseconds()
		for i := range ws {
			if ws[i].latest += shift; ws[i].hop == route.Unroutable {
				ws[i].due += shift
			}
		}
		q.regroup(e, ws, now)
	})
}

// regroup brings the groups of e in line with what its record waits for. q.mu is held.
func (q *Queue) regroup(e *entry, ws []wait, now int64) {
	for g, h := range q.sched.groups(e) {
		if !slices.ContainsFunc(ws, func(w wait) bool { return w.hop == h.hop }) {
			q.sched.drop(g, now)
		}
	}
	for _, w := range ws {
		q.sched.set(e, w.hop, w.when, w.tried, now)
	}
}

// Settle makes the outcomes of a lease durable, with their facts and reports,
// and ends the lease. What was removed in the meantime is left out silently. On a
// full disk it waits for room, because the next hop has answered already.
// After an error other than ErrStorage the lease has ended without effect, as
// if released; but a message whose outcomes cannot be written down is isolated.
func (q *Queue) Settle(_ context.Context, l *Lease, s Settlement) error {
	if len(s.Outcomes) != len(l.Index) {
		l.unclaim()
		return fmt.Errorf("settle %s: %d outcomes for %d recipients", l.Message.ID, len(s.Outcomes), len(l.Index))
	}
	for i := range s.Outcomes {
		if d := s.Outcomes[i].Disposition; d != mail.Relayed && d != mail.Deferred && d != mail.Bounced && d != mail.Expired {
			l.unclaim()
			return fmt.Errorf("settle %s: disposition %s is not an outcome", l.Message.ID, d)
		}
	}
	if l.ended.Load() {
		return fmt.Errorf("settle %s: the lease has ended", l.Message.ID)
	}
	defer q.flight.leave(l)
	if s.Reached {
		l.free()
	}
	words := maxReply
	err := q.trySettle(l, &s, words)
	for {
		if errors.Is(err, errTooLarge) && words > 0 {
			words /= 8
		} else if !noRoom(err) || !q.pause(s.Hurry) {
			break
		}
		err = q.trySettle(l, &s, words)
	}
	if errors.Is(err, errTooLarge) { // nor will it fit after the next attempt, and those who have the message would get it again
		err = errors.Join(err, q.poison(l.id, err, true))
	}
	if err != nil {
		l.unclaim()
		return fmt.Errorf("settle %s: %w", l.id.QueueID(), err)
	}
	return nil
}

// trySettle settles, or leaves everything as it was. It keeps so many octets of
// what the next hop said of each recipient: of thousands the words are more than
// one change takes, and what became of them must be written down.
func (q *Queue) trySettle(l *Lease, s *Settlement, words int) error {
	defer q.lock(l.id)()
	m, err := l.current()
	if errors.Is(err, ErrNotFound) {
		l.unclaim()
		return nil
	}
	if err != nil {
		return err
	}
	if words < maxReply {
		m.brief, s = words == 0, s.brief(words)
		for i := range m.States {
			m.States[i].shorten(words)
		}
	}
	c := newChange()
	if err = q.settle(c, l, m, s); err == nil {
		for _, p := range c.set {
			if words > 0 && int64(len(p.value)) > q.recordBytes {
				err = fmt.Errorf("%w: record of %d octets", errTooLarge, len(p.value))
			}
		}
	}
	if err == nil {
		q.endWith(c, l, s)
		err = q.submit(c)
	}
	if err != nil {
		for _, seg := range c.segs {
			q.contents.abort(seg)
		}
		return err
	}
	l.finished = !m.open()
	m.recycle() // what was to happen with the commit has, and facts hold no part of it
	return nil
}

// brief is s with so many octets of the next hop's words, and of what they mean.
func (s *Settlement) brief(words int) *Settlement {
	b := *s
	b.Outcomes = slices.Clone(s.Outcomes)
	for i := range b.Outcomes {
		o := &b.Outcomes[i]
		o.Reply.Text, o.Explanation = clip(o.Reply.Text, words), clip(o.Explanation, words)
	}
	return &b
}

// shorten keeps so many octets of the words of the last attempt.
func (s *State) shorten(words int) {
	s.Last.Text = clip(s.Last.Text, words)
	if words == 0 {
		s.LastHost, s.LastMeans = "", ""
	}
}

// current returns the record as it is now, to be changed, and to be recycled by who
// knows that nobody uses it any more. The stripe is held.
func (l *Lease) current() (*stored, error) {
	q := l.queue
	q.mu.Lock()
	fresh := l.group.leased(l.hop, l.number) && q.sched.message(l.group).version == l.version
	q.mu.Unlock()
	if fresh {
		return l.stored.copied(), nil
	}
	m, err := q.read(l.id)
	if err != nil {
		return nil, err
	}
	if !m.AcceptedAt.Equal(l.Message.AcceptedAt) { // it was removed, and came again
		return nil, ErrNotFound
	}
	return m.copied(), nil
}

// endWith ends the lease together with the change. The group is freed before
// the record's new waits are set.
func (q *Queue) endWith(c *change, l *Lease, s *Settlement) {
	back := s.Reached || s.Elsewhere // or there is another way for all that is parked
	down := s.DownUntil
	// The record comes first: a group that has nothing left to do must not look due in between.
	c.after(func() {
		now := time.Now().UnixMicro()
		switch {
		case back:
			q.sched.back(l.hop, now)
		case !down.IsZero():
			q.sched.lost(l.hop, down.UnixMicro(), now)
		}
		if !l.ended.Swap(true) {
			l.end(now)
		}
	})
}

// settle fills c with the outcomes s of l on m.
func (q *Queue) settle(c *change, l *Lease, m *stored, s *Settlement) error {
	now := time.Now().UTC().Truncate(time.Microsecond)
	emit := q.opts.Emitter.Message(m.ID, m.UID)
	index := make([]int, 0, len(l.Index)) // into l.Index: those that are still there
	for k, i := range l.Index {
		if i < len(m.States) && !m.States[i].Disposition.Final() {
			index = append(index, k)
		}
	}
	info := infoOf(&m.Message)
	var told []event.Recipient // of index, where a fact has them already
	if len(index) > 0 && !s.NoAttempt {
		m.panics = 0 // it broke nothing this time
		ev := attemptFinished(l, s, index, info)
		told = ev.Recipients
		if m.brief {
			for i := range ev.Recipients {
				ev.Recipients[i].Original = "" // it is in the fact that the message was queued
			}
		}
		if err := q.state(c, emit, ev); err != nil {
			return err
		}
	}
	hop := s.Attempt.Hop
	if hop.Queue == "" {
		hop.Queue, hop.ConnectorOut = l.Hop.Name, l.Hop.Connector
	}
	next := s.Next
	if next.IsZero() {
		next = now.Add(time.Minute)
	}
	if end := later(m.ExpiresAt.Add(l.Shift), s.Expires); next.After(end) { // so that the claimant can tell its end in time
		next = later(end, now)
	}
	var moved []int
	for n, k := range index {
		i, o := l.Index[k], &s.Outcomes[k]
		st := &m.States[i]
		st.account(l)
		if !s.NoAttempt {
			st.Attempts++
			st.LastAt = now
			st.LastHost = clip(s.Attempt.RemoteName, 255)
			if m.brief {
				st.LastHost = ""
			}
		}
		st.note(o)
		if o.Disposition == mail.Deferred {
			st.Disposition, st.Due, st.since = mail.Deferred, next, now
			st.DelaySent = st.DelaySent || s.DelaySent
			moved = append(moved, i)
			continue
		}
		final := event.Final{Info: info, Hop: hop, Answer: answerOf(o)}
		if told != nil {
			final.Recipient = told[n].Address
		}
		if err := q.stateFinal(c, emit, m, i, o.Disposition, final, now); err != nil {
			return err
		}
	}
	if len(moved) > 0 && (s.Elsewhere || q.routing.Load() != l.routing) {
		if err := q.rerouteInto(c, emit, m, moved, now); err != nil {
			return err
		}
	}
	if err := q.stateReports(c, emit, m, s.Reports, now); err != nil {
		return err
	}
	if !m.open() {
		if err := q.state(c, emit, retired(m, info, now)); err != nil {
			return err
		}
	}
	q.replace(c, l.id, m)
	q.noteError(c, l, s, index, now)
	return nil
}

// account adds the wait that ended with the lease to the recipient's totals.
func (s *State) account(l *Lease) {
	if wait := l.Claimed.Sub(s.since); !s.since.IsZero() && wait > 0 {
		s.queued += wait
		if onPurpose := l.Due.Sub(s.since); onPurpose > 0 {
			s.backoff += min(onPurpose, wait)
		}
	}
}

// stateFinal gives recipient i its final disposition and the one fact that says so.
func (q *Queue) stateFinal(c *change, emit event.Emitter, m *stored, i int, d mail.Disposition, about event.Final, now time.Time) error {
	if err := q.stateLate(c, emit, m, i, about.Hop, now); err != nil {
		return err
	}
	m.States[i].Disposition = d
	f := finalOf(m, i, about, now)
	switch d {
	case mail.Relayed:
		return q.state(c, emit, event.RecipientRelayed{Final: f})
	case mail.Expired:
		return q.state(c, emit, event.RecipientExpired{Final: f})
	default:
		return q.state(c, emit, event.RecipientBounced{Final: f})
	}
}

// stateReports queues the DSNs of m and says so. Those in files of their own are written
// before; when the change fails, the caller aborts c.segs.
func (q *Queue) stateReports(c *change, emit event.Emitter, m *stored, reports []Report, now time.Time) error {
	emit = emit.Source(event.SourceDSN)
	for i := range reports {
		r := &reports[i]
		fact := r.Fact
		if fact.MailFrom == "" {
			fact.Info = infoOf(&m.Message)
		}
		if len(r.Draft.Envelope.Recipients) == 0 { // suppressed
			if err := q.state(c, emit, fact); err != nil {
				return err
			}
			continue
		}
		d := r.Draft
		if d.Parent == "" {
			d.Parent = m.ID
		}
		id, err := q.identify(&d, now)
		if err != nil {
			return fmt.Errorf("report: %w", err)
		}
		fact.DSN = d.ID
		if err := q.state(c, emit, fact); err != nil {
			return err
		}
		ct, err := q.takeContent(id, r.Content)
		if err != nil {
			return q.writeFailed(err)
		}
		had := len(c.segs)
		if err := q.enqueue(c, id, d, int64(len(r.Content)), ct, now); err != nil {
			if ct.seg != nil && len(c.segs) == had { // it was not brought
				q.contents.abort(ct.seg)
			}
			return err
		}
	}
	return nil
}

// noteError lets the hop remember what its last attempt was told.
func (q *Queue) noteError(c *change, l *Lease, s *Settlement, index []int, now time.Time) {
	if s.NoAttempt && !s.Waits || len(index) == 0 {
		return
	}
	worst := &s.Outcomes[index[0]]
	for _, k := range index {
		if severity(s.Outcomes[k].Disposition) > severity(worst.Disposition) {
			worst = &s.Outcomes[k]
		}
	}
	if !s.NoAttempt {
		c.after(func() { l.hop.lastAt = now })
	}
	if worst.Disposition != mail.Relayed { // the last error stays until the next
		failed := failure{clip(worst.Reply.String(), maxReply), worst.Class, worst.ClassRule, clip(worst.Explanation, maxReply)}
		c.after(func() { l.hop.last = failed })
	}
}

// rerouteInto asks the router again about recipients index of m, and moves and
// states those whose hop changed.
func (q *Queue) rerouteInto(c *change, emit event.Emitter, m *stored, index []int, now time.Time) error {
	var ds []route.Decision
	var moved []event.Recipient
	for _, i := range index {
		d := q.routeOf(&m.Message, i)
		if s := &m.States[i]; d.Hop != s.Hop && !q.staysHeld(s.Hop, d.Hop) {
			s.Hop, s.Due = d.Hop, now // another way may be open at once
			ds, moved = append(ds, d), append(moved, recipientOf(&m.Message, i))
		}
	}
	if len(ds) == 0 {
		return nil
	}
	return q.stateRoutes(c, emit, infoOf(&m.Message), moved, ds)
}
