package backscatter

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"waybill/relay/dns"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// mostAsked is how often one check may ask the DNS: the record itself, ten terms
// that ask (RFC 7208 section 4.6.4), and up to ten hosts of an mx or a ptr each.
const mostAsked = 1 + 10*(1+10)

// wild answers every question with what a stranger published. As with the real
// one, there is no name that is too long to ask for.
type wild struct {
	texts []string
	host  string
	addr  netip.Addr
	fail  bool // every other answer is that the servers fail
	asked int
}

func (w *wild) next(name string) error {
	switch w.asked++; {
	case len(name) > 253:
		return &dns.Error{Kind: dns.NXDomain}
	case w.fail && w.asked%2 == 0:
		return &dns.Error{Kind: dns.ServFail}
	}
	return nil
}

func (w *wild) MX(_ context.Context, name string) ([]dns.MX, error) {
	return []dns.MX{{Host: w.host, Preference: 10}, {Host: "b." + w.host}, {Host: w.host, Implicit: true}}, w.next(name)
}

func (w *wild) Addrs(_ context.Context, name string) ([]netip.Addr, error) {
	return []netip.Addr{w.addr}, w.next(name)
}

func (w *wild) TXT(_ context.Context, name string) ([]string, error) {
	return w.texts, w.next(name)
}

func (w *wild) PTR(context.Context, netip.Addr) ([]string, error) {
	return []string{w.host, "b." + w.host}, w.next("")
}

// FuzzRefuse has a stranger choose the address, the greeting, and all that the
// DNS says: the decision is one of those that there are, and costs a bounded
// number of questions.
func FuzzRefuse(f *testing.F) {
	for _, seed := range []struct{ texts, helo, sender, host string }{
		{"v=spf1 ip4:192.0.2.0/28 -all", "mx.example", "a@strict.example", "h.example"},
		{"v=spf1 mx/24//64 ptr:h.example ?all", "[192.0.2.1]", "a@bücher.example", "h.example"},
		{"v=spf1 include:%{d}.%{d}.%{d} redirect=_spf.%{d2}", "h", `"a b"@d.example`, ""},
		{"v=spf1 a:%{ir}.%{v}._spf.%{d2} exists:%{L1r+-/=}.%{S}%%%_%- exp=x.%{h}", "", "a+b-c@d.example", "."},
		{"v=spf1 ip6:2001:db8::/129 ip4:1.2.3.4/33 -all\nv=spf1 +all", "h.example", "a@d.example", "xn--.example"},
		{"V=SPF1 ip4:::ffff:1.2.3.4 a/99 mx:// all:", "\x00", "a@[192.0.2.1]", strings.Repeat("a.", 130)},
		{strings.Repeat("v=spf1 ", 2) + strings.Repeat("a:%{d200}.x ", 20), "h", "a@d.example", "\xff"},
	} {
		f.Add(seed.texts, seed.helo, seed.sender, seed.host, []byte{192, 0, 2, 1}, true)
		f.Add(seed.texts, seed.helo, seed.sender, seed.host, netip.MustParseAddr("2001:db8::25").AsSlice(), false)
	}
	f.Fuzz(func(t *testing.T, texts, helo, sender, host string, addr []byte, fail bool) {
		m := &mail.Draft{Origin: mail.Origin{Connector: "in", Helo: helo}}
		ip, ok := netip.AddrFromSlice(addr)
		from, err := mail.ParseAddress(sender)
		if !ok || err != nil {
			return // no session has such
		}
		m.Origin.Client, m.Envelope.Sender = netip.AddrPortFrom(ip, 25), from
		for _, strangers := range []Strangers{UnlessForged, Verified} {
			w := &wild{texts: strings.Split(texts, "\n"), host: host, addr: ip, fail: fail}
			p := Policy{Strangers: strangers, Resolver: w}
			switch why := p.Refuse(t.Context(), m); {
			case why != "" && why != event.SuppressedForged && (why != event.SuppressedStranger || strangers != Verified):
				t.Errorf("Refuse() under %s = %q", strangers, why)
			case w.asked > mostAsked:
				t.Errorf("Refuse() asked %d times, want %d at most", w.asked, mostAsked)
			case w.asked == 0 && why == event.SuppressedForged:
				t.Error("a sender is called forged without a question to its domain")
			}
		}
	})
}
