package mtasts

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"waybill/relay/event"
	"waybill/relay/relaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParsePolicy(t *testing.T) {
	for _, test := range []struct {
		name string
		text string
		want string // or the error
	}{
		{"as in the RFC", "version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmax_age: 604800\r\n", "{enforce [mail.example.com *.example.net] 168h0m0s}"},
		{"line feeds, no last one", "version: STSv1\nmode: testing\nmx: a.example\nmax_age: 60", "{testing [a.example] 1m0s}"},
		{"no blanks, other order", "mode:none\nmax_age:1\nversion:STSv1\n", "{none [] 1s}"},
		{"blank lines", "\nversion: STSv1\n\nmode: none\nmax_age: 1\n\n", "{none [] 1s}"},
		{"unknown keys", "version: STSv1\nmode: none\nmax_age: 1\nfuture: x: y\n", "{none [] 1s}"},
		{"first one counts", "version: STSv1\nmode: enforce\nmode: none\nmx: a.example\nmax_age: 5\nmax_age: 6\n", "{enforce [a.example] 5s}"},
		{"too long", "version: STSv1\nmode: none\nmax_age: 9999999999\n", "{none [] 8766h0m0s}"},
		{"capitals and a dot", "version: STSv1\nmode: enforce\nmx: Mail.Example.COM.\nmax_age: 5\n", "{enforce [mail.example.com] 5s}"},
		{"empty", "", "malformed policy: no version"},
		{"HTML", "<html><body>not found</body></html>", "malformed policy: a line without a colon"},
		{"other version", "version: STSv2\n", "malformed policy: another version than STSv1"},
		{"no mode", "version: STSv1\nmax_age: 1\n", "malformed policy: no mode"},
		{"other mode", "version: STSv1\nmode: report\n", "malformed policy: an unknown mode"},
		{"no age", "version: STSv1\nmode: none\n", "malformed policy: no max_age"},
		{"age below zero", "version: STSv1\nmode: none\nmax_age: -1\n", "malformed policy: max_age is no number of seconds"},
		{"age beyond", "version: STSv1\nmode: none\nmax_age: 99999999999\n", "malformed policy: max_age is no number of seconds"},
		{"no mx", "version: STSv1\nmode: testing\nmax_age: 1\n", "malformed policy: no mx"},
		{"mx of everything", "version: STSv1\nmode: enforce\nmx: *\nmax_age: 1\n", "malformed policy: an mx that is no host name"},
		{"wildcard inside", "version: STSv1\nmode: enforce\nmx: a.*.example\nmax_age: 1\n", "malformed policy: an mx that is no host name"},
		{"too many mx", "version: STSv1\nmode: enforce\nmax_age: 1\n" + strings.Repeat("mx: a.example\n", 101), "malformed policy: more than 100 mx"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := ParsePolicy([]byte(test.text))
			got := fmt.Sprint(p)
			if err != nil {
				got = err.Error()
				if !errors.Is(err, ErrMalformed) {
					t.Errorf("error %v is not ErrMalformed", err)
				}
			}
			if got != test.want {
				t.Errorf("ParsePolicy = %s, want %s", got, test.want)
			}
		})
	}
}

func TestParseRecord(t *testing.T) {
	for _, test := range []struct {
		name  string
		texts []string
		want  string
	}{
		{"as in the RFC", []string{"v=STSv1; id=20160831085700Z;"}, "20160831085700Z"},
		{"no blanks", []string{"v=STSv1;id=1"}, "1"},
		{"other fields", []string{"v=STSv1 ; x=y; id=abc; z"}, "abc"},
		{"other records", []string{"v=spf1 -all", "v=STSv1; id=1", "v=STSv10; id=2"}, "1"},
		{"none", nil, ""},
		{"two", []string{"v=STSv1; id=1", "v=STSv1; id=2"}, ""},
		{"version not first", []string{"id=1; v=STSv1"}, ""},
		{"no id", []string{"v=STSv1"}, ""},
		{"empty id", []string{"v=STSv1; id=;"}, ""},
		{"long id", []string{"v=STSv1; id=" + strings.Repeat("a", 33)}, ""},
		{"strange id", []string{"v=STSv1; id=../x"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := ParseRecord(test.texts); got != test.want {
				t.Errorf("ParseRecord = %q, want %q", got, test.want)
			}
		})
	}
}

