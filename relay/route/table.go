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
}

// entry is one address space of one connector that is enabled. Lists of
// entries are sorted by preference.
type entry struct {
	connector *Connector
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
func New(connectors []Connector) (*Table, error) {
	t := &Table{connectors: slices.Clone(connectors), exact: map[string][]entry{}, under: map[string][]entry{}}
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
		for j := range c.Spaces {
			if err := t.add(c, &c.Spaces[j]); err != nil {
				errs = append(errs, fmt.Errorf("send connector %s: address space %q: %w", c.Name, c.Spaces[j].Pattern, err))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
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
func (t *Table) add(c *Connector, s *Space) error {
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
// every message, and does not allocate for domains in lower-case ASCII.
func (t *Table) Route(q Query) Decision {
	domain := q.Recipient.DomainKey()
	tooLarge := false
	for entries := range t.matches(domain) {
		for i := range entries {
			e := &entries[i]
			switch {
			case !e.takes(domain):
			case !e.fits(q.Size):
				tooLarge = true
			default:
				return e.decide(domain, tooLarge)
			}
		}
	}
	return nowhere(domain, tooLarge)
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

func (e *entry) decide(domain string, passedOver bool) Decision {
	d := Decision{
		Hop:       Hop{Connector: e.connector.Name, Name: domain},
		Connector: e.connector,
		Space:     e.pattern,
		Why:       e.why,
	}
	if len(e.connector.SmartHosts) > 0 {
		d.Hop.Name = e.connector.Name
	}
	if passedOver {
		d.Why = e.whySize
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
	type ranked struct {
		Candidate
		connector *Connector
		rank      int // of the space; 0 when none matches
		loss      string
	}
	all := make([]ranked, 0, len(t.connectors))
	for i := range t.connectors {
		c := &t.connectors[i]
		r := ranked{connector: c, Candidate: Candidate{Connector: c.Name}}
		for _, s := range c.Spaces {
			if rank := specificity(s.Pattern, domain); rank > r.rank || rank == r.rank && rank > 0 && s.Cost < r.Cost {
				r.rank, r.Space, r.Cost = rank, s.Pattern, s.Cost
			}
		}
		switch {
		case c.Disabled:
			r.loss = "disabled"
		case len(c.Spaces) == 0:
			r.loss = "it has no address space"
		case r.rank == 0:
			r.loss = "no address space matches"
		case domain == "" && len(c.SmartHosts) == 0:
			r.loss = "an address without a domain cannot be routed by MX"
		case c.MaxSize > 0 && q.Size > c.MaxSize:
			r.loss = fmt.Sprintf("size %d is above its limit of %d octets", q.Size, c.MaxSize)
		}
		all = append(all, r)
	}
	slices.SortStableFunc(all, func(a, b ranked) int {
		return cmp.Or(
			cmp.Compare(btoi(a.loss != ""), btoi(b.loss != "")),
			cmp.Compare(b.rank, a.rank), cmp.Compare(a.Cost, b.Cost), strings.Compare(a.Connector, b.Connector))
	})

	tooLarge, passedOver := false, false
	for i := range all {
		r := &all[i]
		if strings.HasPrefix(r.loss, "size ") {
			tooLarge = true
			w := &all[0]
			passedOver = passedOver || w.loss == "" && cmp.Or(
				cmp.Compare(w.rank, r.rank), cmp.Compare(r.Cost, w.Cost), strings.Compare(r.Connector, w.Connector)) < 0
		}
	}
	d := nowhere(domain, tooLarge)
	if len(all) > 0 && all[0].loss == "" {
		w := &all[0]
		e := entry{connector: w.connector, pattern: w.Space, why: fmt.Sprintf("address space %s, cost %d", w.Space, w.Cost)}
		e.whySize = e.why + "; a better match has a lower size limit"
		d = e.decide(domain, passedOver)
	}
	for i := range all {
		r, w := &all[i], &all[0]
		switch {
		case r.loss != "":
			r.Why = r.loss
		case i == 0:
			r.Won, r.Why = true, d.Why
		case r.rank < w.rank:
			r.Why = fmt.Sprintf("%s is less specific than %s of %s", r.Space, w.Space, w.Connector)
		case r.Cost > w.Cost:
			r.Why = fmt.Sprintf("cost %d is above %d of %s", r.Cost, w.Cost, w.Connector)
		default:
			r.Why = fmt.Sprintf("same address space and cost as %s, whose name comes first", w.Connector)
		}
		d.Candidates = append(d.Candidates, r.Candidate)
	}
	return d
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
