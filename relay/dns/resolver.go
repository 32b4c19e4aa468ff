package dns

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	mdns "github.com/miekg/dns"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// The defaults of [Options], and bounds that are not for configuration. All are
// chosen by taste, with RFC 2308 and RFC 9520 in hand.
const (
	defaultTimeout   = 3 * time.Second
	defaultAttempts  = 2
	defaultCacheSize = 10_000
	defaultMaxHosts  = 20

	questionLimit = 30 * time.Second // everything that one question may take, over all servers, attempts and aliases
	maxTTL        = 24 * time.Hour
	maxNegative   = time.Hour       // RFC 2308 section 5: one to three hours
	failureTTL    = 5 * time.Second // RFC 9520 section 3.2: at least one second, at most five minutes
	maxAliases    = 8               // length of a CNAME chain
	maxRecords    = 64              // kept of one answer
	maxAddrs      = 16              // of one host
)

// Options configure a Resolver. Zero fields mean the default.
type Options struct {
	Servers   []string      // "host:port" or "host"; empty: those of /etc/resolv.conf
	Search    []string      // domains to look for hosts without a dot in; with no Servers, those of /etc/resolv.conf
	Timeout   time.Duration // of one try at one server; default 3s
	Attempts  int           // rounds over all servers; default 2
	CacheSize int           // answers; default 10,000; negative: no cache
	MaxHosts  int           // of one domain; default 20
	HostsFile string        // default /etc/hosts
	TrustAD   bool          // servers that are not on this machine may say that answers are authentic, too
	Emitter   event.Emitter
}

// Resolver asks recursive servers and remembers what they say. It is safe for
// use by many goroutines.
type Resolver struct {
	opts    Options
	servers []string
	hosts   *hostsFile
	ctx     context.Context // of questions, which outlive the first who asked; ended by Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu     sync.Mutex
	cache  *lru
	flight map[question]*flight
	closed bool
}

// question is a key of the cache. Its name is lower case, with a trailing dot.
type question struct {
	name  string
	qtype uint16
}

// flight is a question that is being asked now.
type flight struct {
	done   chan struct{}
	answer *answer
	err    error // there will be no answer
}

// answer is what the servers said, good or bad.
type answer struct {
	records []mdns.RR // of the type asked for; the names in them are checked by who uses them
	secure  bool      // the server says that it has authenticated all of it (AD, RFC 4035 section 3.2.3)
	fail    Kind      // empty when there are records
	err     error
	expires time.Time
}

// New makes a Resolver. It fails when a server is not "host:port".
func New(opts Options) (*Resolver, error) {
	opts.Timeout = cmp.Or(opts.Timeout, defaultTimeout)
	opts.Attempts = cmp.Or(opts.Attempts, defaultAttempts)
	opts.CacheSize = cmp.Or(opts.CacheSize, defaultCacheSize)
	opts.MaxHosts = cmp.Or(opts.MaxHosts, defaultMaxHosts)
	opts.HostsFile = cmp.Or(opts.HostsFile, "/etc/hosts")
	r := &Resolver{opts: opts, cache: newLRU(opts.CacheSize), flight: map[question]*flight{}, hosts: &hostsFile{path: opts.HostsFile}}
	for _, s := range opts.Servers {
		if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
			s = netip.AddrPortFrom(ip, 53).String()
		}
		if _, err := netip.ParseAddrPort(s); err != nil {
			return nil, fmt.Errorf("DNS server %q: must be an IP address and a port", s)
		}
		r.servers = append(r.servers, s)
	}
	if len(r.servers) == 0 {
		r.servers, r.opts.Search = systemServers("/etc/resolv.conf")
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

func systemServers(path string) (servers, search []string) {
	if conf, err := mdns.ClientConfigFromFile(path); err == nil {
		for _, s := range conf.Servers[:min(len(conf.Servers), 3)] { // as many as the C library takes
			if ip, err := netip.ParseAddr(s); err == nil {
				servers = append(servers, netip.AddrPortFrom(ip, 53).String())
			}
		}
		search = conf.Search[:min(len(conf.Search), 6)]
	}
	if len(servers) == 0 {
		servers = []string{"127.0.0.1:53"} // resolv.conf(5)
	}
	return servers, search
}

var _ Looker = (*Resolver)(nil)

// Close ends all questions and waits for their ends. Questions that come later
// fail.
func (r *Resolver) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
	return nil
}

// Servers returns the servers that r asks.
func (r *Resolver) Servers() []string { return slices.Clone(r.servers) }

// Flush forgets all answers.
func (r *Resolver) Flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cache = newLRU(r.opts.CacheSize)
}

