package deliver

import (
	"bytes"
	"context"
	"errors"
	"io"
	netmail "net/mail"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/queue"
)

const (
	plainContent  = "From: a@example.org\r\nSubject: hi\r\n\r\nhello\r\n"
	reportContent = "From: x@example.org\r\nContent-Type: multipart/report; report-type=\"Delivery-Status\";\r\n\tboundary=b\r\n\r\n--b--\r\n"
)

// The policy of reports: who is told, who is not, and what is stated then.
func TestReportPolicy(t *testing.T) {
	refuse := func(why string) func(context.Context, *mail.Draft) string {
		return func(context.Context, *mail.Draft) string { return why }
	}
	bounced, expired := mail.Bounced, mail.Expired
	for _, test := range []struct {
		name       string
		sender     string
		to         string
		content    string
		what       mail.Disposition
		refuse     func(context.Context, *mail.Draft) string
		postmaster string
		want       []string // to whom, or the suppressed fact
	}{
		{"a sender", "a@example.org", "b@example.com", plainContent, bounced, nil, "", []string{"to a@example.org"}},
		{"a sender, asked", "a@example.org", "b@example.com", plainContent, expired, refuse(""), "", []string{"to a@example.org"}},
		{"forged", "a@example.org", "b@example.com", plainContent, bounced, refuse(event.SuppressedForged), "p@example.net", []string{"failed forged"}},
		{"a stranger", "a@example.org", "b@example.com", plainContent, bounced, refuse(event.SuppressedStranger), "", []string{"failed stranger"}},
		{"late, and forged", "a@example.org", "b@example.com", plainContent, mail.Deferred, refuse(event.SuppressedForged), "", nil},
		{"late", "a@example.org", "b@example.com", plainContent, mail.Deferred, nil, "", []string{"to a@example.org"}},
		{"double bounce", "", "b@example.com", reportContent, bounced, refuse(event.SuppressedForged), "", []string{"failed null_sender"}},
		{"double bounce to the postmaster", "", "b@example.com", reportContent, bounced, refuse(event.SuppressedForged), "p@example.net", []string{"to p@example.net"}},
		{"the postmaster cannot be reached", "", "P@Example.net", reportContent, bounced, nil, "P@example.net", []string{"failed loop"}},
		{"a report is late", "", "b@example.com", reportContent, mail.Deferred, nil, "p@example.net", nil},
		{"a report with a sender", "daemon@example.org", "b@example.com", reportContent, bounced, nil, "", []string{"failed loop"}},
		{"a report with a sender, to the postmaster", "daemon@example.org", "b@example.com", reportContent, bounced, nil, "p@example.net", []string{"to p@example.net"}},
		{"content gone", "a@example.org", "b@example.com", "", bounced, nil, "", []string{"to a@example.org"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := &queue.Message{AcceptedAt: time.Now().Add(-time.Hour), States: make([]queue.State, 1)}
			m.ID = mail.QueueID(mail.NewID(m.AcceptedAt))
			m.Envelope.Recipients = []mail.Recipient{{Address: parse(t, test.to)}}
			if test.sender != "" {
				m.Envelope.Sender = parse(t, test.sender)
			} else {
				m.Envelope.Recipients[0].Notify = mail.NotifyNever // as our reports have it
			}
			r := report{hostname: "mx1.example.net", message: m, draft: &m.Draft, now: time.Now(), policy: ReportPolicy{Refuse: test.refuse}}
			if test.postmaster != "" {
				r.policy.Postmaster = parse(t, test.postmaster)
			}
			r.open = func() (io.ReadCloser, error) {
				if test.content == "" {
					return nil, errors.New("gone")
				}
				return io.NopCloser(strings.NewReader(test.content)), nil
			}
			r.add(0, mail.Outcome{Disposition: test.what, Remote: true, Class: mail.ClassPolicy, Reply: mail.Reply{Code: 550, Text: "no"}}, true, "mx.example.com")
			var got []string
			for _, rep := range r.compose(t.Context()) {
				if rep.Fact.Suppressed != "" {
					got = append(got, rep.Fact.Kind+" "+rep.Fact.Suppressed)
					if !slices.Contains(event.Suppressions(), rep.Fact.Suppressed) {
						t.Errorf("unknown word %q", rep.Fact.Suppressed)
					}
					continue
				}
				got = append(got, "to "+rep.Draft.Envelope.Recipients[0].Address.String())
				parsed, err := netmail.ReadMessage(bytes.NewReader(rep.Content))
				if err != nil || !rep.Draft.Envelope.Sender.IsNull() || !strings.Contains(parsed.Header.Get("To"), rep.Draft.Envelope.Recipients[0].Address.String()) {
					t.Errorf("report %+v, %v", rep.Draft, err)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("compose() = %q, want %q", got, test.want)
			}
		})
	}
}

func parse(t testing.TB, s string) mail.Address {
	t.Helper()
	a, err := mail.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func FuzzIsReport(f *testing.F) {
	f.Add([]byte(plainContent))
	f.Add([]byte(reportContent))
	f.Add([]byte("Content-Type: multipart/report; report-type=feedback-report\r\n\r\n"))
	f.Add([]byte("Content-Type: multipart/report; report-type*0=x\n \x00"))
	f.Fuzz(func(t *testing.T, content []byte) {
		got := isReport(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
		if got && !bytes.Contains(bytes.ToLower(content), []byte("report")) {
			t.Error("a report out of nothing")
		}
	})
}
