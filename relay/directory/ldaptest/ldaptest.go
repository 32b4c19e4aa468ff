// Package ldaptest serves a small directory over LDAP, for tests.
//
// It exists so that tests of package directory and of what uses it talk to a
// real server, over real connections, without any that has to be installed. It
// promises what the tests need and no more: simple binds, searches by filters of
// equality, presence, AND, OR and NOT, STARTTLS, and answers that are scripted.
// A server with all of LDAP is OpenLDAP, which the end-to-end tests use.
//
// To add an operation, add a route in [New].
package ldaptest

import (
	"crypto/tls"
	"io"
	"slices"
	"strings"
	"sync"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
	"github.com/hashicorp/go-hclog"
	"github.com/jimlambrt/gldap"
)

// TB is what a server needs of a test.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(f func())
}

// Entry is one entry of the directory.
type Entry struct {
	DN         string
	Password   string // empty: nobody can bind
	Attributes map[string][]string
}

// Options configure a [Server].
type Options struct {
	Entries   []Entry
	TLS       *tls.Config // for STARTTLS, and from the first octet with Implicit
	Implicit  bool
	Anonymous bool // searches need no bind
	// Bind, when set, sees each bind before the directory does: a code other than
	// 0 is the answer, with its text. It may block.
	Bind func(dn, password string) (code int, text string)
	// Search likewise sees each search.
	Search func(base, filter string) (code int, text string)
}

// Server is a running server.
type Server struct {
	opts Options
	addr string

	mu    sync.Mutex
	bound map[int]string // by connection
	binds []string
	seen  []string // filters
}

// New starts a server, which ends with the test.
func New(t TB, opts Options) *Server {
	t.Helper()
	s := &Server{opts: opts, bound: map[int]string{}}
	listening := make(chan string, 1)
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: addrWriter{listening}})
	srv, err := gldap.NewServer(gldap.WithLogger(log), gldap.WithDisablePanicRecovery())
	if err != nil {
		t.Fatalf("LDAP server: %v", err)
	}
	mux, err := gldap.NewMux()
	if err != nil {
		t.Fatalf("LDAP server: %v", err)
	}
	for _, err := range []error{
		mux.Bind(s.bind), mux.Search(s.search), mux.ExtendedOperation(s.startTLS, gldap.ExtendedOperationStartTLS), srv.Router(mux),
	} {
		if err != nil {
			t.Fatalf("LDAP server: %v", err)
		}
	}
	var options []gldap.Option
	if opts.Implicit {
		options = append(options, gldap.WithTLSConfig(opts.TLS))
	}
	ended := make(chan error, 1)
	var running sync.WaitGroup
	running.Go(func() { ended <- srv.Run("127.0.0.1:0", options...) })
	select {
	case s.addr = <-listening:
	case err := <-ended:
		t.Fatalf("LDAP server: %v", err)
	}
	t.Cleanup(func() {
		s.settle()
		_ = srv.Stop() // the test is over
		running.Wait()
	})
	return s
}

// settle waits until the server has taken all connections: it must not be
// stopped while it takes one.
func (s *Server) settle() {
	c, err := ldap.DialURL(s.URL(), ldap.DialWithTLSConfig(&tls.Config{InsecureSkipVerify: true})) //nolint:gosec // nothing is said but good-bye
	if err != nil {
		return
	}
	_ = c.UnauthenticatedBind("settle") // any answer will do
	_ = c.Close()                       // the server ends it too
	s.mu.Lock()                         // orders what the server did before what comes now
	defer s.mu.Unlock()
}

// addrWriter finds in the library's log where it listens, which it tells nobody
// otherwise.
type addrWriter struct{ addr chan<- string }

func (w addrWriter) Write(p []byte) (int, error) {
	if _, rest, ok := strings.Cut(string(p), "addr="); ok && strings.Contains(string(p), "listening") {
		addr, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		select {
		case w.addr <- addr:
		default:
		}
	}
	return io.Discard.Write(p)
}

// Addr is where the server listens.
func (s *Server) Addr() string { return s.addr }

// URL is the server's URL.
func (s *Server) URL() string {
	if s.opts.Implicit {
		return "ldaps://" + s.addr
	}
	return "ldap://" + s.addr
}

// Binds lists whom was tried to bind as, without the passwords.
func (s *Server) Binds() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.binds)
}

// Filters lists what was searched for.
func (s *Server) Filters() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

