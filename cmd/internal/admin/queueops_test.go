package admin

import (
	"bytes"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"waybill/logtrack/trackapi"
	"waybill/relay/mail"
)

func TestLineEnds(t *testing.T) {
	for _, test := range []struct {
		name   string
		in     string
		binary bool
		want   string
	}{
		{"as it should be", "a\r\nb\r\n", false, "a\r\nb\r\n"},
		{"of Unix", "a\n\nb\n", false, "a\r\n\r\nb\r\n"},
		{"of old Macs", "a\r\rb\r", false, "a\r\n\r\nb\r\n"},
		{"mixed", "a\r\n\nb\r\r\nc", false, "a\r\n\r\nb\r\n\r\nc"},
		{"binary", "a\nb\r", true, "a\nb\r"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for size := 1; size <= len(test.in); size++ { // however it is cut
				var out bytes.Buffer
				l := &lineEnds{w: &out, binary: test.binary}
				for rest := test.in; rest != ""; {
					n := min(size, len(rest))
					if _, err := l.Write([]byte(rest[:n])); err != nil {
						t.Fatal(err)
					}
					rest = rest[n:]
				}
				if err := l.end(); err != nil || out.String() != test.want {
					t.Errorf("in parts of %d: %q, %v, want %q", size, out.String(), err, test.want)
				}
			}
		})
	}
}

func TestReadEnvelope(t *testing.T) {
	const two = `"envelope": {"sender": "a@example.com", "recipients": [{"address": "x@example.org"}, {"address": "y@example.org"}]}`
	for _, test := range []struct {
		name string
		in   string
		want string // the recipients, or a part of the error after "!"
	}{
		{"all", `{` + two + `}`, "x@example.org y@example.org"},
		{"those that wait", `{` + two + `, "recipients": [{"address": "x@example.org", "open": false}, {"address": "y@example.org", "open": true}]}`, "y@example.org"},
		{"nobody waits", `{` + two + `, "recipients": [{"open": false}, {"open": false}]}`, "!no recipient waits"},
		{"states of others", `{` + two + `, "recipients": [{"open": true}]}`, "!2 recipients in the envelope, and the states of 1"},
		{"no recipients", `{"envelope": {"sender": ""}}`, "!no recipient"},
		{"an empty address", `{"envelope": {"recipients": [{"address": ""}]}}`, "!no address"},
		{"a bad address", `{"envelope": {"recipients": [{"address": "a b@example.com"}]}}`, "!malformed address"},
		{"a line end in a parameter", `{"envelope": {"envid": "a\r\nRCPT", "recipients": [{"address": "x@example.org"}]}}`, "!a value that it cannot have"},
		{"a line end in another", `{"envelope": {"ret": "FULL\r\n", "recipients": [{"address": "x@example.org"}]}}`, "!a value that it cannot have"},
		{"no JSON", `x`, "!invalid character"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, err := readEnvelope(strings.NewReader(test.in))
			if want, bad := strings.CutPrefix(test.want, "!"); bad {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("readEnvelope() = %v, want %q", err, want)
				}
				return
			}
			var got []string
			for _, r := range d.Envelope.Recipients {
				got = append(got, r.Address.String())
			}
			if err != nil || strings.Join(got, " ") != test.want || d.UID == "" {
				t.Errorf("readEnvelope() = %v, %v, want %s", got, err, test.want)
			}
		})
	}
}

func FuzzReadEnvelope(f *testing.F) {
	f.Add([]byte(`{"queue_id": "01J9ZC3K5V8Q2M7RXT4W6Y0ABC", "envelope": {"sender": "a@b.example", "recipients": [{"address": "x@example.org", "notify": 4, "orcpt": "rfc822;x"}]}, "recipients": [{"open": true}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := readEnvelope(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(d.Envelope.Recipients) == 0 || strings.ContainsAny(d.Envelope.EnvID+d.Envelope.Auth+d.Envelope.Ret, "\r\n") {
			t.Errorf("took %+v", d.Envelope)
		}
	})
}

func TestReadHeader(t *testing.T) {
	got := readHeader([]byte("Received: by a\r\nReceived: by b\r\nMessage-ID: <1@example.com>\r\nFrom: A <a@example.com>\r\nSubject: =?utf-8?q?a=0Ab?=\r\n\r\nText"))
	want := mail.Header{MessageID: "<1@example.com>", From: "a@example.com", Subject: "a b", Received: 2, Bytes: 124}
	if want.Bytes = got.Bytes; got != want || got.Bytes == 0 {
		t.Errorf("readHeader() = %+v, want %+v", got, want)
	}
	if got := readHeader([]byte("no header")); got != (mail.Header{}) {
		t.Errorf("readHeader() = %+v of no header", got)
	}
}

// A drain is told who asked for it, and from where: that goes into its fact.
func TestDrainHasItsCaller(t *testing.T) {
	var got []Drain
	f := newFixture(t, func(o *Options) {
		o.Drain = func(d Drain) error { got = append(got, d); return nil }
		o.Drained = func() trackapi.QueueDrain { return trackapi.QueueDrain{} }
		o.SendConnectors = func() []string { return nil }
	})
	for _, body := range []string{`{"to": "relay2.test", "reason": "moving"}`, `{"stop": true}`} {
		f.ask(request("POST", "/api/v1/queue/drain", body, "RemoteAddr", "[::1]:40000"), http.StatusOK, nil)
	}
	by := netip.IPv6Loopback()
	want := []Drain{{To: "relay2.test:25", Actor: "local", Client: by, Reason: "moving"}, {Actor: "local", Client: by}}
	if !slices.Equal(got, want) {
		t.Errorf("orders %+v, want %+v", got, want)
	}
}
