package blocklist

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"

	"waybill/relay/dns"
	"waybill/relay/event"
	"waybill/relay/relaytest"
)

func TestKey(t *testing.T) {
	for _, test := range []struct {
		in   string
		want string
	}{
		{"192.0.2.99", "99.2.0.192"},
		{"2001:db8:1:2:3:4:567:89ab", "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2"}, // RFC 5782 section 2.4
		{"::ffff:7f00:2", "2.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0"},
	} {
		if got := Key(netip.MustParseAddr(test.in)); got != test.want {
			t.Errorf("Key(%s) = %s, want %s", test.in, got, test.want)
		}
	}
}

const (
	test4 = "2.0.0.127"
	not4  = "1.0.0.127"
	test6 = "2.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0"
	ours  = "9.2.0.192"
)

// TestLook asks a name server through sockets.
func TestLook(t *testing.T) {
	six := Key(netip.MustParseAddr("2001:db8::1"))
	for _, test := range []struct {
		name    string
		address string
		records []string
		setUp   func(s *relaytest.NameServer)
		want    string // what is known
		fact    string
	}{
		{"clean", "192.0.2.9", []string{test4 + ".bl.example. 60 A 127.0.0.2"}, nil, "clean", ""},
		{
			"listed", "192.0.2.9",
			[]string{test4 + ".bl.example. 60 A 127.0.0.2", ours + ".bl.example. 60 A 127.0.0.4", ours + ".bl.example. 60 A 127.0.0.2", ours + `.bl.example. 60 TXT "see https://bl.example"`},
			nil, "listed", "listed 127.0.0.2 127.0.0.4: see https://bl.example",
		},
		{"listed without a reason", "192.0.2.9", []string{test4 + ".bl.example. 60 A 127.0.0.2", ours + ".bl.example. 60 A 127.0.0.4"}, nil, "listed", "listed 127.0.0.4: "},
		{"IPv6, clean", "2001:db8::1", []string{test6 + ".bl.example. 60 A 127.0.0.2"}, nil, "clean", ""},
		{"IPv6, listed", "2001:db8::1", []string{test6 + ".bl.example. 60 A 127.0.0.2", six + ".bl.example. 60 A 127.0.0.4"}, nil, "listed", "listed 127.0.0.4: "},
		{"a list without IPv6", "2001:db8::1", []string{test4 + ".bl.example. 60 A 127.0.0.2"}, nil, "unknown", "unknown"},
		{"a list that is no more", "192.0.2.9", nil, nil, "unknown", "unknown"},
		{"a list that lists everything", "192.0.2.9", []string{test4 + ".bl.example. 60 A 127.0.0.2", not4 + ".bl.example. 60 A 127.0.0.2", ours + ".bl.example. 60 A 127.0.0.2"}, nil, "unknown", "unknown"},
		{"a list that refuses us", "192.0.2.9", []string{not4 + ".bl.example. 60 A 127.255.255.254", ours + ".bl.example. 60 A 127.255.255.254"}, nil, "unknown", "unknown"},
		{"an answer that is none", "192.0.2.9", []string{test4 + ".bl.example. 60 A 127.0.0.2", ours + ".bl.example. 60 A 198.51.100.7"}, nil, "unknown", "unknown"},
		{
			"a server that fails", "192.0.2.9", []string{test4 + ".bl.example. 60 A 127.0.0.2"}, func(s *relaytest.NameServer) {
				s.Fail(ours+".bl.example", mdns.RcodeServerFailure)
			}, "unknown", "unknown",
		},
		{
			"a server that is silent", "192.0.2.9", []string{test4 + ".bl.example. 60 A 127.0.0.2"}, func(s *relaytest.NameServer) {
				s.Mute(ours + ".bl.example")
			}, "unknown", "unknown",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := relaytest.NewNameServer(t, test.records...)
			patience := 30 * time.Second
			if test.name == "a server that is silent" {
				patience = 200 * time.Millisecond
			}
			if test.setUp != nil {
				test.setUp(s)
			}
			resolver, err := dns.New(dns.Options{Servers: []string{s.Addr()}, Timeout: patience, Attempts: 1})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = resolver.Close() })
			var rec relaytest.Recorder
			w := New(Options{Lists: []string{"bl.example"}, Addresses: []netip.Addr{netip.MustParseAddr(test.address)}, Resolver: resolver, Emitter: rec.Emitter()})
			w.look(t.Context())
			w.look(t.Context()) // tells nothing new
			l := w.Listings()[0]
			got := "unknown"
			if l.Known {
				got = map[bool]string{true: "listed", false: "clean"}[l.Listed]
			}
			if got != test.want || l.Known == l.Answered.IsZero() {
				t.Errorf("Listings() = %+v, want %s", l, test.want)
			}
			fact := ""
			for _, r := range rec.Named("listing_changed") {
				ev := r.Event.(event.ListingChanged)
				fact += ev.Result
				if ev.Result == event.ListingListed {
					fact += " " + ev.Codes + ": " + ev.Detail
				}
				if (ev.Error != "") != (ev.Result == event.ListingUnknown) || ev.List != "bl.example" || ev.LocalIP.String() != test.address {
					t.Errorf("fact = %+v", ev)
				}
			}
			if fact != test.fact {
				t.Errorf("facts = %q, want %q", fact, test.fact)
			}
		})
	}
}

