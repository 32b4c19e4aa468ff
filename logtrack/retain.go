package logtrack

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	runEvery  = 30 * time.Second
	idleAfter = 10 * time.Minute
)

// Run keeps the store in shape until ctx is done: it seals a block that has
// been open for long, removes facts that are too old or too many, and closes
// partitions that nobody reads. It does not close the store.
func (s *Store) Run(ctx context.Context) error {
	var thinning sync.WaitGroup
	thinning.Go(func() { s.thinner(ctx) })
	defer thinning.Wait()
	tick := time.NewTicker(runEvery)
	defer tick.Stop()
	s.maintain(time.Now())
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			s.maintain(now)
		}
	}
}

// maintain does what Run does, once.
func (s *Store) maintain(now time.Time) {
	if s.talks != nil {
		s.talks.maintain(now)
	}
	s.mu.Lock()
	if m := s.open; m != nil && (now.Sub(m.since) > blockAge || m.since.UTC().YearDay() != now.UTC().YearDay()) {
		s.rotate()
	}
	s.mu.Unlock()
	s.measure()
	for _, p := range s.outdated(now) {
		s.carry(p)
		s.log.Info("track partition removed", zap.String("partition", p.name), zap.Int64("facts", p.summary().Rows))
		p.drop()
		s.cache.forget(p)
	}
	s.mu.Lock()
	parts, active := slices.Clone(s.parts), s.active
	s.mu.Unlock()
	outdated := true // one at a time: it reads all facts of a day
	for _, p := range parts {
		if p == active {
			s.restore(p)
			continue
		}
		if m := p.summary(); outdated && m.Finished && m.Rollups != rollupVersion {
			outdated = false
			if err := p.unfinish(); err != nil {
				s.log.Warn("track partition keeps its old rollups", zap.String("partition", p.name), zap.Error(err))
			}
		}
		if !p.summary().Finished {
			if err := p.finish(); err != nil {
				s.log.Warn("close of track partition", zap.String("partition", p.name), zap.Error(err))
			}
		}
		p.idle(now.Add(-idleAfter))
	}
	s.measure()
}

// restore makes rollups of an open partition that are of an older version or damaged.
func (s *Store) restore(p *partition) {
	if p.acquire(true) != nil {
		return // who writes to it says so
	}
	defer p.release()
	if err := p.restoreRollups(); err != nil {
		s.log.Warn("track rollups cannot be made again; facts are read instead", zap.String("partition", p.name), zap.Error(err))
	}
}

// outdated takes the partitions to remove out of the store: those whose latest
// fact and whose day are past the retention, then the oldest while the store
// is too large. The active partition stays.
func (s *Store) outdated(now time.Time) (gone []*partition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	total := s.bytes.Load()
	limit := now.Add(-s.opts.Retention)
	var keep []*partition
	for _, p := range s.parts { // by name, which is by day
		m := p.summary()
		end, err := time.Parse("20060102", m.Day)
		old := err == nil && end.AddDate(0, 0, 1).Before(limit) && (m.Blocks == 0 || time.UnixMicro(m.MaxTS).Before(limit) || m.MaxTS > now.Add(24*time.Hour).UnixMicro())
		if p != s.active && (old || total > s.opts.MaxBytes) {
			total -= p.bytes
			gone = append(gone, p)
			continue
		}
		keep = append(keep, p)
	}
	s.parts = keep
	return gone
}
