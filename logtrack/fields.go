package logtrack

import (
	"net/netip"
	"reflect"
	"strings"
	"unicode/utf8"
	"unsafe"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// Posting kinds: the first octet of an index key. They are on disk.
const (
	postNone byte = iota
	postSender
	postSenderDomain
	postRecipient
	postRecipientDomain
	postQueueID
	postMessageID
	postClientIP
	postAuthUser
	postSession
	postRemote
	postParent
	postExternal
	postUndelivered // of another kind's values: see undelivered.go
)

// field is one thing that facts are searched by: the columns that hold it.
type field struct {
	text []string // text columns; the values of a row are those of all of them
	nums []string // integer columns
}

// fields is the table of what a query may name.
var fields = map[string]*field{
	"sender":       {text: []string{"mail_from"}},
	"recipient":    {text: []string{"recipient", "recipients.address"}},
	"domain":       {text: []string{"recipient", "recipients.address"}},
	"message_id":   {text: []string{"header_message_id"}},
	"queue_id":     {text: []string{"queue_id"}},
	"parent":       {text: []string{"parent_queue_id"}},
	"client_ip":    {text: []string{"client_ip"}},
	"auth_user":    {text: []string{"auth_user"}},
	"session_id":   {text: []string{"session_id", "out_session_id"}},
	"connector":    {text: []string{"connector", "connector_in", "connector_out"}},
	"remote_host":  {text: []string{"remote_name", "remote_ip"}},
	"queue":        {text: []string{"queue"}},
	"provider":     {text: []string{"provider"}},
	"node":         {text: []string{"node"}},
	"reason":       {text: []string{"reason"}},
	"disposition":  {nums: []string{"disposition", "recipients.disposition"}},
	"class":        {text: []string{"class", "recipients.class"}},
	"code":         {text: []string{"enhanced", "recipients.enhanced"}, nums: []string{"code", "recipients.code"}},
	"min_latency":  {nums: []string{"t_total"}},
	"max_latency":  {nums: []string{"t_total"}},
	"min_size":     {nums: []string{"size"}},
	"max_size":     {nums: []string{"size"}},
	"subject":      {text: []string{"subject"}},
	"source":       {text: []string{"source"}},
	"external_id":  {text: []string{"external_id"}},
	"event":        {},
	"queue_prefix": {text: []string{"queue_id"}},
}

// indexed is a column that is indexed.
type indexed struct {
	column string
	post   byte
	key    func(string) string
}

// postings says which columns are indexed, under which kind, and how a value
// becomes the key that queries look up. An empty key is not indexed.
var postings = []indexed{
	{"mail_from", postSender, addressKey},
	{"mail_from", postSenderDomain, domainOf},
	{"recipient", postRecipient, addressKey},
	{"recipient", postRecipientDomain, domainOf},
	{"recipients.address", postRecipient, addressKey},
	{"recipients.address", postRecipientDomain, domainOf},
	{"queue_id", postQueueID, same},
	{"header_message_id", postMessageID, trimID},
	{"client_ip", postClientIP, ipKey},
	{"auth_user", postAuthUser, lower},
	{"session_id", postSession, same},
	{"out_session_id", postSession, same},
	{"remote_name", postRemote, lower},
	{"remote_ip", postRemote, ipKey},
	{"parent_queue_id", postParent, same},
	{"external_id", postExternal, same},
}

// pruned are columns whose few values are kept in memory for each block, so
// that a search for another value passes over the block.
var pruned = []string{"class", "recipients.class", "connector", "connector_in", "connector_out", "provider"}

// maxPruned is how many values such a column may have before it is not kept.
const maxPruned = 24

func same(s string) string { return s }

func lower(s string) string {
	if isFolded(bytesOf(s)) {
		return s
	}
	return strings.ToLower(s)
}

// bytesOf are the octets of s. They must not be changed.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) } //nolint:gosec // read only

// trimID is a Message-ID without its angle brackets.
func trimID(s string) string {
	if len(s) > 1 && s[0] == '<' && s[len(s)-1] == '>' {
		return s[1 : len(s)-1]
	}
	return s
}

func ipKey(s string) string {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap().String()
	}
	return s
}

// addressKey is what two spellings of one address have in common for a
// searcher: a lower-case local part (people expect it, although only the
// domain's owner may fold it) and a folded domain.
func addressKey(s string) string {
	if isFolded(bytesOf(s)) && !strings.HasSuffix(s, ".") { // as most are
		return s
	}
	at := strings.LastIndexByte(s, '@')
	if at < 0 {
		return lower(s)
	}
	domain := s[at+1:]
	if d := foldDomain(domain); d != domain {
		return lower(s[:at]) + "@" + d
	}
	return lower(s)
}