// fake is a list without sockets.
type fake struct {
	mu     sync.Mutex
	listed bool
	broken bool
	asked  int
}

func (f *fake) A(_ context.Context, name string) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	switch {
	case f.broken:
		return nil, &dns.Error{Kind: dns.Timeout, Name: name}
	case name == test4+".bl.example" || name == ours+".bl.example" && f.listed:
		return []netip.Addr{netip.MustParseAddr("127.0.0.2")}, nil
	}
	return nil, &dns.Error{Kind: dns.NXDomain, Name: name}
}

func (f *fake) TXT(_ context.Context, name string) ([]string, error) {
	return nil, &dns.Error{Kind: dns.NoData, Name: name}
}

// TestRun watches over hours: what is listed stays so while the list is silent.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rec relaytest.Recorder
		f := &fake{}
		w := New(Options{Lists: []string{"bl.example"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9")}, Resolver: f, Emitter: rec.Emitter()})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		hour := func(listed, broken bool) {
			t.Helper()
			synctest.Wait()
			f.mu.Lock()
			f.listed, f.broken = listed, broken
			f.mu.Unlock()
			time.Sleep(DefaultInterval) // of the bubble's clock
			synctest.Wait()
			if l := w.Listings()[0]; !l.Known || l.Listed != listed {
				t.Errorf("Listings() = %+v, want listed %t", l, listed)
			}
		}
		hour(false, false)
		hour(true, false)
		hour(true, true)
		hour(true, false)
		hour(false, false)
		hour(false, false)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
		var got []string
		for _, r := range rec.Named("listing_changed") {
			got = append(got, r.Event.(event.ListingChanged).Result)
		}
		if want := []string{"listed", "unknown", "listed", "clean"}; !slices.Equal(got, want) {
			t.Errorf("facts = %v, want %v", got, want)
		}
		if want := 6*3 + 1; f.asked != want { // a broken list is asked but once
			t.Errorf("%d questions, want %d", f.asked, want)
		}
	})
}

// TestRunWithoutLists ends at once.
func TestRunWithoutLists(t *testing.T) {
	if err := New(Options{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}).Run(t.Context()); err != nil {
		t.Errorf("Run() = %v", err)
	}
}

func TestReasonIsBounded(t *testing.T) {
	long := fmt.Sprintf("%0300d\r\n\x1b[31m\xff", 1)
	if got := printable(long); len(got) > maxReason+len("…") {
		t.Errorf("printable() has %d octets", len(got))
	}
	if got, want := printable("a\r\nb\x1b[1m\xffc"), "a  b [1m?c"; got != want {
		t.Errorf("printable() = %q, want %q", got, want)
	}
}

// TestManyCodes has a list answer with more codes than any list has: a fact says
// some of them.
func TestManyCodes(t *testing.T) {
	records := []string{test4 + ".bl.example. 60 A 127.0.0.2"}
	for i := range maxCodes + 9 {
		records = append(records, fmt.Sprintf("%s.bl.example. 60 A 127.0.1.%d", ours, i))
	}
	s := relaytest.NewNameServer(t, records...)
	resolver, err := dns.New(dns.Options{Servers: []string{s.Addr()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resolver.Close() })
	var rec relaytest.Recorder
	w := New(Options{Lists: []string{"bl.example"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9")}, Resolver: resolver, Emitter: rec.Emitter()})
	w.look(t.Context())
	list := rec.Named("listing_changed")
	if len(list) != 1 {
		t.Fatalf("%d facts, want one", len(list))
	}
	if ev := list[0].Event.(event.ListingChanged); len(strings.Fields(ev.Codes)) != maxCodes {
		t.Errorf("fact = %+v, want %d codes", ev, maxCodes)
	}
}
