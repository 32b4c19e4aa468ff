package queue

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"
)

const (
	batchMessages = 128                    // of one change by the queue itself or an operator
	recheckEvery  = 250 * time.Millisecond // of hops at their capacity, which may have grown
	reapAfter     = 3 * time.Minute        // an empty hop is forgotten
)

// Run does what time brings: it watches the disk, confirms facts, marks late
// messages, ends holds and reclaims segments, until ctx is done. Without Run
// the queue takes and gives messages, but does not look after itself.
func (q *Queue) Run(ctx context.Context) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	for _, task := range []struct {
		every time.Duration
		also  <-chan struct{} // does it at once
		do    func(context.Context) error
	}{
		{q.opts.tune.tick, nil, q.watch},
		{q.opts.tune.tick, q.outbox.many, func(context.Context) error { return q.confirm() }},
		{q.opts.tune.tick, nil, q.markLate},
		{q.opts.tune.tick, nil, q.endHolds},
		{q.opts.tune.tick, nil, q.forgetKept},
		{q.opts.tune.tick, nil, q.reclaim},
		{q.opts.tune.tick, q.contents.ripe, func(context.Context) error { return q.removeDead() }}, // before another file is made
	} {
		tasks.Go(func() { q.repeat(ctx, task.every, task.also, task.do) })
	}
	tasks.Go(func() { q.keepWatch(ctx) })
	recheck := time.NewTicker(recheckEvery)
	defer recheck.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-q.closing:
			return nil
		case <-recheck.C:
			now := time.Now()
			q.mu.Lock()
			if len(q.sched.capped) > 0 {
				q.sched.recheck(now.UnixMicro())
				q.rearm(now)
			}
			q.mu.Unlock()
		}
	}
}

// repeat does a task until ctx is done. A task that fails is told about when
// its error changes, and tried again at its next time.
func (q *Queue) repeat(ctx context.Context, every time.Duration, also <-chan struct{}, do func(context.Context) error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.closing:
			return
		case <-q.broken:
			return
		case <-tick.C:
		case <-also:
		}
		err := do(ctx)
		text := ""
		if err != nil && ctx.Err() == nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrStorage) {
			if text = err.Error(); text != last {
				q.remark("queue housekeeping", text)
			}
		}
		last = text
	}
}

// watch lets time pass for the gauges, and forgets hops that nothing is for.
func (q *Queue) watch(context.Context) error {
	now := time.Now()
	q.lookAtClock(now)
	q.recent.sweep(now)
	q.mu.Lock()
	q.sched.reap(now, reapAfter)
	q.sched.advance(now.UnixMicro())
	q.mu.Unlock()
	q.unload()
	return nil
}

// alter changes the messages ids in batches: f gets each record that is still
// there, as a copy, adds its facts to c, and says whether it changed the
// record. It ends at the first error.
func (q *Queue) alter(ctx context.Context, ids []ident, f func(c *change, emit event.Emitter, m *stored) (bool, error)) error {
	for part := range slices.Chunk(ids, batchMessages) {
		for len(part) > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := q.alterSome(part, f)
			if err != nil {
				return err
			}
			part = part[n:]
		}
	}
	return nil
}

// alterSome changes as many of ids as one change is to have, and returns how
// many those were.
func (q *Queue) alterSome(ids []ident, f func(c *change, emit event.Emitter, m *stored) (bool, error)) (n int, err error) {
	var wanted [256]bool
	for _, id := range ids {
		wanted[stripe(id)] = true
	}
	for i := range wanted { // always in this order, so that no two wait for each other
		if wanted[i] {
			q.stripes[i].Lock()
			defer q.stripes[i].Unlock()
		}
	}
	q.freeze(ids, true)
	defer q.freeze(ids, false)
	c := &change{}
	var segs []*segment
	for n < len(ids) && (n == 0 || c.size() < q.batchBytes/4) {
		id := ids[n]
		n++
		m, err := q.read(id)
		if errors.Is(err, ErrNotFound) || errors.Is(err, errRecord) {
			continue
		}
		if err != nil {
			return n, err
		}
		m = m.clone()
		had := len(c.segs)
		changed, err := f(c, q.opts.Emitter.Message(m.ID, m.UID), m)
		segs = append(segs, c.segs[had:]...)
		if err != nil {
			for _, s := range segs {
				q.contents.abort(s)
			}
			return n, err
		}
		if changed {
			q.replace(c, id, m)
		}
	}
	if len(c.apply) == 0 {
		return n, nil
	}
	if err := q.submit(c); err != nil {
		for _, s := range segs {
			q.contents.abort(s)
		}
		return n, err
	}
	return n, nil
}