func TestMatch(t *testing.T) {
	p := Policy{MX: []string{"mail.example.com", "*.example.net"}}
	for _, test := range []struct {
		name string
		want bool
	}{
		{"mail.example.com", true},
		{"MAIL.example.com.", true},
		{"a.mail.example.com", false},
		{"example.com", false},
		{"a.example.net", true},
		{"example.net", false},
		{"a.b.example.net", false},
		{"aexample.net", false},
		{"", false},
		{".example.net", true},
	} {
		if got := p.Match(test.name); got != test.want {
			t.Errorf("Match(%q) = %t, want %t", test.name, got, test.want)
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte("version: STSv1\r\nmode: enforce\r\nmx: *.example.net\r\nmax_age: 604800\r\n"))
	f.Add([]byte("version:STSv1\nmode:none\nmax_age:0\nx"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePolicy(text)
		if err != nil {
			return
		}
		if p.MaxAge < 0 || p.MaxAge > maxAge || len(p.MX) > maxMX || p.Mode != None && len(p.MX) == 0 {
			t.Errorf("policy %+v", p)
		}
		for _, mx := range p.MX {
			if !validHost(strings.TrimPrefix(mx, "*.")) {
				t.Errorf("mx %q", mx)
			}
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add("v=STSv1; id=20160831085700Z;", "v=spf1 -all")
	f.Add("v=STSv1;;;=;id", "v=STSv1")
	f.Fuzz(func(t *testing.T, a, b string) {
		if id := ParseRecord([]string{a, b}); id != "" && !validID(id) {
			t.Errorf("id %q", id)
		}
	})
}

// world is a policy host and the DNS that leads to it.
type world struct {
	*httptest.Server
	t     *testing.T
	roots *x509.CertPool
	rec   relaytest.Recorder

	mu     sync.Mutex
	texts  []string
	fail   error
	addr   string
	answer http.HandlerFunc
	asked  int
}

func (w *world) TXT(_ context.Context, name string) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if name != "_mta-sts.example.com" {
		return nil, errors.New("no such name")
	}
	return w.texts, w.fail
}

func (w *world) Addrs(_ context.Context, host string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if host != "mta-sts.example.com" {
		return nil, errors.New("no such host " + host)
	}
	return []netip.Addr{netip.MustParseAddr(w.addr)}, nil
}

func (w *world) serve(text string) {
	w.change(func() {
		w.answer = func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
			_, _ = rw.Write([]byte(text))
		}
	})
}

func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

const enforce = "version: STSv1\nmode: enforce\nmx: mx.example.com\nmax_age: 86400\n"

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, texts: []string{"v=STSv1; id=1"}, addr: "127.0.0.1"}
	cert, roots := relaytest.Certificate(t, "mta-sts.example.com")
	w.roots = roots
	w.serve(enforce)
	w.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.asked++
		answer := w.answer
		w.mu.Unlock()
		if r.URL.Path != "/.well-known/mta-sts.txt" || r.Host != "mta-sts.example.com" {
			http.Error(rw, "not here", http.StatusNotFound)
			return
		}
		answer(rw, r)
	}))
	w.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	w.Config.ErrorLog = nil
	w.StartTLS()
	t.Cleanup(w.Close)
	return w
}

