package queue

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"

	"github.com/dgraph-io/badger/v4"
	"pgregory.net/rapid"
)

// TestOverlay compares an overlay, and the database that is saved from it, with a
// plain map: what they say together at each moment, and what a start makes of the
// database and of the entries that it does not know.
func TestOverlay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := newOverlay()
		o.begin(mark{}, &base{})
		o.base.users++ // it has no transaction to be discarded
		model, database := map[string]string{}, map[string]string{}
		ever := map[string]bool{} // keys that the database has had, or is about to have
		type entry struct {
			number uint64
			ops    []saving
		}
		var journal []entry
		var known mark
		number := uint64(0)
		key := rapid.SampledFrom([]string{"m/a", "m/b", "m/c", "o/1", "o/2", "z/outbox", "h/x"})
		apply := func(to map[string]string, list []saving) {
			for _, s := range list {
				if s.value == nil {
					delete(to, s.key)
				} else {
					to[s.key] = string(s.value)
				}
			}
		}
		read := func(k string) (string, bool) {
			v, ok, b := o.find(k)
			if !ok {
				o.mu.Lock()
				b.users--
				o.mu.Unlock()
				s, ok := database[k]
				return s, ok
			}
			return string(v), v != nil
		}
		commit := func(t *rapid.T) {
			number++
			c := &change{}
			for range rapid.IntRange(1, 3).Draw(t, "changes") {
				k := key.Draw(t, "key")
				if rapid.Bool().Draw(t, "delete") {
					c.del = append(c.del, []byte(k))
					continue
				}
				value := []byte{1, recordLive, byte(number)}
				if rapid.Bool().Draw(t, "done") {
					value[1] = recordDone
				}
				_, there := model[k]
				fresh := !there && !ever[k] && rapid.Bool().Draw(t, "fresh")
				c.set = append(c.set, pair{k, value, fresh})
			}
			o.put([]*change{c}, pair{}, number, number)
			e := entry{number: number}
			for _, p := range c.set {
				e.ops = append(e.ops, saving{p.key, p.value})
			}
			for _, k := range c.del {
				e.ops = append(e.ops, saving{key: string(k)})
			}
			journal = append(journal, e)
			apply(model, e.ops)
		}
		save := func(t *rapid.T) {
			both := rapid.Bool().Draw(t, "both")
			list, m := o.turnOver(both)
			for _, s := range list {
				ever[s.key] = true
			}
			part := rapid.IntRange(0, len(list)).Draw(t, "written")
			apply(database, list[:part])
			for range rapid.IntRange(0, 2).Draw(t, "commits meanwhile") {
				commit(t)
			}
			if part < len(list) && rapid.Bool().Draw(t, "fails") {
				return
			}
			apply(database, list[part:])
			known = m
			o.turned(&base{})
			o.base.users++ // as above
		}
		done := func(k string) bool { return isDone(k, []byte(model[k])) }
		t.Repeat(map[string]func(*rapid.T){
			"commit": commit, "commit2": commit, "save": save,
			"": func(t *rapid.T) {
				for _, k := range []string{"m/a", "m/b", "m/c", "o/1", "o/2", "z/outbox", "h/x"} {
					got, there := read(k)
					want, wanted := model[k]
					if (got != want || there != wanted) && (there || !done(k)) { // a finished message is none
						t.Fatalf("%s is %q, %t, want %q, %t", k, got, there, want, wanted)
					}
				}
				after := maps.Clone(database) // a start
				for _, e := range journal {
					if e.number > known.number {
						if e.number < known.floor {
							t.Fatalf("entry %d is needed, and looked for from %d on", e.number, known.floor)
						}
						apply(after, e.ops)
					}
				}
				for k := range model {
					if after[k] != model[k] && (after[k] != "" || !done(k)) {
						t.Fatalf("after a start %s is %q, want %q", k, after[k], model[k])
					}
				}
				for k := range after {
					if _, ok := model[k]; !ok {
						t.Fatalf("after a start %s is %q, want none", k, after[k])
					}
				}
			},
		})
	})
}

