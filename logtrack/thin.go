package logtrack

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// Some kinds of facts need not be kept as long as others. A partition that is
// past the age of such a kind is written anew without it, once, in the
// background; one that has none of it is only marked. Facts of what the queue
// still has stay. So retention by age stays a removal of whole days, and costs
// one more copy of a day for each age that is configured.

// Groups of kinds, for [Options.Kinds]: facts of a class that are about no message.
const (
	KindSession  = "session"
	KindProtocol = "protocol"
)

// thinPause is how long the thinner rests after each block, as a multiple of
// what the block took: it leaves the processor to the relay.
const thinPause = 1

// groupOf is the group of a kind's class.
func groupOf(class event.Durability) string {
	switch class { //nolint:exhaustive // durable facts are in no group
	case event.Session:
		return KindSession
	case event.Protocol:
		return KindProtocol
	}
	return ""
}

// kindOf is the key in Options.Kinds that a fact goes by, or "".
func (o *Options) kindOf(r *event.Record) string {
	if len(o.Kinds) == 0 {
		return ""
	}
	name, class := event.Name(r.Event), event.Class(r.Event)
	if _, ok := o.Kinds[name]; ok && class != event.Durable {
		return name
	}
	if group := groupOf(class); r.Message == "" && o.Kinds[group] > 0 {
		return group
	}
	return ""
}

// keepsFor is how long a fact is kept.
func (s *Store) keepsFor(r *event.Record) time.Duration {
	if kind := s.opts.kindOf(r); kind != "" {
		return min(s.opts.Kinds[kind], s.opts.Retention)
	}
	return s.opts.Retention
}

// thinner thins partitions until ctx is done.
func (s *Store) thinner(ctx context.Context) {
	if len(s.opts.Kinds) == 0 {
		return
	}
	tick := time.NewTicker(runEvery)
	defer tick.Stop()
	for {
		s.thin(ctx, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// thin takes what is past its own age out of all days that have it.
func (s *Store) thin(ctx context.Context, now time.Time) {
	for _, p := range s.partitions() {
		kinds := s.pastAge(p, now)
		if len(kinds) == 0 || ctx.Err() != nil {
			continue
		}
		if err := s.thinOne(ctx, p, kinds, now); err != nil && !gone(err) && ctx.Err() == nil {
			s.log.Warn("track partition keeps facts that are past their age", zap.String("partition", p.name), zap.Strings("kinds", kinds), zap.Error(err))
			p.mu.Lock()
			p.thinAfter = now.Add(time.Hour)
			p.mu.Unlock()
		}
	}
}

// pastAge lists the kinds that are to leave a partition, by name.
func (s *Store) pastAge(p *partition, now time.Time) (kinds []string) {
	s.mu.Lock()
	active := p == s.active
	s.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	day, err := time.Parse("20060102", p.meta.Day)
	if active || err != nil || !p.meta.Finished || p.dropped || now.Before(p.thinAfter) {
		return nil
	}
	end := day.AddDate(0, 0, 1)
	if last := time.UnixMicro(p.meta.MaxTS); p.meta.Blocks > 0 && last.After(end) && last.Before(now) {
		end = last // facts of the past that came live
	}
	for kind, age := range s.opts.Kinds {
		if end.Before(now.Add(-age)) && !slices.Contains(p.meta.Thinned, kind) {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	return kinds
}

// thinOne takes kinds out of a partition.
func (s *Store) thinOne(ctx context.Context, p *partition, kinds []string, now time.Time) error {
	has, err := s.hasKinds(p, kinds)
	if err != nil {
		return err
	}
	if !has {
		return p.mark(kinds)
	}
	var queued map[mail.QueueID]bool
	if m := p.summary(); s.opts.Pending != nil && m.HasMsg {
		if queued, err = s.queued(ctx, now); err != nil {
			return err
		}
	}
	done, err := s.rewriteAs(ctx, p, renewal{
		change: func(r *event.Record) (event.Record, bool, bool) {
			drop := slices.Contains(kinds, s.opts.kindOf(r)) && (r.Message == "" || !queued[r.Message])
			return *r, false, drop
		},
		thinned: kinds, whole: true, pause: thinPause,
	})
	if err == nil {
		s.log.Info("track partition lost what is past its age", zap.String("partition", p.name), zap.Strings("kinds", kinds), zap.Int("facts", done.facts))
	}
	return err
}

// queued are the messages that the queue has, of those accepted before a time.
func (s *Store) queued(ctx context.Context, before time.Time) (map[mail.QueueID]bool, error) {
	ids, err := s.opts.Pending(ctx, before)
	if err != nil {
		return nil, fmt.Errorf("the queue did not say what it has: %w", err)
	}
	queued := make(map[mail.QueueID]bool, len(ids))
	for _, id := range ids {
		queued[id] = true
	}
	return queued, nil
}

// hasKinds reports whether a partition has facts of some kinds, as its headers tell.
func (s *Store) hasKinds(p *partition, kinds []string) (bool, error) {
	if err := s.read(p); err != nil {
		return false, err
	}
	defer p.release()
	for _, h := range p.headers() {
		if h.types.has(func(fact string) bool {
			class, ok := event.ClassOf(fact)
			return slices.Contains(kinds, fact) || ok && slices.Contains(kinds, groupOf(class))
		}) {
			return true, nil
		}
	}
	return false, nil
}

// mark notes that a finished partition has no facts of some kinds.
func (p *partition) mark(kinds []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.meta.Finished || p.dropped {
		return nil
	}
	p.meta.Thinned = union(p.meta.Thinned, kinds)
	return p.writeMetaLocked()
}

// union is both lists, sorted.
func union(a, b []string) []string {
	all := append(slices.Clone(a), b...)
	slices.Sort(all)
	return slices.Compact(all)
}
