package logtrack

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

const childEnv = "WAYBILL_TRACK_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		crashChild(dir)
	}
	goleak.VerifyTestMain(m,
		// Badger leaves these behind when it cannot open a damaged database.
		goleak.IgnoreTopFunction("github.com/dgraph-io/badger/v4.(*DB).monitorCache"),
		goleak.IgnoreTopFunction("github.com/dgraph-io/ristretto/v2/z.(*AllocatorPool).freeupAllocators"),
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
	)
}

func openStore(t testing.TB, dir string, change ...func(*Options)) *Store {
	t.Helper()
	opts := Options{Dir: dir, QueryTimeout: time.Minute}
	for _, c := range change {
		c(&opts)
	}
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func must1[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// seal makes the store seal what it has, and waits for it.
func seal(s *Store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rotate()
	for _, m := range s.sealing {
		m.full = time.Time{} // not to wait for others
	}
	kick(s.sealKick)
	for len(s.sealing) > 0 {
		s.room.Wait()
	}
}

func export(t testing.TB, s *Store) []string {
	t.Helper()
	var b bytes.Buffer
	if _, err := s.Export(t.Context(), &b, time.Time{}, time.Time{}); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

func facts(seed uint64, messages int) []event.Record {
	m := newMailer(seed)
	var recs []event.Record
	for range messages {
		recs = append(recs, m.next()...)
	}
	slices.SortFunc(recs, func(a, b event.Record) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.ID, b.ID))
	})
	return recs
}

func lines(t testing.TB, recs []event.Record) []string {
	list := make([]string, len(recs))
	for i := range recs {
		list[i] = jsonOf(t, &recs[i])
	}
	return list
}

func TestFoundAtOnceAndAfterReopening(t *testing.T) {
	dir := t.TempDir()
	recs := facts(1, 1200)
	want := lines(t, recs)
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for i := range recs {
		s.Write(&recs[i])
	}
	if got := export(t, s); !slices.Equal(got, want) {
		t.Errorf("before closing: %d facts, want %d", len(got), len(want))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "journal", "*")); err != nil || len(left) > 0 {
		t.Errorf("journal after closing: %v, %v", left, err)
	}
	s.Write(&recs[0])
	if n := s.Stats().Dropped["closed"]; n != 1 {
		t.Errorf("%d facts dropped after closing, want 1", n)
	}
	s = openStore(t, dir)
	if got := export(t, s); !slices.Equal(got, want) {
		t.Errorf("after reopening: %d facts, want %d", len(got), len(want))
	}
	if st := s.Stats(); st.Events != int64(len(want)) || !st.Oldest.Equal(recs[0].Time) || st.Bytes == 0 {
		t.Errorf("Stats() = %+v", st)
	}
}

// TestMinor leaves out what the stream has marked.
func TestMinor(t *testing.T) {
	s := openStore(t, t.TempDir())
	recs := facts(1, 10)
	var want []string
	for i := range recs {
		if recs[i].Minor = i%3 == 0; !recs[i].Minor {
			want = append(want, jsonOf(t, &recs[i]))
		}
		s.Write(&recs[i])
	}
	if got := export(t, s); !slices.Equal(got, want) {
		t.Errorf("%d facts, want the %d that are not minor", len(got), len(want))
	}
	for reason, n := range s.Stats().Dropped {
		if n != 0 {
			t.Errorf("%d facts dropped, %s: what is left out on purpose is not lost", n, reason)
		}
	}
}

// TestChangeIsSeenWhole asks for messages while the facts of each come in as one change.
func TestChangeIsSeenWhole(t *testing.T) {
	s := openStore(t, t.TempDir())
	m := newMailer(3)
	var current atomic.Pointer[[]event.Record]
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 400 {
			var change []event.Record
			for _, r := range m.next() {
				if r.Message != "" && (change == nil || r.Message == change[0].Message) {
					change = append(change, r)
				}
			}
			current.Store(&change)
			s.WriteChange(change)
		}
	}()
	for last := false; !last; {
		select {
		case <-done:
			last = true
		default:
		}
		change := current.Load()
		if change == nil {
			continue
		}
		tl, err := s.Message(t.Context(), string((*change)[0].Message))
		switch {
		case !last && errors.Is(err, ErrNotFound):
		case err != nil:
			t.Fatal(err)
		case len(tl.Timeline) != len(*change):
			t.Fatalf("%d facts of a change of %d", len(tl.Timeline), len(*change))
		}
	}
}

