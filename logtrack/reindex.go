package logtrack

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// Reindexed says what [Store.Reindex] and [Import] found.
type Reindexed = trackapi.Imported

// maxLine bounds a log line.
const maxLine = 64 << 20

// Reindex reads log lines (one JSON object each) and takes the facts that the
// store does not have yet. Other lines are passed over and counted. It may run
// beside live traffic. Blocks go to the partition of their day, so that
// retention counts from when a thing happened.
func (s *Store) Reindex(ctx context.Context, lines io.Reader) (Reindexed, error) {
	im := s.Import()
	sc := bufio.NewScanner(lines)
	sc.Buffer(make([]byte, 0, 64<<10), maxLine)
	for sc.Scan() {
		if err := ctx.Err(); err != nil {
			return im.done, errors.Join(err, im.Close())
		}
		im.done.Lines++
		var r event.Record
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			im.done.Other++
			if im.done.Example == "" {
				im.done.Example = fmt.Sprintf("line %d: %v", im.done.Lines, err)
			}
			continue
		}
		if err := im.Add(&r); err != nil {
			return im.done, errors.Join(err, im.Close())
		}
	}
	return im.done, errors.Join(sc.Err(), im.Close())
}

// An Import takes facts of the past into the store, in any order; in the order
// of time it is fast. It must be closed.
type Import struct {
	facts, talks *importer
	done         Reindexed
	queued       map[mail.QueueID]bool // what the queue had when it was first asked; nil before
}

// Import begins to take facts of the past. It may run beside live traffic.
func (s *Store) Import() *Import {
	im := &Import{facts: &importer{s: s, days: map[string]*memBlock{}}}
	if s.talks != nil {
		im.talks = &importer{s: s.talks, days: map[string]*memBlock{}}
	}
	return im
}

// Add takes a fact, unless the store has it already or it is past the
// retention; of a message that the queue still has, nothing is. It may keep r's lists.
func (im *Import) Add(r *event.Record) error {
	r.Time = r.Time.UTC()
	x := im.facts
	if x.s.home(r) == x.s.talks {
		x = im.talks
	}
	if r.Time.Before(time.Now().Add(-x.s.keepsFor(r))) {
		if waits, err := im.waits(r); err != nil {
			return err
		} else if !waits || x == im.talks {
			im.done.Old++
			return nil
		}
	}
	r = x.s.opts.Privacy.protect(r)
	if out, changed, drop := im.facts.s.erased.apply(r); drop {
		im.done.Old++
		return nil
	} else if changed {
		r = &out
	}
	added, err := x.add(r)
	switch {
	case err != nil:
		return err
	case added:
		im.done.Added++
	default:
		im.done.Known++
	}
	return nil
}

// waits reports whether r is of the history of a message that the queue has:
// it stays until the last word on the message, as when a day is removed. The
// queue is asked once: what comes into it later has no facts of that age.
func (im *Import) waits(r *event.Record) (bool, error) {
	s := im.facts.s
	if r.Message == "" || s.opts.Pending == nil {
		return false, nil
	}
	if im.queued == nil {
		queued, err := s.queued(context.Background(), time.Now())
		if err != nil {
			return false, err
		}
		im.queued = queued
	}
	return im.queued[r.Message], nil
}

// Done says what was taken so far.
func (im *Import) Done() Reindexed { return im.done }

// Close stores what is still in memory.
func (im *Import) Close() error {
	err := im.facts.sealAll()
	if im.talks != nil {
		err = errors.Join(err, im.talks.sealAll())
	}
	return err
}

// importer builds blocks of past facts, one for each day at a time.
type importer struct {
	s    *Store
	days map[string]*memBlock
}

