package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/goleak"

	"waybill/relay/event"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a real name server on loopback, over UDP and TCP on one port.
type server struct {
	addr   string
	mu     sync.Mutex
	zone   map[string][]string // "name. TYPE" → records
	handle func(w mdns.ResponseWriter, q *mdns.Msg) bool
	asked  map[string]int
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{zone: map[string][]string{}, asked: map[string]int{}}
	var udp net.PacketConn
	var tcp net.Listener
	for range 20 { // the same port for both
		var err error
		if udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if tcp, err = net.Listen("tcp", udp.LocalAddr().String()); err == nil {
			break
		}
		udp.Close()
	}
	s.addr = udp.LocalAddr().String()
	for _, srv := range []*mdns.Server{{PacketConn: udp, Handler: s}, {Listener: tcp, Handler: s}} {
		started := make(chan struct{})
		done := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(done); _ = srv.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = srv.Shutdown(); <-done })
	}
	return s
}

func (s *server) set(key string, records ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zone[key] = records
}

func (s *server) hook(f func(w mdns.ResponseWriter, q *mdns.Msg) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handle = f
}

func (s *server) count(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[key]
}

const soa = "example. 300 IN SOA ns.example. root.example. 1 2 3 4 60"

// ServeDNS answers from the zone. The first record may be a word: NXDOMAIN,
// SERVFAIL, REFUSED, NODATA, DROP, AD.
func (s *server) ServeDNS(w mdns.ResponseWriter, q *mdns.Msg) {
	key := q.Question[0].Name + " " + mdns.TypeToString[q.Question[0].Qtype]
	s.mu.Lock()
	s.asked[key]++
	records, ok := s.zone[key]
	handle := s.handle
	s.mu.Unlock()
	if handle != nil && handle(w, q) {
		return
	}
	m := new(mdns.Msg).SetReply(q)
	if !ok {
		records = []string{"NODATA"}
		if !s.exists(q.Question[0].Name) {
			records = []string{"NXDOMAIN"}
		}
	}
	for _, r := range records {
		switch r {
		case "NXDOMAIN":
			m.Rcode = mdns.RcodeNameError
			m.Ns = append(m.Ns, rr(soa))
		case "SERVFAIL":
			m.Rcode = mdns.RcodeServerFailure
		case "REFUSED":
			m.Rcode = mdns.RcodeRefused
		case "NODATA":
			m.Ns = append(m.Ns, rr(soa))
		case "AD":
			m.AuthenticatedData = true
		case "DROP":
			return
		default:
			m.Answer = append(m.Answer, rr(r))
		}
	}
	size := 512
	if o := q.IsEdns0(); o != nil {
		size = int(o.UDPSize())
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		m.Truncate(size)
	}
	_ = w.WriteMsg(m)
}

func (s *server) exists(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.zone {
		if strings.HasPrefix(k, name+" ") {
			return true
		}
	}
	return false
}

func rr(s string) mdns.RR {
	r, err := mdns.NewRR(s)
	if err != nil {
		panic(err)
	}
	return r
}

type facts struct {
	mu  sync.Mutex
	all []event.DNSAnswered
}

func (f *facts) Write(r *event.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, r.Event.(event.DNSAnswered))
}

func (f *facts) results() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, a := range f.all {
		out = append(out, a.Type+" "+a.Result)
	}
	slices.Sort(out)
	return out
}