func foldDomain(d string) string {
	if isFolded(bytesOf(d)) {
		return strings.TrimSuffix(d, ".")
	}
	for i := range len(d) {
		if d[i] >= utf8.RuneSelf {
			if a, err := mail.ParseDomain(d); err == nil {
				return a
			}
			break
		}
	}
	return strings.TrimSuffix(lower(d), ".")
}

// foldPattern folds a domain that is a pattern: labels without "*" become
// A-labels. A leading dot stands for any sub-domain.
func foldPattern(d string) string {
	if strings.HasPrefix(d, ".") {
		d = "*" + d
	}
	labels := strings.Split(strings.TrimSuffix(d, "."), ".")
	for i, l := range labels {
		if !strings.Contains(l, "*") {
			labels[i] = foldDomain(l)
		}
	}
	return lower(strings.Join(labels, "."))
}

// domainOf is the folded domain of an address, or "".
func domainOf(s string) string {
	at := strings.LastIndexByte(s, '@')
	if at < 0 {
		return ""
	}
	return foldDomain(s[at+1:])
}

// dispositionOf is what a fact by itself says became of its recipients, for
// facts that do not carry it as a field.
func dispositionOf(name string) mail.Disposition {
	switch name {
	case "message_queued":
		return mail.Queued
	case "recipient_relayed":
		return mail.Relayed
	case "recipient_bounced":
		return mail.Bounced
	case "recipient_expired":
		return mail.Expired
	case "recipient_dropped":
		return mail.Dropped
	}
	return 0
}

// getter takes one column's values from a record.
type getter struct {
	head string // a field of the record itself
	leaf *leaf  // a field of the fact
	list *leaf  // the list that leaf is in, or nil
}

// getters makes a getter of every column that facts of plan p have.
func (p *plan) getters() map[string]getter {
	m := map[string]getter{}
	for i := range p.leaves {
		l := &p.leaves[i]
		m[l.name] = getter{leaf: l}
		for j := range l.sub {
			m[l.sub[j].name] = getter{leaf: &l.sub[j], list: l}
		}
	}
	for _, head := range []string{"node", "source", "session_id", "queue_id", "message_uid"} {
		m[head] = getter{head: head}
	}
	return m
}

// getter is how to take column from facts of plan p.
func (p *plan) getter(column string) (getter, bool) {
	g, ok := p.byName[column]
	return g, ok
}

// texts calls yield with each value of g's column in r until it returns true.
func (g getter) texts(r *event.Record, yield func(string) bool) bool {
	switch g.head {
	case "node":
		return yield(r.Node)
	case "source":
		return yield(string(r.Source))
	case "session_id":
		return yield(r.Session)
	case "queue_id":
		return yield(string(r.Message))
	case "message_uid":
		return yield(r.UID)
	}
	v := event.ValueOf(r.Event)
	if g.list == nil {
		return yield(g.leaf.text(v))
	}
	list := v.Field(g.list.offset)
	for i := range list.Len() {
		if yield(g.leaf.text(list.Item(i, g.list.size))) {
			return true
		}
	}
	return false
}

// ints is texts for integer columns.
func (g getter) ints(r *event.Record, yield func(int64) bool) bool {
	v := event.ValueOf(r.Event)
	if g.list == nil {
		n, _ := g.leaf.num(v)
		return yield(n)
	}
	list := v.Field(g.list.offset)
	for i := range list.Len() {
		if n, _ := g.leaf.num(list.Item(i, g.list.size)); yield(n) {
			return true
		}
	}
	return false
}

func planOf(r *event.Record) *plan { return plans[reflect.TypeOf(r.Event)] }

// firstNum is the value of an integer column of the fact itself, or 0.
func (p *plan) firstNum(r *event.Record, column string) int64 {
	if column == "" {
		return 0
	}
	g, ok := p.getter(column)
	if !ok || g.leaf == nil || g.leaf.isText() || g.list != nil {
		return 0
	}
	n, _ := g.leaf.num(event.ValueOf(r.Event))
	return n
}

// recipientsOf is the list of recipients of a fact about several.
func (p *plan) recipientsOf(ev event.Event) []event.Recipient {
	if p.recipients == nil {
		return nil
	}
	list, _ := reflect.TypeAssert[[]event.Recipient](event.ValueOf(ev).Field(p.recipients.offset).Reflect(p.recipients.typ))
	return list
}
