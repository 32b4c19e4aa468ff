package route

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"waybill/relay/mail"
)

const (
	minCost = 1
	maxCost = 100
)

// Table is a set of send connectors, ready to be asked. It does not change
// after [New], and may be asked by many goroutines at once.
type Table struct {
	connectors []Connector
	exact      map[string][]entry // "example.com"
	under      map[string][]entry // "example.com" for "*.example.com"
	any        []entry            // "*"
	origins    []origin           // of the connectors
	linked     map[string]bool    // receive connectors that something is linked to
}

// entry is one address space of one connector that is enabled. Lists of
// entries are sorted by preference.
type entry struct {
	connector *Connector
	origin    *origin // nil: from anywhere
	pattern   string
	cost      int
	why       string // prepared, because it is stated for every recipient
	whySize   string // the same, when a size limit ruled out a better connector
}

// fits reports whether the connector's size limit lets the message through.
func (e *entry) fits(size int64) bool { return e.connector.MaxSize == 0 || size <= e.connector.MaxSize }

// takes reports whether the connector can hand over to domain at all: without a
// domain there is no MX to ask for (RFC 5321 section 4.5.1, "postmaster").
func (e *entry) takes(domain string) bool { return domain != "" || len(e.connector.SmartHosts) > 0 }

// New makes a Table. The error tells of every connector and space that is
// wrong, not only of the first.
func New(connectors []Connector) (_ *Table, err error) {
	t := &Table{
		connectors: slices.Clone(connectors), exact: map[string][]entry{}, under: map[string][]entry{},
		origins: make([]origin, len(connectors)), linked: map[string]bool{},
	}
	var errs []error
	seen := map[string]bool{}
	for i := range t.connectors {
		c := &t.connectors[i]
		c.Spaces, c.SmartHosts = slices.Clone(c.Spaces), slices.Clone(c.SmartHosts)
		if c.Name == "" {
			errs = append(errs, fmt.Errorf("send connector %d: no name", i))
		} else if seen[c.Name] {
			errs = append(errs, fmt.Errorf("send connector %s: the name is used twice", c.Name))
		}
		seen[c.Name] = true
		if c.MaxSize < 0 {
			errs = append(errs, fmt.Errorf("send connector %s: negative size limit", c.Name))
		}
		for _, h := range c.SmartHosts {
			if h.Host == "" {
				errs = append(errs, fmt.Errorf("send connector %s: smart host without a name", c.Name))
			}
		}
		if t.origins[i], err = newOrigin(c); err != nil {
			errs = append(errs, fmt.Errorf("send connector %s: %w", c.Name, err))
		}
		for _, r := range c.Receive {
			t.linked[r] = t.linked[r] || !c.Disabled
		}
		for j := range c.Spaces {
			if err := t.add(c, &t.origins[i], &c.Spaces[j]); err != nil {
				errs = append(errs, fmt.Errorf("send connector %s: address space %q: %w", c.Name, c.Spaces[j].Pattern, err))
			}
		}
	}
	if err = errors.Join(errs...); err != nil {
		return nil, err
	}
	for _, entries := range t.exact {
		slices.SortFunc(entries, prefer)
	}
	for _, entries := range t.under {
		slices.SortFunc(entries, prefer)
	}
	slices.SortFunc(t.any, prefer)
	return t, nil
}

// add normalises s and puts it into the index.
func (t *Table) add(c *Connector, o *origin, s *Space) error {
	if s.Cost == 0 {
		s.Cost = minCost
	}
	if s.Cost < minCost || s.Cost > maxCost {
		return fmt.Errorf("cost %d is not between %d and %d", s.Cost, minCost, maxCost)
	}
	domain, wild := strings.CutPrefix(s.Pattern, "*.")
	if s.Pattern != "*" {
		d, err := mail.ParseDomain(domain)
		if err != nil {
			return err
		}
		if wild && d[0] == '[' {
			return errors.New("an address literal has no sub-domains")
		}
		domain, s.Pattern = d, d
		if wild {
			s.Pattern = "*." + d
		}
	}
	if c.Disabled {
		return nil
	}
	e := entry{connector: c, pattern: s.Pattern, cost: s.Cost}
	if o.any() {
		e.origin = o
	}
	e.why = fmt.Sprintf("address space %s, cost %d", s.Pattern, s.Cost)
	e.whySize = e.why + "; a better match has a lower size limit"
	switch {
	case s.Pattern == "*":
		t.any = append(t.any, e)
	case wild:
		t.under[domain] = append(t.under[domain], e)
	default:
		t.exact[domain] = append(t.exact[domain], e)
	}
	return nil
}

