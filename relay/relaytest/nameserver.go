package relaytest

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"

	mdns "github.com/miekg/dns"
)

// NameServer is a recursive name server on a free port of 127.0.0.1, which knows
// what it was told: for what asks the DNS through sockets. A name that it was not
// told of does not exist.
type NameServer struct {
	server *mdns.Server
	addr   string

	mu      sync.Mutex
	records map[string][]mdns.RR
	fail    map[string]int  // response codes by name
	silent  map[string]bool // names that are not answered
	secure  bool            // every answer is said to be authentic
}

// NewNameServer starts a NameServer with records in the form of zone files, that
// ends with the test.
func NewNameServer(t TB, records ...string) *NameServer {
	t.Helper()
	pc, err := (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("name server: %v", err)
	}
	s := &NameServer{addr: pc.LocalAddr().String(), records: map[string][]mdns.RR{}, fail: map[string]int{}, silent: map[string]bool{}}
	if err := s.Add(records...); err != nil {
		t.Fatalf("name server: %v", err)
	}
	ready, done := make(chan struct{}), make(chan error, 1)
	s.server = &mdns.Server{PacketConn: pc, Handler: s, NotifyStartedFunc: func() { close(ready) }}
	go func() { done <- s.server.ActivateAndServe() }()
	<-ready
	t.Cleanup(func() {
		_ = s.server.Shutdown()
		if err := <-done; err != nil {
			t.Logf("name server: %v", err)
		}
	})
	return s
}

// Addr is where it answers.
func (s *NameServer) Addr() string { return s.addr }

// Add adds records in the form of zone files.
func (s *NameServer) Add(records ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range records {
		rr, err := mdns.NewRR(text)
		if err != nil || rr == nil {
			return fmt.Errorf("record %q: %w", text, err)
		}
		name := strings.ToLower(rr.Header().Name)
		s.records[name] = append(s.records[name], rr)
	}
	return nil
}

// Fail makes every question about name end with a response code.
func (s *NameServer) Fail(name string, code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail[mdns.Fqdn(name)] = code
}

// Mute leaves questions about name without an answer.
func (s *NameServer) Mute(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent[mdns.Fqdn(name)] = true
}

// SetSecure makes all answers authentic.
func (s *NameServer) SetSecure(secure bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secure = secure
}

// ServeDNS implements [mdns.Handler].
func (s *NameServer) ServeDNS(w mdns.ResponseWriter, q *mdns.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(q.Question) != 1 {
		return
	}
	name := strings.ToLower(q.Question[0].Name)
	if s.silent[name] {
		return
	}
	m := new(mdns.Msg).SetReply(q)
	m.RecursionAvailable, m.AuthenticatedData = true, s.secure
	known, failing := s.records[name], s.fail[name] != 0
	switch {
	case failing:
		m.Rcode = s.fail[name]
	case len(known) == 0:
		m.Rcode = mdns.RcodeNameError
	default:
		for _, rr := range known {
			if rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
	}
	_ = w.WriteMsg(m) // who asked has gone
}
