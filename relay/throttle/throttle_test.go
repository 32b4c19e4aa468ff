package throttle

import (
	"net/netip"
	"sync"
	"testing"
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

func TestZeroConnectionsAdmitAll(t *testing.T) {
	var c Connections
	for range 1000 {
		if c.Admit(ip("::1")) != Admitted {
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
}