// TestOverlayForgets has mail that comes and goes between two saves leave nothing
// in the database, and all else be there.
func TestOverlayForgets(t *testing.T) {
	h := openUnsaved(t, nil)
	known := h.put(t, "known", "a@known.example")
	if err := h.saveAll(); err != nil {
		t.Fatal(err)
	}
	quick := h.put(t, "quick", "a@quick.example")
	stays := h.put(t, "stays", "a@stays.example", "b@stays.example")
	for _, hop := range []string{"known.example", "quick.example"} {
		if l := h.claim(t); l.Hop.Name != hop {
			t.Fatalf("claimed %v, want %s", l.Hop, hop)
		} else {
			h.settle(t, l, mail.Relayed, time.Time{})
		}
	}
	for range 2 {
		if err := h.saveOnce(false); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		id   mail.QueueID
		want string
	}{{known, "done"}, {quick, "none"}, {stays, "live"}} {
		got := "live"
		err := h.db.View(func(txn *badger.Txn) error {
			item, err := txn.Get([]byte(messageKey(test.id)))
			if err != nil {
				return err
			}
			return item.Value(func(v []byte) error {
				if isDone(prefixMessage, v) {
					got = "done"
				}
				return nil
			})
		})
		if err != nil {
			got = "none"
		}
		if got != test.want {
			t.Errorf("the database has %s of %s, want %s", got, test.id, test.want)
		}
	}
}

// TestMarksGoWithTheirRows has a mark change in both generations: what is saved of
// the older one has rows deleted, and says so.
func TestMarksGoWithTheirRows(t *testing.T) {
	o := newOverlay()
	o.begin(mark{}, &base{})
	o.base.users++ // it has no transaction to be discarded
	put := func(n uint64, c *change) { o.put([]*change{c}, pair{}, n, 1) }
	put(1, &change{set: []pair{{key: keyOutbox, value: []byte("5")}}, del: [][]byte{outboxKey(4)}})
	o.turnOver(false)
	o.turned(&base{})
	put(2, &change{set: []pair{{key: keyOutbox, value: []byte("6")}}, del: [][]byte{outboxKey(5)}})
	list, m := o.turnOver(false)
	got := map[string]string{}
	for _, s := range list {
		got[s.key] = string(s.value)
	}
	want := map[string]string{keyOutbox: "5", string(outboxKey(4)): ""}
	if m.number != 1 || !maps.Equal(got, want) {
		t.Errorf("turnOver() = %q, known up to %d, want %q, up to 1", got, m.number, want)
	}
}

// TestRowsThatComeAndGo has facts confirmed before the database learns of them:
// nothing is left to be written, not even that they are deleted.
func TestRowsThatComeAndGo(t *testing.T) {
	o := newOverlay()
	o.begin(mark{}, &base{})
	o.base.users++ // it has no transaction to be discarded
	o.put([]*change{{}}, pair{string(outboxKey(1)), []byte("facts"), true}, 1, 1)
	o.put([]*change{{}}, pair{string(outboxKey(2)), []byte("facts"), true}, 2, 1)
	o.turnOver(false)
	o.turned(&base{})
	o.put([]*change{{del: [][]byte{outboxKey(1), outboxKey(2)}}}, pair{}, 3, 1)
	if list, _ := o.turnOver(true); len(list) != 0 {
		t.Errorf("turnOver() = %q, want nothing", list)
	}
}

