package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"waybill/relay/mail"
)

func control(t testing.TB) *Control {
	t.Helper()
	domains, err := NewDomains([]Domain{
		{Name: "Accepted.Example.", Type: Authoritative, Recipients: func(a mail.Address) bool { return a.Local != "nobody" }},
		{Name: "wide.example", Type: InternalRelay, Subdomains: true},
		{Name: "known.wide.example", Recipients: func(a mail.Address) bool { return a.Local == "somebody" }},
		{Name: "bücher.example", Type: ExternalRelay},
	})
	if err != nil {
		t.Fatal(err)
	}
	self := netip.MustParseAddr("192.0.2.25")
	return &Control{
		Domains:    domains,
		Postmaster: mail.Address{Local: "postmaster", Domain: "accepted.example"},
		Self:       func(ip netip.Addr) bool { return ip == self },
	}
}

var (
	stranger = Peer{IP: netip.MustParseAddr("203.0.113.9"), Permissions: Permissions{Submit: true}}
	trusted  = Peer{IP: netip.MustParseAddr("10.0.0.9"), Permissions: Permissions{Submit: true, Relay: true}}
)

// TestRecipient is the table of tricks that have made open relays. A path is
// parsed as the session parses it: what does not parse is refused there.
func TestRecipient(t *testing.T) {
	const (
		ok      = ""
		syntax  = "syntax"
		relay   = ReasonRelay
		unknown = ReasonRecipient
	)
	for _, test := range []struct {
		name string
		path string
		peer Peer
		want string
	}{
		{"accepted domain", "<user@accepted.example>", stranger, ok},
		{"in another case", "<user@ACCEPTED.eXaMpLe>", stranger, ok},
		{"sub-domain of a wide domain", "<user@a.b.wide.example>", stranger, ok},
		{"A-label of an accepted U-label", "<user@xn--bcher-kva.example>", stranger, ok},
		{"A-label in capitals", "<user@XN--BCHER-KVA.example>", stranger, ok},
		{"U-label", "<user@bücher.example>", stranger, ok},
		{"U-label in capitals", "<user@BÜCHER.example>", stranger, ok},
		{"U-label, decomposed", "<user@bu\u0308cher.example>", stranger, ok},
		{"full-width domain", "<user@ａccepted.example>", stranger, ok},
		{"postmaster without domain", "<postmaster>", stranger, ok},
		{"postmaster in capitals", "<POSTMASTER>", stranger, ok},
		{"postmaster at our literal", "<postmaster@[192.0.2.25]>", stranger, ok},
		{"postmaster of a domain that has none", "<PostMaster@known.wide.example>", stranger, ok},
		{"unknown recipient", "<nobody@accepted.example>", stranger, unknown},
		{"unknown recipient, trusted peer", "<nobody@accepted.example>", trusted, unknown},
		{"narrow domain within a wide one", "<other@known.wide.example>", stranger, unknown},
		{"below the narrow domain", "<other@x.known.wide.example>", stranger, ok},

		{"foreign domain", "<user@victim.example>", stranger, relay},
		{"foreign domain, trusted peer", "<user@victim.example>", trusted, ok},
		{"percent hack", "<user%victim.example@accepted.example>", stranger, relay},
		{"percent hack twice", "<user%victim.example%wide.example@accepted.example>", stranger, relay},
		{"percent hack, quoted", `<"user%victim.example"@accepted.example>`, stranger, relay},
		{"percent hack, full width", "<user％victim.example@accepted.example>", stranger, relay},
		{"at sign, small", "<user﹫victim.example@accepted.example>", stranger, relay},
		{"bang path, full width", "<victim.example！user@accepted.example>", stranger, relay},
		{"percent hack to a foreign domain", "<user%accepted.example@victim.example>", stranger, relay},
		{"percent hack, trusted peer", "<user%victim.example@accepted.example>", trusted, ok},
		{"bang path", "<victim.example!user@accepted.example>", stranger, relay},
		{"bang path without domain", "<accepted.example!victim.example!user>", stranger, syntax},
		{"quoted address", `<"user@victim.example"@accepted.example>`, stranger, relay},
		{"quoted address, escaped", `<"user\@victim.example"@accepted.example>`, stranger, relay},
		{"quoted address without domain", `<"user@victim.example">`, stranger, syntax},
		{"two at signs", "<user@victim.example@accepted.example>", stranger, syntax},
		{"two at signs the other way", "<user@accepted.example@victim.example>", stranger, syntax},
		{"source route through us", "<@accepted.example:user@victim.example>", stranger, relay},
		{"source route through us twice", "<@accepted.example,@wide.example:user@victim.example>", stranger, relay},
		{"source route to us", "<@victim.example:user@accepted.example>", stranger, ok},
		{"source route with a percent", "<@accepted.example:user%victim.example@accepted.example>", stranger, relay},
		{"broken source route", "<@accepted.example@victim.example:user@x.example>", stranger, syntax},
		{"no angle brackets", "user@victim.example", stranger, syntax},
		{"domain as a prefix", "<user@accepted.example.victim.example>", stranger, relay},
		{"domain as a suffix without a dot", "<user@notaccepted.example>", stranger, relay},
		{"wide domain as a suffix without a dot", "<user@notwide.example>", stranger, relay},
		{"sub-domain of a narrow domain", "<user@sub.accepted.example>", stranger, relay},
		{"parent of an accepted domain", "<user@example>", stranger, relay},
		{"trailing dot", "<user@accepted.example.>", stranger, syntax},
		{"trailing dot on a foreign domain", "<user@victim.example.>", stranger, syntax},
		{"leading dot", "<user@.accepted.example>", stranger, syntax},
		{"two dots", "<user@x..wide.example>", stranger, syntax},
		{"NUL behind the domain", "<user@victim.example\x00.accepted.example>", stranger, syntax},
		{"NUL in the local part", "<user\x00@accepted.example>", stranger, syntax},
		{"line end in the local part", "<\"user\r\nRCPT TO:<x\"@accepted.example>", stranger, syntax},
		{"space in the domain", "<user@accepted.example victim.example>", stranger, syntax},
		{"parameter in a quoted local part", `<"x> NOTIFY=NEVER t"@victim.example>`, stranger, relay},
		{"ideographic full stop", "<user@victim。accepted。example>", stranger, relay},
		{"ideographic full stop in our name", "<user@accepted。example>", stranger, ok},
		{"full-width at sign", "<user＠victim.example@accepted.example>", stranger, relay}, // a letter like others, and never an @
		{"homograph", "<user@аccepted.example>", stranger, relay},                         // Cyrillic
		{"soft hyphen alone as a label", "<user@\u00ad.wide.example>", stranger, syntax},
		{"not UTF-8", "<user@accepted.example\xff>", stranger, syntax},

		{"foreign literal", "<user@[198.51.100.1]>", stranger, relay},
		{"foreign literal, trusted peer", "<user@[198.51.100.1]>", trusted, ok},
		{"our literal", "<user@[192.0.2.25]>", stranger, relay},
		{"our literal, trusted peer", "<user@[192.0.2.25]>", trusted, relay},
		{"our literal, mapped", "<user@[IPv6:::ffff:192.0.2.25]>", trusted, relay},
		{"loopback, trusted peer", "<user@[127.0.0.1]>", trusted, relay},
		{"loopback, any", "<user@[127.8.9.10]>", trusted, relay},
		{"loopback, IPv6", "<user@[IPv6:::1]>", trusted, relay},
		{"loopback, IPv6, spelled out", "<user@[ipv6:0:0:0:0:0:0:0:1]>", trusted, relay},
		{"loopback, mapped", "<user@[IPv6:::ffff:127.0.0.1]>", trusted, relay},
		{"no address", "<user@[0.0.0.0]>", trusted, relay},
		{"link-local, IPv6", "<user@[IPv6:fe80::1]>", trusted, relay},
		{"zone", "<user@[IPv6:fe80::1%eth0]>", trusted, syntax},
		{"unfinished literal", "<user@[192.0.2.1>", trusted, syntax},
		{"octal literal", "<user@[0177.0.0.1]>", trusted, syntax},
		{"address without brackets", "<user@127.0.0.1>", trusted, syntax},
		{"address in circled digits", "<user@①②⑦.0.0.①>", trusted, syntax},
		{"general literal", "<user@[x:accepted.example]>", trusted, syntax},

		{"null path", "<>", trusted, syntax},
		{"may not submit", "<user@accepted.example>", Peer{Permissions: Permissions{Relay: true}}, relay},
		{"zero peer", "<user@accepted.example>", Peer{}, relay},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := mail.ParseRcpt("TO:"+test.path, true)
			if err != nil {
				if test.want != syntax {
					t.Fatalf("ParseRcpt(%q) = %v, want it to parse", test.path, err)
				}
				return
			}
			got := control(t).Recipient(test.peer, mail.Envelope{}, r)
			if reason(got) != test.want {
				t.Errorf("Recipient(%q) = %q (%v), want %q", test.path, reason(got), got, test.want)
			}
			if got != nil && (got.Reply.Code != 550 || got.Err == nil || got.Temporary() || strings.Contains(got.Reply.Text, r.Address.Local+"@")) {
				t.Errorf("Recipient(%q) replies %+v", test.path, got)
			}
		})
	}
}

