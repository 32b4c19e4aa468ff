package smtpin

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/transcript"
)

// conversation is what the session's transcript holds, if one was kept.
func conversation(rec *recorder) []event.Line {
	for _, f := range facts[event.TranscriptKept](rec) {
		return f.Transcript
	}
	return nil
}

func TestTranscriptChoice(t *testing.T) {
	here := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for _, test := range []struct {
		name string
		rule transcript.Rule
		fail bool
		want string
	}{
		{"failures, good", transcript.Rule{Mode: "failures"}, false, ""},
		{"failures, bad", transcript.Rule{Mode: "failures"}, true, "failed"},
		{"all", transcript.Rule{Mode: "all"}, false, "all"},
		{"all, bad", transcript.Rule{Mode: "all"}, true, "failed"},
		{"off", transcript.Rule{Mode: "off"}, true, ""},
		{"none of the good", transcript.Rule{Mode: "0"}, false, ""},
		{"each of the good", transcript.Rule{Mode: "1.0"}, false, "all"},
		{"by source", transcript.Rule{ClientIP: here}, false, "client_ip"},
		{"by source, otherwise off", transcript.Rule{Mode: "off", ClientIP: here}, false, "client_ip"},
		{"by sender", transcript.Rule{Senders: []string{"@Example.org"}}, false, "sender"},
		{"by another sender", transcript.Rule{Senders: []string{"@example.com"}}, false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, Options{Connectors: []Connector{open(func(c *Connector) { c.Transcript = test.rule })}})
			c := r.dial(t)
			c.begin()
			c.talk("MAIL FROM:<a@example.org>=>250")
			if test.fail {
				c.talk("WHAT=>500")
			}
			c.talk("QUIT=>221")
			await[event.SessionClosed](t, r.rec, 1)
			reason := ""
			for _, f := range facts[event.TranscriptKept](r.rec) {
				reason = f.Reason
				if f.Direction != event.Inbound || !f.ClientIP.IsLoopback() || f.Began.IsZero() || f.Lines != len(f.Transcript) || f.Cut != 0 {
					t.Errorf("kept %+v", f)
				}
				if last := f.Transcript[len(f.Transcript)-1]; last.Text != "(session closed: quit)" || last.From != transcript.FromNote || last.Seq != f.Lines {
					t.Errorf("last line %+v", last)
				}
			}
			if reason != test.want {
				t.Errorf("kept because %q, want %q", reason, test.want)
			}
		})
	}
}

// TestNoCredentialIsKept speaks every kind of exchange, with mechanisms that
// there are and with others: nothing of what a client says in one is anywhere.
func TestNoCredentialIsKept(t *testing.T) {
	secret := base64.StdEncoding.EncodeToString([]byte("\x00ann\x00sesame-open"))
	for _, test := range []struct {
		name string
		talk []string
	}{
		{"PLAIN at once", []string{"AUTH PLAIN " + secret + "=>535"}},
		{"PLAIN asked", []string{"AUTH PLAIN=>334", secret + "=>535"}},
		{"LOGIN", []string{"AUTH LOGIN=>334", secret + "=>334", secret + "=>535"}},
		{"LOGIN with a user name", []string{"AUTH LOGIN " + secret + "=>334", secret + "=>535"}},
		{"SCRAM that is not offered", []string{"AUTH SCRAM-SHA-256 " + secret + "=>5", secret + "=>500"}},
		{"XOAUTH2 that is not offered", []string{"AUTH XOAUTH2 " + secret + "=>5", secret + "=>500"}},
		{"no such mechanism", []string{"AUTH SESAME-OPEN " + secret + "=>5", secret + "=>500"}},
		{"credential for a mechanism", []string{"AUTH " + secret[:16] + "=>5"}},
		{"cancelled", []string{"AUTH PLAIN=>334", "*=>501"}},
		{"not base64", []string{"AUTH PLAIN=>334", "sesame-open!=>501"}},
		{"tab", []string{"AUTH\tPLAIN\t" + secret + "=>500"}},
		{"misspelt", []string{"AUHT PLAIN " + secret + "=>500"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := start(t, Options{Connectors: []Connector{open(func(c *Connector) {
				plainAuth(c)
				c.Mechanisms = []string{"PLAIN", "LOGIN"}
				c.Transcript.Mode, c.Limits.Tarpit = "all", -1
			})}})
			c := r.dial(t)
			c.begin()
			c.talk(test.talk...)
			_ = c.c.Close()
			await[event.SessionClosed](t, r.rec, 1)
			said := fmt.Sprint(conversation(r.rec))
			if !strings.Contains(said, "AUTH") && test.name != "tab" && test.name != "misspelt" {
				t.Errorf("no trace of the exchange: %s", said)
			}
			r.rec.mu.Lock()
			all := fmt.Sprint(r.rec.recs)
			r.rec.mu.Unlock()
			for _, bad := range []string{secret, secret[:16], "sesame-open", "SESAME-OPEN"} {
				if strings.Contains(all, bad) {
					t.Errorf("%q is in the record: %s", bad, all)
				}
			}
		})
	}
}

func TestTranscriptOfGarbageIsBounded(t *testing.T) {
	r := start(t, Options{Connectors: []Connector{open(func(c *Connector) {
		c.Limits.ProtocolErrors, c.Limits.Tarpit = -1, -1
	})}})
	c := r.dial(t)
	c.begin()
	const lines = 3000
	go func() {
		for i := range lines {
			c.send(fmt.Sprintf("MAIL FROM:<%d%s\x07\r\n", i, strings.Repeat("x", 1000)))
		}
	}()
	for range lines {
		if c.reply() == "" {
			break
		}
	}
	_ = c.c.Close()
	await[event.SessionClosed](t, r.rec, 1)
	kept := await[event.TranscriptKept](t, r.rec, 1)[0]
	octets := 0
	for _, l := range kept.Transcript {
		octets += len(l.Text)
		if strings.ContainsAny(l.Text, "\x07\r\n") {
			t.Fatalf("line %q", l.Text)
		}
	}
	if octets > transcript.MaxOctets || kept.Cut == 0 || kept.Lines < lines {
		t.Errorf("%d octets of %d lines kept, %d left out", octets, kept.Lines, kept.Cut)
	}
}

func TestConversationsCanBeWatched(t *testing.T) {
	tap := &transcript.Tap{}
	r := start(t, Options{Tap: tap, Connectors: []Connector{open(func(c *Connector) {
		plainAuth(c)
		c.Transcript.Mode = "off"
	})}})
	c := r.dial(t)
	c.begin()
	w, err := tap.Watch(transcript.Filter{ClientIP: netip.MustParsePrefix("127.0.0.1/32")})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	other, err := tap.Watch(transcript.Filter{ClientIP: netip.MustParsePrefix("192.0.2.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	c.talk("AUTH PLAIN AHgAc2VzYW1l=>535", "QUIT=>221")
	for _, want := range []string{"client AUTH PLAIN ***", "server 535 ", "client QUIT", "server 221 ", "note (session closed: quit)"} {
		select {
		case s := <-w.C:
			if got := s.Line.From + " " + s.Line.Text; !strings.HasPrefix(got, want) || s.Session == "" || s.Direction != event.Inbound || s.Connector == "" {
				t.Errorf("heard %q of %+v, want %q", got, s.Party, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("nothing heard, want %q", want)
		}
	}
	if len(other.C) > 0 {
		t.Error("a reader got what it did not ask for")
	}
	await[event.SessionClosed](t, r.rec, 1)
	if conversation(r.rec) != nil {
		t.Error("a conversation was kept")
	}
}