// TestListMerges lists what is partly in the database, and partly in either
// generation, in pages of all sizes.
func TestListMerges(t *testing.T) {
	h := openUnsaved(t, func(o *Options) { o.KeepRelayed = time.Hour })
	var all []mail.QueueID
	base := time.Now()
	for i := range 40 {
		d := draft(t, fmt.Sprintf("a@d%d.example", i))
		d.ID = mail.QueueID(mail.NewID(base.Add(time.Duration(i*7%40) * time.Second))) // the generations lie among one another
		all = append(all, d.ID)
		if err := h.Put(t.Context(), d, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if i == 9 || i == 19 || i == 29 {
			if err := h.saveOnce(false); err != nil {
				t.Fatal(err)
			}
		}
	}
	relayed := map[mail.QueueID]bool{}
	for i, id := range all {
		if i%3 != 0 {
			continue
		}
		l := h.claim(t)
		relayed[l.Message.ID] = true
		h.settle(t, l, mail.Relayed, time.Time{})
		if i%2 == 0 && !relayed[id] {
			h.act(t, 1, Action{Action: "hold", Filter: Filter{ID: id}})
		}
		if i == 21 {
			if err := h.saveOnce(false); err != nil {
				t.Fatal(err)
			}
		}
	}
	slices.Sort(all)
	pages := func(list func(context.Context, Filter, mail.QueueID, int) ([]*Message, error), f Filter, size int) (ids []mail.QueueID) {
		t.Helper()
		after := mail.QueueID("")
		for {
			page, err := list(t.Context(), f, after, size)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range page {
				ids = append(ids, m.ID)
			}
			if len(page) < size {
				return ids
			}
			after = page[len(page)-1].ID
		}
	}
	only := func(f func(mail.QueueID) bool) (ids []mail.QueueID) {
		for _, id := range all {
			if f(id) {
				ids = append(ids, id)
			}
		}
		return ids
	}
	one := all[17]
	for _, size := range []int{1, 2, 7, 100} {
		for _, test := range []struct {
			name string
			got  []mail.QueueID
			want []mail.QueueID
		}{
			{"List", pages(h.List, Filter{}, size), only(func(id mail.QueueID) bool { return !relayed[id] })},
			{"Kept", pages(h.Kept, Filter{}, size), only(func(id mail.QueueID) bool { return relayed[id] })},
			{"List of an ID", pages(h.List, Filter{ID: one}, size), only(func(id mail.QueueID) bool { return id == one && !relayed[id] })},
			{"Kept of an ID", pages(h.Kept, Filter{ID: one}, size), only(func(id mail.QueueID) bool { return id == one && relayed[id] })},
		} {
			if !slices.Equal(test.got, test.want) {
				t.Errorf("%s in pages of %d: %v, want %v", test.name, size, test.got, test.want)
			}
		}
	}
}

// TestKeyOfAnotherSegment has a message come again under its ID, and then the
// segment go that had the first one: the second keeps its key.
func TestKeyOfAnotherSegment(t *testing.T) {
	for _, test := range []struct {
		name        string
		first, then bool // what is saved
	}{{"nothing saved", false, false}, {"the first saved", true, false}, {"both saved", true, true}} {
		t.Run(test.name, func(t *testing.T) {
			h := openUnsaved(t, nil)
			save := func(is bool) {
				t.Helper()
				if is {
					if err := h.saveAll(); err != nil {
						t.Fatal(err)
					}
				}
			}
			d := draft(t, "a@example.com")
			if err := h.Put(t.Context(), d, bytes.Repeat([]byte("first"), smallContent)); err != nil { // a file of its own
				t.Fatal(err)
			}
			save(test.first)
			h.act(t, 1, Action{Action: "remove", Filter: Filter{ID: d.ID}})
			save(test.first)
			if err := h.Put(t.Context(), d, []byte("second")); err != nil {
				t.Fatal(err)
			}
			save(test.then)
			if err := h.removeDead(); err != nil {
				t.Fatal(err)
			}
			for _, h := range []*harness{h, h.openCopy(t, h.killed(t))} {
				if got := read(t, h.contentOf(d.ID)); !strings.HasSuffix(got, "\r\nsecond") {
					t.Errorf("the content is %.40q, want the second", got)
				}
			}
			save(true)
			save(true)
			if got := read(t, h.openCopy(t, h.killed(t)).contentOf(d.ID)); !strings.HasSuffix(got, "\r\nsecond") {
				t.Errorf("after a save the content is %.40q, want the second", got)
			}
		})
	}
}

// TestDatabaseFallsBehind has more come than the database has learned: who hands
// in waits for it.
func TestDatabaseFallsBehind(t *testing.T) {
	h := openUnsaved(t, nil)
	h.overlay.mu.Lock()
	h.overlay.octets = overlayBound + 1
	h.overlay.mu.Unlock()
	h.saving.Lock()
	done := make(chan error, 1)
	go func() { done <- h.Put(t.Context(), draft(t, "a@example.com"), []byte("x")) }()
	eventually(t, "the committer has it", func() bool {
		h.com.mu.Lock()
		defer h.com.mu.Unlock()
		return len(h.com.waiting) == 0
	})
	select {
	case err := <-done:
		t.Errorf("Put = %v, want it to wait", err)
	default:
	}
	h.saving.Unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if h.overlay.above(overlayMost) {
		t.Error("nothing was saved")
	}
}

// TestReadDuringCommits reads a record by many while it changes: nobody sees less
// than what was settled before.
func TestReadDuringCommits(t *testing.T) {
	h := open(t, nil)
	at, _ := parseIdent(h.put(t, "x", "a@example.com"))
	const rounds = 50
	var settled sync.Map
	var readers sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				least := 0
				if v, ok := settled.Load(at); ok {
					least = v.(int)
				}
				if m, err := h.read(at); err != nil || m.States[0].Attempts < least {
					t.Errorf("read() = %+v, %v, want %d attempts", m, err, least)
					return
				}
			}
		})
	}
	for i := range rounds {
		l := h.claim(t)
		if l.Attempt != i+1 {
			t.Errorf("attempt %d, want %d", l.Attempt, i+1)
		}
		h.settle(t, l, mail.Deferred, time.Now())
		settled.Store(at, i+1)
	}
	close(done)
	readers.Wait()
}