// prefer orders the entries of one pattern: by cost, then by name.
func prefer(a, b entry) int {
	return cmp.Or(cmp.Compare(a.cost, b.cost), strings.Compare(a.connector.Name, b.connector.Name))
}

// Connectors lists the table's connectors in their order. They are not to be changed.
func (t *Table) Connectors() []Connector { return t.connectors }

// Route decides where q's recipient goes. It is asked for every recipient of
// every message, and does not allocate for domains in lower-case ASCII, unless
// a connector wins because of the sender.
func (t *Table) Route(q Query) Decision {
	domain := q.Recipient.DomainKey()
	if target := q.Via.Target(); target != "" {
		return t.redirected(&q, domain)
	}
	tooLarge := false
	if t.linked[q.Receive] {
		if d, ok := t.first(&q, domain, true, &tooLarge); ok {
			return d
		}
	}
	if d, ok := t.first(&q, domain, false, &tooLarge); ok {
		return d
	}
	return nowhere(domain, tooLarge)
}

// first decides among the connectors that are linked to q's receive connector,
// or among those that are not.
func (t *Table) first(q *Query, domain string, linked bool, tooLarge *bool) (Decision, bool) {
	for entries := range t.matches(domain) {
		if c := choose(entries, q, domain, linked, tooLarge); c.entry != nil {
			return c.decide(domain), true
		}
	}
	return Decision{}, false
}

// choice is an entry that may win.
type choice struct {
	entry   *entry
	rank    int    // of the sender
	words   string // why it is for this origin
	instead string // the connector that cannot be reached
	others  bool   // there are more connectors of the same rank
	passed  bool   // a better one has a lower size limit
}

// choose finds the best entry of one pattern. Entries are in the order of cost
// and name, so that the first one of the closest rank wins.
func choose(entries []entry, q *Query, domain string, linked bool, tooLarge *bool) (best choice) {
	down := "" // the connector of best's rank that would have won
	before := *tooLarge
	large := -1 // the closest rank that was too large for its connector
	for i := range entries {
		e := &entries[i]
		if (e.origin != nil && e.origin.linked()) != linked || !e.takes(domain) {
			continue
		}
		rank, words := rankNone, ""
		if e.origin != nil {
			var ok bool
			if rank, words, ok = e.origin.match(q); !ok {
				continue
			}
		}
		if best.entry != nil && rank < best.rank {
			continue
		}
		if best.entry != nil && rank == best.rank && down == "" {
			best.others = best.others || e.connector != best.entry.connector && e.fits(q.Size)
			continue
		}
		if !e.fits(q.Size) {
			*tooLarge = true
			large = max(large, rank)
			best.passed = best.passed || rank > best.rank
			continue
		}
		passed := before || large >= rank
		reachable := q.Avoid == nil || !q.Avoid(e.hop(domain))
		switch {
		case best.entry == nil || rank > best.rank:
			best = choice{entry: e, rank: rank, words: words, passed: passed}
			down = ""
			if !reachable {
				down = e.connector.Name
			}
		case reachable: // instead of the one that is down
			best = choice{entry: e, rank: rank, words: words, passed: passed, instead: down, others: true}
			down = ""
		default:
			best.others = best.others || e.connector != best.entry.connector
		}
	}
	return best
}

