package smtpout

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"waybill/relay/mail"
	"waybill/relay/relaytest"
	"waybill/relay/route"
)

// TestProbe holds what a probe asks, and that it never sends content.
func TestProbe(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(*relaytest.SmartHost)
		to     string
		want   mail.Disposition
		verb   string
		remote bool
	}{
		{"taken", func(*relaytest.SmartHost) {}, "ann@example.com", mail.Relayed, "RCPT", true},
		{"unknown", func(h *relaytest.SmartHost) { h.OnRcpt("bob@example.com", 550, "5.1.1 no such user") }, "bob@example.com", mail.Bounced, "RCPT", true},
		{"greylisted", func(h *relaytest.SmartHost) { h.On("RCPT", 450, "4.7.1 later") }, "ann@example.com", mail.Deferred, "RCPT", true},
		{"null sender refused", func(h *relaytest.SmartHost) { h.On("MAIL", 550, "5.7.1 no") }, "ann@example.com", mail.Bounced, "MAIL", true},
		{"closed", func(h *relaytest.SmartHost) { h.On("CONNECT", 421, "4.3.2 later") }, "ann@example.com", mail.Deferred, "CONNECT", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			host := relaytest.NewSmartHost(t)
			test.script(host)
			c, err := New(Options{
				Name: "out", Hostname: "relay.test", TLS: TLSNone, Emitter: (&relaytest.Recorder{}).Emitter(),
				SmartHosts: []route.SmartHost{{Host: host.IP(), Port: host.Port()}},
			})
			if err != nil {
				t.Fatal(err)
			}
			to, err := mail.ParseAddress(test.to)
			if err != nil {
				t.Fatal(err)
			}
			for range 3 { // the later ones on the same connection
				o := c.Probe(t.Context(), route.Hop{Connector: "out", Name: "out"}, to)
				if o.Disposition != test.want || o.Verb != test.verb || o.Remote != test.remote {
					t.Errorf("Probe = %+v, want %v at %s", o, test.want, test.verb)
				}
			}
			_ = c.Close()
			counts := host.Counts()
			if counts["DATA"]+counts["BDAT"] > 0 || len(host.Messages()) > 0 {
				t.Errorf("commands %v: a probe sends no content", counts)
			}
			if test.want == mail.Relayed {
				if total, _, _ := host.Connections(); total != 1 {
					t.Errorf("%d connections, want one that is kept", total)
				}
				if i := slices.Index(host.Commands(), "MAIL FROM:<>"); i < 0 {
					t.Errorf("commands %q: the sender is not the null one", host.Commands())
				}
			}
			if v := host.Violations(); len(v) > 0 {
				t.Errorf("violations: %q", v)
			}
		})
	}
}

// TestProbeNeverAsksOurselves holds that a domain whose way leads back here is
// not probed: each probe would begin the next.
func TestProbeNeverAsksOurselves(t *testing.T) {
	host := relaytest.NewSmartHost(t)
	c, err := New(Options{
		Name: "out", Hostname: "relay.test", TLS: TLSNone, Self: []netip.AddrPort{host.AddrPort()},
		SmartHosts: []route.SmartHost{{Host: host.IP(), Port: host.Port()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	o := c.Probe(t.Context(), route.Hop{Connector: "out", Name: "out"}, mail.Address{Local: "a", Domain: "example.com"})
	if total, _, _ := host.Connections(); total > 0 || o.Disposition == mail.Relayed || o.Remote {
		t.Errorf("Probe = %+v with %d connections to ourselves", o, total)
	}
}

func TestProbeEnds(t *testing.T) {
	host := relaytest.NewSmartHost(t)
	host.Do("RCPT", relaytest.Action{Hang: true})
	c, err := New(Options{Name: "out", Hostname: "relay.test", TLS: TLSNone, SmartHosts: []route.SmartHost{{Host: host.IP(), Port: host.Port()}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if o := c.Probe(ctx, route.Hop{Connector: "out", Name: "out"}, mail.Address{Local: "a", Domain: "example.com"}); o.Disposition != mail.Deferred || o.Remote {
		t.Errorf("Probe = %+v, want a deferral of ours", o)
	}
	_ = c.Close()
}