func TestDuplicatesAreDropped(t *testing.T) {
	dir := t.TempDir()
	recs := facts(2, 900)
	want := lines(t, recs)
	write := func(s *Store) {
		for i := range recs {
			s.Write(&recs[i])
		}
	}
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	write(s)
	write(s) // while in memory
	seal(s)
	write(s) // just sealed
	if got := export(t, s); !slices.Equal(got, want) {
		t.Errorf("%d facts, want %d", len(got), len(want))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir) // the queue's outbox after a crash
	write(s)
	seal(s)
	write(s)
	if got := export(t, s); !slices.Equal(got, want) {
		t.Errorf("after reopening: %d facts, want %d", len(got), len(want))
	}
	if n := s.Stats().Duplicates; n != int64(2*len(recs)) {
		t.Errorf("%d duplicates counted, want %d", n, 2*len(recs))
	}
}

// crashChild writes facts for ever, and says after each Sync how many are safe.
func crashChild(dir string) {
	s, err := Open(Options{Dir: dir})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	recs := facts(3, 6000)
	go func() { _, _ = os.Stdin.Read(make([]byte, 1)); os.Exit(0) }() // the parent is gone
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for i := 0; i < len(recs); {
		for range 1 + rng.IntN(400) {
			if i < len(recs) {
				s.Write(&recs[i])
				i++
			}
		}
		if err := s.Sync(); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(i, recs[i-1].ID)
	}
	fmt.Println("end")
	select {}
}

// TestKillLosesNothingThatSyncConfirmed kills a writer at random moments.
func TestKillLosesNothingThatSyncConfirmed(t *testing.T) {
	for round := range 6 {
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var ids []string
		confirmed, stopAfter := 0, 3+round*9
		sc := bufio.NewScanner(out)
		for n := 0; sc.Scan(); n++ {
			var id string
			if _, err := fmt.Sscan(sc.Text(), &confirmed, &id); err != nil {
				if sc.Text() != "end" {
					t.Fatal(sc.Text())
				}
				break
			}
			ids = append(ids, id)
			if n == stopAfter {
				break
			}
		}
		_ = cmd.Process.Kill()
		for sc.Scan() { // what it confirmed before it died
			var id string
			if _, err := fmt.Sscan(sc.Text(), &confirmed, &id); err == nil {
				ids = append(ids, id)
			}
		}
		_ = cmd.Wait()
		_ = stdin.Close()

		s := openStore(t, dir)
		got := export(t, s)
		if len(got) < confirmed {
			t.Fatalf("round %d: %d facts after the kill, %d were confirmed", round, len(got), confirmed)
		}
		all := strings.Join(got, "\n")
		for _, id := range ids {
			if strings.Count(all, `"event_id":"`+id+`"`) != 1 {
				t.Errorf("round %d: confirmed fact %s is there %d times", round, id, strings.Count(all, `"event_id":"`+id+`"`))
			}
		}
		t.Logf("round %d: %d confirmed, %d found", round, confirmed, len(got))
	}
}