func newResolver(t *testing.T, opts Options) *Resolver {
	t.Helper()
	if opts.Timeout == 0 {
		opts.Timeout = 20 * time.Second
	}
	if opts.HostsFile == "" {
		opts.HostsFile = filepath.Join(t.TempDir(), "none")
	}
	r, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func TestMX(t *testing.T) {
	s := newServer(t)
	s.set("two.example. MX", "two.example. 60 IN MX 20 B.two.example.", "two.example. 60 IN MX 10 a.two.example.")
	s.set("null.example. MX", "null.example. 60 IN MX 0 .")
	s.set("nullplus.example. MX", "nullplus.example. 60 IN MX 0 .", "nullplus.example. 60 IN MX 5 mx.nullplus.example.")
	s.set("implicit.example. A", "implicit.example. 60 IN A 192.0.2.1")
	s.set("implicit6.example. AAAA", "implicit6.example. 60 IN AAAA 2001:db8::1")
	s.set("nothing.example. TXT", `nothing.example. 60 IN TXT "x"`)
	s.set("servfail.example. MX", "SERVFAIL")
	s.set("servfail.example. A", "servfail.example. 60 IN A 192.0.2.1")
	s.set("refused.example. MX", "REFUSED")
	s.set("drop.example. MX", "DROP")
	s.set("afail.example. MX", "NODATA")
	s.set("afail.example. A", "SERVFAIL")
	s.set("alias.example. MX", "alias.example. 60 IN CNAME two.example.", "two.example. 60 IN MX 10 a.two.example.")
	s.set("alias2.example. MX", "alias2.example. 60 IN CNAME two.example.")
	s.set("dangling.example. MX", "dangling.example. 60 IN CNAME gone.example.", "NXDOMAIN")
	s.set("loop.example. MX", "loop.example. 60 IN CNAME loop2.example.")
	s.set("loop2.example. MX", "loop2.example. 60 IN CNAME loop.example.")
	s.set("self.example. MX", "self.example. 60 IN CNAME self.example.")
	s.set("numeric.example. MX", "numeric.example. 60 IN MX 10 127.0.0.1.")
	s.set("strange.example. MX", `strange.example. 60 IN MX 10 a\010\013b.example.`, "strange.example. 60 IN MX 20 ok.example.")
	s.set("poison.example. MX", "other.example. 60 IN MX 10 evil.example.")
	s.set("secure.example. MX", "AD", "secure.example. 60 IN MX 10 a.secure.example.")
	s.set("xn--bcher-kva.example. MX", "xn--bcher-kva.example. 60 IN MX 10 mx.example.")
	var long []string
	for i := range 60 { // does not fit UDP
		long = append(long, fmt.Sprintf("long.example. 60 IN MX %d a-rather-long-host-name-number-%d.long.example.", i, i))
	}
	s.set("long.example. MX", long...)
	patient := newResolver(t, Options{Servers: []string{s.addr}})
	impatient := newResolver(t, Options{Servers: []string{s.addr}, Timeout: 200 * time.Millisecond})
	for _, test := range []struct {
		name   string
		domain string
		kind   Kind
		want   string
	}{
		{"by preference", "Two.Example", "", "a.two.example/10 b.two.example/20"},
		{"null MX", "null.example", NullMX, ""},
		{"null MX among others", "nullplus.example", "", "mx.nullplus.example/5"},
		{"implicit by A", "implicit.example", "", "implicit.example/0 implicit"},
		{"implicit by AAAA", "implicit6.example", "", "implicit6.example/0 implicit"},
		{"no MX and no address", "nothing.example", NoData, ""},
		{"no such name", "unknown.example", NXDomain, ""},
		{"SERVFAIL is not implicit", "servfail.example", ServFail, ""},
		{"REFUSED", "refused.example", ServFail, ""},
		{"no answer", "drop.example", Timeout, ""},
		{"no MX, addresses fail", "afail.example", ServFail, ""},
		{"alias in one answer", "alias.example", "", "a.two.example/10"},
		{"alias asked for", "alias2.example", "", "a.two.example/10 b.two.example/20"},
		{"alias to nowhere", "dangling.example", NXDomain, ""},
		{"alias loop", "loop.example", ServFail, ""},
		{"alias of itself", "self.example", ServFail, ""},
		{"an address is no host", "numeric.example", NoData, ""},
		{"control characters in a name", "strange.example", "", "ok.example/20"},
		{"records of another name", "poison.example", NoData, ""},
		{"authenticated", "secure.example", "", "a.secure.example/10 secure"},
		{"internationalised", "bücher.example", "", "mx.example/10"},
		{"address literal", "[192.0.2.9]", "", "[192.0.2.9]/0 implicit"},
		{"IPv6 literal", "[IPv6:2001:db8::9]", "", "[IPv6:2001:db8::9]/0 implicit"},
		{"not a domain", "a..b", NXDomain, ""},
		{"over TCP, and no more than MaxHosts", "long.example", "", "20 hosts"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := patient
			if test.kind == Timeout {
				r = impatient
			}
			mx, err := r.MX(t.Context(), test.domain)
			var e *Error
			if errors.As(err, &e); err != nil && e.Kind != test.kind || err == nil && test.kind != "" {
				t.Fatalf("MX(%q) = %v, %v, want kind %q", test.domain, mx, err, test.kind)
			}
			var got []string
			for _, m := range mx {
				g := fmt.Sprintf("%s/%d", m.Host, m.Preference)
				if m.Implicit {
					g += " implicit"
				}
				if m.Secure {
					g += " secure"
				}
				got = append(got, g)
			}
			text := strings.Join(got, " ")
			if len(got) > 3 {
				text = fmt.Sprintf("%d hosts", len(got))
			}
			if text != test.want {
				t.Errorf("MX(%q) = %q, want %q", test.domain, text, test.want)
			}
		})
	}
}

