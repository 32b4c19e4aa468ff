package route

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"waybill/relay/mail"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func address(t testing.TB, s string) mail.Address {
	t.Helper()
	a, err := mail.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func spaces(patterns ...string) []Space {
	var list []Space
	for _, p := range patterns {
		list = append(list, Space{Pattern: p, Cost: 10})
	}
	return list
}

func TestRoute(t *testing.T) {
	hub := []SmartHost{{Host: "hub.example.net", Port: 25}}
	table, err := New([]Connector{
		{Name: "internet", Spaces: spaces("*")},
		{Name: "backup", Spaces: []Space{{Pattern: "*", Cost: 20}}},
		{Name: "hub", Spaces: spaces("Example.COM.", "*.example.com"), SmartHosts: hub},
		{Name: "deep", Spaces: spaces("*.eu.example.com")},
		{Name: "small", Spaces: spaces("tight.example"), MaxSize: 1000},
		{Name: "exact", Spaces: spaces("a.eu.example.com", "[192.0.2.1]")},
		{Name: "off", Spaces: spaces("off.example"), Disabled: true},
		{Name: "twin-b", Spaces: spaces("twin.example")},
		{Name: "twin-a", Spaces: spaces("twin.example")},
		{Name: "twin-c", Spaces: []Space{{Pattern: "twin.example", Cost: 11}}},
		{Name: "idn", Spaces: spaces("bücher.example")},
		{Name: "empty"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name      string
		recipient string
		size      int64
		want      Hop
		why       string
	}{
		{"anything", "a@elsewhere.test", 0, Hop{"internet", "elsewhere.test"}, "address space *, cost 10"},
		{"case does not matter", "a@ELSEWHERE.test", 0, Hop{"internet", "elsewhere.test"}, ""},
		{"smart hosts queue by connector", "a@example.com", 0, Hop{"hub", "hub"}, "address space example.com, cost 10"},
		{"sub-domain", "a@x.example.com", 0, Hop{"hub", "hub"}, "address space *.example.com, cost 10"},
		{"sub-sub-domain", "a@y.x.example.com", 0, Hop{"hub", "hub"}, ""},
		{"longer wildcard wins", "a@b.eu.example.com", 0, Hop{"deep", "b.eu.example.com"}, ""},
		{"a wildcard does not match its own domain", "a@eu.example.com", 0, Hop{"hub", "hub"}, ""},
		{"exact beats wildcard", "a@a.eu.example.com", 0, Hop{"exact", "a.eu.example.com"}, ""},
		{"no match by mere suffix", "a@notexample.com", 0, Hop{"internet", "notexample.com"}, ""},
		{"address literal, exact", "a@[192.0.2.1]", 0, Hop{"exact", "[192.0.2.1]"}, ""},
		{"address literal, anything", "a@[IPv6:2001:db8::1]", 0, Hop{"internet", "[ipv6:2001:db8::1]"}, ""},
		{"disabled falls through", "a@off.example", 0, Hop{"internet", "off.example"}, ""},
		{"size fits", "a@tight.example", 1000, Hop{"small", "tight.example"}, "address space tight.example, cost 10"},
		{"size falls through", "a@tight.example", 1001, Hop{"internet", "tight.example"}, "address space *, cost 10; a better match has a lower size limit"},
		{"name breaks the tie", "a@twin.example", 0, Hop{"twin-a", "twin.example"}, ""},
		{"A-labels and U-labels are one", "a@xn--bcher-kva.example", 0, Hop{"idn", "xn--bcher-kva.example"}, ""},
		{"U-labels", "a@bücher.example", 0, Hop{"idn", "xn--bcher-kva.example"}, ""},
		{"postmaster without a domain", "postmaster", 0, Unroutable, "the address has no domain, and no connector with smart hosts takes it"},
	} {
		t.Run(test.name, func(t *testing.T) {
			q := Query{Recipient: address(t, test.recipient), Size: test.size}
			got := table.Route(q)
			if got.Hop != test.want {
				t.Errorf("Route(%s, %d) = %v, want %v", test.recipient, test.size, got.Hop, test.want)
			}
			if test.why != "" && got.Why != test.why {
				t.Errorf("Route(%s, %d) because %q, want %q", test.recipient, test.size, got.Why, test.why)
			}
		})
	}
}

func TestRouteNowhere(t *testing.T) {
	table, err := New([]Connector{
		{Name: "a", Spaces: spaces("example.com"), MaxSize: 10},
		{Name: "b", Spaces: spaces("*.example.com")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name      string
		recipient string
		size      int64
		want      Hop
	}{
		{"no match", "a@example.org", 0, Unroutable},
		{"too large for all", "a@example.com", 11, Oversize},
		{"no domain", "postmaster", 0, Unroutable},
	} {
		t.Run(test.name, func(t *testing.T) {
			q := Query{Recipient: address(t, test.recipient), Size: test.size}
			for what, got := range map[string]Decision{"Route": table.Route(q), "Explain": table.Explain(q)} {
				if got.Hop != test.want || got.Connector != nil || got.Why == "" {
					t.Errorf("%s = %+v, want hop %v and a reason", what, got, test.want)
				}
			}
		})
	}
}

func TestExplainCandidates(t *testing.T) {
	table, err := New([]Connector{
		{Name: "off", Spaces: spaces("example.com"), Disabled: true},
		{Name: "small", Spaces: spaces("example.com"), MaxSize: 5},
		{Name: "any", Spaces: spaces("*")},
		{Name: "dear", Spaces: []Space{{Pattern: "example.com", Cost: 50}}},
		{Name: "twin", Spaces: spaces("example.com")},
		{Name: "best", Spaces: spaces("example.com", "*")},
		{Name: "other", Spaces: spaces("example.org")},
		{Name: "none"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := table.Explain(Query{Recipient: address(t, "a@example.com"), Size: 6}).Candidates
	want := []Candidate{
		{"best", "example.com", 10, true, "address space example.com, cost 10"},
		{"twin", "example.com", 10, false, "same address space and cost as best, whose name comes first"},
		{"dear", "example.com", 50, false, "cost 50 is above 10 of best"},
		{"any", "*", 10, false, "* is less specific than example.com of best"},
		{"off", "example.com", 10, false, "disabled"},
		{"small", "example.com", 10, false, "size 6 is above its limit of 5 octets"},
		{"none", "", 0, false, "it has no address space"},
		{"other", "", 0, false, "no address space matches"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("candidates (-want +got):\n%s", d)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, test := range []struct {
		name       string
		connectors []Connector
		want       []string
	}{
		{"no name", []Connector{{}}, []string{"send connector 0: no name"}},
		{"name twice", []Connector{{Name: "a"}, {Name: "a"}}, []string{"send connector a: the name is used twice"}},
		{"all at once", []Connector{
			{Name: "a", Spaces: []Space{{Pattern: "*", Cost: 101}, {Pattern: "bad domain", Cost: 1}, {Pattern: "*.[192.0.2.1]", Cost: 1}}, SmartHosts: []SmartHost{{}}, MaxSize: -1},
		}, []string{"cost 101 is not", `"bad domain"`, "no sub-domains", "smart host without", "negative size"}},
		{"star in the middle", []Connector{{Name: "a", Spaces: spaces("mail.*.example")}}, []string{"mail.*.example"}},
		{"empty pattern", []Connector{{Name: "a", Spaces: spaces("")}}, []string{`address space ""`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := New(test.connectors)
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("New() = %v, want an error with %q", err, want)
				}
			}
		})
	}
}

// TestRouteAgreesWithExplain compares the index with the plain reading of all
// connectors, for random tables and questions.
func TestRouteAgreesWithExplain(t *testing.T) {
	labels := rapid.SampledFrom([]string{"a", "b", "example", "com"})
	domain := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(labels, 1, 4).Draw(t, "labels"), ".")
	})
	rapid.Check(t, func(t *rapid.T) {
		var connectors []Connector
		for i := range rapid.IntRange(0, 8).Draw(t, "connectors") {
			c := Connector{Name: fmt.Sprintf("c%d", (i*7)%10), Disabled: rapid.IntRange(0, 5).Draw(t, "disabled") == 0}
			c.MaxSize = rapid.SampledFrom([]int64{0, 0, 10, 20}).Draw(t, "max size")
			if rapid.Bool().Draw(t, "smart") {
				c.SmartHosts = []SmartHost{{Host: "hub"}}
			}
			for range rapid.IntRange(0, 3).Draw(t, "spaces") {
				p := rapid.OneOf(rapid.Just("*"), domain, rapid.Map(domain, func(d string) string { return "*." + d })).Draw(t, "pattern")
				c.Spaces = append(c.Spaces, Space{Pattern: p, Cost: rapid.IntRange(0, 3).Draw(t, "cost")})
			}
			if rapid.IntRange(0, 3).Draw(t, "linked") == 0 {
				c.Receive = []string{rapid.SampledFrom([]string{"in", "out"}).Draw(t, "receive")}
			}
			if rapid.IntRange(0, 3).Draw(t, "senders") == 0 {
				c.Senders = []string{rapid.SampledFrom([]string{"a@s.example", "s.example", "*.example", "<>"}).Draw(t, "sender")}
			}
			if rapid.IntRange(0, 5).Draw(t, "users") == 0 {
				c.Users = []string{"Bob"}
			}
			connectors = append(connectors, c)
		}
		table, err := New(connectors)
		if err != nil {
			t.Fatal(err)
		}
		q := Query{Recipient: mail.Address{Local: "postmaster"}, Size: rapid.SampledFrom([]int64{0, 5, 10, 15, 30}).Draw(t, "size")}
		if rapid.IntRange(0, 9).Draw(t, "bare") > 0 {
			q.Recipient.Domain = domain.Draw(t, "recipient")
		}
		q.Receive = rapid.SampledFrom([]string{"", "in", "out"}).Draw(t, "receive")
		q.User = rapid.SampledFrom([]string{"", "bob"}).Draw(t, "user")
		q.Sender = rapid.SampledFrom([]mail.Address{{}, {Local: "A", Domain: "s.example"}, {Local: "b", Domain: "S.example"}, {Local: "a", Domain: "other.test"}}).Draw(t, "from")
		if down := rapid.SliceOf(rapid.IntRange(0, 9)).Draw(t, "down"); len(down) > 0 {
			q.Avoid = func(h Hop) bool { return slices.Contains(down, int(h.Connector[1]-'0')) }
		}
		want, got := table.Explain(q), table.Route(q)
		candidates := want.Candidates
		want.Candidates = nil
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("Route and Explain disagree (-explain +route):\n%s", d)
		}
		if len(candidates) != len(connectors) {
			t.Fatalf("Explain tells of %d connectors of %d", len(candidates), len(connectors))
		}
		for i, c := range candidates {
			if c.Why == "" || c.Won != (i == 0 && got.Connector != nil) {
				t.Fatalf("candidate %d is %+v, winner %v", i, c, got.Connector)
			}
		}
	})
}

func TestHopString(t *testing.T) {
	for _, test := range []struct {
		name string
		hop  Hop
		want string
	}{
		{"by MX", Hop{"internet", "example.com"}, "internet/example.com"},
		{"smart hosts", Hop{"hub", "hub"}, "hub"},
		{"unroutable", Unroutable, "unroutable"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.hop.String(); got != test.want {
				t.Errorf("String() = %q, want %q", got, test.want)
			}
		})
	}
}

func BenchmarkRoute(b *testing.B) {
	connectors := []Connector{{Name: "internet", Spaces: spaces("*")}}
	for i := range 1000 {
		connectors = append(connectors, Connector{Name: fmt.Sprintf("c%d", i), Spaces: spaces(fmt.Sprintf("d%d.example", i), fmt.Sprintf("*.d%d.example", i))})
	}
	table, err := New(connectors)
	if err != nil {
		b.Fatal(err)
	}
	queries := make([]Query, 256)
	for i := range queries {
		queries[i].Recipient = mail.Address{Local: "a", Domain: fmt.Sprintf("mx.d%d.example", rand.IntN(2000))}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		table.Route(queries[i%len(queries)])
	}
}
