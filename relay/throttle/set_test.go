package throttle

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/event"
)

type facts struct {
	mu  sync.Mutex
	all []event.Event
}

func (f *facts) Write(r *event.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, r.Event)
}

var start = time.Unix(1e9, 0)

func set(t testing.TB, rules ...Rule) *Set {
	t.Helper()
	s, err := NewSet(rules...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTake(t *testing.T) {
	a := Client{Connector: "in", IP: ip("192.0.2.1"), User: "ann", Sender: "a@example.com"}
	with := func(change func(*Client)) Client { c := a; change(&c); return c }
	other := with(func(c *Client) { c.IP = ip("192.0.2.2") })
	for _, test := range []struct {
		name  string
		rule  Rule
		who   []Client
		after time.Duration // before the last
		want  string        // action of the last, or empty
		scope string
	}{
		{"within", Rule{}, []Client{a, a}, 0, "", ""},
		{"above", Rule{}, []Client{a, a, a}, 0, "defer", "source"},
		{"another source", Rule{}, []Client{a, a, other}, 0, "", ""},
		{"later", Rule{}, []Client{a, a, a}, 31 * time.Second, "", ""},
		{"much later", Rule{}, []Client{a, a, a}, time.Hour, "", ""},
		{"by network", Rule{By: ByNetwork}, []Client{a, a, other}, 0, "defer", "network"},
		{"another network", Rule{By: ByNetwork}, []Client{a, a, with(func(c *Client) { c.IP = ip("192.0.3.1") })}, 0, "", ""},
		{"a smaller network", Rule{By: ByNetwork, IPv4Bits: 32}, []Client{a, a, other}, 0, "", ""},
		{"by user", Rule{By: ByUser}, []Client{a, a, other}, 0, "defer", "user"},
		{"by user, without one", Rule{By: ByUser}, []Client{{IP: a.IP}, {IP: a.IP}, {IP: a.IP}}, 0, "", ""},
		{"by user or source", Rule{By: ByUser, OrSource: true}, []Client{{IP: a.IP}, {IP: a.IP}, {IP: a.IP}}, 0, "defer", "user"},
		{"by sender", Rule{By: BySender}, []Client{a, a, with(func(c *Client) { c.User = "bob" })}, 0, "defer", "sender"},
		{"the null sender", Rule{By: BySender}, []Client{{}, {}, {}}, 0, "", ""},
		{"by connector", Rule{By: ByConnector}, []Client{a, other, {Connector: "in", IP: ip("::1")}}, 0, "defer", "total"},
		{"another connector", Rule{Connectors: []string{"out"}}, []Client{a, a, a}, 0, "", ""},
		{"exempt", Rule{Exempt: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, []Client{a, a, a}, 0, "", ""},
		{"exempt, mapped", Rule{Exempt: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, []Client{a, a, with(func(c *Client) { c.IP = ip("::ffff:192.0.2.1") })}, 0, "", ""},
		{"rejected", Rule{Action: Reject}, []Client{a, a, a}, 0, "reject", "source"},
		{"closed", Rule{Action: Close}, []Client{a, a, a}, 0, "close", "source"},
		{"made to wait", Rule{Action: Tarpit}, []Client{a, a, a}, time.Second, "tarpit", "source"},
		{"made to wait too long", Rule{Action: Tarpit, Per: time.Hour}, []Client{a, a, a}, 0, "defer", "source"},
		{"a larger burst", Rule{Burst: 3}, []Client{a, a, a}, 0, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := test.rule
			r.Name, r.Amount = "rule", 2
			if r.Per == 0 {
				r.Per = time.Minute
			}
			s := set(t, r)
			f := &facts{}
			now := start
			var got Answer
			for i, c := range test.who {
				if i == len(test.who)-1 {
					now = now.Add(test.after)
				}
				got = s.Take(now, Messages, 1, c, event.NewEmitter("n", f))
			}
			if test.want == "" {
				if got.Rule != nil || len(f.all) != 0 {
					t.Errorf("Take = %+v with facts %v, want none", got, f.all)
				}
				return
			}
			if len(f.all) != 1 {
				t.Fatalf("facts %v, want one", f.all)
			}
			if e := f.all[0].(event.ThrottleEngaged); e.Scope != test.scope || e.Limit != "rule" || e.Action != test.want {
				t.Errorf("fact %+v, want scope %s and action %s", e, test.scope, test.want)
			}
			if got.Refused() != (test.want != "tarpit") {
				t.Errorf("Refused() = %t for %s", got.Refused(), test.want)
			}
		})
	}
}

// TestTakeAllOrNone: what one rule refuses uses up nothing of the others.
func TestTakeAllOrNone(t *testing.T) {
	s := set(t,
		Rule{Name: "wide", Amount: 10, Per: time.Hour, By: ByConnector},
		Rule{Name: "narrow", Amount: 1, Per: time.Hour})
	c := Client{Connector: "in", IP: ip("192.0.2.1")}
	for range 5 {
		s.Take(start, Messages, 1, c, event.Emitter{})
	}
	rows, _ := s.List(start, Select{All: true})
	got := map[string]int64{}
	for _, r := range rows {
		got[r.Rule] = r.Used
	}
	if got["wide"] != 1 || got["narrow"] != 1 {
		t.Errorf("used %v, want 1 of each", got)
	}
}

func TestReply(t *testing.T) {
	for _, test := range []struct {
		name string
		a    Answer
		want string
	}{
		{"defer", Answer{Rule: &Rule{}, Retry: 36 * time.Second}, "450 4.7.1 too many messages from your address, try again in 36s"},
		{"soon", Answer{Rule: &Rule{}, Retry: time.Millisecond}, "450 4.7.1 too many messages from your address, try again in 1s"},
		{"user", Answer{Rule: &Rule{By: ByUser, What: Recipients}, Retry: time.Hour}, "450 4.7.1 too many recipients from this user, try again in 1h0m0s"},
		{"reject", Answer{Rule: &Rule{By: BySender, What: Bytes}, Action: Reject, Retry: time.Hour}, "550 5.7.1 too many bytes from this sender"},
		{"close", Answer{Rule: &Rule{What: Commands, By: ByNetwork}, Action: Close, Retry: time.Minute}, "421 4.7.0 too many commands from your network, try again in 1m0s"},
		{"connections", Answer{Rule: &Rule{What: Connects, By: ByConnector}}, "421 4.7.0 too many connections here now, try again later"},
		{"no connections", Answer{Rule: &Rule{What: Connects}, Action: Reject}, "554 5.7.1 too many connections from your address"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := test.a.Reply()
			if got := e.Reply.String(); got != test.want || e.Reason != "throttle" {
				t.Errorf("Reply() = %q (%s), want %q", got, e.Reason, test.want)
			}
		})
	}
}

func TestBytesAreADebt(t *testing.T) {
	s := set(t, Rule{Name: "b", What: Bytes, Amount: 1000, Per: 10 * time.Second})
	c := Client{IP: ip("192.0.2.1")}
	may := func(now time.Time) bool { return !s.Take(now, Bytes, 0, c, event.Emitter{}).Refused() }
	if !may(start) {
		t.Error("refused before anything came")
	}
	s.Charge(start, Bytes, 5000, c)
	if may(start.Add(39 * time.Second)) {
		t.Error("allowed while in debt")
	}
	if !may(start.Add(41 * time.Second)) {
		t.Error("refused when the debt is paid")
	}
	s.Charge(start.Add(time.Minute), Bytes, 1<<50, c) // a debt has an end
	if !may(start.Add(27 * time.Hour)) {
		t.Error("refused a day later")
	}
}

func TestConnect(t *testing.T) {
	s := set(t, Rule{Name: "two", What: Connects, Amount: 2}, Rule{Name: "rate", What: Connects, Amount: 3, Per: time.Minute, Action: Close})
	c := Client{IP: ip("192.0.2.1")}
	now := start
	connect := func() (Answer, func()) { return s.Connect(now, c, event.Emitter{}) }
	_, first := connect()
	_, second := connect()
	if a, leave := connect(); !a.Refused() || leave != nil || a.Rule.Name != "two" {
		t.Errorf("a third at once: %+v", a)
	}
	first()
	_, third := connect()
	third()
	if a, _ := connect(); !a.Refused() || a.Rule.Name != "rate" {
		t.Errorf("a fourth in a minute: %+v", a)
	}
	second()
	if rows, _ := s.List(now, Select{Rule: "two"}); len(rows) != 1 || rows[0].Used != 0 || rows[0].Engaged || rows[0].Hits != 1 {
		t.Errorf("after all have left: %+v, want who was refused lately", rows)
	}
	now = now.Add(time.Hour)
	if rows, _ := s.List(now, Select{Rule: "two", All: true}); len(rows) != 0 {
		t.Errorf("an hour later: %+v", rows)
	}
	if a, leave := connect(); a.Refused() {
		t.Errorf("later: %+v", a)
	} else {
		leave()
	}
}

// TestRefusedAreForgotten: those whom a rule about what is there now has refused
// are remembered for a while, those who are there are counted for as long.
func TestRefusedAreForgotten(t *testing.T) {
	s := set(t, Rule{Name: "one", What: Connects, Amount: 1})
	now, refused := start, 0
	stays, _ := s.Connect(now, Client{IP: ip("198.51.100.1")}, event.Emitter{})
	if stays.Refused() {
		t.Fatal("the first is refused")
	}
	for i := range 500 {
		now = now.Add(lately / 100)
		c := Client{IP: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})}
		_, leave := s.Connect(now, c, event.Emitter{})
		if a, _ := s.Connect(now, c, event.Emitter{}); a.Refused() {
			refused++
		}
		leave()
	}
	if refused != 500 {
		t.Errorf("%d second connections are refused, want 500", refused)
	}
	if rows, total := s.List(now, Select{}); total < 100 || total > 102 || !rows[0].Engaged || rows[0].Key != "198.51.100.1" {
		t.Errorf("%d were refused lately, want about 100, and the one who stays first: %+v", total, rows[0])
	}
	tab := s.now.Load().all[0].table
	tab.mu.Lock()
	defer tab.mu.Unlock()
	if n := len(tab.keys); n > 110 {
		t.Errorf("%d are remembered", n)
	}
}