func TestAddrs(t *testing.T) {
	s := newServer(t)
	s.set("both.example. A", "both.example. 60 IN A 192.0.2.1", "both.example. 60 IN A 192.0.2.1")
	s.set("both.example. AAAA", "both.example. 60 IN AAAA 2001:db8::1")
	s.set("half.example. A", "half.example. 60 IN A 192.0.2.2")
	s.set("half.example. AAAA", "SERVFAIL")
	s.set("mapped.example. AAAA", "mapped.example. 60 IN AAAA ::ffff:127.0.0.1")
	s.set("bad.example. A", "NODATA")
	s.set("bad.example. AAAA", "SERVFAIL")
	s.set("cname.example. A", "cname.example. 60 IN CNAME both.example.")
	s.set("cname.example. AAAA", "cname.example. 60 IN CNAME both.example.")
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("many.example. 60 IN A 192.0.2.%d", i))
	}
	s.set("many.example. A", many...)
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("# comment\n192.0.2.77 Smart.Example alias # more\nrubbish\n2001:db8::7 alias\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.set("hub.search.example. A", "hub.search.example. 60 IN A 192.0.2.5")
	r := newResolver(t, Options{Servers: []string{s.addr}, HostsFile: hosts, Search: []string{"none.example", "search.example"}})
	for _, test := range []struct {
		name string
		host string
		kind Kind
		want string
	}{
		{"IPv6 first", "both.example", "", "[2001:db8::1 192.0.2.1]"},
		{"one family fails", "half.example", "", "[192.0.2.2]"},
		{"mapped", "mapped.example", "", "[127.0.0.1]"},
		{"failure says more than no data", "bad.example", ServFail, ""},
		{"alias", "cname.example", "", "[2001:db8::1 192.0.2.1]"},
		{"no such name", "unknown.example", NXDomain, ""},
		{"hosts file", "smart.example", "", "[192.0.2.77]"},
		{"hosts file, two lines", "ALIAS.", "", "[192.0.2.77 2001:db8::7]"},
		{"localhost", "localhost", "", "[::1 127.0.0.1]"},
		{"address", "192.0.2.3", "", "[192.0.2.3]"},
		{"IPv6 address", "2001:db8::3", "", "[2001:db8::3]"},
		{"literal", "[192.0.2.4]", "", "[192.0.2.4]"},
		{"bounded", "many.example", "", "16"},
		{"in a search domain", "hub", "", "[192.0.2.5]"},
		{"in no search domain", "nohub", NXDomain, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			ips, err := r.Addrs(t.Context(), test.host)
			var e *Error
			if errors.As(err, &e); err != nil && e.Kind != test.kind || err == nil && test.kind != "" {
				t.Fatalf("Addrs(%q) = %v, %v, want kind %q", test.host, ips, err, test.kind)
			}
			got := fmt.Sprint(ips)
			if len(ips) > 3 {
				got = fmt.Sprint(len(ips))
			}
			if err == nil && got != test.want {
				t.Errorf("Addrs(%q) = %s, want %s", test.host, got, test.want)
			}
		})
	}
}