func TestSender(t *testing.T) {
	user := func(name string, senders ...string) Peer {
		return Peer{User: name, Senders: senders, Permissions: Permissions{Submit: true, Relay: true}}
	}
	anySender := user("app")
	anySender.Permissions.AnySender = true
	for _, test := range []struct {
		name string
		peer Peer
		from string
		want string
	}{
		{"stranger with any sender", stranger, "x@victim.example", ""},
		{"stranger with the null sender", stranger, "", ""},
		{"may not submit", Peer{Permissions: Permissions{Relay: true}}, "x@y.example", ReasonSender},
		{"may not submit, null sender", Peer{}, "", ReasonSender},
		{"own name is an address", user("bob@a.example"), "bob@a.example", ""},
		{"own name, other case", user("bob@a.example"), "Bob@A.example", ""},
		{"own name, other domain", user("bob@a.example"), "bob@b.example", ReasonSender},
		{"own name is no address", user("bob"), "bob@a.example", ReasonSender},
		{"user with the null sender", user("bob"), "", ""},
		{"listed", user("app", "x@a.example", "y@a.example"), "y@a.example", ""},
		{"not listed", user("app", "x@a.example"), "z@a.example", ReasonSender},
		{"listed domain", user("app", "@a.example"), "z@a.example", ""},
		{"listed domain with a star", user("app", "*@a.example"), "z@a.example", ""},
		{"listed domain, bare", user("app", "a.example"), "z@a.example", ""},
		{"sub-domain of a listed domain", user("app", "@a.example"), "z@b.a.example", ReasonSender},
		{"suffix of a listed domain", user("app", "@a.example"), "z@ba.example", ReasonSender},
		{"listed U-label", user("app", "@bücher.example"), "z@xn--bcher-kva.example", ""},
		{"listed in capitals", user("app", "X@A.EXAMPLE"), "x@a.example", ""},
		{"listed, quoted", user("app", `"a b"@a.example`), `"a b"@a.example`, ""},
		{"quoting does not matter", user("app", "x@a.example"), `"x"@a.example`, ""},
		{"address in the local part", user("app", "x@a.example"), `"x@a.example"@b.example`, ReasonSender},
		{"Kelvin is not k", user("app", "k@a.example"), "\u212a@a.example", ReasonSender},
		{"star", user("app", "*"), "z@b.example", ""},
		{"right to any sender", anySender, "z@b.example", ""},
		{"empty entry", user("app", ""), "z@b.example", ReasonSender},
		{"at sign alone", user("app", "@"), "z@b.example", ReasonSender},
	} {
		t.Run(test.name, func(t *testing.T) {
			from, err := mail.ParseAddress(test.from)
			if err != nil {
				t.Fatal(err)
			}
			if got := control(t).Sender(test.peer, mail.Envelope{Sender: from}); reason(got) != test.want {
				t.Errorf("Sender(%q) = %q (%v), want %q", test.from, reason(got), got, test.want)
			}
		})
	}
}