// TestReplace: what was used survives other rules, under the same name.
func TestReplace(t *testing.T) {
	c := Client{Connector: "in", IP: ip("192.0.2.1"), User: "ann"}
	for _, test := range []struct {
		name string
		next Rule
		want int64 // used after the change
	}{
		{"nothing changed", Rule{Name: "r", Amount: 10, Per: time.Minute}, 8},
		{"more", Rule{Name: "r", Amount: 20, Per: time.Minute}, 18},
		{"less", Rule{Name: "r", Amount: 4, Per: time.Minute}, 2}, // what is left stays, up to the new limit
		{"another action", Rule{Name: "r", Amount: 10, Per: time.Minute, Action: Reject}, 8},
		{"another count", Rule{Name: "r", Amount: 10, Per: time.Minute, By: ByUser}, 0},
		{"another name", Rule{Name: "s", Amount: 10, Per: time.Minute}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := set(t, Rule{Name: "r", Amount: 10, Per: time.Minute})
			for range 8 {
				s.Take(start, Messages, 1, c, event.Emitter{})
			}
			if err := s.Replace([]Rule{test.next}); err != nil {
				t.Fatal(err)
			}
			s.Take(start, Messages, 0, c, event.Emitter{}) // the rate is taken over when it is asked for
			rows, _ := s.List(start, Select{All: true})
			var got int64
			for _, r := range rows {
				got = r.Used
			}
			if got != test.want {
				t.Errorf("used %d, want %d", got, test.want)
			}
		})
	}
}