// MX implements [Looker] by RFC 5321 section 5.1: only a domain that has no MX
// at all is its own host, and a server that failed does not tell that.
func (r *Resolver) MX(ctx context.Context, domain string) ([]MX, error) {
	if _, ok := literal(domain); ok {
		return []MX{{Host: domain, Implicit: true}}, nil
	}
	name, err := queryName(domain)
	if err != nil {
		return nil, &Error{Kind: NXDomain, Name: domain, Type: "MX", Err: err}
	}
	a, err := r.ask(ctx, question{name, mdns.TypeMX})
	if err != nil {
		return nil, &Error{Kind: Timeout, Name: domain, Type: "MX", Err: err}
	}
	switch {
	case a.fail == NoData:
		_, secure, err := r.addrs(ctx, domain)
		if err == nil {
			return []MX{{Host: strings.TrimSuffix(name, "."), Implicit: true, Secure: a.secure && secure}}, nil
		}
		err.Name, err.Type = domain, "MX"
		if err.Kind == NXDomain {
			err.Kind = NoData // the name exists, or there had been no NODATA
		}
		return nil, err
	case a.fail != "":
		return nil, &Error{Kind: a.fail, Name: domain, Type: "MX", Err: a.err}
	}
	return r.mx(domain, a)
}

func (r *Resolver) mx(domain string, a *answer) ([]MX, error) {
	var hosts []MX
	null := false
	for _, rr := range a.records {
		mx, ok := rr.(*mdns.MX)
		if !ok {
			continue
		}
		if mx.Mx == "." { // RFC 7505 section 3
			null = true
			continue
		}
		if h := strings.ToLower(strings.TrimSuffix(mx.Mx, ".")); validHost(h) {
			hosts = append(hosts, MX{Host: h, Preference: mx.Preference, Secure: a.secure})
		}
	}
	if len(hosts) == 0 {
		if null {
			return nil, &Error{Kind: NullMX, Name: domain, Type: "MX"}
		}
		return nil, &Error{Kind: NoData, Name: domain, Type: "MX", Err: errors.New("no MX names a host")}
	}
	rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] }) //nolint:gosec // RFC 5321 section 5.1: ties share the load
	slices.SortStableFunc(hosts, func(a, b MX) int { return cmp.Compare(a.Preference, b.Preference) })
	return hosts[:min(len(hosts), r.opts.MaxHosts)], nil
}

