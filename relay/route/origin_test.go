package route

import (
	"strings"
	"testing"
)

func TestRouteByOrigin(t *testing.T) {
	hub := []SmartHost{{Host: "hub.example.net", Port: 25}}
	table, err := New([]Connector{
		{Name: "internet", Spaces: spaces("*")},
		{Name: "inside", Spaces: spaces("inside.example"), SmartHosts: hub},
		{Name: "news", Spaces: spaces("*"), Senders: []string{"@news.example"}, SmartHosts: hub},
		{Name: "shops", Spaces: []Space{{Pattern: "*", Cost: 1}}, Senders: []string{"*.shop.example"}, SmartHosts: hub},
		{Name: "boss", Spaces: spaces("*"), Senders: []string{"Boss@news.example"}, SmartHosts: hub},
		{Name: "printers", Spaces: spaces("*"), Users: []string{"Printer"}, SmartHosts: hub},
		{Name: "reports", Spaces: spaces("dsn.example"), Senders: []string{"<>"}, SmartHosts: hub},
		{Name: "linked", Spaces: spaces("*"), Receive: []string{"scanners"}, SmartHosts: hub, MaxSize: 1000},
		{Name: "both", Spaces: spaces("both.example"), Users: []string{"printer"}, Senders: []string{"both.example"}, SmartHosts: hub},
		{Name: "off", Spaces: spaces("*"), Receive: []string{"fax"}, Disabled: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name      string
		sender    string
		recipient string
		user      string
		receive   string
		size      int64
		want      string
		why       string
	}{
		{"nobody in particular", "a@example.com", "x@elsewhere.test", "", "in", 0, "internet", "address space *, cost 10"},
		{"sender's domain", "a@news.example", "x@elsewhere.test", "", "in", 0, "news", "address space *, cost 10; sender @news.example"},
		{"sender's address is closer", "boss@News.example", "x@elsewhere.test", "", "in", 0, "boss", ""},
		{"a sub-domain", "a@b.shop.example", "x@elsewhere.test", "", "in", 0, "shops", ""},
		{"not the domain itself", "a@shop.example", "x@elsewhere.test", "", "in", 0, "internet", ""},
		{"a login is closest", "boss@news.example", "x@elsewhere.test", "PRINTER", "in", 0, "printers", "address space *, cost 10; user PRINTER"},
		{"the recipient comes before the sender", "a@news.example", "x@inside.example", "printer", "in", 0, "inside", ""},
		{"the null sender", "", "x@dsn.example", "", "in", 0, "reports", ""},
		{"not the null sender", "a@example.com", "x@dsn.example", "", "in", 0, "internet", ""},
		{"linked wins over all", "a@news.example", "x@inside.example", "printer", "scanners", 0, "linked", "address space *, cost 10; linked to receive connector scanners"},
		{"linked, but too large", "a@example.com", "x@inside.example", "", "scanners", 1001, "inside", "address space inside.example, cost 10; a better match has a lower size limit"},
		{"linked to what is disabled", "a@example.com", "x@elsewhere.test", "", "fax", 0, "internet", ""},
		{"all conditions", "a@both.example", "x@both.example", "printer", "in", 0, "both", "address space both.example, cost 10; user printer, sender both.example"},
		{"one of the conditions", "a@both.example", "x@both.example", "", "in", 0, "internet", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			q := Query{Sender: address(t, test.sender), Recipient: address(t, test.recipient), User: test.user, Receive: test.receive, Size: test.size}
			got := table.Route(q)
			if got.Hop.Connector != test.want || test.why != "" && got.Why != test.why {
				t.Errorf("Route() = %s because %q, want %s because %q", got.Hop.Connector, got.Why, test.want, test.why)
			}
			if again := table.Explain(q); again.Hop != got.Hop || again.Why != got.Why {
				t.Errorf("Explain() = %v because %q, want %v because %q", again.Hop, again.Why, got.Hop, got.Why)
			}
		})
	}
}

func TestExplainOrigin(t *testing.T) {
	table, err := New([]Connector{
		{Name: "any", Spaces: spaces("*")},
		{Name: "news", Spaces: spaces("*"), Senders: []string{"news.example"}},
		{Name: "linked", Spaces: spaces("*"), Receive: []string{"scanners"}},
		{Name: "user", Spaces: spaces("*"), Users: []string{"bob"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range table.Explain(Query{Sender: address(t, "a@news.example"), Recipient: address(t, "x@example.com"), Receive: "in"}).Candidates {
		got[c.Connector] = c.Why
	}
	for name, want := range map[string]string{
		"any": "news names the sender more closely: sender news.example", "news": "address space *, cost 10; sender news.example",
		"linked": "it is linked to receive connector scanners", "user": "it is for other users",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	for _, c := range table.Explain(Query{Recipient: address(t, "x@example.com"), Receive: "scanners"}).Candidates {
		if c.Connector == "any" && c.Why != "linked is linked to the receive connector" {
			t.Errorf("any: %q", c.Why)
		}
	}
}

func TestRouteAvoids(t *testing.T) {
	hub := []SmartHost{{Host: "hub.example.net", Port: 25}}
	table, err := New([]Connector{
		{Name: "first", Spaces: spaces("*"), SmartHosts: hub},
		{Name: "second", Spaces: []Space{{Pattern: "*", Cost: 20}}, SmartHosts: hub},
		{Name: "third", Spaces: []Space{{Pattern: "*", Cost: 30}}},
		{Name: "partner", Spaces: spaces("partner.example"), SmartHosts: hub},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name      string
		recipient string
		down      string
		want      Hop
		why       string
	}{
		{"all is well", "a@example.com", "", Hop{"first", "first"}, "address space *, cost 10"},
		{"the next cost", "a@example.com", "first", Hop{"second", "second"}, "address space *, cost 20; first cannot be reached"},
		{"the cost after that", "a@example.com", "first second", Hop{"third", "example.com"}, "address space *, cost 30; first cannot be reached"},
		{"nothing can be reached", "a@example.com", "first second third", Hop{"first", "first"}, "address space *, cost 10"},
		{"a partner's mail waits", "a@partner.example", "partner", Hop{"partner", "partner"}, "address space partner.example, cost 10"},
	} {
		t.Run(test.name, func(t *testing.T) {
			q := Query{Recipient: address(t, test.recipient), Avoid: func(h Hop) bool { return strings.Contains(test.down, h.Connector) }}
			got := table.Route(q)
			if got.Hop != test.want || got.Why != test.why {
				t.Errorf("Route() = %v because %q, want %v because %q", got.Hop, got.Why, test.want, test.why)
			}
		})
	}
}

func TestRouteRedirected(t *testing.T) {
	table, err := New([]Connector{{Name: "out", Spaces: spaces("example.com")}, {Name: "off", Disabled: true}})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name      string
		recipient string
		via       Hop
		want      Hop
	}{
		{"as redirected", "a@example.com", RedirectTo("out", "h.example:25"), RedirectTo("out", "h.example:25")},
		{"whatever the recipient", "a@other.example", RedirectTo("out", "h.example:25"), RedirectTo("out", "h.example:25")},
		{"its connector is gone", "a@example.com", RedirectTo("off", "h.example:25"), RedirectTo("out", "h.example:25")},
		{"every connector is gone", "a@other.example", RedirectTo("gone", "h.example:25"), Unroutable},
		{"no redirect", "a@example.com", Hop{"off", "example.com"}, Hop{"out", "example.com"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			q := Query{Recipient: address(t, test.recipient), Via: test.via}
			for what, got := range map[string]Decision{"Route": table.Route(q), "Explain": table.Explain(q)} {
				if got.Hop != test.want || got.Why == "" {
					t.Errorf("%s() = %v because %q, want %v", what, got.Hop, got.Why, test.want)
				}
			}
		})
	}
	if got := RedirectTo("out", "h.example:25").Target(); got != "h.example:25" {
		t.Errorf("Target() = %q", got)
	}
}

func TestCheckSender(t *testing.T) {
	for _, test := range []struct {
		name    string
		pattern string
		want    bool
	}{
		{"domain", "example.com", true},
		{"domain with a sign", "@example.com", true},
		{"address", "a@example.com", true},
		{"sub-domains", "*.example.com", true},
		{"null", "<>", true},
		{"nothing", "", false},
		{"a star", "*", false},
		{"sub-domains of an address", "*.a@example.com", false},
		{"bad domain", "bad domain", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := CheckSender(test.pattern); (err == nil) != test.want {
				t.Errorf("CheckSender(%q) = %v, want ok %t", test.pattern, err, test.want)
			}
		})
	}
}
