package smtpout

import (
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"waybill/relay/mail"
	"waybill/relay/relaytest"
)

const (
	umlauts          = "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nnur f\xc3\xbcr alle Tage\r\n.dot\r\n"
	umlautsConverted = "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nnur f=C3=BCr alle Tage\r\n.dot\r\n"
)

func TestDowngrade(t *testing.T) {
	for _, test := range []struct {
		name          string
		offers        string
		body          mail.Body
		content       string
		eightBit      EightBit
		unconvertible EightBit
		sent          string // content that arrives
		want          string // how it was converted, or the outcome
	}{
		{"converted", "SIZE", mail.Body8BitMIME, umlauts, "", "", umlautsConverted, "quoted-printable:1"},
		{"not declared", "SIZE", mail.Body7Bit, umlauts, "", "", umlautsConverted, "quoted-printable:1"},
		{"taken as it is", "SIZE 8BITMIME", mail.Body8BitMIME, umlauts, "", "", umlauts, ""},
		{"bounced", "SIZE", mail.Body8BitMIME, umlauts, EightBitBounce, "", "", "bounced 554 5.6.3 at MAIL content local"},
		{"sent all the same", "SIZE", mail.Body8BitMIME, umlauts, EightBitSend, "", umlauts, ""},
		{"signed", "SIZE", mail.Body8BitMIME, "DKIM-Signature: v=1\r\n" + umlauts, "", "", "", "bounced 554 5.6.3 at MAIL content local"},
		{"signed, sent all the same", "SIZE", mail.Body8BitMIME, "DKIM-Signature: v=1\r\n" + umlauts, "", EightBitSend, "DKIM-Signature: v=1\r\n" + umlauts, ""},
		{"signed, taken as it is", "8BITMIME", mail.Body8BitMIME, "DKIM-Signature: v=1\r\n" + umlauts, "", "", "DKIM-Signature: v=1\r\n" + umlauts, ""},
		{"too large once converted", "SIZE 130", mail.Body8BitMIME, umlauts, "", "", "", "bounced 552 5.3.4 at MAIL size local"},
		{
			"binary", "SIZE 8BITMIME CHUNKING", mail.BodyBinaryMIME, "MIME-Version: 1.0\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: binary\r\n\r\n\x00\n\xff", "", "",
			"MIME-Version: 1.0\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\nAAr/\r\n", "base64:1",
		},
		{"binary that is text", "8BITMIME", mail.BodyBinaryMIME, umlauts, "", "", umlauts, ""},
		{"binary is never sent so", "8BITMIME", mail.BodyBinaryMIME, umlauts, EightBitSend, "", "", "bounced 554 5.6.3 at MAIL content local"},
		{"binary without sense", "8BITMIME", mail.BodyBinaryMIME, "MIME-Version: 1.0\n\n\x00", "", EightBitSend, "", "bounced 554 5.6.3 at MAIL content local"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var offers []string
			for w := range strings.SplitSeq(strings.ReplaceAll(test.offers, "SIZE 130", "SIZE_130"), " ") {
				offers = append(offers, strings.ReplaceAll(w, "_", " "))
			}
			h := relaytest.NewSmartHost(t, relaytest.WithExtensions(offers...))
			c := smart(t, func(o *Options) { o.EightBit, o.Unconvertible = test.eightBit, test.unconvertible }, h)
			m := message(test.content)
			m.Envelope.Body = test.body
			r := c.Attempt(t.Context(), outHop, m)
			if test.sent == "" {
				if got := brief(r.Outcomes); got != test.want || r.Converted != "" {
					t.Errorf("outcome = %s, converted %q, want %s", got, r.Converted, test.want)
				}
				return
			}
			if got := brief(r.Outcomes); got != "relayed 250 2.0.0" {
				t.Fatalf("outcome = %s\n%s", got, lines(r))
			}
			if r.Converted != test.want {
				t.Errorf("Converted = %q, want %q", r.Converted, test.want)
			}
			got := h.Messages()[0]
			if want := string(m.Trace) + test.sent; string(got.Content) != want {
				t.Errorf("content = %q\nwant      %q", got.Content, want)
			}
			wantBody := slices.Contains(offers, "8BITMIME") && strings.ContainsFunc(test.content, func(r rune) bool { return r > '~' })
			if strings.Contains(got.MailArgs, "BODY=8BITMIME") != wantBody {
				t.Errorf("MAIL's argument = %q, want BODY=8BITMIME: %t", got.MailArgs, wantBody)
			}
			if size := " SIZE=" + strconv.Itoa(len(got.Content)); strings.Contains(test.offers, "SIZE") && !strings.Contains(got.MailArgs+" ", size+" ") {
				t.Errorf("MAIL's argument = %q, want %q in it", got.MailArgs, size)
			}
			if v := h.Violations(); len(v) > 0 {
				t.Errorf("violations: %q", v)
			}
		})
	}
}