// Addrs implements [Looker]. The host may be an address, with or without
// brackets; names in the hosts file and localhost need no server; a name without
// a dot that does not exist is looked for in the search domains. IPv6 and IPv4
// alternate, IPv6 first (RFC 8305 section 4), each in random order.
func (r *Resolver) Addrs(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs, _, err := r.addrs(ctx, host)
	if err != nil && err.Kind == NXDomain && host != "" && !strings.ContainsAny(host, ".:[") {
		for _, domain := range r.opts.Search {
			if found, _, err := r.addrs(ctx, host+"."+domain); err == nil {
				return found, nil
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return addrs, nil
}

func (r *Resolver) addrs(ctx context.Context, host string) ([]netip.Addr, bool, *Error) {
	if ip, ok := literal(host); ok {
		return []netip.Addr{ip}, false, nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, false, nil
	}
	name, err := queryName(host)
	if err != nil {
		return nil, false, &Error{Kind: NXDomain, Name: host, Type: "A", Err: err}
	}
	if ips := r.hosts.lookup(strings.TrimSuffix(name, ".")); len(ips) > 0 {
		return ips, false, nil
	}
	f6, f4 := r.start(ctx, question{name, mdns.TypeAAAA}), r.start(ctx, question{name, mdns.TypeA})
	six, err6 := f6.wait(ctx)
	four, err4 := f4.wait(ctx)
	if err := errors.Join(err4, err6); err != nil {
		return nil, false, &Error{Kind: Timeout, Name: host, Type: "A", Err: err}
	}
	ips := interleave(six.addrs(), four.addrs())
	if len(ips) > 0 {
		return ips[:min(len(ips), maxAddrs)], four.secure && six.secure, nil
	}
	// A temporary failure of either says more than the other's "no such record".
	worst, qtype := four, "A"
	if rank(six.fail) > rank(four.fail) {
		worst, qtype = six, "AAAA"
	}
	return nil, false, &Error{Kind: cmp.Or(worst.fail, NoData), Name: host, Type: qtype, Err: worst.err}
}

func rank(k Kind) int {
	return slices.Index([]Kind{NXDomain, NoData, ServFail, Timeout}, k)
}

func (a *answer) addrs() []netip.Addr {
	var ips []netip.Addr
	for _, rr := range a.records {
		var ip netip.Addr
		var ok bool
		switch rr := rr.(type) {
		case *mdns.A:
			ip, ok = netip.AddrFromSlice(rr.A)
		case *mdns.AAAA:
			ip, ok = netip.AddrFromSlice(rr.AAAA)
		}
		if ok && !slices.Contains(ips, ip.Unmap()) {
			ips = append(ips, ip.Unmap())
		}
	}
	rand.Shuffle(len(ips), func(i, j int) { ips[i], ips[j] = ips[j], ips[i] }) //nolint:gosec // shares the load
	return ips
}

func interleave(a, b []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(a)+len(b))
	for i := range max(len(a), len(b)) {
		if i < len(a) {
			out = append(out, a[i])
		}
		if i < len(b) {
			out = append(out, b[i])
		}
	}
	return out
}

// TXT returns the texts of name, each put together from its strings (RFC 7208
// section 3.3).
func (r *Resolver) TXT(ctx context.Context, name string) ([]string, error) {
	a, err := r.records(ctx, name, mdns.TypeTXT)
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, rr := range a.records {
		if txt, ok := rr.(*mdns.TXT); ok {
			texts = append(texts, strings.Join(txt.Txt, ""))
		}
	}
	return texts, nil
}

// A returns the IPv4 addresses of name as the DNS has them, whatever the hosts
// file says: for names that stand for something else than a host.
func (r *Resolver) A(ctx context.Context, name string) ([]netip.Addr, error) {
	a, err := r.records(ctx, name, mdns.TypeA)
	if err != nil {
		return nil, err
	}
	return a.addrs(), nil
}

// PTR returns the names of ip. They are claims: ask whether they have that
// address.
func (r *Resolver) PTR(ctx context.Context, ip netip.Addr) ([]string, error) {
	rev, err := mdns.ReverseAddr(ip.Unmap().WithZone("").String())
	if err != nil {
		return nil, &Error{Kind: NXDomain, Name: ip.String(), Type: "PTR", Err: err}
	}
	a, err := r.records(ctx, rev, mdns.TypePTR)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, rr := range a.records {
		if ptr, ok := rr.(*mdns.PTR); ok {
			if h := strings.ToLower(strings.TrimSuffix(ptr.Ptr, ".")); validHost(h) {
				names = append(names, h)
			}
		}
	}
	if len(names) == 0 {
		return nil, &Error{Kind: NoData, Name: rev, Type: "PTR", Err: errors.New("no PTR names a host")}
	}
	return names, nil
}

// TLSA is one certificate association (RFC 6698 section 2.1).
type TLSA struct {
	Usage, Selector, MatchingType uint8
	Data                          []byte
}

// TLSA returns the associations of name, such as "_25._tcp.mx.example.com", and
// whether the server authenticated them: RFC 7672 section 2.1 counts no others.
func (r *Resolver) TLSA(ctx context.Context, name string) (records []TLSA, secure bool, err error) {
	a, err := r.records(ctx, name, mdns.TypeTLSA)
	if err != nil {
		return nil, false, err
	}
	for _, rr := range a.records {
		t, ok := rr.(*mdns.TLSA)
		if !ok {
			continue
		}
		if data, err := hex.DecodeString(t.Certificate); err == nil {
			records = append(records, TLSA{t.Usage, t.Selector, t.MatchingType, data})
		}
	}
	return records, a.secure, nil
}

func (r *Resolver) records(ctx context.Context, name string, qtype uint16) (*answer, error) {
	fail := &Error{Name: name, Type: mdns.TypeToString[qtype]}
	full, err := queryName(name)
	if err != nil {
		fail.Kind, fail.Err = NXDomain, err
		return nil, fail
	}
	a, err := r.ask(ctx, question{full, qtype})
	switch {
	case err != nil:
		fail.Kind, fail.Err = Timeout, err
		return nil, fail
	case a.fail != "":
		fail.Kind, fail.Err = a.fail, a.err
		return nil, fail
	}
	return a, nil
}

// literal parses an address literal of RFC 5321 section 4.1.3.
func literal(s string) (netip.Addr, bool) {
	s, ok := strings.CutPrefix(s, "[")
	if !ok {
		return netip.Addr{}, false
	}
	if s, ok = strings.CutSuffix(s, "]"); !ok {
		return netip.Addr{}, false
	}
	if len(s) > 5 && strings.EqualFold(s[:5], "IPv6:") {
		s = s[5:]
	}
	ip, err := netip.ParseAddr(s)
	return ip.Unmap(), err == nil
}

// queryName is the absolute name to ask for.
func queryName(name string) (string, error) {
	folded, err := mail.ParseDomain(name)
	if err != nil {
		return "", err
	}
	full := mdns.Fqdn(folded)
	if _, ok := mdns.IsDomainName(full); !ok {
		return "", errors.New("not a domain name")
	}
	return full, nil
}

// validHost accepts what may be the name of a host that takes mail: neither an
// address (RFC 5321 section 5.1 wants a name) nor anything that a log or a
// command line could take for something else.
func validHost(h string) bool {
	if h == "" || len(h) > 253 {
		return false
	}
	for i := range len(h) {
		switch c := h[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	_, err := netip.ParseAddr(h)
	return err != nil
}