// redirected decides for a recipient that an operator sent to one host.
func (t *Table) redirected(q *Query, domain string) Decision {
	for i := range t.connectors {
		if c := &t.connectors[i]; c.Name == q.Via.Connector && !c.Disabled {
			return Decision{Hop: q.Via, Connector: c, Why: "redirected to " + q.Via.Target() + " by an operator"}
		}
	}
	name, plain := q.Via.Name, *q
	plain.Via = Hop{}
	d := t.Route(plain)
	if d.Connector != nil {
		d.Why = "redirected to " + q.Via.Target() + " by an operator; " + q.Via.Connector + " is gone: " + d.Why
		d.Hop = Hop{Connector: d.Connector.Name, Name: name}
	}
	return d
}

// matches yields the lists of entries whose pattern matches domain, the most
// specific first.
func (t *Table) matches(domain string) func(yield func([]entry) bool) {
	return func(yield func([]entry) bool) {
		if domain != "" {
			if !yield(t.exact[domain]) {
				return
			}
			if domain[0] != '[' {
				for rest := domain; ; {
					_, parent, ok := strings.Cut(rest, ".")
					if !ok {
						break
					}
					if !yield(t.under[parent]) {
						return
					}
					rest = parent
				}
			}
		}
		yield(t.any)
	}
}

func (e *entry) hop(domain string) Hop {
	if len(e.connector.SmartHosts) > 0 {
		return Hop{Connector: e.connector.Name, Name: e.connector.Name}
	}
	return Hop{Connector: e.connector.Name, Name: domain}
}

func (c *choice) decide(domain string) Decision {
	e := c.entry
	d := Decision{Hop: e.hop(domain), Connector: e.connector, Space: e.pattern, Why: e.why, Others: c.others}
	if c.passed {
		d.Why = e.whySize
	}
	if c.words != "" {
		d.Why += "; " + c.words
	}
	if c.instead != "" {
		d.Why += "; " + c.instead + " cannot be reached"
	}
	return d
}

func nowhere(domain string, tooLarge bool) Decision {
	switch {
	case tooLarge:
		return Decision{Hop: Oversize, Why: "the message is larger than every matching connector takes"}
	case domain == "":
		return Decision{Hop: Unroutable, Why: "the address has no domain, and no connector with smart hosts takes it"}
	}
	return Decision{Hop: Unroutable, Why: "no enabled connector has a matching address space"}
}

// Explain decides as [Table.Route] does, and tells of every connector why it
// won or lost. It looks at the connectors one by one and not at the index, so
// that each checks the other.
func (t *Table) Explain(q Query) Decision {
	domain := q.Recipient.DomainKey()
	if q.Via.Target() != "" {
		return t.redirected(&q, domain)
	}
	all := make([]ranked, 0, len(t.connectors))
	for i := range t.connectors {
		all = append(all, t.rank(i, &q, domain))
	}
	slices.SortStableFunc(all, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(btoi(a.loss != ""), btoi(b.loss != "")), a.before(&b))
	})
	down := instead(all, &q, domain)
	tooLarge, passedOver := false, false
	for i := range all {
		if r := &all[i]; r.tooLarge {
			tooLarge = true
			passedOver = passedOver || all[0].loss == "" && r.before(&all[0]) < 0
		}
	}
	d := nowhere(domain, tooLarge)
	if len(all) > 0 && all[0].loss == "" {
		w := &all[0]
		e := entry{connector: w.connector, pattern: w.Space, why: fmt.Sprintf("address space %s, cost %d", w.Space, w.Cost)}
		e.whySize = e.why + "; a better match has a lower size limit"
		c := choice{entry: &e, words: w.words, instead: down, passed: passedOver, others: len(all) > 1 && all[1].loss == "" && all[1].equals(w)}
		d = c.decide(domain)
	}
	for i := range all {
		r, w := &all[i], &all[0]
		switch {
		case r.loss != "":
			r.Why = r.loss
		case i == 0:
			r.Won, r.Why = true, d.Why
		default:
			r.Why = r.lostTo(w)
		}
		d.Candidates = append(d.Candidates, r.Candidate)
	}
	return d
}