// abandon leaves a store as a crash would: only what was synced is on disk.
func abandon(t *testing.T, dir string, recs []event.Record) {
	t.Helper()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for i := range recs {
		s.Write(&recs[i])
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "journal", "*"))
	if err != nil || len(files) == 0 {
		t.Fatal("no journal", err)
	}
	kept := map[string][]byte{}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		kept[name] = b
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "parts")); err != nil {
		t.Fatal(err)
	}
	for name, b := range kept {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTornJournal(t *testing.T) {
	recs := facts(4, 40)
	want := lines(t, recs)
	for _, test := range []struct {
		name   string
		damage func(b []byte) []byte
		want   int // facts at least
		most   int
	}{
		{"whole", func(b []byte) []byte { return b }, len(recs), len(recs)},
		{"last octet gone", func(b []byte) []byte { return b[:len(b)-1] }, len(recs) - 1, len(recs) - 1},
		{"zeros behind", func(b []byte) []byte { return append(b, make([]byte, 4096)...) }, len(recs), len(recs)},
		{"rubbish behind", func(b []byte) []byte { return append(b, "rubbish that is no frame"...) }, len(recs), len(recs)},
		{"a bit in the last third", func(b []byte) []byte { b[len(b)*9/10] ^= 1; return b }, len(recs) / 2, len(recs) - 1},
		{"only the magic", func(b []byte) []byte { return b[:3] }, 0, 0},
		{"empty", func([]byte) []byte { return nil }, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			abandon(t, dir, recs)
			files, _ := filepath.Glob(filepath.Join(dir, "journal", "*"))
			b, err := os.ReadFile(files[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(files[0], test.damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			s := openStore(t, dir)
			got := export(t, s)
			if got[0] == "" {
				got = nil
			}
			if len(got) < test.want || len(got) > test.most {
				t.Errorf("%d facts, want %d to %d", len(got), test.want, test.most)
			}
			if !slices.Equal(got, want[:len(got)]) {
				t.Error("facts differ from those written")
			}
			for i := range recs { // the outbox states them again
				s.Write(&recs[i])
			}
			if got := export(t, s); !slices.Equal(got, want) {
				t.Errorf("%d facts after stating them again, want %d", len(got), len(want))
			}
		})
	}
}

func TestBlockSealedTwice(t *testing.T) {
	dir := t.TempDir()
	recs := facts(5, 100)
	abandon(t, dir, recs)
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "journal", "*"))
	kept := map[string][]byte{}
	for _, name := range files {
		kept[name], _ = os.ReadFile(name)
	}
	seal(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, b := range kept { // the crash came between sealing and removing
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = openStore(t, dir)
	if got := export(t, s); len(got) != len(recs) {
		t.Errorf("%d facts, want %d", len(got), len(recs))
	}
}

func TestDamagedPartitionIsLeftOut(t *testing.T) {
	dir := t.TempDir()
	recs := facts(6, 200)
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for i := range recs {
		s.Write(&recs[i])
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	manifests, _ := filepath.Glob(filepath.Join(dir, "parts", "*", "MANIFEST"))
	if len(manifests) != 1 {
		t.Fatal("manifests", manifests)
	}
	if err := os.WriteFile(manifests[0], []byte("no manifest"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	if n := s.Stats().WriteErrors["read"]; n != 1 {
		t.Errorf("%d read errors, want 1", n)
	}
	for i := range recs {
		s.Write(&recs[i])
	}
	seal(s)
	if err := s.Sync(); err != nil {
		t.Error(err)
	}
	if page, err := s.Events(t.Context(), trackapi.Query{}); err != nil || !strings.Contains(page.Cut, "damaged days") {
		t.Errorf("an answer without a day says %q, %v", page.Cut, err)
	}
	if sum, err := s.Aggregate(t.Context(), trackapi.AggregateQuery{}); err != nil || !strings.Contains(sum.Cut, "damaged days") {
		t.Errorf("numbers without a day say %q, %v", sum.Cut, err)
	}
	if done, err := s.Repair(t.Context()); err != nil || done.Partitions != 1 {
		t.Errorf("Repair() = %+v, %v", done, err)
	}
	if got := export(t, s); len(got) != len(recs) {
		t.Errorf("%d facts, want %d", len(got), len(recs))
	}
}

func TestDamagedBlockIsLeftOut(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	recs := facts(7, 100)
	for i := range recs {
		s.Write(&recs[i])
	}
	seal(s)
	p := s.parts[0]
	wb := p.db.NewWriteBatch()
	if err := wb.Set(blockKey('d', p.heads[0].seq), bytes.Repeat([]byte{1, 200, 77}, 3000)); err != nil {
		t.Fatal(err)
	}
	if err := wb.Flush(); err != nil {
		t.Fatal(err)
	}
	more := facts(8, 10)
	for i := range more {
		s.Write(&more[i])
	}
	got := must1[*trackapi.Events](t)(s.Events(t.Context(), trackapi.Query{Limit: 1000, From: recs[0].Time.Add(-time.Hour)}))
	if len(got.Events) != len(more) || !strings.Contains(got.Cut, "damaged") {
		t.Errorf("%d facts, cut %q; want %d and a word of damage", len(got.Events), got.Cut, len(more))
	}
	if _, err := s.Aggregate(t.Context(), trackapi.AggregateQuery{}); err != nil {
		t.Error(err)
	}
}

func TestRetention(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, func(o *Options) { o.Retention = 7 * 24 * time.Hour })
	var log bytes.Buffer
	now := time.Now().UTC()
	for day := range 12 {
		at := now.AddDate(0, 0, -day)
		for range 20 {
			r := event.Record{ID: mail.NewID(at), Time: at, Event: event.Remarked{Remark: fmt.Sprint("day ", day)}}
			log.WriteString(jsonOf(t, &r) + "\n")
		}
	}
	done := must1[Reindexed](t)(s.Reindex(t.Context(), &log))
	if done.Old != 5*20 && done.Old != 4*20 {
		t.Errorf("Reindex = %+v, want the lines past the retention left out", done)
	}
	if n := s.Stats().Partitions; n < 7 || n > 8 {
		t.Errorf("%d partitions, want one for each day", n)
	}
	s.maintain(now)
	before := s.Stats().Events
	s.maintain(now.AddDate(0, 0, 3))
	after := s.Stats()
	if before-after.Events < 40 || before-after.Events > 80 {
		t.Errorf("%d facts before, %d three days later", before, after.Events)
	}
	dirs, _ := filepath.Glob(filepath.Join(dir, "parts", "*"))
	if len(dirs) > after.Partitions+1 {
		t.Errorf("%d directories for %d partitions", len(dirs), after.Partitions)
	}
	if after.Oldest.Before(now.AddDate(0, 0, -5)) {
		t.Errorf("oldest fact is of %s", after.Oldest)
	}
}

func TestMaxBytes(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) { o.MaxBytes = 1 << 20 })
	recs := facts(9, 4000)
	for i := range recs {
		s.Write(&recs[i])
		if i%5000 == 4999 {
			seal(s)
			s.maintain(time.Now())
		}
	}
	seal(s)
	s.maintain(time.Now())
	st := s.Stats()
	if st.Events == 0 || st.Events == int64(len(recs)) {
		t.Errorf("%d of %d facts are left, want some", st.Events, len(recs))
	}
	var newest trackapi.Query
	newest.Limit = 1
	got := must1[*trackapi.Messages](t)(s.Messages(t.Context(), newest))
	if len(got.Messages) != 1 {
		t.Error("the newest message is gone")
	}
}

// TestPagingWhileWriting pages through messages while others arrive: none of
// those that were there at the start is missed or given twice.
func TestPagingWhileWriting(t *testing.T) {
	s := openStore(t, t.TempDir())
	recs := facts(10, 1200)
	want := map[string]bool{}
	for i := range recs {
		s.Write(&recs[i])
		if recs[i].Message != "" {
			want[string(recs[i].Message)] = true
		}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			m := newMailer(uint64(100 + w))
			m.at = recs[len(recs)-1].Time.Add(time.Second)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				for _, r := range m.next() {
					s.Write(&r)
				}
				if i%100 == 0 {
					_ = s.Sync()
				}
			}
		})
	}
	for _, order := range []string{"-time", "time"} {
		q := trackapi.Query{From: recs[0].Time.Add(-time.Hour), Limit: 97, Sort: order}
		seen := map[string]bool{}
		last := ""
		found := 0
		for found < len(want) {
			page := must1[*trackapi.Messages](t)(s.Messages(t.Context(), q))
			for _, m := range page.Messages {
				if seen[m.QueueID] {
					t.Fatalf("%s is given twice", m.QueueID)
				}
				if last != "" && (order == "time") != (m.QueueID > last) {
					t.Fatalf("order %s: %s after %s", order, m.QueueID, last)
				}
				seen[m.QueueID], last = true, m.QueueID
				if want[m.QueueID] {
					found++
				}
			}
			if q.Cursor = page.Cursor; q.Cursor == "" {
				break
			}
		}
		if found != len(want) {
			t.Errorf("order %s: %d of %d messages", order, found, len(want))
		}
	}
	close(stop)
	wg.Wait()
	if d := s.Stats().Dropped; d["store_failed"]+d["panic"] > 0 {
		t.Errorf("dropped: %v", d)
	}
}

