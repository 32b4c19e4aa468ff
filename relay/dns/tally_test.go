package dns

import (
	"testing"
)

func TestTally(t *testing.T) {
	s := newServer(t)
	s.set("example.com. MX", "example.com. 300 IN MX 10 mx.example.com.")
	s.set("mx.example.com. A", "mx.example.com. 300 IN A 192.0.2.1")
	r, err := New(Options{Servers: []string{s.addr}, HostsFile: "/nonexistent"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, test := range []struct {
		name          string
		asked, cached int
	}{{"at first", 3, 0}, {"again", 3, 3}} {
		ctx, tally := WithTally(t.Context())
		if _, err := r.MX(ctx, "example.com"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Addrs(ctx, "mx.example.com"); err != nil {
			t.Fatal(err)
		}
		if tally.Asked() != test.asked || tally.Cached() != test.cached {
			t.Errorf("%s: %d questions, %d from the cache; want %d and %d", test.name, tally.Asked(), tally.Cached(), test.asked, test.cached)
		}
	}
}