// TestSettlingFreesItsHop lets a commit wait: the hop gets other messages
// meanwhile, and not more than as many again.
func TestSettlingFreesItsHop(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{}, 100)
	var mu sync.Mutex
	shut := false
	h := open(t, func(o *Options) {
		o.Concurrency = func(route.Hop) int { return 2 }
		o.tune.beforeCommit = func() error {
			mu.Lock()
			wait := shut
			mu.Unlock()
			if wait {
				entered <- struct{}{}
				<-gate
			}
			return nil
		}
	})
	for range 6 {
		h.put(t, "x", "a@example.com")
	}
	a, b := h.claim(t), h.claim(t)
	h.idle(t)
	mu.Lock()
	shut = true
	mu.Unlock()
	var settling sync.WaitGroup
	settle := func(l *Lease) {
		settling.Go(func() {
			if err := h.Settle(t.Context(), l, Settlement{Outcomes: outcomes(l, mail.Relayed), Reached: true}); err != nil {
				t.Errorf("Settle: %v", err)
			}
		})
	}
	settle(a)
	settle(b)
	<-entered
	c, d := h.claim(t), h.claim(t) // in their places
	h.idle(t)
	settle(c)
	settle(d)
	eventually(t, "all settling", func() bool {
		h.com.mu.Lock()
		defer h.com.mu.Unlock()
		return len(h.com.waiting) >= 2
	})
	h.idle(t) // two are out that count, and two that do not
	mu.Lock()
	shut = false
	mu.Unlock()
	close(gate)
	settling.Wait()
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	if n := h.Levels().Messages; n != 0 {
		t.Errorf("%d messages are left, want none", n)
	}
}

// TestRetryOfParked lets messages wait for a hop that cannot be reached. To try
// them now writes no record: one of them sees whether the hop is back.
func TestRetryOfParked(t *testing.T) {
	h := open(t, nil)
	const n = 20
	for range n {
		h.put(t, "x", "a@example.com")
	}
	soon, late := time.Now().Add(time.Hour), time.Now().Add(24*time.Hour)
	one, other := h.claim(t), h.claim(t)
	one.Park(soon, late)
	other.Park(soon, late)
	h.idle(t) // the others need not be claimed
	before := h.journal
	aff, err := h.Act(t.Context(), Action{Action: "retry", Filter: Filter{All: true}})
	if err != nil || aff.Messages != n || len(aff.IDs) != n {
		t.Fatalf("Act() = %+v, %v, want %d messages", aff, err, n)
	}
	if got := h.journal - before; got != 1 {
		t.Errorf("%d commits, want the one of the fact", got)
	}
	l := h.claim(t)
	h.idle(t)
	if err := h.Settle(t.Context(), l, Settlement{Outcomes: outcomes(l, mail.Relayed), Reached: true}); err != nil {
		t.Fatal(err)
	}
	for range n - 1 {
		h.settle(t, h.claim(t), mail.Relayed, time.Time{})
	}
	deferred := h.put(t, "x", "a@example.com")
	h.settle(t, h.claim(t), mail.Deferred, soon)
	h.act(t, 1, Action{Action: "retry", Filter: Filter{All: true}})
	if l := h.claim(t); l.Message.ID != deferred {
		t.Errorf("claimed %s, want %s", l.Message.ID, deferred)
	}
}
