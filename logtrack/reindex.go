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
)

// Reindexed says what [Store.Reindex] found.
type Reindexed struct {
	Lines   int    // read
	Added   int    // facts taken into the store
	Known   int    // facts that it had already
	Old     int    // facts past the retention
	Other   int    // lines that are not records, or of facts that this version does not know
	Example string // the first error among Other
}

// maxLine bounds a log line.
const maxLine = 64 << 20

// Reindex reads log lines (one JSON object each) and takes the facts that the
// store does not have yet. Other lines are passed over and counted. It may run
// beside live traffic. Blocks go to the partition of their day, so that
// retention counts from when a thing happened.
func (s *Store) Reindex(ctx context.Context, lines io.Reader) (Reindexed, error) {
	var done Reindexed
	facts := &importer{s: s, days: map[string]*memBlock{}}
	talks := &importer{s: s.talks, days: map[string]*memBlock{}}
	sealAll := func() error { return errors.Join(facts.sealAll(), talks.sealAll()) }
	now := time.Now()
	sc := bufio.NewScanner(lines)
	sc.Buffer(make([]byte, 0, 64<<10), maxLine)
	for sc.Scan() {
		if err := ctx.Err(); err != nil {
			return done, errors.Join(err, sealAll())
		}
		done.Lines++
		var r event.Record
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			done.Other++
			if done.Example == "" {
				done.Example = fmt.Sprintf("line %d: %v", done.Lines, err)
			}
			continue
		}
		r.Time = r.Time.UTC()
		x := facts
		if s.home(&r) == s.talks {
			x = talks
		}
		if r.Time.Before(now.Add(-x.s.opts.Retention)) {
			done.Old++
			continue
		}
		added, err := x.add(&r)
		if err != nil {
			return done, err
		}
		if added {
			done.Added++
		} else {
			done.Known++
		}
	}
	return done, errors.Join(sc.Err(), sealAll())
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
	m.add(r, key, ms)
	if len(m.recs) < cap(m.recs) {
		return true, nil
	}
	return true, x.seal(day)
}

func (x *importer) seal(day string) error {
	m := x.days[day]
	delete(x.days, day)
	s := x.s
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
	e := encodeBlock(seq, m.recs)
	if err := p.put(e); err != nil {
		return err
	}
	s.mu.Lock()
	p.publish(e)
	s.mu.Unlock()
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
