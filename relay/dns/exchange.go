package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"waybill/relay/event"
)

// udpSize is what we take over UDP: it fits any path unfragmented (DNS flag day 2020).
const udpSize = 1232

var errClosed = errors.New("resolver is closed")

// ask answers q from the cache or from the servers. The error is ctx's, or
// errClosed; all others are in the answer.
func (r *Resolver) ask(ctx context.Context, q question) (*answer, error) {
	return r.start(ctx, q).wait(ctx)
}

// start begins to ask q. Who asks what is being asked already gets that answer,
// and the question goes on when the first who asked has gone.
func (r *Resolver) start(ctx context.Context, q question) *flight {
	tally := tallyOf(ctx)
	r.mu.Lock()
	if a := r.cache.get(q); a != nil && time.Now().Before(a.expires) {
		r.mu.Unlock()
		tally.add(true)
		r.opts.Emitter.Emit(event.DNSAnswered{Type: mdns.TypeToString[q.qtype], Result: "cached"})
		return &flight{done: landed, answer: a}
	}
	defer r.mu.Unlock()
	if r.closed {
		return &flight{done: landed, err: errClosed}
	}
	tally.add(false)
	f := r.flight[q]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		r.flight[q] = f
		r.wg.Go(func() { r.fly(q, f) })
	}
	return f
}

func (f *flight) wait(ctx context.Context) (*answer, error) {
	select {
	case <-f.done:
		return f.answer, f.err
	default:
	}
	select {
	case <-f.done:
		return f.answer, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// landed is done.
var landed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (r *Resolver) fly(q question, f *flight) {
	start := time.Now()
	a := r.resolve(q)
	end := time.Now()
	r.mu.Lock()
	if a.expires.After(end) && !r.closed {
		r.cache.put(q, a)
	}
	delete(r.flight, q)
	r.mu.Unlock()
	result := string(a.fail)
	if result == "" {
		result = "ok"
	}
	r.opts.Emitter.Emit(event.DNSAnswered{Type: mdns.TypeToString[q.qtype], Result: result, Took: event.Since(start, end)})
	f.answer = a
	close(f.done)
}

// resolve asks the servers and follows aliases (RFC 1034 section 3.6.2).
func (r *Resolver) resolve(q question) *answer {
	ctx, cancel := context.WithTimeout(r.ctx, questionLimit)
	defer cancel()
	out := &answer{secure: true}
	ttl := maxTTL
	name := q.name
	for aliases := 0; ; {
		m, err := r.exchange(ctx, question{name, q.qtype})
		if err != nil {
			kind := ServFail
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
				kind = Timeout
			}
			return &answer{fail: kind, err: err, expires: time.Now().Add(failureTTL)}
		}
		out.secure = out.secure && m.AuthenticatedData
		asked := name
		for {
			if out.records, ttl = matching(m.Answer, name, q.qtype, ttl); len(out.records) > 0 {
				out.expires = time.Now().Add(ttl)
				return out
			}
			target, aliasTTL, ok := alias(m.Answer, name)
			if !ok {
				break
			}
			ttl = min(ttl, aliasTTL)
			name = target
			if aliases++; aliases > maxAliases {
				return &answer{fail: ServFail, err: fmt.Errorf("more than %d aliases", maxAliases), expires: time.Now().Add(failureTTL)}
			}
		}
		if m.Rcode == mdns.RcodeNameError || name == asked { // RFC 6604: the code is about the last name of the chain
			out.fail = NoData
			if m.Rcode == mdns.RcodeNameError {
				out.fail = NXDomain
			}
			out.expires = time.Now().Add(min(ttl, negativeTTL(m)))
			return out
		}
	}
}

// matching returns the records of name among those of an answer, which may hold
// anything, and the least time to live.
func matching(rrs []mdns.RR, name string, qtype uint16, ttl time.Duration) ([]mdns.RR, time.Duration) {
	var out []mdns.RR
	for _, rr := range rrs {
		h := rr.Header()
		if h.Rrtype == qtype && h.Class == mdns.ClassINET && strings.EqualFold(h.Name, name) && len(out) < maxRecords {
			out = append(out, rr)
			ttl = min(ttl, time.Duration(h.Ttl)*time.Second)
		}
	}
	return out, ttl
}

func alias(rrs []mdns.RR, name string) (target string, ttl time.Duration, ok bool) {
	for _, rr := range rrs {
		if c, is := rr.(*mdns.CNAME); is && strings.EqualFold(c.Hdr.Name, name) {
			return strings.ToLower(c.Target), time.Duration(c.Hdr.Ttl) * time.Second, true
		}
	}
	return "", 0, false
}

// negativeTTL is how long "no" holds (RFC 2308 section 5). Without a SOA it is
// not to be kept; a moment is, so that one message's recipients ask once.
func negativeTTL(m *mdns.Msg) time.Duration {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*mdns.SOA); ok {
			return min(time.Duration(min(soa.Minttl, soa.Hdr.Ttl))*time.Second, maxNegative)
		}
	}
	return failureTTL
}