func (x *importer) add(r *event.Record) (bool, error) {
	key, ms := idKey(r)
	if r.ID != "" {
		for _, m := range x.days {
			if m.ids.has(key, ms) {
				return false, nil
			}
		}
		x.s.mu.Lock()
		known := x.s.inRecent(key, ms)
		parts := x.s.overlapping(ms)
		x.s.mu.Unlock()
		if known || x.s.inSealed(r, parts, ms, math.MaxUint32) {
			return false, nil
		}
	}
	at := r.Time
	if now := time.Now(); at.After(now) {
		at = now
	}
	day := at.UTC().Format("20060102")
	m := x.days[day]
	if m == nil {
		if len(x.days) >= 8 { // lines are nearly always in order
			if err := x.sealAll(); err != nil {
				return false, err
			}
		}
		m = newMemBlock(0, nil)
		x.days[day] = m
	}
	m.add(r, planOf(r).place, key, ms)
	if len(m.recs) < cap(m.recs) {
		return true, nil
	}
	return true, x.seal(day)
}

func (x *importer) seal(day string) error {
	m := x.days[day]
	delete(x.days, day)
	s := x.s
	s.rewriting.Lock()
	defer s.rewriting.Unlock()
	s.mu.Lock()
	seq := s.nextSeq
	s.nextSeq++
	p, err := s.partitionOf(day)
	s.mu.Unlock()
	if err == nil {
		err = p.reopen()
	}
	if err != nil { // a query has just begun to read it
		s.mu.Lock()
		p, err = s.newPartition(day, false)
		s.mu.Unlock()
		if err == nil {
			err = p.reopen()
		}
	}
	if err != nil {
		return err
	}
	defer p.release()
	m.seq = seq
	e := m.encode()
	if err := p.put(e); err != nil {
		return err
	}
	s.mu.Lock()
	p.publish(e)
	s.mu.Unlock()
	m.free()
	m.ids.free()
	return p.settleIndex(false)
}

// reopen acquires a partition, finished or not, for writing.
func (p *partition) reopen() error {
	if err := p.unfinish(); err != nil {
		return err
	}
	return p.acquire(true)
}

func (x *importer) sealAll() error {
	days := make([]string, 0, len(x.days))
	for day := range x.days {
		days = append(days, day)
	}
	slices.Sort(days)
	var errs []error
	for _, day := range days {
		errs = append(errs, x.seal(day))
	}
	return errors.Join(errs...)
}

// partitionOf is the partition for past facts of a day: the first that is
// there, or a new one. s.mu is held.
func (s *Store) partitionOf(day string) (*partition, error) {
	for _, p := range s.parts {
		if p.meta.Day == day && !p.busyReading() {
			return p, nil
		}
	}
	return s.newPartition(day, false)
}

// busyReading reports whether the partition is open to read and in use, so
// that it cannot be opened to write now.
func (p *partition) busyReading() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dropped || p.ro && p.db != nil && p.refs > 0
}

// Export writes the facts from from on and before to as log lines, in the order
// of time, and then the conversations: what [Store.Reindex] reads.
func (s *Store) Export(ctx context.Context, w io.Writer, from, to time.Time) (int, error) {
	n := 0
	out := bufio.NewWriterSize(w, 1<<20)
	q := trackapi.Query{From: from, To: to, Sort: "time", Limit: trackapi.MaxLimit}
	if from.IsZero() {
		q.From = time.UnixMicro(1)
	}
	for {
		var page trackapi.Page
		err := s.events(ctx, q, &page, func(r *event.Record) error {
			b, err := r.MarshalJSON()
			if err != nil {
				return err
			}
			n++
			_, err = out.Write(append(b, '\n'))
			return err
		})
		if err != nil {
			return n, err
		}
		if page.Cursor == "" {
			if page.Cut != "" {
				err = errors.New(page.Cut)
			}
			if err = errors.Join(err, out.Flush()); err != nil || s.talks == nil {
				return n, err
			}
			talks, err := s.talks.Export(ctx, w, from, to)
			return n + talks, err
		}
		q.Cursor = page.Cursor
	}
}
