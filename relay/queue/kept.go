package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"
)

// Messages that were relayed are kept for a while where Options.KeepRelayed says
// so: the partner's server lost it, please send it again. Their records and
// contents stay where they are; memory has a line for each, in the order in which
// they were finished. They are the first to go when the disk gets short.

// kept is a message that is finished, and that can be sent again.
type kept struct {
	id    ident
	seg   *segment
	size  int64
	until int64 // microseconds since 1970
}

// keptList is what memory holds of them, the oldest first.
type keptList struct {
	list  []*kept
	index map[ident]*kept
	bytes int64
}

func (l *keptList) add(k *kept) {
	if l.index == nil {
		l.index = map[ident]*kept{}
	}
	l.list = append(l.list, k)
	l.index[k.id] = k
	l.bytes += k.size
}

// takeOldest removes the oldest.
func (l *keptList) takeOldest() *kept {
	k := l.list[0]
	l.list[0] = nil
	l.list = l.list[1:]
	if len(l.list) == 0 {
		l.list = nil
	}
	delete(l.index, k.id)
	l.bytes -= k.size
	return k
}

// keeps reports whether m, of which nothing is left to do, is worth keeping.
func (q *Queue) keeps(m *stored) bool {
	if q.opts.KeepRelayed <= 0 || m.brief || q.guard.free.Load() < 2*q.guard.min {
		return false
	}
	return slices.ContainsFunc(m.States, func(s State) bool { return s.Disposition == mail.Relayed })
}

// encodeFinished is the record of m, of which nothing is left to do, and whether
// the message is kept.
func (q *Queue) encodeFinished(m *stored) (value []byte, keep bool) {
	if !q.keeps(m) {
		return encodeDone(nil, m.ID, m.loc), false
	}
	m.finished = time.Now().UTC().Truncate(time.Microsecond)
	return encodeKept(make([]byte, 0, 1024), m), true
}

// letGo ends what memory holds of a finished message. q.mu is held.
func (q *Queue) letGo(e *entry, m *stored, keep bool) {
	seg := q.contents.find(e.segment)
	if !keep {
		q.contents.release(seg, e.size)
		return
	}
	q.kept.add(&kept{id: e.id, seg: seg, size: e.size, until: m.finished.Add(q.opts.KeepRelayed).UnixMicro()})
}

// restoreKept takes a kept message that was found at start, unless its time is
// over. The caller counts its content.
func (q *Queue) restoreKept(f *scanned, seg *segment, now int64) bool {
	until := f.finished.Add(q.opts.KeepRelayed).UnixMicro()
	if q.opts.KeepRelayed <= 0 || until <= now || f.loc.off+contentHeader+f.size > seg.used {
		return false
	}
	q.kept.add(&kept{id: f.id, seg: seg, size: f.size, until: until})
	return true
}

// sortKept puts what was found at start into its order.
func (q *Queue) sortKept() {
	slices.SortStableFunc(q.kept.list, func(a, b *kept) int {
		switch {
		case a.until < b.until:
			return -1
		case a.until > b.until:
			return 1
		}
		return 0
	})
}

// forgetKept lets go of the messages that were kept for long enough, of the
// oldest above KeepMaxBytes, and of as many as the disk needs.
func (q *Queue) forgetKept(context.Context) error {
	if q.opts.KeepRelayed <= 0 {
		return nil
	}
	short := int64(0) // how much the disk lacks
	if free := q.guard.free.Load(); free < 2*q.guard.min {
		short = q.guard.min/4*9 - free
	}
	now := time.Now().UnixMicro()
	for more := true; more; {
		q.mu.Lock()
		for n := 0; ; n++ {
			more = n == 1000 // others want the lock, too
			if more || len(q.kept.list) == 0 {
				break
			}
			if q.kept.list[0].until > now && q.kept.bytes <= q.opts.KeepMaxBytes && short <= 0 {
				break
			}
			k := q.kept.takeOldest()
			short -= k.size + contentHeader
			q.contents.release(k.seg, k.size)
		}
		q.mu.Unlock()
	}
	return nil
}

// keptIn reports whether s has the content of a kept message. q.mu is held.
func (q *Queue) keptIn(id ident, s *segment) bool {
	k := q.kept.index[id]
	return k != nil && k.seg == s
}

// readAny reads the record of a message that is queued or kept.
func (q *Queue) readAny(id ident) (*stored, error) {
	m, err := q.readRecord(id)
	if err != nil || !m.done {
		return m, err
	}
	q.mu.Lock()
	_, ok := q.kept.index[id]
	q.mu.Unlock()
	if !ok || !m.kept {
		return nil, ErrNotFound
	}
	return m, nil
}

