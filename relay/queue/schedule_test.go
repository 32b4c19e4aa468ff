package queue

import (
	"cmp"
	"math"
	"reflect"
	"slices"
	"testing"
	"time"
	"unsafe"

	"waybill/relay/mail"
	"waybill/relay/route"

	"pgregory.net/rapid"
)

// TestEntrySize holds what a queued message for one hop costs in memory, beside
// its places in three heaps (12 octets), in the index (about 14) and in the list of
// its segment (16); and that chunks of it are of the allocator's sizes.
func TestEntrySize(t *testing.T) {
	if got := unsafe.Sizeof(entry{}); got != 64 {
		t.Errorf("an entry has %d octets, want 64", got)
	}
	if got := unsafe.Sizeof(group{}); got != 48 {
		t.Errorf("a group has %d octets, want 48", got)
	}
}

// TestNoPointers holds that the collector does not look into what a queue of many
// messages consists of.
func TestNoPointers(t *testing.T) {
	for _, test := range []struct {
		name string
		kind reflect.Type
	}{
		{"entries", reflect.TypeFor[[chunkSize]entry]()},
		{"groups", reflect.TypeFor[[chunkSize]group]()},
		{"places of the index", reflect.TypeFor[indexPlace]()},
		{"what is held until then", reflect.TypeOf(Queue{}.until).Elem()},
		{"its key", reflect.TypeOf(Queue{}.until).Key()},
		{"IDs in a segment", reflect.TypeOf(segment{}.ids).Elem()},
	} {
		t.Run(test.name, func(t *testing.T) {
			if hasPointers(test.kind) {
				t.Errorf("%s has pointers, want none", test.kind)
			}
		})
	}
}

func hasPointers(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Array:
		return hasPointers(t.Elem())
	case reflect.Struct:
		for f := range t.Fields() {
			if hasPointers(f.Type) {
				return true
			}
		}
		return false
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return false
	default:
		return true
	}
}

// newTestEntry makes an entry that a schedule takes.
func newTestEntry(accepted int64, p mail.Priority) entry {
	id, _ := parseIdent(mail.QueueID(mail.NewID(fromMicro(accepted))))
	return entry{id: id, accepted: accepted, prio: uint8(priorityIndex(p)), segment: 1}
}

// claimed is a lease of the oracle.
type claimed struct {
	group  *group
	hop    *hopQueue
	prio   int
	number uint32
	freed  bool // it does not count for its hop any more
}

// oracle is what a schedule should do, found by looking at everything.
type oracle struct {
	s      *schedule
	limits map[string]int
	all    []*entry
	leased []claimed
	now    int64
}

// claimable lists for each hop what may be claimed now, by the letter of the rules:
// where a hop is down, who is to see whether it is back before those at their latest.
func (o *oracle) claimable() map[*hopQueue][]*group {
	list, last := map[*hopQueue][]*group{}, map[*hopQueue][]*group{}
	for _, e := range o.all {
		for g, h := range o.s.groups(e) {
			if g.lease != 0 || e.held || e.poison || e.frozen || h.held != nil || h.used() >= o.limits[h.hop.Name] {
				continue
			}
			if h.leases[e.prio] >= max(1, o.limits[h.hop.Name]*o.s.shares[e.prio]/100) || o.s.total > 0 && o.s.leases[e.prio] >= max(1, o.s.total*o.s.shares[e.prio]/100) {
				continue
			}
			if g.due <= o.now && (!h.down || h.probeAt <= o.now) {
				list[h] = append(list[h], g)
			}
			if h.down && g.latest.micro() <= o.now {
				last[h] = append(last[h], g)
			}
		}
	}
	for h, l := range last {
		if len(list[h]) == 0 {
			list[h] = l
		}
	}
	return list
}

// rank is what decides among those of one hop that may be claimed.
func (o *oracle) rank(h *hopQueue, g *group) int64 {
	at := g.due
	switch {
	case h.down && h.probeAt <= o.now:
		at = max(at, h.probeAt)
	case h.down:
		at = g.latest.micro()
	}
	return h.effective(at) - headStart[o.s.message(g).prio]
}