func TestHostile(t *testing.T) {
	for _, test := range []struct {
		name   string
		handle func(w mdns.ResponseWriter, q *mdns.Msg) bool
		want   Kind // empty: the honest answer is found
	}{
		{"rubbish", func(w mdns.ResponseWriter, q *mdns.Msg) bool {
			b, _ := new(mdns.Msg).SetReply(q).Pack()
			_, _ = w.Write(append(b[:12], 0xff, 0xff, 0xff))
			return true
		}, ServFail},
		{"one octet", func(w mdns.ResponseWriter, _ *mdns.Msg) bool {
			_, _ = w.Write([]byte{1})
			return true
		}, ServFail},
		{"compression loop", func(w mdns.ResponseWriter, q *mdns.Msg) bool {
			b, _ := new(mdns.Msg).SetReply(q).Pack()
			b[7] = 1 // one answer
			_, _ = w.Write(append(b, 0xc0, byte(len(b)), 0, 15, 0, 1, 0, 0, 0, 9, 0, 4, 0, 1, 0xc0, byte(len(b))))
			return true
		}, ServFail},
		{"wrong id first", func(w mdns.ResponseWriter, q *mdns.Msg) bool {
			m := new(mdns.Msg).SetReply(q)
			m.Id++
			m.Answer = []mdns.RR{rr("a.example. 60 IN MX 1 evil.example.")}
			_ = w.WriteMsg(m)
			return false
		}, ""},
		{"other question first", func(w mdns.ResponseWriter, q *mdns.Msg) bool {
			m := new(mdns.Msg).SetReply(q)
			m.Question[0].Name = "b.example."
			m.Answer = []mdns.RR{rr("a.example. 60 IN MX 1 evil.example.")}
			_ = w.WriteMsg(m)
			m = new(mdns.Msg).SetReply(q)
			m.Question[0].Name = "a.example."
			m.Answer = []mdns.RR{rr("a.example. 60 IN MX 1 mx.example.")}
			_ = w.WriteMsg(m)
			return true
		}, ""},
		{"flood of others", func(w mdns.ResponseWriter, q *mdns.Msg) bool {
			m := new(mdns.Msg).SetReply(q)
			for range 150 {
				m.Id++
				_ = w.WriteMsg(m)
			}
			return true
		}, ServFail},
		{"knows no EDNS", func(w mdns.ResponseWriter, q *mdns.Msg) bool {
			if q.IsEdns0() == nil {
				return false
			}
			m := new(mdns.Msg).SetRcodeFormatError(q)
			_ = w.WriteMsg(m)
			return true
		}, ""},
		{"cut also over TCP", func(w mdns.ResponseWriter, q *mdns.Msg) bool {
			m := new(mdns.Msg).SetReply(q)
			m.Truncated = true
			_ = w.WriteMsg(m)
			return true
		}, ServFail},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			s.set("a.example. MX", "a.example. 60 IN MX 1 mx.example.")
			s.hook(test.handle)
			patience := time.Second
			if test.want == "" {
				patience = 20 * time.Second
			}
			r := newResolver(t, Options{Servers: []string{s.addr}, Attempts: 1, Timeout: patience})
			mx, err := r.MX(t.Context(), "a.example")
			var e *Error
			if errors.As(err, &e); err != nil && e.Kind != test.want && e.Kind != Timeout || err == nil && test.want != "" {
				t.Fatalf("MX = %v, %v, want kind %q", mx, err, test.want)
			}
			if test.want == "" && (len(mx) != 1 || mx[0].Host != "mx.example") {
				t.Errorf("MX = %v, %v, want mx.example", mx, err)
			}
		})
	}
}

func TestTies(t *testing.T) {
	s := newServer(t)
	s.set("tie.example. MX", "tie.example. 60 IN MX 10 a.example.", "tie.example. 60 IN MX 10 b.example.", "tie.example. 60 IN MX 5 first.example.")
	r := newResolver(t, Options{Servers: []string{s.addr}})
	seen := map[string]int{}
	for range 200 {
		mx, err := r.MX(t.Context(), "tie.example")
		if err != nil || mx[0].Host != "first.example" {
			t.Fatalf("MX = %v, %v", mx, err)
		}
		seen[mx[1].Host]++
	}
	if seen["a.example"] < 50 || seen["b.example"] < 50 {
		t.Errorf("ties came first %v times, want about as often each", seen)
	}
}