// Kept returns up to limit messages that were relayed, at least to one
// recipient, that can be sent again, and that f selects, in the order of their
// IDs, from the one after after.
func (q *Queue) Kept(ctx context.Context, f Filter, after mail.QueueID, limit int) ([]*Message, error) {
	if limit <= 0 {
		return nil, nil
	}
	var list []*Message
	err := q.scanRelayed(ctx, f, after, func(id ident, m *stored, _ []int) bool {
		list = append(list, q.present(id, m))
		return len(list) < limit
	})
	return list, err
}

// scanRelayed calls f for the messages that filter selects, with the relayed
// recipients that it selects, in the order of their IDs, until f returns false.
func (q *Queue) scanRelayed(ctx context.Context, filter Filter, after mail.QueueID, f func(id ident, m *stored, index []int) bool) error {
	match := filter.compile()
	now := time.Now()
	prefix, start := keysFrom(filter, after)
	return q.records(ctx, prefix, start, func(id ident, read func() (*stored, error)) (bool, error) {
		if !q.resendable(id) {
			return true, nil
		}
		m, err := read()
		if errors.Is(err, errRecord) || err == nil && m.done && !m.kept {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		index := match.relayed(m, now)
		return len(index) == 0 || f(id, m, index), nil
	})
}

func (q *Queue) resendable(id ident) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.kept.index[id] != nil || q.sched.find(id) != nil
}

// relayed lists the relayed recipients of m that match.
func (f *matcher) relayed(m *stored, now time.Time) []int {
	if f.State != "" && f.State != mail.Relayed.String() || !f.message(m) || now.Sub(m.AcceptedAt) < f.OlderThan {
		return nil
	}
	var index []int
	for i := range m.States {
		s := &m.States[i]
		if s.Disposition == mail.Relayed && f.recipientOf(m, i) && covers(route.Hop{Connector: f.Connector, Name: f.Hop}, s.Hop) {
			index = append(index, i)
		}
	}
	return index
}

// Resend queues again what was relayed to the recipients that a.Filter selects,
// as new messages with the old ones as their parents, and states it. It takes
// what is kept, and messages that are still queued for others of their
// recipients.
func (q *Queue) Resend(ctx context.Context, a Action) (Affected, error) {
	a.Action = "resend"
	if a.Filter.empty() && !a.Filter.All {
		return Affected{}, fmt.Errorf("%w: resend: the filter is empty; say that all messages are meant", ErrRefused)
	}
	type again struct {
		id    ident
		index []int
	}
	var found []again
	var aff Affected
	err := q.scanRelayed(ctx, a.Filter, "", func(id ident, m *stored, index []int) bool {
		found = append(found, again{id, index})
		aff.count(m)
		return true
	})
	if err != nil || a.DryRun {
		return aff, err
	}
	aff = Affected{}
	for _, g := range found {
		var m *stored
		if m, err = q.resend(ctx, g.id, g.index); errors.Is(err, ErrNotFound) {
			err = nil // its time ended meanwhile
			continue
		}
		if err != nil {
			break
		}
		aff.count(m)
	}
	return aff, errors.Join(err, q.Acted(&a, aff.Messages, err))
}

// resend queues one message again, for some of its recipients.
func (q *Queue) resend(ctx context.Context, id ident, index []int) (*stored, error) {
	m, r, err := q.openAny(id)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }() // opened for reading
	in, err := q.Begin(ctx, m.Size)
	if err != nil {
		return nil, err
	}
	defer in.Abort()
	if _, err := io.Copy(in, r); err != nil {
		return nil, err
	}
	d := m.Draft
	d.Parent, d.ID = m.ID, ""
	d.Envelope.Release = time.Time{}
	d.Envelope.Recipients = make([]mail.Recipient, len(index))
	for k, i := range index {
		d.Envelope.Recipients[k] = m.Envelope.Recipients[i]
	}
	d.Origin.Session, d.Origin.MailAt, d.Origin.DataEndedAt = "", time.Time{}, time.Time{}
	return m, in.Commit(ctx, d)
}

// openAny reads the record of a message that is queued or kept, and opens its
// content.
func (q *Queue) openAny(id ident) (*stored, io.ReadCloser, error) {
	for attempt := 0; ; attempt++ {
		m, err := q.readAny(id)
		if err != nil {
			return nil, nil, err
		}
		r, err := q.contents.open(id, m.loc, m.Size)
		switch {
		case errors.Is(err, ErrDamaged) && attempt == 0:
			continue // it may have been copied forward in between
		case m.done && (errors.Is(err, ErrDamaged) || errors.Is(err, os.ErrNotExist)):
			return nil, nil, fmt.Errorf("%w: %w", ErrNotFound, err)
		}
		return m, r, err
	}
}