// TestDowngradeAgain hands one message to hosts of different kinds, and in two
// transactions to one of them.
func TestDowngradeAgain(t *testing.T) {
	old := relaytest.NewSmartHost(t, relaytest.WithExtensions("PIPELINING"))
	old.On(".", 451, "4.3.0 later")
	able := relaytest.NewSmartHost(t)
	c := smart(t, nil, old, able)
	m := message(umlauts)
	r := c.Attempt(t.Context(), outHop, m)
	if got, want := brief(r.Outcomes), "deferred 451 4.3.0 at ."; got != want {
		t.Fatalf("outcome = %s, want %s", got, want)
	}
	if r.Converted != "quoted-printable:1" {
		t.Errorf("Converted = %q", r.Converted)
	}

	few := relaytest.NewSmartHost(t, relaytest.WithExtensions("PIPELINING", "LIMITS RCPTMAX=1"))
	c = smart(t, func(o *Options) { o.Limits.RecipientsPerMessage = 1 }, few)
	r = c.Attempt(t.Context(), outHop, message(umlauts, "a@y.example", "b@y.example"))
	if got, want := brief(r.Outcomes), "relayed 250 2.0.0; relayed 250 2.0.0"; got != want {
		t.Fatalf("outcome = %s, want %s\n%s", got, want, lines(r))
	}
	for _, got := range few.Messages() {
		if want := string(m.Trace) + umlautsConverted; string(got.Content) != want {
			t.Errorf("content = %q, want %q", got.Content, want)
		}
	}
}

func TestDowngradeOfContentThatFails(t *testing.T) {
	broken := errors.New("disk")
	for _, test := range []struct {
		name string
		open func() (io.ReadCloser, error)
	}{
		{"while it is read", func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader(umlauts[:60]), iotest.ErrReader(broken))), nil
		}},
		{"when it is opened", func() (io.ReadCloser, error) { return nil, broken }},
	} {
		for fails := 1; fails <= 4; fails++ { // of the times that the content is opened
			t.Run(test.name+" the "+strconv.Itoa(fails)+". time", func(t *testing.T) {
				h := relaytest.NewSmartHost(t, relaytest.WithExtensions("SIZE"))
				c := smart(t, nil, h)
				m, opened := message(umlauts), 0
				m.Open = func() (io.ReadCloser, error) {
					if opened++; opened == fails {
						return test.open()
					}
					return io.NopCloser(strings.NewReader(umlauts)), nil
				}
				r := c.Attempt(t.Context(), outHop, m)
				if o := r.Outcomes[0]; o.Disposition != mail.Deferred || o.Reply.Code != 451 || o.Class != mail.ClassOther || !strings.Contains(o.Reply.Text, "disk") {
					t.Errorf("outcome = %s %s %s, want a deferral because of the disk", brief(r.Outcomes), o.Class, o.Reply.Text)
				}
				if len(h.Messages()) > 0 {
					t.Error("half a message arrived")
				}
			})
		}
	}
}

// atHand is content that is in memory, as that of small messages is.
type atHand struct {
	io.Reader
	b      []byte
	closed int
}

func (a *atHand) Bytes() []byte { return a.b }

func (a *atHand) Close() error {
	a.closed++
	return nil
}

// TestBodyInMemory has content that is not to be read, because it is at hand.
func TestBodyInMemory(t *testing.T) {
	for _, test := range []struct {
		name    string
		content string
		blocks  int // that are written, after the trace
		eight   bool
	}{
		{"empty", "", 1, false},
		{"small", "Subject: x\r\n\r\nx\r\n", 1, false},
		{"a block", strings.Repeat("x", blockSize), 1, false},
		{"more than a block", strings.Repeat("x", 2*blockSize+1), 3, false},
		{"8-bit late", strings.Repeat("x", 2*blockSize) + "\xff", 3, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			opened := 0
			var last *atHand
			b := body{m: &Message{Trace: []byte("T\r\n"), Open: func() (io.ReadCloser, error) {
				opened++
				last = &atHand{Reader: iotest.ErrReader(errors.New("it is not to be read")), b: []byte(test.content)}
				return last, nil
			}}}
			if eight, err := b.eightBit(); err != nil || eight != test.eight {
				t.Errorf("eightBit() = %t, %v, want %t", eight, err, test.eight)
			}
			for range 2 { // what was sent goes again from its beginning
				var got strings.Builder
				blocks := -1
				err := b.each(func(p []byte) error {
					blocks++
					got.Write(p)
					return nil
				})
				if err != nil || got.String() != "T\r\n"+test.content || blocks != test.blocks {
					t.Errorf("each() gave %d octets in %d blocks, %v, want %d in %d", got.Len(), blocks, err, 3+len(test.content), test.blocks)
				}
			}
			b.close()
			if opened != 2 || last.closed != 1 {
				t.Errorf("opened %d times, closed the last %d times, want 2 and 1", opened, last.closed)
			}
		})
	}
}

// sevenBit is content of which something is known, and which is not to be read for it.
type sevenBit struct {
	atHand
	known bool
}

func (s *sevenBit) SevenBit() bool { return s.known }

// TestBodySevenBit does not look at a content that is known to be of seven bits.
func TestBodySevenBit(t *testing.T) {
	for _, test := range []struct {
		name    string
		trace   string
		content string
		known   bool
		want    bool
	}{
		{"known", "T\r\n", "x", true, false},
		{"known, and believed", "T\r\n", "\xff", true, false},
		{"not known", "T\r\n", "\xff", false, true},
		{"the trace is ours", "\xff\r\n", "x", true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := body{m: &Message{Trace: []byte(test.trace), Open: func() (io.ReadCloser, error) {
				return &sevenBit{atHand{b: []byte(test.content)}, test.known}, nil
			}}}
			defer b.close()
			if eight, err := b.eightBit(); err != nil || eight != test.want {
				t.Errorf("eightBit() = %t, %v, want %t", eight, err, test.want)
			}
		})
	}
}
