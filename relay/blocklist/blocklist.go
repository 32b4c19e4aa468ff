// Package blocklist watches whether our own addresses are on DNS blocklists (RFC
// 5782).
//
// It exists because next hops that use such a list refuse our mail from one moment
// to the next, and the first to notice should be the operator. It promises that a
// list which does not answer, answers everything, or refuses to answer us never
// counts as one that lists us; that asking is bounded in time and number; and that
// each change is a fact.
//
// To watch something else than addresses, add a kind of key beside [Key].
package blocklist

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"waybill/relay/dns"
	"waybill/relay/event"
)

// The defaults of [Options].
const (
	DefaultInterval = time.Hour
	DefaultTimeout  = 10 * time.Second
)

// Resolver is what a Watcher asks; [dns.Resolver] is the real one.
type Resolver interface {
	// A returns the IPv4 addresses of name, from the DNS alone. Errors are *dns.Error.
	A(ctx context.Context, name string) ([]netip.Addr, error)
	// TXT returns the texts of name.
	TXT(ctx context.Context, name string) ([]string, error)
}

// Options configure a Watcher.
type Options struct {
	Lists     []string // zones, such as "zen.spamhaus.org"
	Addresses []netip.Addr
	Interval  time.Duration // between two looks; zero means DefaultInterval
	Timeout   time.Duration // of one look at one list; zero means DefaultTimeout
	Resolver  Resolver
	Emitter   event.Emitter
}

// Listing is what one list says of one address.
type Listing struct {
	List     string
	Address  netip.Addr
	Known    bool // the list has answered about it
	Listed   bool // as it did last
	Answered time.Time
}

// Watcher asks lists about addresses. It is safe for use by many goroutines.
type Watcher struct {
	opts Options

	mu    sync.Mutex
	state []Listing // of every list, each address
	last  []string  // result that was stated last, of each state
}

// New makes a Watcher. Nothing is asked before Run.
func New(opts Options) *Watcher {
	opts.Interval, opts.Timeout = cmp.Or(opts.Interval, DefaultInterval), cmp.Or(opts.Timeout, DefaultTimeout)
	w := &Watcher{opts: opts}
	for _, list := range opts.Lists {
		for _, ip := range opts.Addresses {
			w.state = append(w.state, Listing{List: list, Address: ip.Unmap()})
			w.last = append(w.last, event.ListingClean)
		}
	}
	return w
}

// Run asks now, and again after each interval, until ctx is done.
func (w *Watcher) Run(ctx context.Context) error {
	if len(w.state) == 0 {
		return nil
	}
	tick := time.NewTicker(w.opts.Interval)
	defer tick.Stop()
	for {
		w.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Listings are what is known now, list by list.
func (w *Watcher) Listings() []Listing {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.state)
}

// look asks all lists, side by side.
func (w *Watcher) look(ctx context.Context) {
	var group sync.WaitGroup
	for _, list := range w.opts.Lists {
		group.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, w.opts.Timeout)
			defer cancel()
			w.lookAt(ctx, list)
		})
	}
	group.Wait()
}

// lookAt asks one list about itself, and about each of our addresses.
func (w *Watcher) lookAt(ctx context.Context, list string) {
	broken := map[bool]error{} // by family: whether it is IPv6
	for i := range w.state {
		ip := w.state[i].Address // never changes
		if w.state[i].List != list {
			continue
		}
		err, known := broken[ip.Is6()]
		if !known {
			err = w.works(ctx, list, ip.Is6())
			broken[ip.Is6()] = err
		}
		var codes []netip.Addr
		if err == nil {
			codes, err = w.ask(ctx, list, ip)
		}
		if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
			return // we are ending
		}
		w.note(ctx, i, codes, err)
	}
}

// works asks for the entries that every list has and has not (RFC 5782 section 5).
// A list that has been given up, or that does not like us, fails here.
func (w *Watcher) works(ctx context.Context, list string, six bool) error {
	in, out := netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")
	if six {
		in, out = netip.MustParseAddr("::ffff:7f00:2"), netip.MustParseAddr("::ffff:7f00:1")
	}
	codes, err := w.ask(ctx, list, out)
	if err == nil && len(codes) > 0 {
		err = errors.New("it lists what no list has: it is no longer one")
	}
	if err != nil {
		return err
	}
	codes, err = w.ask(ctx, list, in)
	if err == nil && len(codes) == 0 {
		err = errors.New("it does not list what every list has: it has no entries of this kind, or is no longer a list")
	}
	return err
}

var (
	answers  = netip.MustParsePrefix("127.0.0.0/8")      // RFC 5782 section 2.1
	refusals = netip.MustParsePrefix("127.255.255.0/24") // by which some lists refuse a question
)

// ask asks whether list has ip. Without codes it has not.
func (w *Watcher) ask(ctx context.Context, list string, ip netip.Addr) ([]netip.Addr, error) {
	codes, err := w.opts.Resolver.A(ctx, Key(ip)+"."+list)
	if e, ok := errors.AsType[*dns.Error](err); ok && !e.Temporary() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, c := range codes {
		switch {
		case refusals.Contains(c):
			return nil, fmt.Errorf("it refuses to answer us (%s): ask it through a resolver of our own, or as its terms say", c)
		case !answers.Contains(c):
			return nil, fmt.Errorf("its answer %s is none of a list", c)
		}
	}
	slices.SortFunc(codes, netip.Addr.Compare)
	return codes, nil
}

// Bounds of what a list says about an entry.
const (
	maxReason = 200 // octets
	maxCodes  = 16
)

// note keeps what a list said, and states what has changed.
func (w *Watcher) note(ctx context.Context, i int, codes []netip.Addr, err error) {
	result := event.ListingClean
	switch {
	case err != nil:
		result = event.ListingUnknown
	case len(codes) > 0:
		result = event.ListingListed
	}
	w.mu.Lock()
	l := &w.state[i]
	if err == nil {
		l.Known, l.Listed, l.Answered = true, len(codes) > 0, time.Now()
	}
	changed := w.last[i] != result
	w.last[i] = result
	ev := event.ListingChanged{List: l.List, LocalIP: l.Address, Result: result}
	w.mu.Unlock()
	if !changed {
		return
	}
	if err != nil {
		ev.Error = err.Error()
	}
	var words []string
	for _, c := range codes[:min(len(codes), maxCodes)] {
		words = append(words, c.String())
	}
	ev.Codes = strings.Join(words, " ")
	if len(codes) > 0 {
		if texts, err := w.opts.Resolver.TXT(ctx, Key(ev.LocalIP)+"."+ev.List); err == nil && len(texts) > 0 {
			ev.Detail = printable(texts[0])
		}
	}
	w.opts.Emitter.Emit(ev)
}

// printable is the beginning of a text from outside, without what is not for people.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "…"
	}
	return s
}

// Key is what stands before the name of a list in a question about ip (RFC 5782
// sections 2.1 and 2.4): "4.3.2.1" for 1.2.3.4.
func Key(ip netip.Addr) string {
	var b strings.Builder
	raw := ip.AsSlice()
	for i, o := range slices.Backward(raw) {
		if ip.Is4() {
			b.WriteString(strconv.Itoa(int(o)))
		} else {
			b.WriteString(strconv.FormatUint(uint64(o&15), 16) + "." + strconv.FormatUint(uint64(o>>4), 16))
		}
		if i > 0 {
			b.WriteByte('.')
		}
	}
	return b.String()
}