func TestCursorOfAnotherQuery(t *testing.T) {
	s := openStore(t, t.TempDir())
	recs := facts(11, 100)
	for i := range recs {
		s.Write(&recs[i])
	}
	page := must1[*trackapi.Messages](t)(s.Messages(t.Context(), trackapi.Query{Limit: 5}))
	if page.Cursor == "" {
		t.Fatal("no cursor")
	}
	for _, q := range []trackapi.Query{
		{Cursor: page.Cursor, Sort: "time"},
		{Cursor: page.Cursor, Class: "greylist"},
		{Cursor: "rubbish!"},
		{Cursor: "AAAA"},
	} {
		_, err := s.Messages(t.Context(), q)
		var p *trackapi.Problem
		if !errors.As(err, &p) || p.Field != "cursor" || p.Hint == "" {
			t.Errorf("cursor %q with other filters: %v, want a problem with a hint", q.Cursor, err)
		}
	}
}

func TestBadQueries(t *testing.T) {
	s := openStore(t, t.TempDir())
	for _, test := range []struct {
		name  string
		query trackapi.Query
		want  string // field
	}{
		{"class", trackapi.Query{Class: "greylisted"}, "class"},
		{"disposition", trackapi.Query{Disposition: "delivered"}, "disposition"},
		{"event", trackapi.Query{Event: "delivered"}, "event"},
		{"code", trackapi.Query{Code: "999"}, "code"},
		{"enhanced", trackapi.Query{Code: "5.1"}, "code"},
		{"address", trackapi.Query{Sender: "alice"}, "sender"},
		{"network", trackapi.Query{ClientIP: "10.0.0.0/99"}, "client_ip"},
		{"ip", trackapi.Query{ClientIP: "10.0.0"}, "client_ip"},
		{"domain", trackapi.Query{Domain: "exa mple"}, "domain"},
		{"short queue id", trackapi.Query{QueueID: "01J"}, "queue_id"},
		{"q", trackapi.Query{Q: "recipient"}, "q"},
		{"q field", trackapi.Query{Q: "rcpt:a@b"}, "q"},
		{"range", trackapi.Query{From: time.Now(), To: time.Now().Add(-time.Hour)}, "from"},
		{"limit", trackapi.Query{Limit: 5000}, "limit"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for kind, ask := range map[string]func() error{
				"messages": func() error { _, err := s.Messages(t.Context(), test.query); return err },
				"events":   func() error { _, err := s.Events(t.Context(), test.query); return err },
			} {
				var p *trackapi.Problem
				if !errors.As(ask(), &p) || p.Field != test.want || p.Hint == "" || p.Status != 400 {
					t.Errorf("%s: %+v, want a problem of %s with a hint", kind, p, test.want)
				}
			}
		})
	}
}