// check compares what the schedule says of every hop with what all its groups say.
func (o *oracle) check(t *rapid.T) {
	for _, h := range o.s.hops {
		first, oldest, n := int64(math.MaxInt64), [ageCount]int64{math.MaxInt64, math.MaxInt64, math.MaxInt64, math.MaxInt64}, 0
		for _, e := range o.all {
			if g := o.s.group(e, h); g != nil {
				n++
				oldest[g.status.age()] = min(oldest[g.status.age()], e.accepted)
				if g.lease != 0 || e.held || e.poison || e.frozen {
					continue
				}
				at := g.due
				if h.down {
					at = min(max(g.due, h.probeAt), g.latest.micro())
				}
				first = min(first, at)
			}
		}
		if got := h.earliest(); got != first {
			t.Fatalf("earliest of %v = %d, want %d", h.hop, got, first)
		}
		if got := h.groups(); got != n {
			t.Fatalf("groups of %v = %d, want %d", h.hop, got, n)
		}
		for age, want := range oldest {
			got := int64(math.MaxInt64)
			if g := h.ages[age].first(); g != nil {
				got = o.s.message(g).accepted
			}
			if got != want {
				t.Fatalf("oldest of %v, age %d = %d, want %d", h.hop, age, got, want)
			}
		}
	}
}

// TestScheduleOracle compares the schedule with a naive one over random steps:
// earliest due time and oldest message of every hop, and whether a claim is
// found exactly when there is one, the right one of its hop.
func TestScheduleOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := &oracle{limits: map[string]int{"a": 1, "b": 2, "c": 5, "d": 0}, now: 1_000_000_000_000}
		o.s = newSchedule(func(h route.Hop) int { return o.limits[h.Name] })
		if rapid.Bool().Draw(t, "shares") {
			o.s.shares, o.s.total = [priorities]int{100, 80, 40}, rapid.IntRange(0, 6).Draw(t, "total")
		}
		names := []string{"a", "b", "c", "d"}
		hop := func() route.Hop { return route.Hop{Name: rapid.SampledFrom(names).Draw(t, "hop")} }
		entryOf := func() *entry { return rapid.SampledFrom(o.all).Draw(t, "message") }
		soon := func() int64 {
			return o.now + rapid.Int64Range(-5, 20).Draw(t, "due")*int64(time.Minute/time.Microsecond)
		}
		waits := func() when { return when{soon(), soon()} }
		t.Repeat(map[string]func(*rapid.T){
			"": o.check,
			"add": func(*rapid.T) {
				e := o.s.add(newTestEntry(o.now, mail.Priority(rapid.IntRange(-1, 1).Draw(t, "priority"))))
				o.all = append(o.all, e)
				for range rapid.IntRange(1, 3).Draw(t, "hops") {
					o.s.set(e, hop(), waits(), false, o.now)
				}
			},
			"change": func(t *rapid.T) {
				if len(o.all) == 0 {
					t.Skip("nothing")
				}
				e := entryOf()
				switch rapid.IntRange(0, 4).Draw(t, "how") {
				case 0:
					e.held = !e.held
				case 1:
					o.s.freeze(e, !e.frozen, o.now)
				case 2:
					o.s.set(e, hop(), waits(), true, o.now)
				case 3:
					for g := range o.s.groups(e) {
						o.s.limit(g, soon(), o.now)
					}
				}
				o.s.refreshAll(e, o.now)
			},
			"remove": func(t *rapid.T) {
				if len(o.all) == 0 {
					t.Skip("nothing")
				}
				e := entryOf()
				o.s.remove(e, o.now)
				o.all = slices.DeleteFunc(o.all, func(x *entry) bool { return x == e })
			},
			"hop": func(*rapid.T) {
				h := o.s.hop(hop())
				switch rapid.IntRange(0, 3).Draw(t, "how") {
				case 0:
					o.s.back(h, o.now)
				case 1:
					o.s.lost(h, soon(), o.now)
				case 2:
					if h.held == nil {
						h.held = &hold{}
					} else {
						h.held, h.openedAt = nil, o.now
					}
					o.s.place(h, o.now)
				case 3:
					o.s.probe(o.now)
				}
			},
			"claim": func(t *rapid.T) {
				o.s.recheck(o.now)
				want := o.claimable()
				ranks := map[*group]int64{} // before the claim
				for h, list := range want {
					for _, g := range list {
						ranks[g] = o.rank(h, g)
					}
				}
				probing := map[*hopQueue]bool{}
				for _, h := range o.s.hops {
					probing[h] = h.down && h.probeAt <= o.now
				}
				got := o.s.pick(o.now)
				g := got.group
				var h *hopQueue
				if g != nil {
					h = o.s.hopOf(g)
				}
				switch {
				case g == nil && len(want) == 0:
					return
				case g == nil:
					t.Fatalf("nothing was claimed of %d hops with claimable messages", len(want))
				case got.since > o.now:
					t.Fatalf("claimed %d µs early", got.since-o.now)
				case !slices.Contains(want[h], g):
					t.Fatalf("claimed a group of %v that may not be", h.hop)
				case got.probe != probing[h]:
					t.Fatalf("claimed from %v as a probe: %t, want %t", h.hop, got.probe, probing[h])
				case got.probe && h.probeAt <= o.now:
					t.Fatalf("%v is probed by two", h.hop)
				}
				best := slices.MinFunc(want[h], func(a, b *group) int { return cmp.Compare(ranks[a], ranks[b]) })
				if ranks[best] != ranks[g] {
					t.Fatalf("claimed rank %d, best is %d", ranks[g], ranks[best])
				}
				o.leased = append(o.leased, claimed{group: g, hop: h, prio: int(o.s.message(g).prio), number: g.lease})
			},
			"free": func(t *rapid.T) {
				if len(o.leased) == 0 {
					t.Skip("nothing")
				}
				l := &o.leased[rapid.IntRange(0, len(o.leased)-1).Draw(t, "lease")]
				if h := l.hop; !l.freed {
					l.freed = o.s.free(h, l.prio, o.now)
					if h.settling > o.limits[h.hop.Name] {
						t.Fatalf("%d leases of %v do not count, of at most %d", h.settling, h.hop, o.limits[h.hop.Name])
					}
				}
			},
			"end": func(t *rapid.T) {
				if len(o.leased) == 0 {
					t.Skip("nothing")
				}
				k := rapid.IntRange(0, len(o.leased)-1).Draw(t, "lease")
				l := o.leased[k]
				o.leased = slices.Delete(o.leased, k, k+1)
				if rapid.Bool().Draw(t, "park") {
					o.s.park(l.group, l.hop, l.number, soon(), soon(), o.now)
				}
				if l.freed {
					o.s.settled(l.group, l.hop, l.number, o.now)
				} else {
					o.s.done(l.group, l.hop, l.prio, l.number, o.now)
				}
			},
			"wait": func(*rapid.T) {
				o.now += rapid.Int64Range(0, 10).Draw(t, "minutes") * int64(time.Minute/time.Microsecond)
			},
		})
	})
}

