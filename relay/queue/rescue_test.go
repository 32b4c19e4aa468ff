package queue

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"waybill/relay/mail"
)

// TestRescue breaks a queue and wants everything back that can be read, and a
// count of what cannot.
func TestRescue(t *testing.T) {
	s := newStock(t, false)
	table := func(dir string) string {
		names, err := filepath.Glob(filepath.Join(dir, "badger", "*.sst"))
		if err != nil || len(names) == 0 {
			t.Fatal("no table")
		}
		return names[0]
	}
	flip := func(name string, at int64) {
		t.Helper()
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{b[0] ^ 4}, at); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name   string
		hurt   func(dir string)
		least  int // messages that are saved whole
		most   int
		damage bool
	}{
		{"sound", func(string) {}, len(s.want), len(s.want), false},
		{"a block of a table", func(dir string) { flip(table(dir), 1_000_000) }, len(s.want) - 1, len(s.want), true},
		{"the index of a table", func(dir string) {
			info, err := os.Stat(table(dir))
			if err != nil {
				t.Fatal(err)
			}
			flip(table(dir), info.Size()-40)
		}, len(s.want), len(s.want), true}, // each record has a checksum
		{"an octet of a log", func(dir string) {
			names, _ := filepath.Glob(filepath.Join(dir, "badger", "*.mem"))
			flip(names[0], 300_000)
		}, len(s.want) - 1, len(s.want) - 1, true},
		{"the manifest", func(dir string) {
			if err := os.Remove(filepath.Join(dir, "badger", "MANIFEST")); err != nil {
				t.Fatal(err)
			}
		}, len(s.want), len(s.want), true},
		{"a content", func(dir string) { flip(filepath.Join(dir, "segments", "0000000000000001.seg"), 200) }, len(s.want) - 1, len(s.want), false},
		{"segments cut", func(dir string) {
			if err := os.Truncate(filepath.Join(dir, "segments", "0000000000000001.seg"), 1_200_000); err != nil {
				t.Fatal(err)
			}
		}, 50, len(s.want) - 10, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, to := t.TempDir(), filepath.Join(t.TempDir(), "saved")
			copyTree(t, s.dir, dir)
			test.hurt(dir)
			got, err := Rescue(t.Context(), RescueOptions{Dir: dir, To: to, Queue: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v", *got)
			if got.Messages < test.least || got.Messages > test.most || (len(got.Damage) > 0) != test.damage {
				t.Errorf("%d messages, damage %q, want %d to %d messages and damage = %t", got.Messages, got.Damage, test.least, test.most, test.damage)
			}
			whole := map[mail.QueueID]string{}
			names, err := filepath.Glob(filepath.Join(to, "messages", "*.json"))
			if err != nil || len(names) != got.Messages {
				t.Errorf("%d files, %v, want %d", len(names), err, got.Messages)
			}
			for _, name := range names {
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				var m RescuedMessage
				if err := json.Unmarshal(b, &m); err != nil {
					t.Fatal(err)
				}
				eml, err := os.ReadFile(name[:len(name)-len("json")] + "eml")
				if err != nil {
					t.Fatal(err)
				}
				want, ok := s.want[m.ID]
				if !ok || string(eml) != want || len(m.Recipients) != 1 || !m.Recipients[0].Open || m.Envelope.Sender.String() != "sender@example.org" {
					t.Errorf("%s is not what was accepted: %+v", name, m)
				}
				whole[m.ID] = want
			}
			missing := len(s.want) - len(whole)
			if told := len(got.Partial) + len(got.Lost) + got.Unreadable + got.Orphans; told < missing {
				t.Errorf("%d messages are missing and %d are accounted for", missing, told)
			}
			fresh := &stock{dir: got.Queue, want: whole}
			if fresh.check(t, got.Queue) {
				t.Error("the new queue was refused")
			}
		})
	}
	if _, err := Rescue(t.Context(), RescueOptions{Dir: s.dir, To: s.dir}); err == nil {
		t.Error("Rescue into a directory that is not empty succeeded")
	}
}

func TestRescueOpenQueue(t *testing.T) {
	h := open(t, nil)
	if _, err := Rescue(t.Context(), RescueOptions{Dir: h.dir, To: filepath.Join(t.TempDir(), "to")}); err == nil {
		t.Error("Rescue of a queue that is open succeeded")
	}
}
