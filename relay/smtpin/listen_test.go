package smtpin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/policy"
	"waybill/relay/relaytest"
)

func TestFind(t *testing.T) {
	con := func(name string, ranges ...string) *connector {
		c := &connector{Connector: Connector{Name: name}}
		for _, r := range ranges {
			c.RemoteRanges = append(c.RemoteRanges, netip.MustParsePrefix(r))
		}
		return c
	}
	here := netip.MustParseAddr("192.0.2.25")
	all := entrances{
		{connector: con("v4", "0.0.0.0/0")},
		{connector: con("net", "10.0.0.0/8", "10.1.0.0/16")},
		{here, con("here", "10.0.0.0/8")},
		{connector: con("host", "10.1.2.3/32")},
		{here, con("here, narrow", "10.9.0.0/16")},
		{connector: con("v6", "2001:db8::/32")},
	}
	for _, test := range []struct {
		name   string
		local  string
		client string
		want   string
	}{
		{"everybody", "192.0.2.1", "192.0.2.9", "v4"},
		{"network", "192.0.2.1", "10.2.0.1", "net"},
		{"the narrower of its networks", "192.0.2.1", "10.1.2.4", "net"},
		{"host", "192.0.2.1", "10.1.2.3", "host"},
		{"IPv6", "2001:db8::25", "2001:db8::1", "v6"},
		{"nobody", "2001:db8::25", "2001:db9::1", ""},
		{"our address before the client's", "192.0.2.25", "10.1.2.3", "here"},
		{"both", "192.0.2.25", "10.9.2.3", "here, narrow"},
		{"none of that address is for the client", "192.0.2.25", "192.0.2.9", "v4"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for range 2 { // in either order
				got := ""
				if c := all.find(netip.MustParseAddr(test.local), netip.MustParseAddr(test.client), nil); c != nil {
					got = c.Name
				}
				if got != test.want {
					t.Errorf("find(%s, %s) = %q, want %q", test.local, test.client, got, test.want)
				}
				slices.Reverse(all)
			}
		})
	}
	if c := all.find(here, netip.MustParseAddr("10.9.2.3"), func(c *connector) bool { return c.Name == "v4" }); c == nil || c.Name != "v4" {
		t.Errorf("find with one that is allowed = %v", c)
	}
}

func TestSockets(t *testing.T) {
	for _, test := range []struct {
		name   string
		listen [][]string // by connector
		want   string
	}{
		{"shared", [][]string{{"127.0.0.1:25"}, {"127.0.0.1:25"}}, "127.0.0.1:25(0 1)"},
		{"mapped", [][]string{{"127.0.0.1:25"}, {"[::ffff:127.0.0.1]:25"}}, "127.0.0.1:25(0 1)"},
		{"wildcards are one", [][]string{{":25"}, {"0.0.0.0:25"}, {"[::]:25"}}, ":25(0 1 2)"},
		{"one address beside all", [][]string{{"127.0.0.1:25", "127.0.0.1:587"}, {":25"}}, ":25(1 0@127.0.0.1) 127.0.0.1:587(0@127.0.0.1)"},
		{"twice the same", [][]string{{":25", "0.0.0.0:25", "127.0.0.1:25"}}, ":25(0 0@127.0.0.1)"},
		{"free ports are not shared", [][]string{{"127.0.0.1:0", "127.0.0.1:0"}, {"127.0.0.1:0"}}, "a(0@127.0.0.1) b(0@127.0.0.1) c(1@127.0.0.1)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var list []*connector
			for i, l := range test.listen {
				list = append(list, &connector{Connector: Connector{Name: fmt.Sprint(i), Listen: l}})
			}
			var got []string
			keys := map[string]bool{}
			for i, s := range sockets(list) {
				key := s.key
				if s.port == 0 {
					key = string(rune('a' + i))
				}
				var at []string
				for _, e := range s.entrances {
					at = append(at, e.Name)
					if e.local.IsValid() && (s.wild || s.port == 0 || len(s.entrances) == 1) {
						at[len(at)-1] += "@" + e.local.String()
					}
				}
				got = append(got, key+"("+strings.Join(at, " ")+")")
				keys[s.key] = true
			}
			if s := strings.Join(got, " "); s != test.want {
				t.Errorf("sockets = %s, want %s", s, test.want)
			}
			if len(keys) != len(got) {
				t.Errorf("sockets share a key: %v", keys)
			}
		})
	}
}

func at(name string, addr ...string) Connector {
	return open(func(c *Connector) { c.Name, c.Banner, c.Listen = name, "ESMTP "+name, addr })
}

// change takes other connectors into use.
func (r *relay) change(t testing.TB, list ...Connector) {
	t.Helper()
	c, err := r.Prepare(list)
	if err != nil {
		t.Fatal(err)
	}
	c.Commit()
}

// greeting is who answers at addr: the banner's last word, or empty.
func greeting(t testing.TB, addr string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return ""
	}
	c := newClient(t, conn)
	defer conn.Close()
	words := strings.Fields(c.reply())
	if len(words) == 0 {
		return ""
	}
	return words[len(words)-1]
}