func (w *world) open(change ...func(o *Options)) *Cache {
	w.t.Helper()
	o := Options{Resolver: w, RootCAs: w.roots, Port: uint16(w.Listener.Addr().(*net.TCPAddr).Port), AllowPrivate: true, Emitter: w.rec.Emitter()}
	for _, f := range change {
		f(&o)
	}
	c, err := Open(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (c *Cache) mode(t *testing.T) Mode {
	t.Helper()
	p, err := c.Policy(t.Context(), "Example.com.")
	if err != nil {
		t.Fatal(err)
	}
	return p.Mode
}

// age makes a policy older.
func (c *Cache) age(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries["example.com"]
	e.Fetched, e.retry = e.Fetched.Add(-d), time.Time{}
}

// landed waits until nothing is being fetched.
func (c *Cache) landed() {
	c.mu.Lock()
	var f *flight
	if e := c.entries["example.com"]; e != nil {
		f = e.flight
	}
	c.mu.Unlock()
	if f != nil {
		<-f.done
	}
}

func TestFetch(t *testing.T) {
	text := func(kind, body string) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", kind)
			_, _ = rw.Write([]byte(body))
		}
	}
	for _, test := range []struct {
		name   string
		change func(w *world)
		opts   func(o *Options)
		reason string
		detail string
		want   Mode
	}{
		{"good", func(*world) {}, nil, "", "", Enforce},
		{"testing", func(w *world) { w.serve(strings.Replace(enforce, "enforce", "testing", 1)) }, nil, "", "", Testing},
		{"none", func(w *world) { w.serve("version: STSv1\nmode: none\nmax_age: 60\n") }, nil, "", "", None},
		{"no record", func(w *world) { w.texts = nil }, nil, "", "", None},
		{"the DNS does not answer", func(w *world) { w.fail = errors.New("servfail") }, nil, "", "", None},
		{"not found", func(w *world) {
			w.answer = func(rw http.ResponseWriter, _ *http.Request) { http.Error(rw, "no", http.StatusNotFound) }
		}, nil, "policy_unavailable", "answers 404", None},
		{"redirect", func(w *world) {
			w.answer = func(rw http.ResponseWriter, r *http.Request) {
				http.Redirect(rw, r, "https://mta-sts.example.com/elsewhere", http.StatusFound)
			}
		}, nil, "policy_unavailable", "answers 302", None},
		{"HTML", func(w *world) { w.answer = text("text/html", enforce) }, nil, "policy_malformed", "not text/plain", None},
		{"malformed", func(w *world) { w.answer = text("text/plain", "hello") }, nil, "policy_malformed", "colon", None},
		{"too large", func(w *world) { w.answer = text("text/plain", enforce+strings.Repeat("x: y\n", maxPolicy/5)) }, nil, "policy_malformed", "octets", None},
		{"endless", func(w *world) {
			w.answer = func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Content-Type", "text/plain")
				for {
					if _, err := rw.Write([]byte(strings.Repeat("x: y\n", 1000))); err != nil {
						return
					}
				}
			}
		}, nil, "policy_malformed", "octets", None},
		{"cut", func(w *world) {
			w.answer = func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Content-Type", "text/plain")
				rw.Header().Set("Content-Length", "1000")
				_, _ = rw.Write([]byte(enforce))
			}
		}, nil, "policy_unavailable", "EOF", None},
		{"unknown authority", func(*world) {}, func(o *Options) { o.RootCAs = x509.NewCertPool() }, "policy_certificate", "unknown authority", None},
		{"no TLS 1.2", func(w *world) { w.TLS.MinVersion, w.TLS.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, nil, "policy_unavailable", "protocol version", None},
		{"on this machine", func(*world) {}, func(o *Options) { o.AllowPrivate = false }, "policy_unavailable", "127.0.0.1 is not a public address", None},
		{"in our network", func(w *world) { w.addr = "10.0.0.1" }, func(o *Options) { o.AllowPrivate = false }, "policy_unavailable", "10.0.0.1 is not a public address", None},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			test.change(w) // nobody asks yet
			c := w.open(func(o *Options) {
				if test.opts != nil {
					test.opts(o)
				}
			})
			for range 3 { // what failed is not tried again at once
				if got := c.mode(t); got != test.want {
					t.Errorf("mode = %s, want %s", got, test.want)
				}
			}
			if n := w.count(); n > 1 {
				t.Errorf("the policy host was asked %d times", n)
			}
			facts := w.rec.Named("tls_policy_failed")
			if len(facts) != min(len(test.reason), 1) {
				t.Fatalf("%d facts, want %d", len(facts), min(len(test.reason), 1))
			}
			for _, r := range facts {
				f := r.Event.(event.TLSPolicyFailed)
				if f.Reason != test.reason || !strings.Contains(f.Detail, test.detail) || f.Domain != "example.com" || f.Enforced {
					t.Errorf("fact = %+v, want %s with %q", f, test.reason, test.detail)
				}
				if !slices.Contains(event.TLSFailures(), f.Reason) {
					t.Errorf("%q is not among event.TLSFailures", f.Reason)
				}
			}
		})
	}
}

func TestRefresh(t *testing.T) {
	w := newWorld(t)
	c := w.open()
	step := func(name string, want Mode, asked int) {
		t.Helper()
		if got := c.mode(t); got != want {
			t.Errorf("%s: mode = %s, want %s", name, got, want)
		}
		c.landed()
		if got := w.count(); got != asked {
			t.Errorf("%s: asked %d times, want %d", name, got, asked)
		}
	}
	step("first", Enforce, 1)
	step("cached", Enforce, 1)
	c.age(13 * time.Hour)
	step("old, looked at in the background", Enforce, 2)
	w.serve(strings.Replace(enforce, "enforce", "testing", 1))
	step("changed without saying so", Enforce, 2)
	w.change(func() { w.texts = []string{"v=STSv1; id=2"} })
	c.age(0)
	step("another id", Testing, 3)
	w.change(func() { w.texts = []string{"v=STSv1; id=3"} })
	w.change(func() {
		w.answer = func(rw http.ResponseWriter, _ *http.Request) { http.Error(rw, "", http.StatusInternalServerError) }
	})
	c.age(0)
	step("another id, and the host is ill", Testing, 4)
	step("it is left alone for a while", Testing, 4)
	w.change(func() { w.texts = nil })
	step("no record any more", Testing, 4)
	w.change(func() { w.fail = errors.New("servfail") })
	step("no DNS any more", Testing, 4)
	c.age(25 * time.Hour)
	step("expired", None, 4)
	if n := c.Len(); n != 0 {
		t.Errorf("%d policies are kept, want none", n)
	}
}

