package logtrack

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// pred is one filter over facts.
type pred struct {
	term   trackapi.Term
	text   func(string) bool // of a value of the field's text columns; never asked for ""
	num    func(int64) bool
	fact   func(name string) bool // of the fact's name
	post   byte                   // index that finds it, or postNone
	keys   []string               // index keys, any of which
	hint   hint                   // in every value that passes text
	failed bool                   // passes only facts that tell of an undelivered recipient
	field  *field

	privacy *Privacy // of the store
}

// filter is a compiled query.
type filter struct {
	q        trackapi.Query
	from, to int64 // microseconds, [from, to)
	preds    []*pred
	nots     []*pred
	// of messages, asked of the folded row:
	disp, dispNot []mail.Disposition
	recipients    []*pred // which recipients the disposition is asked of
	latencies     []latencyRange
	// the acceptance that a queue ID or its prefix allows, milliseconds
	accLo, accHi int64
	// of aggregates:
	outcomeNots      []*pred // negated filters that are asked of outcomes
	skip             bool    // facts from skipFrom to before skipTo are counted already
	skipFrom, skipTo int64
}

// latencyRange is what a latency must be between, or must not.
type latencyRange struct {
	low, high time.Duration
	not       bool
}

// compile checks a query and makes it a filter, for messages or for facts.
func compile(q trackapi.Query, facts bool, privacy ...*Privacy) (*filter, error) {
	terms, problem := q.Terms()
	if problem != nil {
		return nil, problem
	}
	f := &filter{q: q, accHi: 1<<63 - 1}
	wide := false
	for _, t := range terms {
		p, err := compileTerm(t, privacy...)
		if err != nil {
			return nil, err
		}
		switch {
		case !facts && t.Field == "disposition":
			list := splitWords(t.Value)
			for _, w := range list {
				var d mail.Disposition
				_ = d.UnmarshalText([]byte(w)) // compileTerm has checked it
				if t.Not {
					f.dispNot = append(f.dispNot, d)
				} else {
					f.disp = append(f.disp, d)
				}
			}
			continue
		case !facts && (t.Field == "min_latency" || t.Field == "max_latency"):
			d, _ := trackapi.ParseDuration(t.Value) // compileTerm has checked it
			r := latencyRange{d, math.MaxInt64, t.Not}
			if t.Field == "max_latency" {
				r = latencyRange{0, d, t.Not}
			}
			f.latencies = append(f.latencies, r)
			continue
		case t.Not:
			f.nots = append(f.nots, p)
			continue
		case t.Field == "recipient" || t.Field == "domain":
			f.recipients = append(f.recipients, p)
		case t.Field == "queue_id" && p.post != postExternal:
			f.accRange(t.Value)
			wide = true
		case t.Field == "queue_id", t.Field == "external_id" && p.post != postNone:
			wide = true
		case t.Field == "message_id" && p.post != postNone:
			wide = true
		}
		f.preds = append(f.preds, p)
	}
	return f, f.times(wide)
}

func (f *filter) times(wide bool) error {
	to := f.q.To
	if to.IsZero() {
		to = time.Now().Add(time.Minute) // clocks of nodes differ
	}
	f.to = to.UnixMicro()
	switch {
	case !f.q.From.IsZero():
		f.from = f.q.From.UnixMicro()
	case wide:
		f.from = -1 << 62
	default:
		f.from = to.Add(-24 * time.Hour).UnixMicro()
	}
	if f.from >= f.to {
		return trackapi.BadParameter("from", "the range is empty", "from is before to")
	}
	return nil
}

// anyTime takes the time range out of the filter.
func (f *filter) anyTime() { f.from, f.to = -1<<63, 1<<63-1 }

// accRange narrows the acceptance to what a ULID that begins with id allows.
func (f *filter) accRange(id string) {
	id = strings.ToUpper(id)
	lo, hi := id+strings.Repeat("0", max(0, 26-len(id))), id+strings.Repeat("Z", max(0, 26-len(id)))
	a, okA := packULID(lo)
	b, okB := packULID(hi)
	if okA && okB {
		f.accLo, f.accHi = ulidMS(a), ulidMS(b)
	}
}

