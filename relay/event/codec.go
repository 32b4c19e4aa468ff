package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unsafe"

	"waybill/relay/mail"
)

// table lists every type of fact with its durability. A fact without a line
// here cannot be written; a test compares the table with facts.go.
var table = []struct {
	event Event
	class Durability
}{
	{SessionOpened{}, Session},
	{SessionClosed{}, Session},
	{TranscriptKept{}, Protocol},
	{SessionRefused{}, Session},
	{ClientAnnounced{}, Session},
	{CommandAnswered{}, Protocol},
	{TLSNegotiated{}, Protocol},
	{TLSPolicyFailed{}, Session},
	{TLSDowngraded{}, Session},
	{TLSReportSent{}, Session},
	{TLSReportFailed{}, Session},
	{AuthSucceeded{}, Session},
	{AuthFailed{}, Session},
	{SenderRefused{}, Session},
	{RecipientRefused{}, Session},
	{MessageRefused{}, Session},
	{MessageQueued{}, Durable},
	{MessageRouted{}, Session},
	{AttemptFinished{}, Durable},
	{RecipientRelayed{}, Durable},
	{RecipientBounced{}, Durable},
	{RecipientExpired{}, Durable},
	{RecipientDropped{}, Durable},
	{RecipientLate{}, Session},
	{ThrottleEngaged{}, Session},
	{PressureChanged{}, Session},
	{DSNQueued{}, Durable},
	{QueueHeld{}, Durable},
	{QueueReleased{}, Durable},
	{AdminActed{}, Durable},
	{QueueLoaded{}, Session},
	{MessagePoisoned{}, Durable},
	{MessageRetired{}, Durable},
	{ConfigReloaded{}, Session},
	{CertificateReloaded{}, Session},
	{DNSAnswered{}, Protocol},
	{LookupAnswered{}, Protocol},
	{TokenRefreshed{}, Session},
	{Panicked{}, Session},
	{Remarked{}, Session},
	{BackoffChanged{}, Session},
	{ListingChanged{}, Session},
}

// kind is what the codec knows of one type of fact.
type kind struct {
	name   string
	number int // in names
	class  Durability
	typ    reflect.Type
	fields []fieldPlan
	lists  []fieldPlan // those of fields that are lists
}

type fieldPlan struct {
	key      string
	lead     string // `,"key":`
	omitZero bool
	form     form

	offset uintptr
	typ    reflect.Type
	kind   reflect.Kind
	size   uintptr     // of an element of a list
	items  []fieldPlan // of an element of a list
}

// form is what is written of a field.
type form uint8

const (
	formString form = iota
	formBool
	formInt
	formUint
	formSeconds
	formDisposition
	formTime
	formAddr
	formSlice
)

func formOf(t reflect.Type) form {
	switch t {
	case reflect.TypeFor[Seconds]():
		return formSeconds
	case reflect.TypeFor[mail.Disposition]():
		return formDisposition
	case reflect.TypeFor[time.Time]():
		return formTime
	case reflect.TypeFor[netip.Addr]():
		return formAddr
	}
	switch t.Kind() {
	case reflect.String:
		return formString
	case reflect.Bool:
		return formBool
	case reflect.Slice:
		return formSlice
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return formInt
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return formUint
	}
	panic("event: a fact has a field of type " + t.String()) // a new kind of field, which nobody can write yet
}

// each calls yield with every field of v that is not omitted.
func each(plan []fieldPlan, v Value, yield func(p *fieldPlan, fv Value) error) error {
	for i := range plan {
		p := &plan[i]
		fv := v.Field(p.offset)
		if p.omitZero && p.isZero(fv) {
			continue
		}
		if err := yield(p, fv); err != nil {
			return err
		}
	}
	return nil
}

func (p *fieldPlan) isZero(v Value) bool {
	switch p.form {
	case formString:
		return v.Text() == ""
	case formTime:
		return v.Time().IsZero()
	case formAddr:
		return v.Addr() == netip.Addr{}
	case formSlice:
		return v.Len() < 0
	}
	return v.Int(p.kind) == 0
}

var (
	kinds  = map[reflect.Type]*kind{}
	byName = map[string]*kind{}
	names  []string

	elements = map[reflect.Type][]fieldPlan{} // of the structs that facts have lists of

	_ = buildKinds()
)