// freeze keeps messages from being claimed while their records are changed,
// because a lease and a change of hop must not cross; or ends that.
func (q *Queue) freeze(ids []ident, frozen bool) {
	now := time.Now()
	q.mu.Lock()
	for _, id := range ids {
		if e := q.sched.find(id); e != nil {
			q.sched.freeze(e, frozen, now.UnixMicro())
		}
	}
	if !frozen {
		q.rearm(now)
	}
	q.mu.Unlock()
}

// markLate says which recipients' hand-over target has passed.
func (q *Queue) markLate(ctx context.Context) error {
	var targets [priorities]int64
	for p := range targets {
		targets[p] = q.target(mail.Priority(1 - p)).Microseconds()
	}
	for range lateRounds {
		if ctx.Err() != nil {
			return nil
		}
		now := time.Now()
		var ids []ident
		q.mu.Lock()
		late := q.sched.overdue(now.UnixMicro(), targets, 1024)
		for _, e := range late {
			if q.keptBack(e) {
				e.late = true // on purpose: it does not count
				continue
			}
			ids = append(ids, e.id)
		}
		q.mu.Unlock()
		if len(late) == 0 {
			return nil
		}
		err := q.alter(ctx, ids, func(c *change, emit event.Emitter, m *stored) (bool, error) {
			before := len(c.facts)
			for i := range m.States {
				if !m.States[i].Disposition.Final() {
					if err := q.stateLate(c, emit, m, i, hopOf(m.States[i].Hop), now); err != nil {
						return false, err
					}
				}
			}
			return len(c.facts) > before, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// lateRounds bounds how many messages are marked late at a tick, in thousands:
// when a million are late at once, the mail that comes goes before.
const lateRounds = 2

// keptBack reports whether all of e waits for an operator. q.mu is held.
func (q *Queue) keptBack(e *entry) bool {
	for _, h := range q.sched.groups(e) {
		if !e.held && h.held == nil {
			return false
		}
	}
	return true
}

// reclaim removes the files that nothing refers to, with the keys of the
// messages that were in them, and frees those of which little is needed.
func (q *Queue) reclaim(ctx context.Context) error {
	if err := q.removeDead(); err != nil {
		return err
	}
	bytes, _ := q.contents.usage()
	if s := q.contents.sparse(); s != nil && bytes > 2*q.opts.tune.segment {
		if err := q.copyForward(ctx, s); err != nil {
			return err
		}
		return q.removeDead()
	}
	return nil
}

func (q *Queue) removeDead() error {
	ids, err := q.contents.sweep()
	// The files are gone; a key that is left behind by an error goes at the next start.
	for part := range slices.Chunk(ids, 1000) {
		keys, kerr := q.inDatabase(part)
		if kerr != nil {
			return kerr
		}
		if len(keys) == 0 {
			continue
		}
		if serr := q.submit(&change{del: keys}); serr != nil {
			return serr
		}
	}
	return err
}

// copyForward moves what is still needed of s into the active segment.
func (q *Queue) copyForward(ctx context.Context, s *segment) error {
	var live []ident
	q.mu.Lock()
	for _, id := range q.contents.stragglers(s) {
		if e := q.sched.find(id); e != nil && e.segment == s.seq || q.keptIn(id, s) {
			live = append(live, id)
		}
	}
	q.mu.Unlock()
	for _, id := range live {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := q.moveContent(id, s); err != nil {
			return err
		}
	}
	return nil
}

func (q *Queue) moveContent(id ident, from *segment) error {
	defer q.lock(id)()
	m, err := q.readAny(id)
	if errors.Is(err, ErrNotFound) || err == nil && m.loc.seq != from.seq {
		return nil
	}
	if err != nil {
		return err
	}
	r, err := q.contents.open(id, m.loc, m.Size)
	if errors.Is(err, ErrDamaged) {
		// It stays where it is, and is isolated when somebody asks for it.
		q.contents.pin(from)
		return nil
	}
	if err != nil {
		return err
	}
	var is traits
	if r, ok := r.(interface{ SevenBit() bool }); ok {
		is = traitsOf(r.SevenBit())
	}
	rec := pages(contentHeader + int(m.Size))
	_, err = io.ReadFull(r, rec[contentHeader:])
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	ct := newContent(id, rec, is)
	m = m.clone()
	c := &change{}
	c.bring(&ct)
	value := encodeRecord
	if m.kept {
		value = encodeKept
	}
	c.set = []pair{{key: messageKey(m.ID), value: value(nil, m)}}
	c.after(func() {
		to := ct.seg
		q.contents.commit(to, id, m.Size)
		q.contents.forget(from, id)
		e, k := q.sched.find(id), q.kept.index[id]
		switch {
		case e != nil:
			e.segment = to.seq
			e.version++
		case k != nil:
			k.seg = to
		default: // a kept one that was let go meanwhile
			q.contents.release(to, m.Size)
			return
		}
		q.contents.release(from, m.Size)
	})
	return q.submit(c)
}

// Reroute asks the router again about every recipient that waits, after a new
// routing table. Those whose hop changed move and are due at once; those that
// are leased are asked about when their lease ends. It returns when all is done
// or the queue has ended.
func (q *Queue) Reroute() {
	q.routing.Add(1)
	q.mu.Lock()
	ids := make([]ident, 0, q.sched.messages)
	for e := range q.sched.all() {
		ids = append(ids, e.id)
	}
	q.mu.Unlock()
	if err := q.rerouteAll(context.Background(), ids); err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrStorage) {
		q.remark("reroute", err.Error())
	}
}

// misrouted takes care of a message that was committed while the table changed. q.mu is held.
func (q *Queue) misrouted(id ident) { q.strays = append(q.strays, id) }

// rerouteAll asks the router about the messages ids and about the strays.
func (q *Queue) rerouteAll(ctx context.Context, ids []ident) error {
	for {
		if err := q.alter(ctx, ids, q.rerouteOne); err != nil {
			return err
		}
		q.mu.Lock()
		ids, q.strays = q.strays, nil
		q.mu.Unlock()
		if len(ids) == 0 {
			return nil
		}
	}
}

func (q *Queue) rerouteOne(c *change, emit event.Emitter, m *stored) (bool, error) {
	leased := q.leasedHops(m.ID)
	var index []int
	for i := range m.States {
		if s := &m.States[i]; !s.Disposition.Final() && !slices.Contains(leased, s.Hop) {
			index = append(index, i)
		}
	}
	before := len(c.facts)
	err := q.rerouteInto(c, emit, m, index, time.Now().UTC())
	changed := len(c.facts) > before
	if err == nil && !changed {
		q.reconsider(m)
	}
	return changed, err
}

// reconsider asks again when m must be claimed although its hops cannot be reached:
// what that follows from may have changed with the routing table.
func (q *Queue) reconsider(m *stored) {
	id, _ := parseIdent(m.ID)
	ws, _ := q.waits(m, nil)
	now := time.Now().UnixMicro()
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.sched.find(id)
	if e == nil {
		return
	}
	for _, w := range ws {
		if g := q.sched.group(e, q.sched.hops[w.hop]); g != nil {
			q.sched.limit(g, w.latest+e.shifted(m).Microseconds(), now)
		}
	}
}

func (q *Queue) leasedHops(id mail.QueueID) []route.Hop {
	at, _ := parseIdent(id)
	var hops []route.Hop
	q.mu.Lock()
	if e := q.sched.find(at); e != nil {
		for g, h := range q.sched.groups(e) {
			if g.lease != 0 {
				hops = append(hops, h.hop)
			}
		}
	}
	q.mu.Unlock()
	return hops
}