func TestAddressBesideAllAddresses(t *testing.T) {
	p := relaytest.Port(t)
	r := start(t, Options{Connectors: []Connector{at("all", ":"+p), at("own", "127.0.0.2:"+p)}})
	for addr, want := range map[string]string{"127.0.0.1:" + p: "all", "127.0.0.2:" + p: "own"} {
		if got := greeting(t, addr); got != want {
			t.Errorf("at %s answers %q, want %q", addr, got, want)
		}
	}
	if got := r.addr("own"); got != "127.0.0.2:"+p {
		t.Errorf("address of own = %s", got)
	}
}

func TestChangeKeepsSessions(t *testing.T) {
	p := relaytest.Port(t)
	here := "127.0.0.1:" + p
	r := start(t, Options{Connectors: []Connector{at("old", here), at("test", "127.0.0.1:0")}})
	conn, err := net.Dial("tcp", here)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, conn)
	c.begin()
	c.envelope()
	c.talk("DATA=>354")
	c.send("Subject: before\r\n")
	kept := r.addr("test")

	// The connector goes while a content comes in; another takes its address.
	r.change(t, at("new", here), at("test", "127.0.0.1:0"))
	c.send("\r\nafter\r\n.\r\n")
	c.expect("250 2.0.0 queued")
	c.envelope() // and goes on
	c.talk("DATA=>354", "x\r\n.=>250", "QUIT=>221")
	if got := greeting(t, here); got != "new" {
		t.Errorf("a new session is with %q, want new", got)
	}
	if got := r.addr("test"); got != kept {
		t.Errorf("the free port of test went from %s to %s", kept, got)
	}
	for _, m := range r.messages() {
		if m.Origin.Connector != "old" {
			t.Errorf("message of a session that began with old is from %s", m.Origin.Connector)
		}
	}
	for _, closed := range await[event.SessionClosed](t, r.rec, 2) { // of old, and of the greeting by new
		if closed.Connector == "old" && (closed.Cause != "quit" || closed.Messages != 2) || closed.Connector == "new" && closed.Messages != 0 {
			t.Errorf("closed = %+v", closed)
		}
	}
}

func TestChangeMovesBetweenOneAndAllAddresses(t *testing.T) {
	p := relaytest.Port(t)
	one, all, other := at("one", "127.0.0.1:"+p), at("all", ":"+p), at("test", "127.0.0.1:0")
	r := start(t, Options{Connectors: []Connector{one, other}})
	for _, step := range []struct {
		name string
		con  Connector
		want string // at 127.0.0.2
	}{
		{"all", all, "all"}, {"one", one, ""}, {"all again", all, "all"},
	} {
		r.change(t, step.con, other)
		if got := greeting(t, "127.0.0.1:"+p); got != step.con.Name {
			t.Errorf("%s: %q answers, want %q", step.name, got, step.con.Name)
		}
		if got := greeting(t, "127.0.0.2:"+p); got != step.want {
			t.Errorf("%s: at the other address %q answers, want %q", step.name, got, step.want)
		}
	}
}

func TestChangeIsAllOrNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	p := relaytest.Port(t)
	here, free := "127.0.0.1:"+p, "127.0.0.1:"+relaytest.Port(t)
	r := start(t, Options{Connectors: []Connector{at("old", here), at("test", "127.0.0.1:0")}})
	for _, test := range []struct {
		name string
		list []Connector
		want string
	}{
		{"taken", []Connector{at("new", here, free), at("bad", taken.Addr().String())}, "listen for bad"},
		{"taken, and the old one had to be closed", []Connector{at("new", ":"+p), at("bad", taken.Addr().String())}, "listen for bad"},
		{"twice the name", []Connector{at("new", free), at("new", here)}, "two receive connectors"},
		{"bad", []Connector{open(func(c *Connector) { c.TLSMode = "starttls" })}, "needs a certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := r.Prepare(test.list); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("Prepare() = %v, want %q", err, test.want)
			}
			if got := greeting(t, here); got != "old" {
				t.Errorf("%q answers, want old", got)
			}
			if got := greeting(t, free); got != "" {
				t.Errorf("%q answers where nobody listened", got)
			}
			if n := len(r.Connections()); n != 2 {
				t.Errorf("%d connectors, want the 2 of before", n)
			}
		})
	}
	c, err := r.Prepare([]Connector{at("new", ":"+p)})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Abort(); err != nil {
		t.Fatal(err)
	}
	if got := greeting(t, here); got != "old" {
		t.Errorf("after Abort %q answers, want old", got)
	}
}

