package app

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"

	"waybill/cmd/internal/config"
	"waybill/logtrack"
	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/queue"
)

// openTracking opens the tracking store. One that is damaged or has no room
// does not stop mail: the relay goes on without it, keeps the durable facts in
// the queue until a store takes them, and says so.
func (a *App) openTracking(cfg *config.Config) error {
	opts := trackOptions(cfg, a.logger.Named("track"), a.metrics.ObserveQuery)
	keys, err := hashKeys(cfg)
	if err != nil {
		return err
	}
	opts.Privacy = &logtrack.Privacy{Subjects: subjectHashes(cfg, keys), NoSubjects: cfg.Tracking.Subject == "off"}
	if cfg.Tracking.Addresses == "hash" {
		opts.Privacy.Keys = keys
	}
	opts.Pending = a.pendingBefore
	if a.track, err = logtrack.Open(opts); err != nil {
		a.track, a.trackBroken = nil, err
		a.logger.Error("the tracking store cannot be opened; mail is relayed without it, and its facts wait in the queue", zap.Error(err))
		return nil
	}
	a.onStop(a.track.Close)
	return nil
}

// trackingState is how the tracking store is, in a word, and why.
func (a *App) trackingState() (state, why string) {
	switch {
	case a.trackBroken != nil:
		return trackapi.TrackingBroken, a.trackBroken.Error()
	case a.track == nil:
		return trackapi.TrackingOff, ""
	}
	if why := a.track.Stats().Degraded; why != "" {
		return trackapi.TrackingDegraded, why
	}
	return trackapi.TrackingOn, ""
}

// pendingBefore lists the messages in the queue that were accepted before a time.
func (a *App) pendingBefore(ctx context.Context, before time.Time) (ids []mail.QueueID, err error) {
	if a.queue == nil { // it is opened after the store
		return nil, nil
	}
	const page = 1000
	after := mail.QueueID("")
	for {
		list, err := a.queue.List(ctx, queue.Filter{}, after, page)
		if err != nil {
			return nil, err
		}
		for _, m := range list {
			after = m.ID
			if t := mail.IDTime(string(m.ID)); t.Before(before) {
				ids = append(ids, m.ID)
			}
		}
		if len(list) < page {
			return ids, nil
		}
	}
}

// brokenTracking stands for a store that could not be opened: it confirms
// nothing, so that the queue keeps its outbox.
type brokenTracking struct{ err error }

// Write drops the record, which the queue keeps.
func (brokenTracking) Write(*event.Record) {}

// Mark has taken nothing.
func (brokenTracking) Mark() uint64 { return 0 }

// Stored has stored nothing, and says why.
func (b brokenTracking) Stored() (uint64, error) { return 0, b.err }

// Sync fails.
func (b brokenTracking) Sync() error { return b.err }

// minKey is the least length of a key for hashes.
const minKey = 16

// hashKeys reads the keys for hashes of addresses and subjects: one a line, the
// current one first. Without a file there is one that the relay made.
func hashKeys(c *config.Config) (keys [][]byte, err error) {
	if c.Tracking.Addresses != "hash" && c.Tracking.Subject != "hash" {
		return nil, nil
	}
	if c.Tracking.HashKeyFile == "" {
		key, err := persistentKey(c, "subject.key")
		return [][]byte{key}, err
	}
	b, err := os.ReadFile(c.Tracking.HashKeyFile)
	if err != nil {
		return nil, fmt.Errorf("tracking.hash_key_file: %w", err)
	}
	for line := range bytes.Lines(b) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			if len(line) < minKey {
				return nil, fmt.Errorf("tracking.hash_key_file: a key is shorter than %d octets", minKey)
			}
			keys = append(keys, line)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("tracking.hash_key_file: %s has no key", c.Tracking.HashKeyFile)
	}
	return keys, nil
}

// subjectHashes are the forms in which the store may have a subject.
func subjectHashes(c *config.Config, keys [][]byte) func(string) []string {
	if c.Tracking.Subject != "hash" {
		return nil
	}
	return func(subject string) []string {
		list := make([]string, len(keys))
		for i, key := range keys {
			list[i] = subjects{mode: "hash", key: key}.keep(subject)
		}
		return list
	}
}