func TestBadRules(t *testing.T) {
	good := Rule{Name: "good", Amount: 1, Per: time.Minute}
	s := set(t, good)
	for _, test := range []struct {
		name string
		rule Rule
		want string
	}{
		{"no name", Rule{Amount: 1, Per: 1}, "without a name"},
		{"twice", good, "two throttles"},
		{"nothing", Rule{Name: "r", Per: 1}, "more than nothing"},
		{"no time", Rule{Name: "r", Amount: 1}, "without a time"},
		{"connections of a user", Rule{Name: "r", Amount: 1, What: Connects, By: ByUser}, "not known yet"},
		{"commands of a sender", Rule{Name: "r", Amount: 1, Per: 1, What: Commands, By: BySender}, "no sender"},
		{"endless wait", Rule{Name: "r", Amount: 1, What: Connects, Action: Tarpit}, "without a time"},
		{"network", Rule{Name: "r", Amount: 1, Per: 1, By: ByNetwork, IPv4Bits: 33}, "size of a network"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := s.Replace([]Rule{good, test.rule}); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Replace = %v, want %q", err, test.want)
			}
			if names := s.Rules(); len(names) != 1 || names[0] != "good" {
				t.Errorf("rules %v after an error, want the old ones", names)
			}
		})
	}
}

