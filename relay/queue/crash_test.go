package queue

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// The crash test runs this test binary again as a relay under load, kills it
// at a random moment, and compares what it acknowledged with what is there.
const (
	crashDirEnv    = "WAYBILL_QUEUE_CRASH_DIR"    // set for the child: its directory
	crashRoundsEnv = "WAYBILL_QUEUE_CRASH_ROUNDS" // how often to kill; 10 when not set
	crashNote      = "notes"                      // what the child has told the world
)

// note is one line of what the child told: an acknowledged message, or a fact.
type note struct {
	Acked mail.QueueID  `json:"acked,omitzero"`
	Sum   int           `json:"sum,omitzero"` // of the acknowledged content
	Fact  *event.Record `json:"fact,omitzero"`
}

// notes is a file that several goroutines append to. What one write put there
// survives a kill.
type notes struct{ f *os.File }

func (n notes) Write(r *event.Record) { n.add(note{Fact: r}) }

func (n notes) add(v note) {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = n.f.Write(append(b, '\n'))
	}
	if err != nil {
		panic(err)
	}
}

// durable has all facts on disk, as notes does.
type durable struct{}

func (durable) Write(*event.Record)     {}
func (durable) Mark() uint64            { return 0 }
func (durable) Stored() (uint64, error) { return 0, nil }
func (durable) Sync() error             { return nil }

// crashOptions are those of child and parent.
func crashOptions(dir string, sink event.Sink) Options {
	return Options{
		Dir: filepath.Join(dir, "queue"), Router: &domains{}, Emitter: event.NewEmitter("n1", sink), Confirm: durable{},
		DiskFreeMin: 1 << 20, tune: tuning{fs: roomy{}, segment: 1 << 20, tick: 30 * time.Millisecond},
	}
}

// crashContent is a content that its ID and size tell.
func crashContent(id mail.QueueID, size int) []byte {
	return bytes.Repeat([]byte(id), size/26+1)[:size]
}

// crashChild accepts and settles until it is killed.
func crashChild(dir string) {
	f, err := os.OpenFile(filepath.Join(dir, crashNote), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	out := notes{f}
	q, err := Open(crashOptions(dir, out))
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	var wg sync.WaitGroup
	wg.Go(func() { _ = q.Run(ctx) })
	for range 8 {
		wg.Go(func() {
			for {
				d := mail.Draft{ID: mail.QueueID(mail.NewID(time.Now()))}
				d.Envelope.Sender = mail.Address{Local: "s", Domain: "example.org"}
				for i := range 1 + rand.IntN(3) {
					d.Envelope.Recipients = append(d.Envelope.Recipients, mail.Recipient{Address: mail.Address{Local: "u" + strconv.Itoa(i), Domain: fmt.Sprintf("d%d.example", rand.IntN(4))}})
				}
				size := rand.IntN(20_000)
				if rand.IntN(50) == 0 {
					size = smallContent + rand.IntN(100_000)
				}
				if err := q.Put(ctx, d, crashContent(d.ID, size)); err != nil {
					panic(err)
				}
				out.add(note{Acked: d.ID, Sum: size})
			}
		})
	}
	for range 8 {
		wg.Go(func() {
			for {
				l, err := q.Claim(ctx)
				if err != nil {
					panic(err)
				}
				s := Settlement{Outcomes: outcomes(l, mail.Deferred), Next: time.Now().Add(time.Duration(rand.IntN(200)) * time.Millisecond)}
				for k := range s.Outcomes {
					s.Outcomes[k].Disposition = []mail.Disposition{mail.Relayed, mail.Relayed, mail.Deferred, mail.Bounced}[rand.IntN(4)]
				}
				if err := q.Settle(ctx, l, s); err != nil {
					panic(err)
				}
			}
		})
	}
	wg.Wait()
}

// world is what was told, by all children and by the parent's own queue.
type world struct {
	t      *testing.T
	acked  map[mail.QueueID]int
	queued map[mail.QueueID]int
	finals map[string]string // "id recipient" to the fact's ID
	twice  []string
}

func (w *world) fact(r *event.Record) {
	final := func(f event.Final) {
		key := fmt.Sprint(r.Message, " ", f.Recipient)
		if was, ok := w.finals[key]; ok && was != r.ID {
			w.twice = append(w.twice, key)
		}
		w.finals[key] = r.ID
	}
	if ev, ok := r.Event.(event.MessageQueued); ok {
		w.queued[r.Message] = len(ev.Recipients)
	}
	if f, _ := finalIn(r); f != nil {
		final(*f)
	}
}

// Write makes a world a sink.
func (w *world) Write(r *event.Record) { w.fact(r) }

func (w *world) read(name string) {
	f, err := os.Open(name)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var n note
		if err := json.Unmarshal(lines.Bytes(), &n); err != nil {
			continue // the last line, cut off
		}
		if n.Acked != "" {
			w.acked[n.Acked] = n.Sum
		}
		if n.Fact != nil {
			w.fact(n.Fact)
		}
	}
}