func TestZeroControlDenies(t *testing.T) {
	var c Control
	for _, to := range []mail.Address{{Local: "a", Domain: "b.example"}, {Local: "postmaster"}, {}} {
		if c.Recipient(stranger, mail.Envelope{}, mail.Recipient{Address: to}) == nil {
			t.Errorf("the zero Control accepts %q from a stranger", to)
		}
	}
}

func TestTarget(t *testing.T) {
	c := control(t)
	for _, test := range []struct{ name, addr, want string }{
		{"other", "bob@accepted.example", "bob@accepted.example"},
		{"postmaster", "Postmaster", "postmaster@accepted.example"},
		{"postmaster at our literal", "postmaster@[192.0.2.25]", "postmaster@accepted.example"},
		{"postmaster of a domain that has none", "Postmaster@known.wide.example", "postmaster@accepted.example"},
		{"postmaster of a domain that may have one", "postmaster@wide.example", "postmaster@wide.example"},
		{"postmaster elsewhere", "postmaster@victim.example", "postmaster@victim.example"},
		{"postmaster at a foreign literal", "postmaster@[198.51.100.1]", "postmaster@[198.51.100.1]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, err := mail.ParseAddress(test.addr)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Target(a).String(); got != test.want {
				t.Errorf("Target(%s) = %s, want %s", test.addr, got, test.want)
			}
		})
	}
}

