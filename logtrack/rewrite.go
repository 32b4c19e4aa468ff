package logtrack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"waybill/relay/event"
)

// Blocks never change. To take something out of the store, the partition that
// has it is written anew beside it, and takes its place by a rename. A file
// "replaces" in the new one names the old one, so that a crash between the
// rename and the removal leaves no fact twice.

const replacesFile = "replaces"

// rewriteDir is where partitions are written anew. What a crash leaves there is
// removed at the next start.
func (s *Store) rewriteDir() string { return filepath.Join(s.opts.Dir, "rewrite") }

// settleRewrites ends what a crash interrupted.
func (s *Store) settleRewrites() error {
	if err := os.RemoveAll(s.rewriteDir()); err != nil {
		return fmt.Errorf("open tracking store: %w", err)
	}
	root := filepath.Join(s.opts.Dir, "parts")
	list, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("open tracking store: %w", err)
	}
	for _, d := range list {
		mark := filepath.Join(root, d.Name(), replacesFile)
		b, err := os.ReadFile(mark) //nolint:gosec // the store's own directory
		if errors.Is(err, os.ErrNotExist) || !d.IsDir() {
			continue
		}
		name := strings.TrimSpace(string(b))
		if err == nil && name != "" && name == filepath.Base(name) && name != d.Name() {
			err = os.RemoveAll(filepath.Join(root, name)) //nolint:gosec // a name without a path, in the store's own directory
		}
		if err = errors.Join(err, os.Remove(mark)); err != nil {
			return fmt.Errorf("open tracking store: %w", err)
		}
	}
	return nil
}

// settleAll has everything that was written so far stored in blocks.
func (s *Store) settleAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rotate()
	target := s.appended
	for s.storedTo < target && len(s.sealing) > 0 && !s.closed {
		if s.sealErr != nil {
			return s.sealErr
		}
		for _, m := range s.sealing {
			m.full = time.Time{} // waits for no company
		}
		kick(s.sealKick)
		s.synced.Wait()
	}
	if s.closed {
		return errClosed
	}
	return nil
}

// change is what becomes of a fact in a partition that is written anew.
type change func(r *event.Record) (out event.Record, changed, drop bool)

// rewritten says what a rewrite came to.
type rewritten struct {
	facts   int // that were changed or dropped
	damaged int // blocks that could not be read, and are gone
}

// needs reports whether the partition has a fact that c changes, or a damaged block.
func (s *Store) needs(ctx context.Context, p *partition, c change) (bool, error) {
	if err := s.read(p); err != nil {
		return false, err
	}
	defer p.release()
	for _, h := range p.headers() {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		recs, err := s.allRecords(p, h)
		if errors.Is(err, errUnknownFact) {
			continue
		}
		if err != nil {
			return true, nil //nolint:nilerr // the damaged block goes
		}
		for i := range recs {
			if _, changed, drop := c(&recs[i]); changed || drop {
				return true, nil
			}
		}
	}
	return false, nil
}

// allRecords reads every fact of a block.
func (s *Store) allRecords(p *partition, h *header) ([]event.Record, error) {
	return newViewCache(1).get(p, h).allRecords() // not in the store's cache: it is read once
}

// allRecords reads every fact of the block.
func (v *view) allRecords() ([]event.Record, error) {
	recs := make([]event.Record, 0, v.head.rows)
	for t, run := range v.types {
		if planNames[run.name] == nil {
			return nil, errUnknownFact
		}
		if err := v.needRecords(t, readAll); err != nil {
			return nil, err
		}
		for row := range run.n {
			r, err := v.record(run.start+row, readAll)
			if err != nil {
				return nil, err
			}
			recs = append(recs, r)
		}
	}
	return byTime(recs), nil
}

// renewal is how a partition is written anew.
type renewal struct {
	change  change
	thinned []string // kinds of facts that change takes out
	whole   bool     // a damaged block ends it, and the partition stays
	pause   int      // after each block, as a multiple of the time that it took
}

// rewrite writes a partition anew, without blocks that are damaged.
func (s *Store) rewrite(ctx context.Context, p *partition, c change) (rewritten, error) {
	return s.rewriteAs(ctx, p, renewal{change: c})
}