func buildKinds() bool {
	for _, row := range table {
		typ := reflect.TypeOf(row.event)
		checkPeekable(typ)
		k := &kind{name: snake(typ.Name()), number: len(names), class: row.class, typ: typ, fields: planFields(typ, 0)}
		for _, p := range k.fields {
			if p.form == formSlice {
				k.lists = append(k.lists, p)
			}
		}
		kinds[typ], byName[k.name] = k, k
		names = append(names, k.name)
		learn(row.event, k)
	}
	if len(names) > len(slots)/2 {
		panic("event: too many facts for kindOf")
	}
	return true
}

func planFields(typ reflect.Type, base uintptr) []fieldPlan {
	var plan []fieldPlan
	for f := range typ.Fields() {
		if f.Anonymous {
			plan = append(plan, planFields(f.Type, base+f.Offset)...)
			continue
		}
		key, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		p := fieldPlan{key: key, lead: `,"` + key + `":`, omitZero: opts == "omitzero", form: formOf(f.Type), offset: base + f.Offset, typ: f.Type, kind: f.Type.Kind()}
		if t := f.Type; p.kind == reflect.Slice {
			p.size = t.Elem().Size()
			if elements[t.Elem()] == nil {
				elements[t.Elem()] = planFields(t.Elem(), 0)
			}
			p.items = elements[t.Elem()]
		}
		plan = append(plan, p)
	}
	return plan
}