func TestChangeKeepsCounters(t *testing.T) {
	limited := func(connections, perMinute int) Connector {
		return open(func(c *Connector) { c.Limits.Connections, c.Limits.MessagesPerMinute = connections, perMinute })
	}
	r := start(t, Options{Connectors: []Connector{limited(3, 2)}})
	c := r.dial(t)
	c.begin()
	c.talk("MAIL FROM:<a@example.net>=>250", "RSET=>250", "MAIL FROM:<a@example.net>=>250", "RSET=>250", "MAIL FROM:<a@example.net>=>450 4.7.1")

	r.change(t, limited(1, 3))
	if got := r.dial(t).reply(); !strings.HasPrefix(got, "421 4.7.0") {
		t.Errorf("beyond the new limit: %q, want 421", got)
	}
	r.change(t, limited(2, 3))
	d := r.dial(t)
	d.begin()
	d.talk("MAIL FROM:<a@example.net>=>450 4.7.1") // what the other session took still counts

	// A connector that is gone is counted while a session of its is open.
	r.change(t, at("other", "127.0.0.1:0"))
	if got := r.Connections(); got["test"] != [2]int{2, 0} || got["other"] != [2]int{0, 5000} {
		t.Errorf("connections = %v", got)
	}
	c.talk("QUIT=>221")
	d.talk("QUIT=>221")
	await[event.SessionClosed](t, r.rec, 2)
	r.left(t, 0)
	r.change(t, at("other", "127.0.0.1:0"))
	if got := r.Connections(); len(got) != 1 {
		t.Errorf("connections = %v, want other alone", got)
	}
}

// TestChangeUnderLoad changes the connectors all the time while clients send.
// No session may be cut, and no message lost.
func TestChangeUnderLoad(t *testing.T) {
	stay := "127.0.0.1:" + relaytest.Port(t)
	var list [2][]Connector
	for i := range list {
		list[i] = []Connector{
			open(func(c *Connector) {
				c.Name, c.Listen, c.Permissions = "stay", []string{stay}, policy.Permissions{Submit: true, Relay: true}
				c.Limits.Connections = 100 + i
			}),
			at(fmt.Sprint("other", i), "127.0.0.1:0"),
		}
	}
	r := start(t, Options{Connectors: list[0]})
	var sent atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn, err := net.Dial("tcp", stay)
				if err != nil {
					t.Errorf("connect: %v", err)
					return
				}
				_ = conn.SetDeadline(time.Now().Add(time.Minute))
				_, err = io.WriteString(conn, "EHLO a.example\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n")
				all, err2 := readUntil(conn, "354 ")
				if _, err3 := io.WriteString(conn, "x\r\n.\r\nQUIT\r\n"); errors.Join(err, err2, err3) != nil {
					t.Errorf("session: %v %v %v after %q", err, err2, err3, all)
					return
				}
				rest, err := io.ReadAll(conn)
				if err != nil || !strings.Contains(string(rest), "queued as") {
					t.Errorf("session: %q, %v", rest, err)
				}
				_ = conn.Close()
				sent.Add(1)
			}
		})
	}
	for i := 0; i < 100 || sent.Load() == 0 && !t.Failed(); i++ {
		r.change(t, list[i%2]...)
	}
	close(stop)
	clients.Wait()
	if got := int64(len(r.messages())); got != sent.Load() || got == 0 {
		t.Errorf("%d messages arrived, %d were sent", got, sent.Load())
	}
}

func readUntil(r io.Reader, want string) (string, error) {
	var all []byte
	buf := make([]byte, 512)
	for !strings.Contains(string(all), want) {
		n, err := r.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			return string(all), err
		}
	}
	return string(all), nil
}

func TestPrepareAfterTheEnd(t *testing.T) {
	r := start(t, Options{})
	r.stop()
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
	r.done <- nil
	if _, err := r.Prepare([]Connector{open()}); !errors.Is(err, ErrEnded) {
		t.Errorf("Prepare() = %v, want %v", err, ErrEnded)
	}
}

func TestPrepareBeforeListen(t *testing.T) {
	s, err := New(Options{Hostname: "mx", Acceptor: &acceptor{}, Connectors: []Connector{at("first", "127.0.0.1:0")}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Prepare([]Connector{at("second", "127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	c.Commit()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if got := s.Addrs(); len(got) != 1 || len(got["second"]) != 1 {
		t.Errorf("addresses = %v, want those of second", got)
	}
}

func TestRevisionAndHostname(t *testing.T) {
	r := start(t, Options{Connectors: []Connector{open(func(c *Connector) { c.Revision, c.Hostname = "r2", "other.example.com" })}})
	c := r.dial(t)
	c.talk("=>220 other.example.com", "EHLO x=>250-other.example.com")
	c.envelope()
	c.talk("DATA=>354", "x\r\n.=>250", "QUIT=>221")
	await[event.SessionClosed](t, r.rec, 1)
	if tr := string(r.messages()[0].Trace); !strings.Contains(tr, "by other.example.com ") {
		t.Errorf("trace = %s", tr)
	}
	for _, rec := range r.rec.recs {
		if rec.ConfigRev != "r2" {
			t.Errorf("%T has revision %q", rec.Event, rec.ConfigRev)
		}
	}
}