func TestCache(t *testing.T) {
	s := newServer(t)
	s.set("a.example. MX", "a.example. 60 IN MX 10 mx.example.")
	s.set("zero.example. MX", "zero.example. 0 IN MX 10 mx.example.")
	s.set("fails.example. MX", "SERVFAIL")
	var f facts
	r := newResolver(t, Options{Servers: []string{s.addr}, Emitter: event.NewEmitter("test", &f), Attempts: 1})
	for range 3 {
		_, _ = r.MX(t.Context(), "a.example")
		_, _ = r.MX(t.Context(), "zero.example")
		_, _ = r.MX(t.Context(), "unknown.example")
		_, _ = r.MX(t.Context(), "fails.example")
	}
	for key, want := range map[string]int{"a.example. MX": 1, "zero.example. MX": 3, "unknown.example. MX": 1, "fails.example. MX": 1} {
		if got := s.count(key); got != want {
			t.Errorf("%s was asked %d times, want %d", key, got, want)
		}
	}
	want := []string{
		"MX cached", "MX cached", "MX cached", "MX cached", "MX cached", "MX cached", "MX nxdomain", "MX ok", "MX ok", "MX ok", "MX ok", "MX servfail",
	}
	if got := f.results(); !slices.Equal(got, want) {
		t.Errorf("facts = %q, want %q", got, want)
	}
	r.Flush()
	_, _ = r.MX(t.Context(), "a.example")
	if got := s.count("a.example. MX"); got != 2 {
		t.Errorf("asked %d times after Flush, want 2", got)
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newLRU(3)
	for i := range 10 {
		c.put(question{fmt.Sprint(i), 1}, &answer{})
		c.get(question{"0", 1})
	}
	if c.order.Len() != 3 || len(c.byKey) != 3 {
		t.Errorf("%d entries, want 3", c.order.Len())
	}
	if c.get(question{"0", 1}) == nil || c.get(question{"9", 1}) == nil || c.get(question{"5", 1}) != nil {
		t.Error("the entry that was used always must stay, the others must go by age")
	}
}

func TestOneQuestionForMany(t *testing.T) {
	s := newServer(t)
	s.set("a.example. MX", "a.example. 60 IN MX 10 mx.example.")
	gate := make(chan struct{})
	var waiting atomic.Int32
	s.hook(func(mdns.ResponseWriter, *mdns.Msg) bool { waiting.Add(1); <-gate; return false })
	r := newResolver(t, Options{Servers: []string{s.addr}, Timeout: 10 * time.Second})
	impatient, cancel := context.WithCancel(t.Context())
	first := make(chan error)
	go func() { _, err := r.MX(impatient, "a.example"); first <- err }()
	for waiting.Load() == 0 {
		select {
		case err := <-first:
			t.Fatalf("MX = %v before the answer", err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	var e *Error
	if err := <-first; !errors.As(err, &e) || !e.Temporary() {
		t.Errorf("MX of who went away = %v, want a temporary error", err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if mx, err := r.MX(t.Context(), "a.example"); err != nil || mx[0].Host != "mx.example" {
				t.Errorf("MX = %v, %v", mx, err)
			}
		})
	}
	close(gate)
	wg.Wait()
	if n := s.count("a.example. MX"); n != 1 {
		t.Errorf("asked %d times, want 1", n)
	}
}

func TestNextServer(t *testing.T) {
	bad, good := newServer(t), newServer(t)
	bad.set("a.example. MX", "SERVFAIL")
	good.set("a.example. MX", "a.example. 60 IN MX 10 mx.example.")
	r := newResolver(t, Options{Servers: []string{bad.addr, good.addr}})
	if mx, err := r.MX(t.Context(), "a.example"); err != nil || mx[0].Host != "mx.example" {
		t.Errorf("MX = %v, %v, want the second server's answer", mx, err)
	}
	if n := bad.count("a.example. MX"); n != 1 {
		t.Errorf("the first server was asked %d times, want 1", n)
	}
}

func TestOtherRecords(t *testing.T) {
	s := newServer(t)
	s.set("t.example. TXT", `t.example. 60 IN TXT "v=spf1 " "-all"`)
	s.set("1.2.0.192.in-addr.arpa. PTR", "1.2.0.192.in-addr.arpa. 60 IN PTR Mail.Example.")
	s.set("_25._tcp.mx.example. TLSA", "AD", "_25._tcp.mx.example. 60 IN TLSA 3 1 1 00ff")
	r := newResolver(t, Options{Servers: []string{s.addr}})
	if got, err := r.TXT(t.Context(), "t.example"); err != nil || len(got) != 1 || got[0] != "v=spf1 -all" {
		t.Errorf("TXT = %q, %v", got, err)
	}
	if got, err := r.PTR(t.Context(), netip.MustParseAddr("::ffff:192.0.2.1")); err != nil || len(got) != 1 || got[0] != "mail.example" {
		t.Errorf("PTR = %q, %v", got, err)
	}
	if got, secure, err := r.TLSA(t.Context(), "_25._tcp.mx.example"); err != nil || !secure || len(got) != 1 || got[0].Usage != 3 || len(got[0].Data) != 2 {
		t.Errorf("TLSA = %v, %t, %v", got, secure, err)
	}
}

func TestClose(t *testing.T) {
	s := newServer(t)
	s.set("drop.example. MX", "DROP")
	r := newResolver(t, Options{Servers: []string{s.addr}, Timeout: time.Minute})
	done := make(chan error)
	go func() { _, err := r.MX(t.Context(), "drop.example"); done <- err }()
	for s.count("drop.example. MX") == 0 {
		select {
		case err := <-done:
			t.Fatalf("MX = %v before Close", err)
		case <-time.After(time.Millisecond):
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	var e *Error
	if err := <-done; !errors.As(err, &e) || !e.Temporary() {
		t.Errorf("MX = %v, want a temporary error", err)
	}
	if _, err := r.MX(t.Context(), "other.example"); !errors.Is(err, errClosed) {
		t.Errorf("MX after Close = %v, want %v", err, errClosed)
	}
}

func TestNewRefusesServer(t *testing.T) {
	if _, err := New(Options{Servers: []string{"not an address"}}); err == nil {
		t.Error("New with a bad server = nil, want an error")
	}
	r := newResolver(t, Options{Servers: []string{"192.0.2.1", "[2001:db8::1]", "192.0.2.2:5353"}})
	if got, want := r.Servers(), []string{"192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.2:5353"}; !slices.Equal(got, want) {
		t.Errorf("Servers() = %q, want %q", got, want)
	}
}

func TestSystemServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if got, _ := systemServers(path); !slices.Equal(got, []string{"127.0.0.1:53"}) {
		t.Errorf("without a file: %q", got)
	}
	if err := os.WriteFile(path, []byte("nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch a.example b.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, search := systemServers(path)
	if !slices.Equal(got, []string{"192.0.2.53:53", "[2001:db8::53]:53"}) || !slices.Equal(search, []string{"a.example", "b.example"}) {
		t.Errorf("systemServers = %q, %q", got, search)
	}
}

func BenchmarkCachedMX(b *testing.B) {
	r, err := New(Options{Servers: []string{"127.0.0.1:1"}})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	r.cache.put(question{"a.example.", mdns.TypeMX}, &answer{records: []mdns.RR{rr("a.example. 60 IN MX 10 mx.example.")}, expires: time.Now().Add(time.Hour)})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.MX(b.Context(), "a.example"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestNoServerListens(t *testing.T) {
	// A connected socket has the port, and takes nothing from others.
	taken, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	at := taken.LocalAddr().String()
	r, err := New(Options{Servers: []string{at}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = r.MX(t.Context(), "example.com")
	if e, ok := errors.AsType[*Error](err); !ok || e.Kind != ServFail || strings.Count(err.Error(), at) != 1 || strings.Contains(err.Error(), "->") || strings.Contains(err.Error(), "\n") {
		t.Errorf("MX without a server: %v, want %s named once", err, at)
	}
}
