package smtpout

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"waybill/relay/mail"
	"waybill/relay/relaytest"
)

// TestDeliverBy: what must come back in time goes only to hosts that promise
// the same; hosts that know BY= are told what is left (RFC 2852 section 4).
func TestDeliverBy(t *testing.T) {
	// The machine may take a while until it comes to a line.
	soon := func(d time.Duration) mail.DeliverBy { return mail.DeliverBy{Deadline: time.Now().Add(d), Return: true} }
	told := func(d time.Duration) mail.DeliverBy { return mail.DeliverBy{Deadline: time.Now().Add(d), Trace: true} }
	for _, test := range []struct {
		name   string
		offers string
		by     mail.DeliverBy
		sent   string // of MAIL
		want   string
	}{
		{"return, offered", "DELIVERBY", soon(999 * time.Second), ` BY=9\d\d;R`, "relayed 250 2.0.0"},
		{"return, not offered", "SIZE", soon(999 * time.Second), "", "bounced 550 5.3.3 at MAIL other local"},
		{"return, sooner than offered", "DELIVERBY 1200", soon(999 * time.Second), "", "bounced 550 5.3.3 at MAIL other local"},
		{"return, a minimum that is none", "DELIVERBY x", soon(999 * time.Second), ` BY=9\d\d;R`, "relayed 250 2.0.0"},
		{"return, too late", "DELIVERBY", soon(0), "", "bounced 550 5.4.7 at MAIL other local"},
		{"tell, offered", "DELIVERBY 1200", told(999 * time.Second), ` BY=9\d\d;NT`, "relayed 250 2.0.0"},
		{"tell, late", "DELIVERBY", told(-time.Minute), ` BY=-\d+;NT`, "relayed 250 2.0.0"},
		{"tell, not offered", "SIZE", told(999 * time.Second), "", "relayed 250 2.0.0"},
		{"nothing asked", "DELIVERBY", mail.DeliverBy{}, "", "relayed 250 2.0.0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := relaytest.NewSmartHost(t, relaytest.WithExtensions("PIPELINING", test.offers))
			c := named(t, func(o *Options) { o.TLS = TLSNone }, h)
			m := message("x\r\n", "a@y.example")
			m.Envelope.DeliverBy = test.by
			r := c.Attempt(t.Context(), outHop, m)
			if got := brief(r.Outcomes); got != test.want {
				t.Errorf("%s (%s), want %s", got, r.Outcomes[0].Reply.Text, test.want)
			}
			if offers := strings.HasPrefix(test.offers, "DELIVERBY"); r.DeliverBy != offers {
				t.Errorf("DeliverBy = %t, want %t", r.DeliverBy, offers)
			}
			said := strings.Join(h.Commands(), "\n")
			if test.sent == "" && strings.Contains(said, "BY=") || !regexp.MustCompile(test.sent).MatchString(said) {
				t.Errorf("sent %q, want %q", h.Commands(), test.sent)
			}
		})
	}
}