// snake turns a type's name into an event name: MessageQueued, message_queued.
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) {
			prevLower := i > 0 && unicode.IsLower(rune(name[i-1]))
			nextLower := i+1 < len(name) && unicode.IsLower(rune(name[i+1]))
			if i > 0 && (prevLower || nextLower) {
				b.WriteByte('_')
			}
			r = unicode.ToLower(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Names lists the names of all facts, such as "message_queued".
func Names() []string { return append([]string(nil), names...) }

// Name is ev's name in records, such as "message_queued".
func Name(ev Event) string { return kindOf(ev).name }

// Number is the index of ev's name in [Names].
func Number(ev Event) int { return kindOf(ev).number }

// Class is ev's durability.
func Class(ev Event) Durability { return kindOf(ev).class }

// ClassOf is the durability of facts with that name; false: there are none.
func ClassOf(name string) (Durability, bool) {
	k := byName[name]
	if k == nil {
		return 0, false
	}
	return k.class, true
}

// Kind says which member of a [Field] holds its value.
type Kind uint8

// The kinds of field values.
const (
	String Kind = iota + 1
	Int
	Float
	Time
	Bool
	Object // Field.Any: a slice of structs with JSON tags
)

// Field is one named value of a record.
type Field struct {
	Key   string
	Kind  Kind
	Str   string
	Int   int64 // also Bool: 0 or 1
	Float float64
	Time  time.Time
	Any   any
}

// AppendFields appends the values of r and of its event, in the order of their
// declaration, without those that are zero and marked so. The names and values
// are those of the JSON form.
func (r *Record) AppendFields(dst []Field) []Field {
	dst = append(dst,
		Field{Key: "ts", Kind: Time, Time: r.Time},
		Field{Key: "event_id", Kind: String, Str: r.ID},
		Field{Key: "schema", Kind: Int, Int: Schema},
		Field{Key: "event", Kind: String, Str: Name(r.Event)})
	for _, f := range [...]Field{
		{Key: "node", Str: r.Node},
		{Key: "source", Str: string(r.Source)},
		{Key: "config_rev", Str: r.ConfigRev},
		{Key: "session_id", Str: r.Session},
		{Key: "queue_id", Str: string(r.Message)},
		{Key: "message_uid", Str: r.UID},
	} {
		if f.Str != "" {
			f.Kind = String
			dst = append(dst, f)
		}
	}
	_ = each(kindOf(r.Event).fields, ValueOf(r.Event), func(p *fieldPlan, fv Value) error {
		dst = append(dst, fieldOf(p, fv))
		return nil
	})
	return dst
}

func fieldOf(p *fieldPlan, v Value) Field {
	f := Field{Key: p.key, Kind: String}
	switch p.form {
	case formString:
		f.Str = v.Text()
	case formBool:
		f.Kind, f.Int = Bool, v.Int(p.kind)
	case formInt, formUint:
		f.Kind, f.Int = Int, v.Int(p.kind)
	case formSeconds:
		f.Kind, f.Float = Float, float64(time.Duration(v.Int(p.kind)).Microseconds())/1e6
	case formDisposition:
		f.Str = mail.Disposition(v.Int(p.kind)).String() //nolint:gosec // it is one
	case formTime:
		f.Kind, f.Time = Time, v.Time()
	case formAddr:
		f.Str = v.Addr().String()
	case formSlice:
		f.Kind, f.Any = Object, v.Reflect(p.typ).Interface()
	}
	return f
}

// List gives the items of an Object, each with its fields, as [Record.AppendFields]
// gives those of a record.
func (f Field) List() [][]Field {
	v := reflect.ValueOf(f.Any)
	if f.Kind != Object || v.Kind() != reflect.Slice {
		return nil
	}
	plan := elements[v.Type().Elem()]
	list := make([][]Field, v.Len())
	for i := range list {
		_ = each(plan, Value{v.Index(i).Addr().UnsafePointer()}, func(p *fieldPlan, fv Value) error {
			list[i] = append(list[i], fieldOf(p, fv))
			return nil
		})
	}
	return list
}

// Items is how many items the lists of ev have, taken together: what makes a
// fact large.
func Items(ev Event) (n int) {
	for _, p := range kindOf(ev).lists {
		n += max(ValueOf(ev).Field(p.offset).Len(), 0)
	}
	return n
}

// header is the record's own part of the JSON form.
type header struct {
	Time      time.Time    `json:"ts"`
	ID        string       `json:"event_id"`
	Schema    int          `json:"schema"`
	Event     string       `json:"event"`
	Node      string       `json:"node,omitzero"`
	Source    Source       `json:"source,omitzero"`
	ConfigRev string       `json:"config_rev,omitzero"`
	Session   string       `json:"session_id,omitzero"`
	Message   mail.QueueID `json:"queue_id,omitzero"`
	UID       string       `json:"message_uid,omitzero"`
}

// MarshalJSON writes the record as one flat object, without a line end.
func (r *Record) MarshalJSON() ([]byte, error) { return r.AppendJSON(make([]byte, 0, 1024)) }

// Form is the JSON form of a record, made once for several writers.
type Form struct {
	json     []byte
	of       Value // the event that it was made of; a record that was given another one has no form yet
	ahead    bool  // it was made of an event that no record had yet
	from, to int   // what the event has another value for since then, when to is not 0
	but      *fieldPlan
}

// Encode is AppendJSON for a record that will be written again as it is: form
// refers to what is appended from now on, and r to form. Both must stay as they
// are for as long as somebody may write r.
func (r *Record) Encode(dst []byte, form *Form) ([]byte, error) {
	at := len(dst)
	dst, err := r.AppendJSON(dst)
	if err == nil {
		*form = Form{json: dst[at:len(dst):len(dst)], of: ValueOf(r.Event)}
		r.Form = form
	}
	return dst, err
}

// EncodeAhead is Encode for an event that r will have once one of its fields is known
// ([Record.Amend]), and not before: an event cannot be changed, and is made once. Of ev
// nothing is kept.
func (r *Record) EncodeAhead(dst []byte, form *Form, ev *MessageQueued) ([]byte, error) {
	at := len(dst)
	dst, err := r.appendJSON(dst, kindOf(MessageQueued{}), Value{unsafe.Pointer(ev)}) //nolint:gosec // read only
	if err == nil {
		*form = Form{json: dst[at:len(dst):len(dst)], ahead: true}
		r.Form = form
	}
	return dst, err
}

// Amend gives r an event that differs in the field key alone from the one it had, or
// that was encoded ahead. What Encode made stays of use, unless the field is left out
// before or after.
func (r *Record) Amend(ev Event, key string) {
	f, had := r.Form, r.Event
	r.Event = ev
	if f == nil || f.to != 0 || had != nil && f.of != ValueOf(had) || had == nil && !f.ahead {
		return
	}
	fields := kindOf(ev).fields
	for i := range fields {
		// A quotation mark within a value has a backslash before it, so that the
		// lead is found nowhere else, but perhaps in a list that stands before it;
		// and no number has a comma or a brace.
		if p := &fields[i]; p.key == key && p.form == formSeconds {
			from := bytes.LastIndex(f.json, []byte(p.lead)) + len(p.lead)
			if from < len(p.lead) || p.omitZero && ValueOf(ev).Field(p.offset).Int(p.kind) == 0 {
				return
			}
			to := from + bytes.IndexAny(f.json[from:], ",}")
			f.of, f.but, f.from, f.to = ValueOf(ev), p, from, to
			return
		}
	}
}

// append writes the form.
func (f *Form) append(dst []byte) []byte {
	if f.to == 0 {
		return append(dst, f.json...)
	}
	dst = append(dst, f.json[:f.from]...)
	dst = appendSeconds(dst, Seconds(f.of.Field(f.but.offset).Int(f.but.kind)))
	return append(dst, f.json[f.to:]...)
}

// AppendJSON appends the JSON form of r to dst. It is on the way of every
// message, so it follows the plan of the type instead of asking package json.
func (r *Record) AppendJSON(dst []byte) ([]byte, error) {
	if r.Event == nil {
		return dst, errors.New("record without an event")
	}
	if f := r.Form; f != nil && f.of == ValueOf(r.Event) {
		return f.append(dst), nil
	}
	return r.appendJSON(dst, kindOf(r.Event), ValueOf(r.Event))
}

// appendJSON appends what r is with an event of kind k that is at v.
func (r *Record) appendJSON(dst []byte, k *kind, v Value) (_ []byte, err error) {
	dst = append(dst, `{"ts":`...)
	if dst, err = appendTime(dst, r.Time); err != nil {
		return dst, err
	}
	dst = append(dst, `,"event_id":`...)
	dst = appendString(dst, r.ID)
	dst = append(dst, `,"schema":`...)
	dst = strconv.AppendInt(dst, Schema, 10)
	dst = append(dst, `,"event":"`...)
	dst = append(dst, k.name...)
	dst = append(dst, '"')
	dst = appendContext(dst, `,"node":`, r.Node)
	dst = appendContext(dst, `,"source":`, string(r.Source))
	dst = appendContext(dst, `,"config_rev":`, r.ConfigRev)
	dst = appendContext(dst, `,"session_id":`, r.Session)
	dst = appendContext(dst, `,"queue_id":`, string(r.Message))
	dst = appendContext(dst, `,"message_uid":`, r.UID)
	if dst, err = appendFields(dst, k.fields, v); err != nil {
		return dst, err
	}
	return append(dst, '}'), nil
}

// appendContext writes a part of the context that is not empty.
func appendContext(dst []byte, lead, s string) []byte {
	if s == "" {
		return dst
	}
	return appendString(append(dst, lead...), s)
}

// appendFields writes each field that is not omitted, with a comma before it, as
// package json would. It is one long switch, because it is most of what a line costs.
func appendFields(dst []byte, plan []fieldPlan, v Value) (_ []byte, err error) {
	for i := range plan {
		p := &plan[i]
		fv := v.Field(p.offset)
		switch p.form {
		case formString:
			s := fv.Text()
			if s == "" && p.omitZero {
				continue
			}
			dst = appendString(append(dst, p.lead...), s)
		case formBool, formInt, formUint, formSeconds, formDisposition:
			n := fv.Int(p.kind)
			if n == 0 && p.omitZero {
				continue
			}
			dst = p.appendInt(append(dst, p.lead...), n)
		case formTime:
			t := fv.Time()
			if p.omitZero && t.IsZero() {
				continue
			}
			if dst, err = appendTime(append(dst, p.lead...), t); err != nil {
				return dst, err
			}
		case formAddr:
			ip := fv.Addr()
			if p.omitZero && ip == (netip.Addr{}) {
				continue
			}
			dst = appendAddr(append(dst, p.lead...), ip)
		case formSlice:
			if p.omitZero && fv.Len() < 0 {
				continue
			}
			if dst, err = p.appendList(append(dst, p.lead...), fv); err != nil {
				return dst, err
			}
		}
	}
	return dst, nil
}

// appendInt writes a value that [Value.Int] reads.
func (p *fieldPlan) appendInt(dst []byte, n int64) []byte {
	switch p.form {
	case formBool:
		return strconv.AppendBool(dst, n != 0)
	case formSeconds:
		return appendSeconds(dst, Seconds(n))
	case formDisposition:
		return appendString(dst, mail.Disposition(n).String()) //nolint:gosec // it is one
	}
	return strconv.AppendInt(dst, n, 10)
}

func appendAddr(dst []byte, ip netip.Addr) []byte {
	if ip.Zone() != "" {
		return appendString(dst, ip.String())
	}
	dst = append(dst, '"')
	if ip.IsValid() {
		dst = ip.AppendTo(dst)
	}
	return append(dst, '"')
}

// appendList writes a slice of structs.
func (p *fieldPlan) appendList(dst []byte, v Value) (_ []byte, err error) {
	n := v.Len()
	if n < 0 {
		return append(dst, "null"...), nil
	}
	dst = append(dst, '[')
	for i := range n {
		if i > 0 {
			dst = append(dst, ',')
		}
		start := len(dst)
		if dst, err = appendFields(dst, p.items, v.Item(i, p.size)); err != nil {
			return dst, err
		}
		if len(dst) == start {
			dst = append(dst, '{')
		} else {
			dst[start] = '{' // the first lead's comma
		}
		dst = append(dst, '}')
	}
	return append(dst, ']'), nil
}

func appendTime(dst []byte, t time.Time) ([]byte, error) {
	if y := t.Year(); y < 0 || y > 9999 { // RFC 3339 has four digits
		return dst, fmt.Errorf("time with the year %d", y)
	}
	dst = append(dst, '"')
	dst = t.AppendFormat(dst, time.RFC3339Nano)
	return append(dst, '"'), nil
}

// appendString writes s as JSON. Text that needs care is left to package json.
func appendString(dst []byte, s string) []byte {
	if !isPlain(s) {
		var buf bytes.Buffer
		enc := json.NewEncoder(&buf)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(s) // a string can always be written
		return append(dst, bytes.TrimSuffix(buf.Bytes(), []byte{'\n'})...)
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// isPlain reports whether s is printable ASCII without quotes and backslashes.
// It looks at eight octets at a time, the last eight being those that end s.
func isPlain(s string) bool {
	i := len(s) - 8
	if i < 0 {
		for k := range len(s) {
			if c := s[k]; c < ' ' || c > '~' || c == '"' || c == '\\' {
				return false
			}
		}
		return true
	}
	found := special(word(s[i:]))
	for ; i > 0; i -= 8 {
		found |= special(word(s[max(i-8, 0):]))
	}
	return found == 0
}

// word is the first eight octets of s.
func word(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// special is not 0 when one of eight octets is not plain: an octet that is less
// than a limit, or equal to a character, borrows into its high bit when the one
// is taken from it.
func special(w uint64) uint64 {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	return (w | (w + ones) | (w - ones*' ') | ((w ^ ones*'"') - ones) | ((w ^ ones*'\\') - ones)) & highs
}

// ErrUnknownEvent is wrapped when a line names a fact that this version does not know.
var ErrUnknownEvent = errors.New("unknown event")

// UnmarshalJSON reads what [Record.MarshalJSON] or package protolog wrote.
// Fields that this version does not know are passed over.
func (r *Record) UnmarshalJSON(b []byte) error {
	var head header
	if err := json.Unmarshal(b, &head); err != nil {
		return err
	}
	if head.Schema < 1 || head.Schema > Schema {
		return fmt.Errorf("record schema %d: this version reads 1 to %d", head.Schema, Schema)
	}
	k := byName[head.Event]
	if k == nil {
		return fmt.Errorf("%w %.60q", ErrUnknownEvent, head.Event)
	}
	ev := reflect.New(k.typ)
	if err := json.Unmarshal(b, ev.Interface()); err != nil {
		return err
	}
	*r = Record{
		ID: head.ID, Time: head.Time, Node: head.Node, Source: head.Source, ConfigRev: head.ConfigRev,
		Session: head.Session, Message: head.Message, UID: head.UID, Event: ev.Elem().Interface().(Event),
	}
	return nil
}

// FieldNames lists the JSON names of the fields of the fact named name, and nil when there is none.
func FieldNames(name string) []string {
	k := byName[name]
	if k == nil {
		return nil
	}
	var keys []string
	for _, f := range k.fields {
		keys = append(keys, f.key)
	}
	return keys
}