func TestTail(t *testing.T) {
	s := openStore(t, t.TempDir())
	all := must1[*Tailer](t)(s.Tail(trackapi.Query{Event: "message_queued"}))
	slow := must1[*Tailer](t)(s.Tail(trackapi.Query{}))
	recs := facts(12, 300)
	var want []string
	for i := range recs {
		if _, ok := recs[i].Event.(event.MessageQueued); ok {
			want = append(want, recs[i].ID)
		}
	}
	var got []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		for r := range all.C {
			if got = append(got, r.ID); len(got) == len(want) {
				return
			}
		}
	}()
	for i := range recs {
		s.Write(&recs[i])
	}
	<-done
	if !slices.Equal(got, want) {
		t.Errorf("%d live facts, want %d", len(got), len(want))
	}
	n := 0
	for range slow.C { // it did not read, so it was ended
		n++
	}
	if err := slow.Err(); !errors.Is(err, ErrTailSlow) || n == 0 {
		t.Errorf("slow reader: %v after %d facts, want %v", err, n, ErrTailSlow)
	}
	all.Close()
	if err := all.Err(); err != nil {
		t.Error(err)
	}
	if live, dropped := s.tails.stats(); live != 0 || dropped != 1 {
		t.Errorf("%d readers and %d slow ones, want 0 and 1", live, dropped)
	}
	if _, err := s.Tail(trackapi.Query{Class: "nonsense"}); err == nil {
		t.Error("a wrong filter is accepted")
	}
}