// exchange asks the servers in turn, for some rounds, until one gives an answer
// that says something about the name.
func (r *Resolver) exchange(ctx context.Context, q question) (*mdns.Msg, error) {
	var errs []error
	for range r.opts.Attempts {
		for _, server := range r.servers {
			m, err := r.askServer(ctx, server, q)
			if err == nil {
				return m, nil
			}
			if ctx.Err() != nil {
				return nil, together(append(errs, ctx.Err()))
			}
			if op, ok := errors.AsType[*net.OpError](err); ok {
				err = op.Err // without our port, which is another one each time
			}
			if err = fmt.Errorf("server %s: %w", server, err); !slices.ContainsFunc(errs, func(e error) bool { return e.Error() == err.Error() }) {
				errs = append(errs, err)
			}
		}
	}
	return nil, together(errs)
}

// together is errors as one, in one line. There is one at least.
func together(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	return fmt.Errorf("%w; %w", errs[0], together(errs[1:]))
}

// askServer asks one server over UDP, over TCP when the answer was cut, and
// without EDNS when it does not know that (RFC 6891 section 7).
func (r *Resolver) askServer(ctx context.Context, server string, q question) (*mdns.Msg, error) {
	edns := true
	for network := "udp"; ; {
		m, err := r.roundTrip(ctx, network, server, q, edns)
		switch {
		case err != nil:
			return nil, err
		case edns && (m.Rcode == mdns.RcodeFormatError || m.Rcode == mdns.RcodeNotImplemented):
			edns = false
		case m.Truncated && network == "udp":
			network = "tcp"
		case m.Truncated:
			return nil, errors.New("answer cut over TCP")
		case m.Rcode == mdns.RcodeSuccess, m.Rcode == mdns.RcodeNameError:
			m.AuthenticatedData = m.AuthenticatedData && r.trusts(server)
			return m, nil
		default:
			return nil, fmt.Errorf("answered %s", cmpRcode(m.Rcode))
		}
	}
}

func cmpRcode(code int) string {
	if s, ok := mdns.RcodeToString[code]; ok {
		return s
	}
	return fmt.Sprintf("code %d", code)
}

// roundTrip sends one question from a fresh port and reads until its answer
// comes: what does not fit the question was not sent by who we asked.
func (r *Resolver) roundTrip(ctx context.Context, network, server string, q question, edns bool) (*mdns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.Timeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })()
	conn := &mdns.Conn{Conn: raw, UDPSize: udpSize}

	ask := new(mdns.Msg)
	ask.SetQuestion(q.name, q.qtype)
	ask.AuthenticatedData = true // RFC 6840 section 5.7: we understand AD
	if edns {
		ask.SetEdns0(udpSize, true)
	}
	if err := conn.WriteMsg(ask); err != nil {
		return nil, err
	}
	for range 100 { // a flood of forgeries must not hold us until the deadline
		var h mdns.Header
		b, err := conn.ReadMsgHeader(&h)
		if err != nil {
			return nil, err
		}
		if h.Id != ask.Id {
			continue
		}
		m := new(mdns.Msg)
		if err := m.Unpack(b); err != nil && !m.Truncated {
			return nil, fmt.Errorf("malformed answer: %w", err)
		}
		if !m.Response || len(m.Question) > 1 || len(m.Question) == 1 && !sameQuestion(m.Question[0], q) {
			continue
		}
		if len(m.Question) == 0 && m.Rcode == mdns.RcodeSuccess {
			continue
		}
		return m, nil
	}
	return nil, errors.New("too many answers to other questions")
}

func sameQuestion(got mdns.Question, want question) bool {
	return got.Qtype == want.qtype && got.Qclass == mdns.ClassINET && strings.EqualFold(got.Name, want.name)
}