func TestListAndRelease(t *testing.T) {
	s := set(t, Rule{Name: "source", Amount: 1, Per: time.Minute}, Rule{Name: "net", By: ByNetwork, Amount: 10, Per: time.Minute})
	guess := NewLockout(LockoutLimits{})
	s.Include(guess)
	if err := s.Fix([]Rule{{Name: "in/messages_per_minute", Amount: 100, Per: time.Minute}}); err != nil {
		t.Fatal(err)
	}
	c := Client{Connector: "in", IP: ip("2001:db8::1")}
	for range 2 {
		s.Take(start, Messages, 1, c, event.Emitter{})
	}
	for range 30 {
		guess.Failed(start, c.IP, "bob")
	}
	rows, total := s.List(start, Select{})
	if total != 2 || !rows[0].Engaged || rows[0].What != "failed logins" && rows[0].Rule != "source" {
		t.Errorf("List = %+v, want who is stopped", rows)
	}
	for _, r := range rows {
		if r.Rule == "source" && (r.Key != "2001:db8::/64" || r.Hits != 1 || !r.Until.Equal(start.Add(time.Minute)) || r.Used != 1) {
			t.Errorf("row %+v", r)
		}
	}
	if rows, total := s.List(start, Select{All: true, Limit: 1}); len(rows) != 1 || total != 4 {
		t.Errorf("all: %d rows of %d, want 1 of 4", len(rows), total)
	}
	if rows, _ := s.List(start, Select{All: true, Key: "2001:DB8::/48"}); len(rows) != 1 || rows[0].Rule != "net" {
		t.Errorf("by key: %+v", rows)
	}
	if _, ok := guess.Try(start, ip("192.0.2.1"), "bob"); ok {
		t.Error("the account is not held off")
	}
	if n := s.Release("users/lockout", "bob"); n != 1 {
		t.Errorf("Release of an account = %d, want 1", n)
	}
	if n := s.Release("", "2001:db8::/64"); n != 3 {
		t.Errorf("Release = %d, want 3", n)
	}
	if s.Take(start, Messages, 1, c, event.Emitter{}).Refused() || !guess.Begin(start, c.IP) {
		t.Error("refused after the release")
	}
	if n := s.Release("net", ""); n != 1 {
		t.Errorf("Release of a rule = %d, want 1", n)
	}
	if n := s.Release("", ""); n != 0 {
		t.Errorf("Release of nothing = %d", n)
	}
}

// TestMillionSources: memory is bounded, and who is asked about stays known.
func TestMillionSources(t *testing.T) {
	s := set(t, Rule{Name: "r", Amount: 2, Per: time.Hour})
	regular := Client{IP: ip("192.0.2.1")}
	for range 3 {
		s.Take(start, Messages, 1, regular, event.Emitter{})
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var b [4]byte
	for i := range sources {
		binary.BigEndian.PutUint32(b[:], 0x0a000000+uint32(i))
		s.Take(start, Messages, 1, Client{IP: netip.AddrFrom4(b)}, event.Emitter{})
		if i%50_000 == 0 && !s.Take(start, Messages, 1, regular, event.Emitter{}).Refused() {
			t.Fatalf("after %d sources one that is at its limit was forgotten", i)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	table := s.now.Load().all[0].table
	if n := len(table.keys); n > maxKeys+1 {
		t.Errorf("%d keys, want %d at most", n, maxKeys)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("%d MiB for them, want 64 at most", grown>>20)
	}
	late := start.Add(3 * time.Hour)
	for range maxKeys + 10 {
		s.Take(late, Messages, 0, regular, event.Emitter{})
	}
	if n := len(table.keys); n != 1 {
		t.Errorf("%d keys after the others were quiet, want 1", n)
	}
}

// TestAtOnce takes, replaces and lists from many goroutines: nothing is counted
// twice, and nobody waits for ever.
func TestAtOnce(t *testing.T) {
	a := Rule{Name: "a", Amount: 1000, Per: 1000 * time.Hour}
	b := Rule{Name: "b", By: ByConnector, Amount: 1_000_000, Per: time.Hour}
	s := set(t, a, b)
	var wg sync.WaitGroup
	var mu sync.Mutex
	passed := 0
	for i := range 8 {
		wg.Go(func() {
			n := 0
			for j := range 500 {
				if !s.Take(start, Messages, 1, Client{Connector: "in", IP: ip("192.0.2.1")}, event.Emitter{}).Refused() {
					n++
				}
				switch {
				case i == 0 && j%10 == 0:
					_ = s.Replace([]Rule{b, a})
				case i == 1 && j%10 == 0:
					_ = s.Replace([]Rule{a, b})
				case i == 2 && j%50 == 0:
					s.List(start, Select{All: true})
				}
			}
			mu.Lock()
			passed += n
			mu.Unlock()
		})
	}
	wg.Wait()
	if passed != 1000 {
		t.Errorf("%d passed, want 1000", passed)
	}
}

func TestNilSet(t *testing.T) {
	var s *Set
	if s.Any(Messages) || s.Take(start, Messages, 1, Client{}, event.Emitter{}).Refused() || s.Release("a", "b") != 0 {
		t.Error("a nil set has rules")
	}
	if _, leave := s.Connect(start, Client{}, event.Emitter{}); leave == nil {
		t.Error("nothing to leave with")
	}
	s.Charge(start, Bytes, 1, Client{})
	if rows, _ := s.List(start, Select{}); rows != nil || s.Rules() != nil {
		t.Error("a nil set has rows")
	}
}