// What policy saw is what goes out: an accepted address written to a next hop
// and parsed again is accepted again.
func TestAcceptedSurvivesWriting(t *testing.T) {
	c := control(t)
	rapid.Check(t, func(rt *rapid.T) {
		path := rapid.OneOf(
			rapid.StringMatching(`<[a-z"@%!\\. ]{1,12}@(accepted|known\.wide|x\.wide|victim)\.example>`),
			rapid.StringMatching(`<(@[a-z.]{1,5}:)?"?[ -~]{0,10}"?@[a-z.\[\]0-9:。ü]{1,18}>`),
		).Draw(rt, "path")
		r, err := mail.ParseRcpt("TO:"+path, true)
		if err != nil {
			return
		}
		again, err := mail.ParseRcpt("TO:"+r.Address.Path(), true)
		if err != nil || again.Address != r.Address {
			rt.Fatalf("%q is written as %q, which parses as %v, %v", path, r.Address.Path(), again.Address, err)
		}
		if reason(c.Recipient(stranger, mail.Envelope{}, again)) != reason(c.Recipient(stranger, mail.Envelope{}, r)) {
			rt.Fatalf("%q and its written form are decided differently", path)
		}
		if c.Recipient(stranger, mail.Envelope{}, r) == nil && r.Address.Domain != "" {
			_, ours := c.Domains.Lookup(r.Address.DomainKey())
			if _, literal := r.Address.Literal(); !ours && !literal {
				rt.Fatalf("%q is relayed for a stranger", path)
			}
		}
	})
}

