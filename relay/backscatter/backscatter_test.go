package backscatter

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/dns"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// zone answers from maps; what is not in them does not exist.
type zone struct {
	txt   map[string][]string
	mx    map[string][]dns.MX
	addrs map[string][]netip.Addr
	ptr   map[netip.Addr][]string
	fail  *dns.Error
	hang  bool
	asked int
}

func look[K comparable, V any](ctx context.Context, z *zone, of map[K]V, key K) (v V, err error) {
	z.asked++
	if z.hang {
		<-ctx.Done()
		return v, ctx.Err()
	}
	if z.fail != nil {
		return v, z.fail
	}
	v, ok := of[key]
	if !ok {
		return v, &dns.Error{Kind: dns.NXDomain}
	}
	return v, nil
}

func (z *zone) MX(ctx context.Context, d string) ([]dns.MX, error) { return look(ctx, z, z.mx, d) }
func (z *zone) Addrs(ctx context.Context, h string) ([]netip.Addr, error) {
	return look(ctx, z, z.addrs, h)
}

func (z *zone) TXT(ctx context.Context, n string) ([]string, error) { return look(ctx, z, z.txt, n) }

func (z *zone) PTR(ctx context.Context, ip netip.Addr) ([]string, error) {
	return look(ctx, z, z.ptr, ip)
}

func world() *zone {
	mx, host := netip.MustParseAddr("192.0.2.25"), netip.MustParseAddr("2001:db8::25")
	return &zone{
		txt: map[string][]string{
			"strict.example":        {"v=spf1 ip4:192.0.2.0/28 -all"},
			"soft.example":          {"v=spf1 ip4:192.0.2.0/28 ~all"},
			"mx.example":            {"v=spf1 mx -all"},
			"ptr.example":           {"v=spf1 ptr -all"},
			"broken.example":        {"v=spf1 nonsense"},
			"quiet.example":         {"some other text"},
			"long.example":          {"v=spf1 exists:%{d" + strings.Repeat("0", 1<<15) + "1} -all"},
			"xn--bcher-kva.example": {"v=spf1 a:out.strict.example -all"},
		},
		mx:    map[string][]dns.MX{"mx.example": {{Host: "in.mx.example", Preference: 10}}},
		addrs: map[string][]netip.Addr{"in.mx.example": {mx}, "out.strict.example": {host}, "host.ptr.example": {mx}},
		ptr:   map[netip.Addr][]string{mx: {"host.ptr.example"}},
	}
}

func draft(t *testing.T, sender, client, user, connector string) *mail.Draft {
	t.Helper()
	d := &mail.Draft{Origin: mail.Origin{User: user, Connector: connector, Helo: "client.example"}}
	if sender != "" {
		a, err := mail.ParseAddress(sender)
		if err != nil {
			t.Fatal(err)
		}
		d.Envelope.Sender = a
	}
	if client != "" {
		d.Origin.Client = netip.AddrPortFrom(netip.MustParseAddr(client), 4711)
	}
	return d
}

func TestRefuse(t *testing.T) {
	const forged, stranger = event.SuppressedForged, event.SuppressedStranger
	for _, test := range []struct {
		name      string
		sender    string
		client    string
		user      string
		connector string
		want      map[Strangers]string // what is not there is not refused
	}{
		{"a user", "a@strict.example", "198.51.100.1", "ann", "in", nil},
		{"a client that may relay", "a@strict.example", "198.51.100.1", "", "inside", nil},
		{"the relay itself", "a@strict.example", "", "", "", nil},
		{"the domain sends from there", "a@strict.example", "192.0.2.3", "", "in", map[Strangers]string{None: stranger}},
		{"the domain does not", "a@strict.example", "198.51.100.1", "", "in", map[Strangers]string{UnlessForged: forged, Verified: forged, None: stranger}},
		{"the domain does not, it thinks", "a@soft.example", "198.51.100.1", "", "in", map[Strangers]string{UnlessForged: forged, Verified: forged, None: stranger}},
		{"by MX", "a@mx.example", "192.0.2.25", "", "in", map[Strangers]string{None: stranger}},
		{"not by MX", "a@mx.example", "192.0.2.26", "", "in", map[Strangers]string{UnlessForged: forged, Verified: forged, None: stranger}},
		{"by reverse name", "a@ptr.example", "192.0.2.25", "", "in", map[Strangers]string{None: stranger}},
		{"by IPv6, of an internationalised domain", "a@bücher.example", "2001:db8::25", "", "in", map[Strangers]string{None: stranger}},
		{"an IPv4 address in IPv6", "a@strict.example", "::ffff:192.0.2.3", "", "in", map[Strangers]string{None: stranger}},
		{"no SPF", "a@quiet.example", "198.51.100.1", "", "in", map[Strangers]string{Verified: stranger, None: stranger}},
		{"broken SPF", "a@broken.example", "198.51.100.1", "", "in", map[Strangers]string{Verified: stranger, None: stranger}},
		{"SPF that is far too long", "a@long.example", "198.51.100.1", "", "in", map[Strangers]string{Verified: stranger, None: stranger}},
		{"no such domain", "a@nowhere.example", "198.51.100.1", "", "in", map[Strangers]string{Verified: stranger, None: stranger}},
		{"an address literal", "a@[198.51.100.1]", "198.51.100.1", "", "in", map[Strangers]string{Verified: stranger, None: stranger}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, w := range Words() {
				p := Policy{Strangers: Strangers(w), Trusted: func(c string) bool { return c == "inside" }, Resolver: world()}
				if got, want := p.Refuse(t.Context(), draft(t, test.sender, test.client, test.user, test.connector)), test.want[Strangers(w)]; got != want {
					t.Errorf("Refuse() under %s = %q, want %q", w, got, want)
				}
			}
		})
	}
}

func TestRefuseWithoutAnswer(t *testing.T) {
	for _, test := range []struct {
		name      string
		zone      zone
		strangers Strangers
		want      string
	}{
		{"servers fail", zone{fail: &dns.Error{Kind: dns.ServFail, Err: errors.New("down")}}, UnlessForged, ""},
		{"servers fail, and it must be verified", zone{fail: &dns.Error{Kind: dns.ServFail}}, Verified, event.SuppressedStranger},
		{"servers are silent", zone{hang: true}, UnlessForged, ""},
		{"nobody need be asked", zone{hang: true}, All, ""},
		{"nobody need be asked, either", zone{hang: true}, None, event.SuppressedStranger},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				p := Policy{Strangers: test.strangers, Resolver: &test.zone}
				if got := p.Refuse(t.Context(), draft(t, "a@strict.example", "198.51.100.1", "", "in")); got != test.want {
					t.Errorf("Refuse() = %q, want %q", got, test.want)
				}
				if took := time.Since(began); took > timeout {
					t.Errorf("it took %v", took)
				}
				if asks := test.strangers != All && test.strangers != None; (test.zone.asked > 0) != asks {
					t.Errorf("%d questions", test.zone.asked)
				}
			})
		})
	}
	if got := (&Policy{}).Refuse(t.Context(), draft(t, "a@strict.example", "198.51.100.1", "", "in")); got != "" {
		t.Errorf("the zero Policy refuses: %q", got)
	}
}
