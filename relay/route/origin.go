package route

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"waybill/relay/mail"
)

// origin is what a connector wants of where a message comes from.
type origin struct {
	receive []string
	users   []string // lower case
	senders []sender
}

// sender is one pattern of [Connector.Senders].
type sender struct {
	text   string // as it was written
	rank   int    // how close it is
	local  string // lower case, for an address
	domain string // A-labels; with a dot in front for sub-domains
	null   bool
}

// How closely a connector names the sender; an element of the order.
const (
	rankNone = iota
	rankUnder
	rankDomain
	rankAddress
	rankUser
)

// any reports whether o says anything.
func (o *origin) any() bool { return len(o.receive)+len(o.users)+len(o.senders) > 0 }

// linked reports whether o is for single receive connectors.
func (o *origin) linked() bool { return len(o.receive) > 0 }

func newOrigin(c *Connector) (o origin, err error) {
	var errs []error
	o.receive = slices.Clone(c.Receive)
	for _, u := range c.Users {
		if u == "" {
			errs = append(errs, errors.New("user without a name"))
		}
		o.users = append(o.users, strings.ToLower(u))
	}
	for _, text := range c.Senders {
		s, err := parseSender(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("sender %q: %w", text, err))
		}
		o.senders = append(o.senders, s)
	}
	return o, errors.Join(errs...)
}

// CheckSender returns what is wrong with a pattern for [Connector.Senders], or nil.
func CheckSender(pattern string) error {
	_, err := parseSender(pattern)
	return err
}

func parseSender(text string) (sender, error) {
	s := sender{text: text}
	if text == "<>" {
		s.rank, s.null = rankAddress, true
		return s, nil
	}
	domain, under := strings.CutPrefix(text, "*.")
	domain = strings.TrimPrefix(domain, "@")
	if strings.Contains(domain, "@") {
		if under {
			return s, errors.New("an address has no sub-domains")
		}
		a, err := mail.ParseAddress(domain)
		if err != nil {
			return s, err
		}
		s.rank, s.local, s.domain = rankAddress, strings.ToLower(a.Local), a.DomainKey()
		return s, nil
	}
	d, err := mail.ParseDomain(domain)
	if err != nil {
		return s, err
	}
	s.rank, s.domain = rankDomain, d
	if under {
		s.rank, s.domain = rankUnder, "."+d
	}
	return s, nil
}

func (s *sender) matches(a mail.Address, domain string) bool {
	switch {
	case s.null || a.IsNull():
		return s.null && a.IsNull()
	case s.rank == rankUnder:
		return strings.HasSuffix(domain, s.domain)
	case s.rank == rankDomain:
		return domain == s.domain
	}
	return domain == s.domain && strings.EqualFold(a.Local, s.local)
}

// match reports how closely o names where q comes from, in which words, and
// whether o is for q at all. When it is not, the words say why.
func (o *origin) match(q *Query) (rank int, words string, ok bool) {
	if !o.any() {
		return rankNone, "", true
	}
	var said []string
	if o.linked() {
		if !slices.Contains(o.receive, q.Receive) {
			return 0, "it is linked to receive connector " + strings.Join(o.receive, ", "), false
		}
		said = append(said, "linked to receive connector "+q.Receive)
	}
	if len(o.users) > 0 {
		if q.User == "" || !slices.Contains(o.users, strings.ToLower(q.User)) {
			return 0, "it is for other users", false
		}
		rank = rankUser
		said = append(said, "user "+q.User)
	}
	if len(o.senders) > 0 {
		domain, best := q.Sender.DomainKey(), (*sender)(nil)
		for i := range o.senders {
			if s := &o.senders[i]; s.matches(q.Sender, domain) && (best == nil || s.rank > best.rank) {
				best = s
			}
		}
		if best == nil {
			return 0, "it is for other senders", false
		}
		rank = max(rank, best.rank)
		said = append(said, "sender "+best.text)
	}
	return rank, strings.Join(said, ", "), true
}