// check opens the queue as after a crash and compares.
func (w *world) check(dir string) {
	t := w.t
	q, err := Open(crashOptions(dir, w)) // states again what the child could not, to w
	if err != nil {
		t.Fatalf("open after the crash: %v", err)
	}
	defer func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}()
	if len(w.twice) > 0 {
		t.Fatalf("recipients with two finals: %v", w.twice)
	}
	for id := range w.acked {
		if w.queued[id] == 0 {
			t.Errorf("%s was acknowledged, and no fact says that it was queued", id)
		}
	}
	for id, n := range w.queued {
		finals := 0
		for i := range n {
			for d := range 4 {
				if w.finals[fmt.Sprintf("%s u%d@d%d.example", id, i, d)] != "" {
					finals++
				}
			}
		}
		m, err := q.Get(id)
		open := 0
		if err == nil {
			for _, s := range m.States {
				if !s.Disposition.Final() {
					open++
				}
			}
			if size, ok := w.acked[id]; ok {
				r, err := q.Content(id)
				if err != nil {
					t.Errorf("content of %s: %v", id, err)
					continue
				}
				got := make([]byte, size+1)
				k := 0
				for err == nil {
					var part int
					part, err = r.Read(got[k:])
					k += part
				}
				r.Close()
				if !bytes.Equal(got[:k], crashContent(id, size)) {
					t.Errorf("content of %s is not what was accepted", id)
				}
			}
		}
		if finals+open != n {
			t.Errorf("%s: %d recipients are final and %d are queued, of %d", id, finals, open, n)
		}
	}
}

// crashLeast is how many messages a child has accepted before it is killed.
const crashLeast = 20

// acknowledged counts the messages that the child has accepted so far.
func acknowledged(name string) int {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0 // not yet there
	}
	return bytes.Count(b, []byte(`{"acked":`))
}

func TestCrash(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rounds := 10
	if n, err := strconv.Atoi(os.Getenv(crashRoundsEnv)); err == nil {
		rounds = n
	}
	dir := t.TempDir()
	w := &world{t: t, acked: map[mail.QueueID]int{}, queued: map[mail.QueueID]int{}, finals: map[string]string{}}
	name := filepath.Join(dir, crashNote)
	for round := range rounds {
		cmd := exec.Command(exe, "-test.run=^$")
		cmd.Env = append(os.Environ(), crashDirEnv+"="+dir)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		// A random moment of its life: in one round of four perhaps while it still
		// opens, else when it has work in hand.
		limit := time.After(5 * time.Minute)
		for round%4 != 0 && acknowledged(name) < crashLeast {
			select {
			case err := <-done:
				t.Fatalf("round %d: the child ended by itself: %v\n%s", round, err, stderr.String())
			case <-limit:
				_ = cmd.Process.Kill()
				t.Fatalf("round %d: %d messages in 5 minutes\n%s", round, acknowledged(name), stderr.String())
			case <-time.After(10 * time.Millisecond):
			}
		}
		select {
		case err := <-done:
			t.Fatalf("round %d: the child ended by itself: %v\n%s", round, err, stderr.String())
		case <-time.After(time.Duration(20+rand.IntN(500)) * time.Millisecond):
		}
		_ = cmd.Process.Kill()
		<-done
		if stderr.Len() > 0 {
			t.Fatalf("round %d: %s", round, stderr.String())
		}
		if _, err := os.Stat(name); err == nil {
			w.read(name)
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		w.check(dir)
		if t.Failed() {
			t.Fatalf("after round %d", round)
		}
	}
	if least := (rounds - (rounds+3)/4) * crashLeast; len(w.acked) < least {
		t.Errorf("%d messages were acknowledged in %d rounds, want %d at least", len(w.acked), rounds, least)
	}
	t.Logf("%d rounds, %d messages acknowledged, %d finals", rounds, len(w.acked), len(w.finals))
}
