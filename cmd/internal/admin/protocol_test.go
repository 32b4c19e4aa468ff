package admin

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"waybill/cmd/internal/config"
	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/transcript"
)

func TestWatchParameters(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Tap = &transcript.Tap{} })
	for _, test := range []struct{ query, want string }{
		{"client_ip=everywhere", "client_ip"},
		{"direction=up", "direction"},
		{"sender=a@b", "sender"},
		{"connector=a&connector=b", "connector"},
	} {
		w := f.do(request("GET", "/api/v1/protocol/tail?"+test.query, ""))
		if p := isProblem(t, w); w.Code != 400 || p.Field != test.want {
			t.Errorf("%s: %d %+v, want 400 about %s", test.query, w.Code, p, test.want)
		}
	}
}

func TestWatchNeedsAnOperator(t *testing.T) {
	role := config.RoleViewer
	tap := &transcript.Tap{}
	tap.Close() // so that what is allowed ends at once
	f := newFixture(t, func(o *Options) {
		o.Tap = tap
		o.Authenticate = func(string) (config.Token, bool) { return config.Token{Name: "t", Role: role}, true }
	})
	for _, test := range []struct {
		role config.Role
		want int
	}{{config.RoleViewer, 403}, {config.RoleOperator, 503}, {config.RoleAdmin, 503}} {
		role = test.role
		r := request("GET", "/api/v1/protocol/tail", "")
		r.Header.Set("Authorization", "Bearer x")
		if w := f.do(r); w.Code != test.want {
			t.Errorf("role %v: %d, want %d", test.role, w.Code, test.want)
		}
	}
}

func TestWatch(t *testing.T) {
	tap := &transcript.Tap{}
	srv := httptest.NewServer(newFixture(t, func(o *Options) { o.Tap = tap }))
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/api/v1/protocol/tail?direction=inbound&client_ip=192.0.2.0/24", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if ct := res.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("Content-Type %q", ct)
	}
	lines := bufio.NewScanner(res.Body)
	next := func() string {
		for lines.Scan() {
			if lines.Text() != "" && !strings.HasPrefix(lines.Text(), ":") {
				return lines.Text()
			}
		}
		return ""
	}
	for live := 0; live == 0; { // the stream is there once the tap says so
		if live, _ = tap.Stats(); t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
	}
	party := func(ip string) transcript.Party {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.RemoteAddr = ip + ":1"
		return transcript.Party{Session: "S-" + ip, Direction: event.Inbound, Connector: "in", ClientIP: clientIP(r)}
	}
	now := time.Now()
	transcript.New(now, false, tap, party("198.51.100.1")).Client(now, []byte("NOOP from elsewhere"))
	l := transcript.New(now, false, tap, party("192.0.2.7"))
	l.Client(now, []byte("AUTH PLAIN c2VjcmV0"))
	l.Server(now, []byte("535 5.7.8 no\x1b[31m"))
	for _, want := range []string{
		`"session_id":"S-192.0.2.7","direction":"inbound","connector":"in","client_ip":"192.0.2.7","seq":1,"at":0,"from":"client","text":"AUTH PLAIN ***","bytes":19}`,
		`"seq":2,"at":0,"from":"server","text":"535 5.7.8 no\\x1b[31m","bytes":17}`,
	} {
		if got := next(); !strings.HasPrefix(got, `data: {"ts":"`) || !strings.HasSuffix(got, want) {
			t.Errorf("line %s\nwant …%s", got, want)
		}
	}
	tap.Close()
	if name, why := next(), next(); name != "event: end" || !strings.Contains(why, "about to end") {
		t.Errorf("the stream ended with %q %q", name, why)
	}
	if next() != "" {
		t.Error("the stream went on")
	}
}

// TestClientWatches uses the Go client against the handler.
func TestClientWatches(t *testing.T) {
	tap := &transcript.Tap{}
	srv := httptest.NewServer(newFixture(t, func(o *Options) { o.Tap = tap }))
	defer srv.Close()
	c := &trackapi.Client{BaseURL: srv.URL}
	ended := make(chan error, 1)
	heard := make(chan trackapi.ProtocolLine, 1)
	go func() {
		ended <- c.TailProtocol(t.Context(), trackapi.ProtocolFilter{RemoteHost: "MX1.example.net", Direction: event.Outbound}, func(l trackapi.ProtocolLine) error {
			heard <- l
			return nil
		})
	}()
	for live := 0; live == 0; {
		if live, _ = tap.Stats(); t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
	}
	now := time.Now()
	transcript.New(now, true, tap, transcript.Party{Direction: event.Outbound, RemoteName: "mx1.example.net", Message: "M1"}).Content(now, 1234)
	if l := <-heard; l.QueueID != "M1" || l.Text != "(content)" || l.Bytes != 1234 || l.From != "client" {
		t.Errorf("heard %+v", l)
	}
	tap.Close()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "about to end") {
		t.Errorf("the stream ended with %v", err)
	}
}