func (s *Store) rewriteAs(ctx context.Context, p *partition, how renewal) (done rewritten, err error) {
	s.rewriting.Lock() // no import adds to a partition meanwhile
	defer s.rewriting.Unlock()
	s.storing.Lock() // nor does who stores live blocks: the next begins another partition
	s.mu.Lock()
	if s.active == p {
		s.active = nil
	}
	s.mu.Unlock()
	s.storing.Unlock()
	np := &partition{name: p.name, dir: filepath.Join(s.rewriteDir(), p.name), log: s.log}
	was := p.summary()
	np.meta.Day, np.meta.Thinned = was.Day, union(was.Thinned, how.thinned)
	if err := os.RemoveAll(np.dir); err != nil {
		return done, err
	}
	if err := os.MkdirAll(np.dir, 0o700); err != nil {
		return done, err
	}
	blocks, err := s.fill(ctx, np, p, how, &done)
	if err == nil {
		err = np.finish()
	}
	if err == nil && blocks > 0 {
		err = os.WriteFile(filepath.Join(np.dir, replacesFile), []byte(p.name), 0o600)
	}
	if err != nil {
		np.drop()
		return done, err
	}
	return done, s.replace(p, np, blocks)
}

// fill copies the blocks of p to np, changed.
func (s *Store) fill(ctx context.Context, np, p *partition, how renewal, done *rewritten) (blocks int, err error) {
	if err := p.acquire(false); err != nil {
		return 0, err
	}
	defer p.release()
	if err := np.acquire(true); err != nil {
		return 0, err
	}
	defer np.release()
	heads := slices.Clone(p.headers())
	slices.SortFunc(heads, func(a, b *header) int { return int(int64(a.seq) - int64(b.seq)) })
	for _, h := range heads {
		began := time.Now()
		recs, err := s.allRecords(p, h)
		switch {
		case errors.Is(err, errUnknownFact):
			return blocks, fmt.Errorf("partition %s has facts of a newer version: %w", p.name, err)
		case err != nil && how.whole:
			return blocks, fmt.Errorf("partition %s, block %d: %w", p.name, h.seq, err)
		case err != nil:
			s.damaged(p.name, h, err)
			done.damaged++
			continue
		}
		kept := recs[:0]
		for i := range recs {
			out, changed, drop := how.change(&recs[i])
			if changed || drop {
				done.facts++
			}
			if !drop {
				kept = append(kept, out)
			}
		}
		if len(kept) == 0 {
			continue
		}
		s.mu.Lock()
		seq := s.nextSeq
		s.nextSeq++
		s.mu.Unlock()
		e := encodeBlock(seq, kept)
		if err := np.put(e); err != nil {
			return blocks, err
		}
		np.publish(e)
		if err := np.settleIndex(false); err != nil {
			return blocks, err
		}
		blocks++
		if err := rest(ctx, time.Duration(how.pause)*time.Since(began)); err != nil {
			return blocks, err
		}
	}
	return blocks, nil
}

// rest waits, unless ctx is done.
func rest(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// replace puts np in the place of p. An empty one has no place.
func (s *Store) replace(p, np *partition, blocks int) error {
	if blocks > 0 {
		s.mu.Lock()
		place, err := s.newPartition(np.meta.Day, false)
		if err == nil {
			s.parts = slices.DeleteFunc(slices.Clone(s.parts), func(x *partition) bool { return x == place })
		}
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if err := os.Remove(place.dir); err != nil { // it is empty
			return err
		}
		if err := os.Rename(np.dir, place.dir); err != nil {
			return err
		}
		np.name, np.dir = place.name, place.dir
	} else {
		np.drop()
	}
	s.mu.Lock()
	s.parts = slices.DeleteFunc(slices.Clone(s.parts), func(x *partition) bool { return x == p })
	if blocks > 0 {
		s.parts = append(s.parts, np)
		slices.SortFunc(s.parts, func(a, b *partition) int { return strings.Compare(a.name, b.name) })
	}
	s.mu.Unlock()
	p.drop() // once its last reader is done
	s.cache.forget(p)
	s.log.Info("track partition written anew", zap.String("was", p.name), zap.String("is", np.name))
	if blocks == 0 {
		return nil
	}
	return s.forgetReplaced(p, np)
}

// forgetReplaced takes the mark away once the old partition is gone. While a
// query still reads that, the next start does it.
func (s *Store) forgetReplaced(p, np *partition) error {
	if _, err := os.Stat(p.dir); errors.Is(err, os.ErrNotExist) {
		return os.Remove(filepath.Join(np.dir, replacesFile))
	}
	return nil
}