func splitWords(s string) []string {
	var list []string
	for w := range strings.SplitSeq(s, ",") {
		if w = strings.TrimSpace(w); w != "" {
			list = append(list, w)
		}
	}
	return list
}

// compileTerm makes one filter of a query a pred.
func compileTerm(t trackapi.Term, privacy ...*Privacy) (*pred, error) {
	p := &pred{term: t, field: fields[t.Field]}
	if len(privacy) > 0 {
		p.privacy = privacy[0]
	}
	var err error
	switch t.Field {
	case "sender", "recipient":
		err = p.address(t.Value)
	case "domain":
		err = p.domain(strings.TrimPrefix(t.Value, "@"), postRecipientDomain)
	case "queue_id":
		err = p.queueID(t.Value)
	case "client_ip":
		err = p.clientIP(t.Value)
	case "message_id":
		v := trimID(t.Value)
		p.words([]string{v}, trimID, postMessageID)
		if p.post == postMessageID && v != "" {
			p.hint = hint{text: []byte(v)}
		}
	case "remote_host":
		v := t.Value
		if a, perr := netip.ParseAddr(v); perr == nil {
			v = a.Unmap().String()
		}
		p.words([]string{strings.TrimSuffix(v, ".")}, hostKey, postRemote)
	case "auth_user":
		list := []string{t.Value}
		if p.privacy.on() && strings.Contains(t.Value, "@") && !strings.Contains(t.Value, "*") {
			list = p.privacy.hashes(t.Value)
		}
		p.words(list, same, postAuthUser)
	case "session_id":
		p.words([]string{t.Value}, same, postSession)
	case "connector", "queue", "provider":
		p.words(splitWords(t.Value), same, postNone)
	case "class":
		err = p.oneOf(splitWords(t.Value), wordsOf(mail.Classes()))
	case "event":
		err = p.facts(splitWords(t.Value))
	case "disposition":
		err = p.dispositions(splitWords(t.Value))
	case "code":
		err = p.codes(splitWords(t.Value))
	case "min_latency", "max_latency":
		err = p.latency(t.Value)
	case "min_size", "max_size":
		err = p.size(t.Value)
	case "subject":
		list := []string{t.Value}
		if p.privacy != nil && p.privacy.Subjects != nil {
			if strings.Contains(t.Value, "*") {
				return nil, bad(t, "subjects are kept as hashes, of which no part can be searched", "the whole subject")
			}
			list = append(list, p.privacy.Subjects(t.Value)...)
		}
		p.words(list, same, postNone)
	case "external_id":
		p.words([]string{t.Value}, same, postExternal)
	case "reason", "node", "source":
		p.words(splitWords(t.Value), same, postNone)
	default:
		err = trackapi.BadParameter(t.Field, "unknown filter", "one of "+strings.Join(trackapi.Filters(), ", "))
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (p *pred) latency(v string) error {
	d, err := trackapi.ParseDuration(v)
	if err != nil {
		return bad(p.term, err.Error(), "a duration such as 90s, 5m or 2h")
	}
	p.num = func(n int64) bool { return n >= d.Microseconds() }
	if p.term.Field == "max_latency" {
		p.num = func(n int64) bool { return n <= d.Microseconds() }
	}
	return nil
}

func (p *pred) size(v string) error {
	limit, err := trackapi.ParseSize(v)
	if err != nil {
		return bad(p.term, err.Error(), "octets such as 1500, or a size such as 10KiB or 2MB")
	}
	p.num = func(n int64) bool { return n >= limit }
	if p.term.Field == "max_size" {
		p.num = func(n int64) bool { return n <= limit }
	}
	return nil
}

func bad(t trackapi.Term, detail, hint string) error {
	return trackapi.BadParameter(t.Field, detail, hint)
}

func hostKey(s string) string { return ipKey(s) }

func wordsOf[T ~string](list []T) []string {
	words := make([]string, len(list))
	for i, w := range list {
		words[i] = string(w)
	}
	return words
}

// words matches values that are one of list, without regard to case but for
// keys that the index has as they are; an entry may be a pattern with "*".
func (p *pred) words(list []string, key func(string) string, post byte) {
	var globs []func(string) bool
	exact := map[string]bool{}
	for _, w := range list {
		if strings.Contains(w, "*") {
			globs = append(globs, glob(lower(w)))
			continue
		}
		if !exactCase(post) {
			w = lower(w)
		}
		exact[w] = true
		p.keys = append(p.keys, w)
	}
	p.post = post
	if len(globs) > 0 || len(list) == 0 {
		p.post, p.keys = postNone, nil
	}
	fold := lower
	if exactCase(post) {
		fold = same
	}
	p.text = func(s string) bool {
		s = key(s)
		if exact[fold(s)] {
			return true
		}
		for _, g := range globs {
			if g(lower(s)) {
				return true
			}
		}
		return false
	}
}

// exactCase reports whether values of an index are as they were written.
func exactCase(post byte) bool {
	return post == postMessageID || post == postSession || post == postExternal
}

func (p *pred) oneOf(list, known []string) error {
	for _, w := range list {
		if !slices.Contains(known, w) {
			return bad(p.term, fmt.Sprintf("unknown word %.40q", w), "one of "+strings.Join(known, ", "))
		}
	}
	p.words(list, same, postNone)
	return nil
}

func (p *pred) address(v string) error {
	if v != event.NullSender {
		v = strings.TrimSuffix(strings.TrimPrefix(v, "<"), ">")
	}
	domainPost, post := postSenderDomain, postSender
	if p.term.Field == "recipient" {
		domainPost, post = postRecipientDomain, postRecipient
	}
	if rest, ok := strings.CutPrefix(v, "*@"); ok && strings.Trim(rest, "*") != "" {
		v = "@" + rest
	}
	if rest, ok := strings.CutPrefix(v, "@"); ok {
		return p.domain(rest, domainPost)
	}
	if strings.Contains(v, "*") {
		if at := strings.LastIndexByte(v, '@'); at >= 0 {
			v = v[:at+1] + foldPattern(v[at+1:])
		}
		if local, _, _ := strings.Cut(v, "@"); p.privacy.on() && local != "*" {
			return bad(p.term, "addresses are kept as hashes, of which no part can be searched", "the whole address, @domain, or *@*.example.com")
		}
		g := glob(lower(v))
		p.text = func(s string) bool { return g(addressKey(s)) }
		p.hint = hint{longestPart(lower(v)), true}
		return nil
	}
	if a, err := mail.ParseAddress(v); err == nil && v != "" {
		v = a.Key()
	} else if v != event.NullSender && !strings.Contains(v, "@") {
		return bad(p.term, fmt.Sprintf("%.60q is not an address", v), "an address, @domain, or a part with *, such as *alice*")
	}
	p.post, p.keys = post, p.privacy.hashes(v)
	p.text = func(s string) bool { return slices.Contains(p.keys, addressKey(s)) }
	if len(p.keys) == 1 {
		p.hint = hint{longestPart(p.keys[0]), true}
	}
	return nil
}

// longestPart is the longest text of a pattern without "*", or nil.
func longestPart(pattern string) (longest []byte) {
	for part := range strings.SplitSeq(pattern, "*") {
		if len(part) > len(longest) {
			longest = []byte(part)
		}
	}
	return longest
}

func (p *pred) domain(v string, post byte) error {
	if strings.Contains(v, "*") || strings.HasPrefix(v, ".") {
		g := glob(foldPattern(v))
		p.text = func(s string) bool {
			d := domainOf(s)
			return d != "" && g(d)
		}
		p.hint = hint{longestPart(foldPattern(v)), true}
		return nil
	}
	d, err := mail.ParseDomain(v)
	if err != nil {
		return bad(p.term, fmt.Sprintf("%.60q is not a domain", v), "a domain such as example.com, or a pattern such as *.example.com")
	}
	p.post, p.keys = post, []string{d}
	p.text = func(s string) bool { return domainOf(s) == d }
	p.hint = hint{[]byte("@" + d), true}
	return nil
}

func (p *pred) queueID(v string) error {
	if strings.Contains(v, "*") {
		v = strings.TrimRight(v, "*")
	}
	if up := strings.ToUpper(v); len(v) == 26 && mail.ValidID(up) {
		v = up
	}
	if len(v) < 6 || strings.Contains(v, "*") {
		return bad(p.term, "too short", "a queue ID, or at least its first 6 characters")
	}
	if !plausibleID(v) {
		p.field = fields["external_id"] // it can only be another server's
		p.words([]string{v}, same, postExternal)
		return nil
	}
	if len(v) >= 26 {
		p.post, p.keys = postQueueID, []string{v}
		p.text = func(s string) bool { return s == v }
		return nil
	}
	v = strings.ToUpper(v)
	p.text = func(s string) bool { return len(s) >= len(v) && strings.EqualFold(s[:len(v)], v) }
	return nil
}

// plausibleID reports whether v may be, or begin, an ID of ours: of after 2000
// and before 2100. Other servers' IDs are neither as long nor of that time.
func plausibleID(v string) bool {
	if len(v) > 26 || !mail.ValidID(strings.ToUpper(v)+strings.Repeat("0", 26-len(v))) {
		return len(v) == 26 && !strings.ContainsAny(v, ".-") // as old tests and other nodes may have it
	}
	up := strings.ToUpper(v)
	last := mail.IDTime(up + strings.Repeat("Z", 26-len(v)))
	first := mail.IDTime(up + strings.Repeat("0", 26-len(v)))
	return last.Year() >= 2000 && first.Year() < 2100
}

func (p *pred) clientIP(v string) error {
	if strings.Contains(v, "/") {
		n, err := netip.ParsePrefix(v)
		if err != nil {
			return bad(p.term, fmt.Sprintf("%.60q is not a network", v), "such as 192.0.2.0/24 or 2001:db8::/32")
		}
		if n.Addr().Is4In6() {
			n = netip.PrefixFrom(n.Addr().Unmap(), max(0, n.Bits()-96))
		}
		p.text = func(s string) bool {
			a, err := netip.ParseAddr(s)
			return err == nil && n.Contains(a.Unmap().WithZone(""))
		}
		return nil
	}
	a, err := netip.ParseAddr(v)
	if err != nil {
		return bad(p.term, fmt.Sprintf("%.60q is not an IP address", v), "an address such as 192.0.2.1, or a network such as 192.0.2.0/24")
	}
	key := a.Unmap().String()
	p.post, p.keys = postClientIP, []string{key}
	p.text = func(s string) bool { return ipKey(s) == key }
	return nil
}

func (p *pred) facts(list []string) error {
	known := event.Names()
	for _, w := range list {
		if !slices.Contains(known, w) {
			return bad(p.term, fmt.Sprintf("unknown fact %.40q", w), "one of "+strings.Join(known, ", "))
		}
	}
	p.fact = func(name string) bool { return slices.Contains(list, name) }
	return nil
}

func (p *pred) dispositions(list []string) error {
	var set [16]bool
	for _, w := range list {
		var d mail.Disposition
		if err := d.UnmarshalText([]byte(w)); err != nil || d == 0 {
			return bad(p.term, fmt.Sprintf("unknown disposition %.40q", w), "one of "+strings.Join(mail.Dispositions(), ", "))
		}
		set[d] = true
	}
	p.failed = true
	for d, in := range set {
		p.failed = p.failed && (!in || slices.Contains(undelivered, mail.Disposition(d)))
	}
	p.num = func(n int64) bool { return n > 0 && n < int64(len(set)) && set[n] }
	p.fact = func(name string) bool { return set[dispositionOf(name)] }
	return nil
}

func (p *pred) codes(list []string) error {
	nums := map[int64]bool{}
	var hundreds [10]bool
	var enhanced []string
	for _, w := range list {
		switch {
		case len(w) == 3 && strings.EqualFold(w[1:], "xx") && w[0] >= '1' && w[0] <= '5':
			hundreds[w[0]-'0'] = true
		case strings.Count(w, ".") == 2 && strings.Trim(lower(w), "0123456789.x") == "":
			enhanced = append(enhanced, lower(w))
		default:
			n, err := strconv.Atoi(w)
			if err != nil || n < 100 || n > 599 {
				return bad(p.term, fmt.Sprintf("%.40q is not a reply code", w), "550, 5xx, 5.1.1 or 5.7.x")
			}
			nums[int64(n)] = true
		}
	}
	p.num = func(n int64) bool { return nums[n] || n >= 100 && n < 600 && hundreds[n/100] }
	p.text = func(s string) bool {
		return slices.ContainsFunc(enhanced, func(want string) bool { return matchEnhanced(want, s) })
	}
	return nil
}

// matchEnhanced compares codes part by part; x stands for any.
func matchEnhanced(want, got string) bool {
	w, g := strings.Split(want, "."), strings.Split(got, ".")
	if len(g) != 3 {
		return false
	}
	for i := range 3 {
		if w[i] != "x" && w[i] != g[i] {
			return false
		}
	}
	return true
}

// glob makes a matcher of a pattern in which "*" stands for any text.
func glob(pattern string) func(string) bool {
	parts := strings.Split(pattern, "*")
	first, last, mid := parts[0], parts[len(parts)-1], parts[1:len(parts)-1]
	return func(s string) bool {
		s, ok := strings.CutPrefix(s, first)
		if !ok {
			return false
		}
		if s, ok = strings.CutSuffix(s, last); !ok {
			return false
		}
		for _, m := range mid {
			_, after, found := strings.Cut(s, m)
			if !found {
				return false
			}
			s = after
		}
		return true
	}
}

// matches reports whether a fact passes p, its negation apart.
func (p *pred) matches(r *event.Record) bool {
	pl := plans[reflect.TypeOf(r.Event)]
	if p.fact != nil && p.fact(pl.name) {
		return true
	}
	if p.text != nil {
		for _, c := range p.field.text {
			if g, ok := pl.getter(c); ok && g.texts(r, func(s string) bool { return s != "" && p.text(s) }) {
				return true
			}
		}
	}
	if p.num != nil {
		for _, c := range p.field.nums {
			if g, ok := pl.getter(c); ok && g.ints(r, func(n int64) bool { return n != 0 && p.num(n) }) {
				return true
			}
		}
	}
	return false
}

// all reports whether a fact passes all filters that must hold.
func (f *filter) all(r *event.Record) bool {
	for _, p := range f.preds {
		if !p.matches(r) {
			return false
		}
	}
	return true
}

// matches reports whether a fact is selected by a query for facts.
func (f *filter) matches(r *event.Record) bool {
	if ts := r.Time.UnixMicro(); ts < f.from || ts >= f.to || !f.all(r) {
		return false
	}
	for _, p := range f.nots {
		if p.matches(r) {
			return false
		}
	}
	return true
}

// cannot reports whether the header says that no row of the block passes p.
func (p *pred) cannot(h *header) bool {
	if p.fact != nil && h.types.has(p.fact) {
		return false
	}
	if p.num != nil {
		return false
	}
	if p.text == nil {
		return true
	}
	for _, c := range p.field.text {
		vals, ok := h.small[c]
		if !ok || slices.ContainsFunc(vals, p.text) {
			return false
		}
	}
	return true
}

// mark sets hit for the rows of v that pass p. Columns are decoded only when
// their dictionary has a value that passes.
func (p *pred) mark(v *view, hit []bool) error {
	if p.fact != nil {
		for _, run := range v.types {
			if p.fact(run.name) {
				for row := run.start; row < run.start+run.n; row++ {
					hit[row] = true
				}
			}
		}
	}
	if p.text != nil {
		var last []string // columns that share a dictionary follow each other
		var ok []bool
		some := false
		for _, name := range p.field.text {
			dict, err := v.values(name)
			if err != nil {
				return err
			}
			if len(dict) == 0 {
				continue
			}
			if len(last) != len(dict) || &last[0] != &dict[0] {
				last, ok, some = dict, make([]bool, len(dict)), false
				for i, s := range dict {
					ok[i] = s != "" && p.text(s)
					some = some || ok[i]
				}
			}
			if !some {
				continue
			}
			if err := v.need(withList(name)...); err != nil {
				return err
			}
			if c := v.col(name); c != nil {
				v.markColumn(name, c, hit, func(at int) bool { return ok[c.codes[at]] })
			}
		}
	}
	if p.num != nil {
		for _, name := range p.field.nums {
			key := colKey(name, false)
			if err := v.need(withList(key)...); err != nil {
				return err
			}
			if c := v.col(key); c != nil {
				v.markColumn(name, c, hit, func(at int) bool { return c.nums[at] != 0 && p.num(c.nums[at]) })
			}
		}
	}
	return nil
}

// withList is a column, and that of the list whose elements it tells of.
func withList(key string) []string {
	if list, ok := isChild(key); ok {
		return []string{key, colKey(list, false)}
	}
	return []string{key}
}

// cost orders filters: those that read little, and leave little to read, first.
func (p *pred) cost() int {
	switch {
	case p.text == nil && p.num == nil:
		return 0
	case p.text == nil:
		return 1
	}
	return 2
}

// markColumn sets hit for rows with a value at which ok holds.
func (v *view) markColumn(name string, c *colView, hit []bool, ok func(at int) bool) {
	var counts *colView
	if list, child := isChild(name); child {
		if counts = v.col(colKey(list, false)); counts == nil {
			return
		}
	}
	for t, run := range v.types {
		start := c.start[t]
		if start < 0 {
			continue
		}
		for row := range run.n {
			if counts == nil {
				if ok(start + row) {
					hit[run.start+row] = true
				}
				continue
			}
			lo, hi, _ := counts.elems(t, row)
			for k := lo; k < hi; k++ {
				if ok(start + k) {
					hit[run.start+row] = true
					break
				}
			}
		}
	}
}

// rows lists the rows of v that pass all of preds, and none of nots; rows of
// facts that this version does not know are passed over.
func (v *view) rows(preds, nots []*pred) ([]int, error) {
	keep := make([]bool, v.head.rows)
	for _, run := range v.types {
		if planNames[run.name] == nil {
			continue
		}
		for row := run.start; row < run.start+run.n; row++ {
			keep[row] = true
		}
	}
	hit := make([]bool, v.head.rows)
	sift := func(list []*pred, want bool) (some bool, err error) {
		list = slices.Clone(list)
		slices.SortStableFunc(list, func(a, b *pred) int { return cmp.Compare(a.cost(), b.cost()) })
		for _, p := range list {
			clear(hit)
			if err := p.mark(v, hit); err != nil {
				return false, err
			}
			some = false
			for row := range keep {
				keep[row] = keep[row] && hit[row] == want
				some = some || keep[row]
			}
			if !some {
				return false, nil
			}
		}
		return true, nil
	}
	some, err := sift(preds, true)
	if err == nil && some {
		some, err = sift(nots, false)
	}
	if err != nil || !some {
		return nil, err
	}
	var rows []int
	for row, k := range keep {
		if k {
			rows = append(rows, row)
		}
	}
	return rows, nil
}