func TestNewDomains(t *testing.T) {
	for _, test := range []struct {
		name   string
		domain Domain
		want   string
	}{
		{"plain", Domain{Name: "a.example"}, ""},
		{"single label", Domain{Name: "corp", Subdomains: true}, ""},
		{"public suffix alone", Domain{Name: "co.uk"}, ""},
		{"public suffix with sub-domains", Domain{Name: "co.uk", Subdomains: true}, "open relay"},
		{"top-level domain with sub-domains", Domain{Name: "COM", Subdomains: true}, "open relay"},
		{"star", Domain{Name: "*"}, "no wildcards"},
		{"wildcard", Domain{Name: "*.a.example"}, "no wildcards"},
		{"empty", Domain{}, "malformed"},
		{"literal", Domain{Name: "[192.0.2.1]"}, "literal"},
		{"type", Domain{Name: "a.example", Type: "mine"}, "unknown type"},
		{"twice", Domain{Name: "First.example."}, "twice"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, err := NewDomains([]Domain{{Name: "first.example"}, test.domain})
			if test.want == "" {
				if err != nil || d.Len() != 2 {
					t.Errorf("NewDomains = %v, want two domains", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("NewDomains = %v, want %q", err, test.want)
			}
		})
	}
	_, err := NewDomains([]Domain{{Name: "*"}, {Name: ""}})
	if err == nil || !strings.Contains(err.Error(), "\n") {
		t.Errorf("NewDomains reports %v, want both faults", err)
	}
	var none *Domains
	if _, ok := none.Lookup("a.example"); ok || none.Len() != 0 {
		t.Error("nil Domains hold something")
	}
}

func TestPermissions(t *testing.T) {
	all, err := ParsePermissions(PermissionWords())
	if err != nil || all != (Permissions{true, true, true, true, true, true}) {
		t.Errorf("ParsePermissions(all) = %+v, %v", all, err)
	}
	if !slices.Equal(all.Words(), PermissionWords()) || all.String() != strings.Join(PermissionWords(), ",") {
		t.Errorf("Words() = %v", all.Words())
	}
	for _, words := range [][]string{{"Submit"}, {"submit", "submit"}, {"rely"}, {""}} {
		if p, err := ParsePermissions(words); err == nil || p != (Permissions{}) {
			t.Errorf("ParsePermissions(%q) = %v, %v, want an error", words, p, err)
		}
	}
}

func TestRanges(t *testing.T) {
	var r Ranges
	for _, s := range []string{"10.0.0.0/8", "10.1.0.0/16", "::ffff:192.168.0.0/112", "2001:db8::/32", "fe80::/10"} {
		p, err := ParseRange(s)
		if err != nil {
			t.Fatal(err)
		}
		r = append(r, p)
	}
	for _, test := range []struct{ name, ip, want string }{
		{"plain", "10.2.3.4", "10.0.0.0/8"},
		{"narrowest", "10.1.3.4", "10.1.0.0/16"},
		{"mapped address", "::ffff:10.1.3.4", "10.1.0.0/16"},
		{"mapped network", "192.168.9.9", "192.168.0.0/16"},
		{"IPv6", "2001:db8::1", "2001:db8::/32"},
		{"zone", "fe80::1%eth0", "fe80::/10"},
		{"none", "203.0.113.1", ""},
		{"none, IPv6", "::1", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			ip := netip.MustParseAddr(test.ip)
			p, ok := r.Match(ip)
			got := ""
			if ok {
				got = p.String()
			}
			if got != test.want || r.Contains(ip) != ok {
				t.Errorf("Match(%s) = %q, Contains = %t, want %q", test.ip, got, r.Contains(ip), test.want)
			}
		})
	}
	for _, bad := range []string{"", "10.1.2.3/8", "10.0.0.0/33", "host", "fe80::1%eth0", "::ffff:0:0/90"} {
		if p, err := ParseRange(bad); err == nil {
			t.Errorf("ParseRange(%q) = %v, want an error", bad, p)
		}
	}
	for s, want := range map[string]bool{"10.0.0.0/8": true, "0.0.0.0/0": false, "127.0.0.1": true, "8.0.0.0/5": false, "::/0": false, "fd00::/8": true, "192.0.2.1": false} {
		p, err := ParseRange(s)
		if err != nil {
			t.Fatal(err)
		}
		if Private(p) != want {
			t.Errorf("Private(%s) = %t, want %t", s, !want, want)
		}
	}
}

func FuzzRecipient(f *testing.F) {
	for _, s := range []string{"<user%a@accepted.example>", `<"a@b"@accepted.example>`, "<@a:b@c.example>", "<a@[IPv6:::1]>", "<a@bücher.example>", "<postmaster>"} {
		f.Add(s)
	}
	c := control(f)
	f.Fuzz(func(t *testing.T, path string) {
		r, err := mail.ParseRcpt("TO:"+path, true)
		if err != nil || c.Recipient(stranger, mail.Envelope{}, r) != nil {
			return
		}
		to := c.Target(r.Address)
		if d, ok := c.Domains.Lookup(to.DomainKey()); !ok || strings.ContainsAny(to.Local, "@%!") {
			t.Errorf("a stranger may relay to %q (%v)", to, d.Name)
		}
	})
}

func BenchmarkRecipient(b *testing.B) {
	c := control(b)
	r := mail.Recipient{Address: mail.Address{Local: "user", Domain: "accepted.example"}}
	b.ReportAllocs()
	for b.Loop() {
		if c.Recipient(stranger, mail.Envelope{}, r) != nil {
			b.Fatal("refused")
		}
	}
}

func reason(e *mail.ReplyError) string {
	if e == nil {
		return ""
	}
	return e.Reason
}
