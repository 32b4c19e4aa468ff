package queue

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/mail"
)

// TestBackupUnderLoad backs up a queue that takes, delivers and gives space
// back, and wants every message that was queued at that moment.
func TestBackupUnderLoad(t *testing.T) {
	h := open(t, func(o *Options) { o.tune.segment = 1 << 20 })
	h.run(t)
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	acked, final := map[mail.QueueID]string{}, map[mail.QueueID]bool{}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				d := draft(t, fmt.Sprintf("u%d-%d@example.com", w, i))
				content := strings.Repeat(string(d.ID), 100+i%500)
				if i%100 == 99 {
					content = strings.Repeat(content, 40)
				}
				if err := h.Put(t.Context(), d, []byte(content)); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				acked[d.ID] = content
				mu.Unlock()
			}
		})
		wg.Go(func() {
			for ctx.Err() == nil {
				l, err := h.Claim(ctx)
				if err != nil {
					return
				}
				s := Settlement{Outcomes: outcomes(l, mail.Relayed)}
				if l.Message.ID[25]%2 == 0 { // half of them stay
					s = Settlement{Outcomes: outcomes(l, mail.Deferred), Next: time.Now().Add(time.Hour)}
				} else {
					mu.Lock()
					final[l.Message.ID] = true // at least about to be
					mu.Unlock()
				}
				if err := h.Settle(t.Context(), l, s); err != nil {
					t.Error(err)
				}
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acked)
	}
	eventually(t, "load", func() bool { return count() > 500 })
	mu.Lock()
	want := maps.Clone(acked)
	mu.Unlock()
	dir := filepath.Join(t.TempDir(), "backup")
	info, err := h.Backup(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	for id := range final { // it may have been final by then
		delete(want, id)
	}
	mu.Unlock()
	n := count()
	eventually(t, "load after the backup", func() bool { return count() > n+200 })
	cancel()
	wg.Wait()
	if len(want) < 100 || len(info.Damaged) > 0 {
		t.Errorf("%d messages must be in the backup, and it is %+v: this proves less than it should", len(want), info)
	}

	to := filepath.Join(t.TempDir(), "queue")
	done, err := Restore(t.Context(), dir, to, info)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v, %+v", info, done)
	q, err := Open(Options{Dir: to, Router: &domains{}, DiskFreeMin: 1 << 20, Confirm: &confirmer{}, tune: tuning{fs: roomy{}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}()
	if got := q.Levels().Messages; got != info.Messages || got != done.Messages {
		t.Errorf("%d messages are queued, want %d", got, info.Messages)
	}
	for id, content := range want {
		r, err := q.Content(id)
		if err != nil {
			t.Errorf("%s was queued and is not in the backup: %v", id, err)
			continue
		}
		b, err := io.ReadAll(r)
		_ = r.Close()
		if err != nil || !strings.HasSuffix(string(b), content) {
			t.Errorf("content of %s is not what was accepted: %v", id, err)
		}
	}
	d := draft(t, "new@example.com")
	if err := q.Put(t.Context(), d, []byte("goes on")); err != nil {
		t.Error(err)
	}
	if _, err := Restore(t.Context(), dir, to, info); err == nil {
		t.Error("Restore over a queue succeeded")
	}
	if _, err := h.Backup(t.Context(), dir); err == nil {
		t.Error("Backup over a backup succeeded")
	}
}

// TestDamagedBackup wants every change of a backup to be noticed.
func TestDamagedBackup(t *testing.T) {
	h := open(t, nil)
	for i := range 20 {
		h.put(t, strings.Repeat("x", 1000*i), "a@example.com")
	}
	dir := filepath.Join(t.TempDir(), "backup")
	info, err := h.Backup(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{backupDatabase, backupContents} {
		name = filepath.Join(dir, name)
		sound, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, hurt := range []struct {
			name string
			b    func() []byte
		}{
			{"cut", func() []byte { return sound[:len(sound)/2] }},
			{"cut between contents", func() []byte { return sound[:0] }},
			{"bit", func() []byte {
				b := append([]byte(nil), sound...)
				b[len(b)/2] ^= 1
				return b
			}},
		} {
			if err := os.WriteFile(name, hurt.b(), 0o600); err != nil {
				t.Fatal(err)
			}
			if done, err := Restore(t.Context(), dir, filepath.Join(t.TempDir(), "queue"), info); err == nil {
				t.Errorf("%s %s: Restore = %+v, want an error", filepath.Base(name), hurt.name, done)
			}
		}
		if err := os.WriteFile(name, sound, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Restore(t.Context(), dir, filepath.Join(t.TempDir(), "queue"), info); err != nil {
		t.Errorf("Restore of the sound backup = %v", err)
	}
}
