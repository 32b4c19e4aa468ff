package throttle

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"waybill/relay/event"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestSource(t *testing.T) {
	for _, test := range []struct {
		name string
		ip   string
		want string
	}{
		{"IPv4", "192.0.2.1", "192.0.2.1"},
		{"mapped", "::ffff:192.0.2.1", "192.0.2.1"},
		{"IPv6", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"},
		{"zone", "fe80::1%eth0", "fe80::"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Source(ip(test.ip)); got != ip(test.want) {
				t.Errorf("Source(%s) = %s, want %s", test.ip, got, test.want)
			}
		})
	}
}

func TestConnections(t *testing.T) {
	c := &Connections{Total: 3, PerSource: 2}
	for _, step := range []struct {
		name string
		ip   string
		want Verdict
	}{
		{"first", "2001:db8::1", Admitted},
		{"same network", "2001:db8::2", Admitted},
		{"one too many of the source", "2001:db8::3", LimitSource},
		{"another source", "192.0.2.1", Admitted},
		{"one too many in all", "192.0.2.2", LimitTotal},
	} {
		if got := c.Admit(ip(step.ip)); got != step.want {
			t.Errorf("%s: Admit(%s) = %d, want %d", step.name, step.ip, got, step.want)
		}
	}
	if c.Open() != 3 {
		t.Errorf("Open() = %d, want 3", c.Open())
	}
	for _, s := range []string{"2001:db8::1", "2001:db8::2", "192.0.2.1"} {
		c.Release(ip(s))
	}
	if c.Open() != 0 || len(c.bySrc) != 0 {
		t.Errorf("after all were released: %d open, %d sources", c.Open(), len(c.bySrc))
	}
}

func TestConnectionsAtOnce(t *testing.T) {
	c := &Connections{Total: 10}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 200 {
				if c.Admit(ip("192.0.2.1")) == Admitted {
					if n := c.Open(); n > 10 {
						t.Errorf("%d open", n)
					}
					c.Release(ip("192.0.2.1"))
				}
			}
		})
	}
	wg.Wait()
	if c.Open() != 0 {
		t.Errorf("Open() = %d, want 0", c.Open())
	}
}

type facts struct{ all []event.Event }

func (f *facts) Write(r *event.Record) { f.all = append(f.all, r.Event) }

func TestMessages(t *testing.T) {
	start := time.Unix(1e9, 0)
	a, b := Client{"c", ip("192.0.2.1"), "ann"}, Client{"c", ip("192.0.2.2"), "ann"}
	for _, test := range []struct {
		name  string
		by    By
		who   []Client
		after time.Duration // before the last
		want  bool          // for the last
		scope string
	}{
		{"within", BySource, []Client{a, a}, 0, true, ""},
		{"above", BySource, []Client{a, a, a}, 0, false, "source"},
		{"another source", BySource, []Client{a, a, b}, 0, true, ""},
		{"later", BySource, []Client{a, a, a}, 31 * time.Second, true, ""},
		{"much later", BySource, []Client{a, a, a}, time.Hour, true, ""},
		{"by user", ByUser, []Client{a, a, b}, 0, false, "user"},
		{"by user, without one", ByUser, []Client{{IP: a.IP}, {IP: a.IP}, {IP: a.IP}}, 0, false, "source"},
		{"by both, user", ByBoth, []Client{a, a, b}, 0, false, "user"},
		{"by both, source", ByBoth, []Client{a, {IP: a.IP, User: "bob"}, {IP: a.IP, User: "cat"}}, 0, false, "source"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := &Messages{PerMinute: 2, By: test.by}
			f := &facts{}
			now := start
			got := false
			for i, who := range test.who {
				if i == len(test.who)-1 {
					now = now.Add(test.after)
				}
				got = m.Admit(now, who, event.NewEmitter("n", f))
			}
			if got != test.want {
				t.Errorf("Admit = %t, want %t", got, test.want)
			}
			if test.want != (len(f.all) == 0) {
				t.Fatalf("facts: %v", f.all)
			}
			if !test.want {
				if e := f.all[0].(event.ThrottleEngaged); e.Scope != test.scope || e.Limit != "messages_per_minute" || e.Action != "defer" {
					t.Errorf("fact = %+v, want scope %s", e, test.scope)
				}
			}
		})
	}
}

func TestMessagesMemoryIsBounded(t *testing.T) {
	m := &Messages{PerMinute: 1}
	now := time.Unix(1e9, 0)
	for i := range maxKeys + 1000 {
		m.Admit(now, Client{IP: ip(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))}, event.Emitter{})
	}
	if len(m.table.keys) != maxKeys {
		t.Errorf("%d keys, want %d", len(m.table.keys), maxKeys)
	}
	m.Admit(now.Add(10*time.Minute), Client{IP: ip("192.0.2.1")}, event.Emitter{})
	if len(m.table.keys) != 1 {
		t.Errorf("%d keys after they were quiet, want 1", len(m.table.keys))
	}
}

func TestNoLimit(t *testing.T) {
	var m Messages
	var c Connections
	for range 1000 {
		if !m.Admit(time.Now(), Client{}, event.Emitter{}) || c.Admit(ip("::1")) != Admitted {
			t.Fatal("the zero value refused")
		}
	}
}

func TestLimitsThatChange(t *testing.T) {
	c := &Connections{Total: 1}
	c.Admit(ip("192.0.2.1"))
	c.Limit(2, 0)
	if got := c.Admit(ip("192.0.2.2")); got != Admitted {
		t.Errorf("after the limit was raised: %d, want admitted", got)
	}
	c.Limit(1, 0)
	if got := c.Admit(ip("192.0.2.3")); got != LimitTotal || c.Open() != 2 {
		t.Errorf("after the limit was lowered: %d with %d open, want refused, and both still open", got, c.Open())
	}

	now := time.Unix(1000, 0)
	m := &Messages{PerMinute: 2}
	client := Client{IP: ip("192.0.2.1")}
	take := func(n int) (taken int) {
		for range n {
			if m.Admit(now, client, event.Emitter{}) {
				taken++
			}
		}
		return taken
	}
	for _, step := range []struct {
		name      string
		perMinute int
		want      int // of 10 messages
	}{
		{"at first", 2, 2},
		{"the same again gives nothing back", 2, 0},
		{"no limit", 0, 10},
		{"a limit again", 3, 0}, // what was taken before counts
	} {
		m.Limit(now, step.perMinute, BySource)
		if got := take(10); got != step.want {
			t.Errorf("%s: %d of 10 messages, want %d", step.name, got, step.want)
		}
	}
	now = now.Add(time.Minute)
	if got := take(10); got != 3 {
		t.Errorf("a minute later: %d of 10 messages, want 3", got)
	}
}