// TestSnapshotLooksAtTopsOnly has all messages of a hop but the first of each heap
// be nobody's: who looks at another one panics. So due lag and oldest age of a hop
// cost the same with one message as with a million.
func TestSnapshotLooksAtTopsOnly(t *testing.T) {
	now := time.Unix(1_800_000_000, 0).UTC()
	us := func(ago time.Duration) int64 { return now.Add(-ago).UnixMicro() }
	s := newSchedule(func(route.Hop) int { return 20 })
	hop := route.Hop{Connector: "out", Name: "example.com"}
	const n = 10_000
	for i := range n {
		e := newTestEntry(us(time.Hour)+int64(i), mail.Priority(i%3-1))
		e.held = i%7 == 0
		s.set(s.add(e), hop, when{us(time.Minute) + int64(i), us(-time.Hour) + int64(i)}, i%2 == 0, us(0))
	}
	h := s.hop(hop)
	heaps := 0
	for _, list := range [][]groupHeap{h.due[:], h.latest[:], h.ages[:]} {
		for i := range list {
			if len(list[i].items) > 1 {
				clear(list[i].items[1:])
				heaps++
			}
		}
	}
	if heaps < 6 {
		t.Fatalf("only %d heaps have anything", heaps)
	}
	got := h.snapshot(now)
	if lag := got.DueLag; lag < time.Minute-time.Second || lag > time.Minute {
		t.Errorf("due lag = %s, want a minute", lag)
	}
	if !got.Oldest.Equal(fromMicro(us(time.Hour))) {
		t.Errorf("oldest = %s, want %s", got.Oldest, fromMicro(us(time.Hour)))
	}
	if sum := got.Queued + got.Deferred + got.Held; sum != n {
		t.Errorf("%d messages, want %d", sum, n)
	}
}
