package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"mime"
	"strings"
	"time"
	"unicode"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"waybill/relay/mail"
)

// applications are who sends in the demo.
var applications = []struct{ from, subject, line string }{
	{"orders@shop.example", "Your order is on its way", madeUp},
	{"invoices@shop.example", "Invoice for November", madeUp},
	{"alerts@monitoring.example", "Disk usage above 90 %", madeUp},
	{"no-reply@crm.example", "Ihr Ticket wurde geändert", "Das alles ist erfunden, läuft aber wirklich über diesen Server."},
	{"scanner@office.example", "Scanned document", madeUp},
}

const madeUp = "All of this is made up, but it is really on its way."

var people = []string{"ann", "bob", "carla", "dmitri", "eve", "fatima", "george", "hana", "ivan", "june", "kofi", "lena", "mei", "nils", "olga", "pedro"}

// traffic is a steady flow of mail through the demo's receive connectors.
type traffic struct {
	plain, submission string // addresses
	roots             *x509.CertPool
	user, password    string
	perSecond         float64
}

// run submits until ctx is done. Refusals are the relay's to tell.
func (t *traffic) run(ctx context.Context) error {
	limit := rate.NewLimiter(rate.Limit(t.perSecond), max(1, int(t.perSecond/4)))
	g, ctx := errgroup.WithContext(ctx)
	for i := range 4 {
		g.Go(func() error { t.application(ctx, limit, i%2 == 0); return nil })
	}
	g.Go(func() error { t.strangers(ctx); return nil })
	return g.Wait()
}

// application keeps a connection and sends over it, as a busy sender does.
func (t *traffic) application(ctx context.Context, limit *rate.Limiter, login bool) {
	for ctx.Err() == nil {
		c, err := t.connect(login)
		for err == nil && limit.Wait(ctx) == nil {
			err = t.message(c)
		}
		if c != nil {
			_ = c.Close() // done with it, or it failed
		}
		if err != nil {
			pause(ctx, time.Second)
		}
	}
}

func (t *traffic) connect(login bool) (*smtp.Client, error) {
	if !login {
		return smtp.Dial(t.plain)
	}
	c, err := smtp.DialStartTLS(t.submission, &tls.Config{RootCAs: t.roots, ServerName: "localhost", MinVersion: tls.VersionTLS12})
	if err != nil {
		return nil, err
	}
	return c, c.Auth(sasl.NewPlainClient("", t.user, t.password))
}

func (t *traffic) message(c *smtp.Client) error {
	app := applications[rand.IntN(len(applications))] //nolint:gosec // a demo's dice
	all := hops()
	// Zipf-like: the first hops get most of the mail, the dead one little.
	weights := []int{40, 18, 16, 16, 7, 3}
	h, n := 0, rand.IntN(100) //nolint:gosec // a demo's dice
	for n >= weights[h] {
		n -= weights[h]
		h++
	}
	to := fmt.Sprintf("%s@%s", people[rand.IntN(len(people))], all[h].domain) //nolint:gosec // a demo's dice
	if h == 1 {
		to = fmt.Sprintf("%s.%d@%s", people[rand.IntN(len(people))], rand.IntN(1000), all[h].domain) //nolint:gosec // greylisting knows people after a while
	}
	now := time.Now()
	opts, encoding := &smtp.MailOptions{}, "7bit"
	if strings.ContainsFunc(app.line, func(r rune) bool { return r > unicode.MaxASCII }) { // a next hop that takes only ASCII has the relay convert it
		opts.Body, encoding = smtp.Body8BitMIME, "8bit"
	}
	if err := c.Mail(app.from, opts); err != nil {
		return err
	}
	if err := c.Rcpt(to, nil); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	body := strings.Repeat(app.line+"\r\n", 5+rand.IntN(200)) //nolint:gosec // a demo's dice
	if _, err := fmt.Fprintf(w, "From: %s\r\nTo: %s\r\nSubject: %s\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: %s\r\n"+
		"Date: %s\r\nMessage-ID: <%s@%s>\r\n\r\n%s",
		app.from, to, mime.QEncoding.Encode("utf-8", app.subject), encoding, now.Format(time.RFC1123Z), strings.ToLower(mail.NewID(now)), strings.SplitN(app.from, "@", 2)[1], body); err != nil {
		return err
	}
	return w.Close()
}

// strangers are what every open port sees: wrong passwords, relay attempts.
func (t *traffic) strangers(ctx context.Context) {
	for pause(ctx, time.Duration(6+rand.IntN(8))*time.Second) { //nolint:gosec // a demo's dice
		c, err := smtp.DialStartTLS(t.submission, &tls.Config{RootCAs: t.roots, ServerName: "localhost", MinVersion: tls.VersionTLS12})
		if err != nil {
			continue
		}
		_ = c.Auth(sasl.NewPlainClient("", "admin", "letmein")) // refused, which is the point
		_ = c.Mail("spammer@bad.example", nil)                  // refused too
		_ = c.Close()                                           // a stranger does not say goodbye
	}
}

// pause waits and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
