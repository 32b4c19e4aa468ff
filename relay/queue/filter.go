package queue

import (
	"strings"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"
)

func (f *Filter) empty() bool {
	g := *f
	g.All = false
	return g == Filter{}
}

// everything reports whether f selects all messages, and says so.
func (f *Filter) everything() bool { return f.All && f.empty() }

// onlyHop reports whether f names hops and nothing else.
func (f *Filter) onlyHop() bool {
	g := *f
	g.Hop, g.Connector, g.All = "", "", false
	return g == Filter{} && (f.Hop != "" || f.Connector != "")
}

// String writes f as facts have it, such as "hop:example.com state:held".
func (f Filter) String() string {
	var b strings.Builder
	add := func(key, value string) {
		if value != "" {
			if b.Len() > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(key + ":" + value)
		}
	}
	add("id", string(f.ID))
	add("sender", f.Sender)
	add("recipient", f.Recipient)
	add("domain", f.Domain)
	add("hop", f.Hop)
	add("connector", f.Connector)
	add("receive", f.Receive)
	add("state", f.State)
	if f.OlderThan > 0 {
		add("older_than", f.OlderThan.String())
	}
	if b.Len() == 0 && f.All {
		return "all"
	}
	return b.String()
}

// view is what memory knows of a message for a filter.
type view struct {
	accepted int64
	groups   []groupView
}

type groupView struct {
	hop    route.Hop
	status status
}

// look returns the view of a message, and false when it is not queued.
func (q *Queue) look(id ident) (v view, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.sched.find(id)
	if e == nil {
		return v, false
	}
	v.accepted = e.accepted
	for g, h := range q.sched.groups(e) {
		st := g.status
		if h.held != nil && (st == statusQueued || st == statusDeferred) {
			st = statusHeld
		}
		v.groups = append(v.groups, groupView{h.hop, st})
	}
	return v, true
}

// matcher is a filter made ready to be asked often.
type matcher struct {
	Filter
	sender, recipient string // lower case
	domain            string
}

func (f *Filter) compile() *matcher {
	domain := strings.ToLower(f.Domain)
	if d, err := mail.ParseDomain(f.Domain); err == nil {
		domain = d
	}
	return &matcher{*f, strings.ToLower(f.Sender), strings.ToLower(f.Recipient), domain}
}

// view reports whether anything of the message can match, from memory alone.
func (f *matcher) view(v *view, now time.Time) bool {
	if f.OlderThan > 0 && now.UnixMicro()-v.accepted < f.OlderThan.Microseconds() {
		return false
	}
	for i := range v.groups {
		if f.group(&v.groups[i]) {
			return true
		}
	}
	return false
}

func (f *matcher) group(g *groupView) bool {
	return covers(route.Hop{Connector: f.Connector, Name: f.Hop}, g.hop) && f.state(g.status)
}

func (f *matcher) state(st status) bool {
	switch f.State {
	case "":
		return true
	case "queued", "accepted":
		return st == statusQueued
	default:
		return f.State == statusWords[st]
	}
}

// message reports whether what m has as a whole matches.
func (f *matcher) message(m *stored) bool {
	if !strings.HasPrefix(string(m.ID), string(f.ID)) || f.Receive != "" && f.Receive != m.Origin.Connector {
		return false
	}
	return f.sender == "" || matchAddress(f.sender, m.Envelope.Sender)
}

// recipientOf reports whether the address of recipient i matches.
func (f *matcher) recipientOf(m *stored, i int) bool {
	addr := m.Envelope.Recipients[i].Address
	return (f.domain == "" || addr.DomainKey() == f.domain) && (f.recipient == "" || matchAddress(f.recipient, addr))
}

// recipients lists the recipients of m that match and are not final.
func (f *matcher) recipients(v *view, m *stored) []int {
	if !f.message(m) {
		return nil
	}
	var index []int
	for i := range m.States {
		s := &m.States[i]
		if s.Disposition.Final() || !f.recipientOf(m, i) {
			continue
		}
		for k := range v.groups {
			if g := &v.groups[k]; g.hop == s.Hop && f.group(g) {
				index = append(index, i)
				break
			}
		}
	}
	return index
}

// matchAddress reports whether addr is what pattern, in lower case, asks for:
// an address, "@domain", or a text with "*" for anything. "<>" is the null address.
func matchAddress(pattern string, addr mail.Address) bool {
	if addr.IsNull() {
		return pattern == "<>" || pattern == "*"
	}
	text := strings.ToLower(addr.Key())
	switch {
	case strings.Contains(pattern, "*"):
		return matchStars(pattern, text)
	case strings.HasPrefix(pattern, "@"):
		return strings.HasSuffix(text, pattern) && addr.DomainKey() == pattern[1:]
	}
	return pattern == text || pattern == strings.ToLower(addr.String())
}

// matchStars reports whether text matches pattern, in which "*" stands for any text.
func matchStars(pattern, text string) bool {
	parts := strings.Split(pattern, "*")
	first, last := parts[0], parts[len(parts)-1]
	if !strings.HasPrefix(text, first) {
		return false
	}
	text = text[len(first):]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(text, p)
		if i < 0 {
			return false
		}
		text = text[i+len(p):]
	}
	return strings.HasSuffix(text, last)
}