func TestRound(t *testing.T) {
	for _, test := range []struct {
		name   string
		age    time.Duration
		unused time.Duration
		want   int // fetches in all
	}{
		{"young", time.Hour, 0, 1},
		{"old", 13 * time.Hour, 0, 2},
		{"old, and nobody uses it any more", 13 * time.Hour, usedWithin + time.Hour, 1},
		{"expired", 25 * time.Hour, 0, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			c := w.open()
			if got := c.mode(t); got != Enforce {
				t.Fatalf("mode = %s", got)
			}
			c.age(test.age)
			c.mu.Lock()
			c.entries["example.com"].Used = time.Now().Add(-test.unused)
			c.mu.Unlock()
			c.round(t.Context())
			if got := w.count(); got != test.want {
				t.Errorf("asked %d times, want %d", got, test.want)
			}
		})
	}
}

func TestDisk(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t)
	in := func(o *Options) { o.Dir = dir }
	c := w.open(in)
	if got := c.mode(t); got != Enforce {
		t.Fatalf("mode = %s", got)
	}
	_ = c.Close()
	w.Close()
	w.change(func() { w.fail = errors.New("servfail") }) // neither DNS nor policy host: what was seen holds
	for name, text := range map[string]string{
		"rubbish.json": "{", "empty.json": "", "other.json": `{"domain":"../../etc/x","policy":{"max_age":1}}`, temporary + "1": "x",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c = w.open(in)
	if got := c.mode(t); got != Enforce {
		t.Errorf("mode after a restart = %s, want enforce", got)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("%d files, %v, want one", len(files), err)
	}
	c.age(25 * time.Hour)
	if got := c.mode(t); got != None {
		t.Errorf("mode of an expired policy = %s, want none", got)
	}
	if files, _ = os.ReadDir(dir); len(files) != 0 {
		t.Errorf("%d files, want none", len(files))
	}
}

func TestManyAskAtOnce(t *testing.T) {
	w := newWorld(t)
	c := w.open()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if p, err := c.Policy(t.Context(), "example.com"); err != nil || p.Mode != Enforce {
				t.Errorf("Policy = %v, %v", p, err)
			}
		})
	}
	wg.Wait()
	if n := w.count(); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
}

func TestSize(t *testing.T) {
	w := newWorld(t)
	c := w.open(func(o *Options) { o.Size = 1 })
	c.mu.Lock()
	c.entries["old.example"] = &entry{Domain: "old.example", Fetched: time.Now(), Policy: Policy{MaxAge: time.Second}}
	c.mu.Unlock()
	if got := c.mode(t); got != Enforce || c.Len() != 1 {
		t.Errorf("mode = %s with %d policies", got, c.Len())
	}
}

func TestNamesWithoutPolicy(t *testing.T) {
	w := newWorld(t)
	c := w.open()
	for _, name := range []string{"", "localhost", "[192.0.2.1]", "192.0.2.1", "a b.example", "../x.example", strings.Repeat("a", 300) + ".example", "a_b.example"} {
		if p, err := c.Policy(t.Context(), name); err != nil || p.Mode != None {
			t.Errorf("Policy(%q) = %v, %v", name, p, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Policy(ctx, "example.com"); !errors.Is(err, context.Canceled) {
		t.Errorf("Policy = %v, want the context's error", err)
	}
	if _, err := Open(Options{}); err == nil {
		t.Error("Open took no resolver")
	}
}

func TestCloseEndsFetches(t *testing.T) {
	w := newWorld(t)
	began := make(chan struct{})
	w.change(func() {
		w.answer = func(_ http.ResponseWriter, r *http.Request) { close(began); <-r.Context().Done() }
	})
	c := w.open()
	ended := make(chan Mode)
	go func() {
		p, _ := c.Policy(context.Background(), "example.com")
		ended <- p.Mode
	}()
	<-began
	_ = c.Close()
	if got := <-ended; got != None {
		t.Errorf("mode = %s", got)
	}
	if n := len(w.rec.Named("tls_policy_failed")); n != 0 {
		t.Errorf("%d facts about a fetch that we gave up", n)
	}
}
