package logtrack

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// Conversations are large, rarely asked for, and need not be kept as long as
// what became of the mail. So they are in a store of their own below the
// store's directory: the same engine with another retention and a share of the
// room. They bloat no block of facts, and go away by whole days.

// talkShare is the part of MaxBytes that conversations may take.
const talkShare = 8

// openTalks opens the store of conversations. s is not in use yet.
func (s *Store) openTalks() (err error) {
	if s.opts.talks {
		return nil
	}
	keep := s.opts.TranscriptRetention
	if keep <= 0 {
		keep = 7 * 24 * time.Hour
	}
	s.talks, err = Open(Options{
		Dir: filepath.Join(s.opts.Dir, "transcripts"), Retention: min(keep, s.opts.Retention), MaxBytes: s.opts.MaxBytes / talkShare,
		CacheBytes: 8 << 20, QueryTimeout: s.opts.QueryTimeout, Logger: s.opts.Logger, Observe: s.opts.Observe, Privacy: s.opts.Privacy, talks: true,
	})
	s.opts.MaxBytes -= s.opts.MaxBytes / talkShare
	return err
}

// takesTalk reports whether r is a conversation, which belongs to the other
// store, and has it written there.
func (s *Store) takesTalk(r *event.Record) bool {
	if s.talks == nil {
		return false
	}
	if _, ok := r.Event.(event.TranscriptKept); !ok {
		return false
	}
	s.talks.Write(r)
	if s.tails.live.Load() > 0 {
		kept := r.Keep()
		s.tails.offer(&kept)
	}
	return true
}

// home is the store that keeps facts as r.
func (s *Store) home(r *event.Record) *Store {
	if _, ok := r.Event.(event.TranscriptKept); ok && s.talks != nil {
		return s.talks
	}
	return s
}

// addTalks adds what the store of conversations says of itself.
func (st *Stats) addTalks(t Stats) {
	st.Events += t.Events
	st.Blocks += t.Blocks
	st.Partitions += t.Partitions
	st.Bytes += t.Bytes
	st.CacheBytes += t.CacheBytes
	st.Waiting += t.Waiting
	st.Duplicates += t.Duplicates
	for reason, n := range t.Dropped {
		st.Dropped[reason] += n
	}
	for reason, n := range t.WriteErrors {
		st.WriteErrors[reason] += n
	}
	if st.Degraded == "" && t.Degraded != "" {
		st.Degraded = "transcripts: " + t.Degraded
	}
}

// kept lists the conversations with one of values in a field that has an index.
// None of them ended before from.
func (s *Store) kept(ctx context.Context, field string, post byte, values map[string]bool, from time.Time) (list []event.Record, err error) {
	if len(values) == 0 {
		return nil, nil
	}
	from = from.Add(-time.Hour) // the clock may have stepped a little
	sn, err := s.snapshot(func(m *meta) bool { return m.MaxTS >= from.UnixMicro() })
	if err != nil {
		return nil, err
	}
	defer sn.release()
	defer s.observe("transcript", sn)
	p := &pred{term: trackapi.Term{Field: field}, field: fields[field], post: post}
	for v := range values {
		p.keys = append(p.keys, v)
	}
	p.text = func(v string) bool { return values[v] }
	err = sn.allFacts(ctx, []*pred{p}, from, time.UnixMicro(1<<62), func(r *event.Record) {
		if _, ok := r.Event.(event.TranscriptKept); ok {
			list = append(list, *r)
		}
	})
	return list, err
}

// ident is an identifier as the store has it: people type them in lower case.
func ident(id string) string {
	if up := strings.ToUpper(id); mail.ValidID(up) {
		return up
	}
	return id
}