func (s *Server) bind(w *gldap.ResponseWriter, r *gldap.Request) {
	resp := r.NewBindResponse(gldap.WithResponseCode(gldap.ResultInvalidCredentials))
	defer func() { _ = w.Write(resp) }() // the client may be gone
	m, err := r.GetSimpleBindMessage()
	if err != nil {
		return
	}
	s.mu.Lock()
	s.binds = append(s.binds, m.UserName)
	delete(s.bound, r.ConnectionID())
	s.mu.Unlock()
	if s.opts.Bind != nil {
		if code, text := s.opts.Bind(m.UserName, string(m.Password)); code != 0 {
			resp.SetResultCode(code)
			resp.SetDiagnosticMessage(text)
			return
		}
	}
	// RFC 4513 section 5.1.2: a name without a password is an anonymous bind, and
	// succeeds. Clients that do not know that let anyone in.
	ok := m.Password == ""
	for _, e := range s.opts.Entries {
		ok = ok || strings.EqualFold(e.DN, m.UserName) && e.Password != "" && e.Password == string(m.Password)
	}
	if !ok {
		return
	}
	resp.SetResultCode(gldap.ResultSuccess)
	if m.Password != "" {
		s.mu.Lock()
		s.bound[r.ConnectionID()] = m.UserName
		s.mu.Unlock()
	}
}

func (s *Server) search(w *gldap.ResponseWriter, r *gldap.Request) {
	resp := r.NewSearchDoneResponse(gldap.WithResponseCode(gldap.ResultOperationsError))
	defer func() { _ = w.Write(resp) }() // the client may be gone
	m, err := r.GetSearchMessage()
	if err != nil {
		return
	}
	s.mu.Lock()
	s.seen = append(s.seen, m.Filter)
	known := s.opts.Anonymous || s.bound[r.ConnectionID()] != ""
	s.mu.Unlock()
	if s.opts.Search != nil {
		if code, text := s.opts.Search(m.BaseDN, m.Filter); code != 0 {
			resp.SetResultCode(code)
			resp.SetDiagnosticMessage(text)
			return
		}
	}
	if !known {
		resp.SetDiagnosticMessage("a successful bind must be completed on the connection")
		return
	}
	filter, err := ldap.CompileFilter(m.Filter)
	if err != nil {
		resp.SetResultCode(gldap.ResultProtocolError)
		return
	}
	found := 0
	for _, e := range s.opts.Entries {
		in := strings.EqualFold(e.DN, m.BaseDN) || m.Scope != gldap.BaseObject && strings.HasSuffix(strings.ToLower(e.DN), ","+strings.ToLower(m.BaseDN))
		if !in || !matches(filter, e) {
			continue
		}
		if found++; m.SizeLimit > 0 && int64(found) > m.SizeLimit {
			resp.SetResultCode(gldap.ResultSizeLimitExceeded)
			return
		}
		attributes := map[string][]string{}
		for name, values := range e.Attributes {
			if slices.ContainsFunc(m.Attributes, func(a string) bool { return strings.EqualFold(a, name) }) {
				attributes[name] = values
			}
		}
		_ = w.Write(r.NewSearchResponseEntry(e.DN, gldap.WithAttributes(attributes))) // the client may be gone
	}
	resp.SetResultCode(gldap.ResultSuccess)
}

// matches reports whether an entry matches a filter, without regard to case.
func matches(f *ber.Packet, e Entry) bool {
	value := func(i int) string { return f.Children[i].Data.String() }
	values := func(name string) []string {
		for n, v := range e.Attributes {
			if strings.EqualFold(n, name) {
				return v
			}
		}
		return nil
	}
	switch f.Tag {
	case ldap.FilterAnd:
		return !slices.ContainsFunc(f.Children, func(c *ber.Packet) bool { return !matches(c, e) })
	case ldap.FilterOr:
		return slices.ContainsFunc(f.Children, func(c *ber.Packet) bool { return matches(c, e) })
	case ldap.FilterNot:
		return !matches(f.Children[0], e)
	case ldap.FilterEqualityMatch:
		return slices.ContainsFunc(values(value(0)), func(v string) bool { return strings.EqualFold(v, value(1)) })
	case ldap.FilterPresent:
		return len(values(f.Data.String())) > 0
	case ldap.FilterExtensibleMatch: // memberOf:rule:=group, as of a nested group
		return slices.ContainsFunc(values(value(1)), func(v string) bool { return strings.EqualFold(v, value(2)) })
	}
	return false
}

func (s *Server) startTLS(w *gldap.ResponseWriter, r *gldap.Request) {
	resp := r.NewExtendedResponse(gldap.WithResponseCode(gldap.ResultUnwillingToPerform))
	resp.SetResponseName(gldap.ExtendedOperationStartTLS)
	if s.opts.TLS == nil || s.opts.Implicit {
		_ = w.Write(resp) // the client may be gone
		return
	}
	resp.SetResultCode(gldap.ResultSuccess)
	_ = w.Write(resp)                  // the client may be gone
	_ = r.StartTLS(s.opts.TLS.Clone()) // the client sees that it failed
}