// TestFailingDisk: when nothing can be stored, writing goes on, drops are
// counted, and Sync refuses to confirm.
func TestFailingDisk(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	// The directories become files: no journal and no partition can be made.
	for _, sub := range []string{"journal", "parts"} {
		if err := os.RemoveAll(filepath.Join(dir, sub)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, sub), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	recs := facts(13, 9000)
	for i := range recs {
		s.Write(&recs[i])
	}
	if err := s.Sync(); err == nil {
		t.Error("Sync confirms what is not on disk")
	}
	st := s.Stats()
	if st.Degraded == "" || st.Dropped["store_failed"] == 0 || st.WriteErrors["journal"] == 0 || st.WriteErrors["seal"] == 0 {
		t.Errorf("Stats() = %+v, want the failure told", st)
	}
	if got := must1[*trackapi.Messages](t)(s.Messages(t.Context(), trackapi.Query{Limit: 10, From: recs[0].Time})); len(got.Messages) != 10 {
		t.Errorf("%d messages of those in memory", len(got.Messages))
	}
	if err := s.Close(); err == nil {
		t.Error("Close hides that facts were lost")
	}
}

// TestKeptRecords are those that the queue keeps: not in the journal, and
// stored when Sync returns.
func TestKeptRecords(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	recs := facts(17, 30)
	stored := func() uint64 {
		t.Helper()
		n, err := s.Stored()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if got := stored(); got != s.Mark() {
		t.Errorf("Stored() = %d of an empty store, want Mark() = %d", got, s.Mark())
	}
	half := len(recs) / 2
	for i := range recs[:half] {
		recs[i].Kept = true
		s.Write(&recs[i])
	}
	if got, mark := stored(), s.Mark(); got != 0 || mark != uint64(half) {
		t.Errorf("Stored() = %d of Mark() = %d, want 0 of %d", got, mark, half)
	}
	if got := export(t, s); len(got) != half {
		t.Errorf("%d facts are found before they are stored, want %d", len(got), half)
	}
	s.flush(true)
	if files, _ := filepath.Glob(filepath.Join(dir, "journal", "*")); len(files) != 0 {
		t.Errorf("the journal has %q, want nothing", files)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if got := stored(); got != uint64(half) {
		t.Errorf("Stored() = %d after Sync, want %d", got, half)
	}
	if st := s.Stats(); st.Blocks != 1 {
		t.Errorf("%d blocks after Sync, want 1", st.Blocks)
	}
	for i := range recs { // the first half again, as after a crash; the second in the journal
		s.Write(&recs[i])
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Duplicates != int64(half) || st.Blocks != 1 {
		t.Errorf("%d duplicates and %d blocks, want %d and 1: nothing new needs storing at once", st.Duplicates, st.Blocks, half)
	}
	if got := export(t, s); len(got) != len(recs) {
		t.Errorf("%d facts, want %d", len(got), len(recs))
	}
}
