package logtrack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// TestBackup copies a store that has stored blocks, a block in memory and facts
// that only the queue keeps, and wants all of them back.
func TestBackup(t *testing.T) {
	s, err := Open(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const n = blockRows + 500
	for i := range n {
		id := mail.QueueID(mail.NewID(time.Now()))
		s.Write(&event.Record{
			ID: mail.NewID(time.Now()), Time: time.Now().UTC(), Node: "n", Message: id, Kept: i%2 == 0,
			Event: event.MessageQueued{Recipients: []event.Recipient{{Address: fmt.Sprintf("u%d@example.com", i)}}},
		})
	}
	if _, err := s.Erase(t.Context(), "u7@example.com"); err != nil { // it stays erased
		t.Fatal(err)
	}
	dir, to := filepath.Join(t.TempDir(), "backup"), filepath.Join(t.TempDir(), "track")
	info, err := s.Backup(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := Restore(t.Context(), dir, to, info); err != nil {
		t.Fatal(err)
	}
	again, err := Open(Options{Dir: to})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := again.Stats().Events; got != n {
		t.Errorf("%d facts are there, want %d", got, n)
	}
	if got, err := again.Messages(t.Context(), trackapi.Query{Recipient: "u7@example.com", Limit: 5}); err != nil || len(got.Messages) != 0 {
		t.Errorf("the erased recipient: %+v, %v, want none", got, err)
	}
	for _, i := range []int{0, 1, blockRows - 1, blockRows, n - 1} {
		got, err := again.Messages(t.Context(), trackapi.Query{Recipient: fmt.Sprintf("u%d@example.com", i), Limit: 5})
		if err != nil || len(got.Messages) != 1 {
			t.Errorf("recipient %d: %+v, %v, want one message", i, got, err)
		}
	}
	names, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil || len(names) < 2 {
		t.Fatalf("%v, %v, want files of partitions and journal", names, err)
	}
	for _, name := range names {
		info2, err := os.Stat(name)
		if err != nil || info2.IsDir() {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Restore(t.Context(), dir, filepath.Join(t.TempDir(), "track"), info); err == nil {
			t.Errorf("Restore with a damaged %s succeeded", filepath.Base(name))
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Restore(ctx, dir, filepath.Join(t.TempDir(), "track"), info); err == nil {
		t.Error("Restore goes on when it shall end")
	}
}