// ranked is a connector on its way to a Candidate.
type ranked struct {
	Candidate
	connector *Connector
	linked    bool
	rank      int // of the space; 0 when none matches
	sender    int // how closely it names the sender
	words     string
	loss      string
	tooLarge  bool // the only reason for the loss
	down      bool // passed over, because its next hop cannot be reached
}

// rank looks at connector i.
func (t *Table) rank(i int, q *Query, domain string) ranked {
	c := &t.connectors[i]
	r := ranked{connector: c, Candidate: Candidate{Connector: c.Name}, linked: t.origins[i].linked()}
	for _, s := range c.Spaces {
		if rank := specificity(s.Pattern, domain); rank > r.rank || rank == r.rank && rank > 0 && s.Cost < r.Cost {
			r.rank, r.Space, r.Cost = rank, s.Pattern, s.Cost
		}
	}
	rank, words, ok := t.origins[i].match(q)
	switch {
	case c.Disabled:
		r.loss = "disabled"
	case len(c.Spaces) == 0:
		r.loss = "it has no address space"
	case r.rank == 0:
		r.loss = "no address space matches"
	case !ok:
		r.loss = words
	case domain == "" && len(c.SmartHosts) == 0:
		r.loss = "an address without a domain cannot be routed by MX"
	case c.MaxSize > 0 && q.Size > c.MaxSize:
		r.tooLarge = true
		r.loss = fmt.Sprintf("size %d is above its limit of %d octets", q.Size, c.MaxSize)
	}
	if ok {
		r.sender, r.words = rank, words
	}
	return r
}

// before is negative when r is preferred to o.
func (r *ranked) before(o *ranked) int {
	return cmp.Or(
		cmp.Compare(btoi(o.linked), btoi(r.linked)), cmp.Compare(o.rank, r.rank), cmp.Compare(o.sender, r.sender),
		cmp.Compare(r.Cost, o.Cost), strings.Compare(r.Connector, o.Connector))
}

// equals reports whether r may take the place of o when that cannot be reached.
func (r *ranked) equals(o *ranked) bool {
	return r.linked == o.linked && r.rank == o.rank && r.sender == o.sender
}

// instead moves the first connector that can be reached to the front, if it is
// as close as the one that is there, and names the latter.
func instead(all []ranked, q *Query, domain string) string {
	for i := range all {
		r, w := &all[i], &all[0]
		if q.Avoid == nil || r.loss != "" || !r.equals(w) {
			return ""
		}
		if q.Avoid((&entry{connector: r.connector}).hop(domain)) {
			r.down = true
			continue
		}
		if i == 0 {
			return ""
		}
		name, chosen := w.Connector, *r
		copy(all[1:i+1], all[:i])
		all[0] = chosen
		return name
	}
	return ""
}

// lostTo says why r lost to w, which won.
func (r *ranked) lostTo(w *ranked) string {
	switch {
	case r.down && !w.down:
		return "its next hop cannot be reached"
	case r.linked != w.linked:
		return w.Connector + " is linked to the receive connector"
	case r.rank < w.rank:
		return fmt.Sprintf("%s is less specific than %s of %s", r.Space, w.Space, w.Connector)
	case r.sender < w.sender:
		return fmt.Sprintf("%s names the sender more closely: %s", w.Connector, w.words)
	case r.Cost > w.Cost:
		return fmt.Sprintf("cost %d is above %d of %s", r.Cost, w.Cost, w.Connector)
	}
	return fmt.Sprintf("same address space and cost as %s, whose name comes first", w.Connector)
}

// specificity ranks how closely pattern matches domain; 0 is not at all. An
// exact match is above every wildcard, and a longer wildcard above a shorter.
func specificity(pattern, domain string) int {
	if pattern == "*" {
		return 1
	}
	sub, wild := strings.CutPrefix(pattern, "*")
	switch {
	case domain == "":
		return 0
	case pattern == domain:
		return 1 << 20
	case wild && domain[0] != '[' && len(domain) > len(sub) && strings.HasSuffix(domain, sub):
		return 1 + len(sub)
	}
	return 0
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
