package logtrack

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// TestSections holds what the view of a message tells beside its timeline.
func TestSections(t *testing.T) {
	s := openStore(t, t.TempDir())
	at := time.Now().UTC().Add(-time.Hour).Truncate(time.Microsecond)
	id := func(i int) mail.QueueID { return mail.QueueID(mail.NewID(at.Add(time.Duration(i) * time.Millisecond))) }
	first, dsn, again, split := id(1), id(2), id(3), id(4)
	n := 0
	write := func(r event.Record) {
		n++
		r.Time = at.Add(time.Duration(n) * time.Second)
		r.ID = mail.NewID(r.Time)
		s.Write(&r)
	}
	info := event.Info{MailFrom: "ann@example.com", AuthUser: "ann"}
	to := []event.Recipient{{Address: "bob@example.net"}}
	hop := event.Hop{ConnectorOut: "out", RemoteName: "mx.example.net", RemoteIP: netip.MustParseAddr("192.0.2.7")}
	write(event.Record{Message: first, Session: "S1", Source: event.SourceSMTPIn, Event: event.MessageQueued{
		Info: info, Recipients: to, AuthMechanism: "PLAIN", TLSVersion: "1.3", TLSCipher: "TLS_AES_128_GCM_SHA256", Changed: "date message_id fields:3 newlines tomorrow",
	}})
	write(event.Record{Message: first, Event: event.AttemptFinished{
		Info: info, Hop: hop, Recipients: to, Attempt: 1, Disposition: mail.Deferred, Answer: event.Answer{Code: 451, Enhanced: "4.7.1", Reply: "greylisted", Class: mail.ClassGreylist},
		TLSPolicy: "verify", TLSFailure: "certificate_expired", Stages: event.Stages{TConnect: event.Secs(time.Second)}, NextAttempt: at.Add(time.Minute),
	}})
	write(event.Record{Message: first, Event: event.AttemptFinished{
		Info: info, Hop: hop, Recipients: to, Attempt: 2, Disposition: mail.Relayed, Answer: event.Answer{Code: 250}, OutSession: "S2", Reused: true,
		TLSPolicy: "verify", TLSVersion: "1.3", TLSVerify: "verified", Converted: "base64:2",
	}})
	write(event.Record{Message: first, Event: event.AttemptFinished{
		Info: info, Hop: hop, Recipients: to, Attempt: 3, Disposition: mail.Deferred, Answer: event.Answer{Reply: "timed out", Class: mail.ClassTimeout},
	}})
	write(event.Record{Message: first, Event: event.AttemptFinished{
		Info: info, Hop: hop, Recipients: to, Attempt: 4, Disposition: mail.Relayed, Answer: event.Answer{Code: 250}, OutSession: "S3",
	}})
	write(event.Record{Message: first, Event: event.AttemptFinished{
		Info: info, Hop: hop, Recipients: to, Attempt: 5, Disposition: mail.Relayed, Answer: event.Answer{Code: 250}, OutSession: "S4",
		TLSPolicy: "opportunistic", TLSFailure: "not_offered",
	}})
	write(event.Record{Message: first, Event: event.DSNQueued{Info: info, Kind: "relayed", Recipients: to, DSN: dsn}})
	write(event.Record{Message: first, Event: event.AdminActed{Actor: "ops", Action: "redirect", Target: "other.example.net", Reason: "maintenance"}})
	write(event.Record{Message: dsn, Source: event.SourceQueue, Event: event.MessageQueued{Info: event.Info{MailFrom: event.NullSender}, Parent: first, Recipients: to}})
	write(event.Record{Message: again, Source: event.SourceQueue, Event: event.MessageQueued{Info: info, Parent: first, Recipients: to}})
	write(event.Record{Message: split, Source: event.SourceImport, Event: event.MessageQueued{Info: info, Parent: first, Recipients: to}})

	tl, err := s.Message(t.Context(), string(first))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range tl.Checks {
		got = append(got, strings.TrimSpace(c.Name+" "+c.Result+": "+c.Detail))
	}
	want := []string{
		"authentication pass: ann logged in with PLAIN",
		"transport pass: TLS 1.3 with TLS_AES_128_GCM_SHA256",
		"next_hop_tls fail: mx.example.net: certificate_expired, not as verify asks for",
		"next_hop_tls pass: mx.example.net: TLS 1.3, verified, as verify asks for",
		"next_hop_tls none: mx.example.net: not encrypted",
		"next_hop_tls none: mx.example.net: not encrypted (not_offered), which opportunistic allows",
	}
	if !slices.Equal(got, want) {
		t.Errorf("checks: %q\nwant %q", got, want)
	}
	got = nil
	for _, c := range tl.Changes {
		got = append(got, c.Name+": "+c.Detail)
	}
	want = []string{
		"received: a Received field was added",
		"date: a Date field was missing and was added",
		"message_id: a Message-ID field was missing and was added",
		"fields: 3 header fields were removed that the client may not set",
		"newlines: bare line ends, or NUL, were repaired",
		"tomorrow: tomorrow", // of a newer version
		"converted: content was encoded for mx.example.net, which does not take it as it is: base64:2",
		"redirected: redirect to other.example.net: maintenance",
	}
	if !slices.Equal(got, want) {
		t.Errorf("changes: %q\nwant %q", got, want)
	}
	if len(tl.Attempts) != 5 {
		t.Fatalf("%d attempts, want 5", len(tl.Attempts))
	}
	a := tl.Attempts[0]
	if a.Disposition != "deferred" || a.RemoteHost != "mx.example.net" || a.RemoteIP != "192.0.2.7" || a.Reply != "greylisted" || a.Class != "greylist" ||
		a.End.Sub(a.Start) != time.Second || len(a.Stages) == 0 || !slices.Equal(a.Recipients, []string{"bob@example.net"}) || a.TLS != "" || a.Next.IsZero() {
		t.Errorf("first attempt: %+v", a)
	}
	if a := tl.Attempts[1]; a.TLS != "TLS 1.3" || !a.Reused || a.SessionID != "S2" || !a.Next.IsZero() {
		t.Errorf("second attempt: %+v", a)
	}
	related := []trackapi.Related{{QueueID: string(dsn), Kind: "dsn"}, {QueueID: string(again), Kind: "resend"}, {QueueID: string(split), Kind: "split"}}
	if !slices.Equal(tl.Related, related) {
		t.Errorf("related: %v, want %v", tl.Related, related)
	}
	if tl, err := s.Message(t.Context(), string(dsn)); err != nil || len(tl.Checks) != 0 || len(tl.Changes) != 0 || !slices.Equal(tl.Related, []trackapi.Related{{QueueID: string(first), Kind: "parent"}}) {
		t.Errorf("the report: %+v, %v", tl, err)
	}
	if b, err := json.Marshal(tl); err != nil || !strings.Contains(string(b), `"check":"transport"`) {
		t.Errorf("as JSON: %s, %v", b, err)
	}
}

// TestChangesAreSaid holds that each word of a change has a sentence.
func TestChangesAreSaid(t *testing.T) {
	for _, word := range event.Changes() {
		if changeText[word] == "" {
			t.Errorf("%s is not said", word)
		}
	}
}
