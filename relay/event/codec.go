package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

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
}

// kind is what the codec knows of one type of fact.
type kind struct {
	name   string
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

	in   []int // of the embedded struct that has the field; empty: the fact itself
	same bool  // in the same struct as the field before
	at   int   // in that struct
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
func each(plan []fieldPlan, v reflect.Value, yield func(p *fieldPlan, fv reflect.Value) error) error {
	base := v
	for i := range plan {
		p := &plan[i]
		if !p.same {
			base = v
			for _, k := range p.in {
				base = base.Field(k)
			}
		}
		fv := base.Field(p.at)
		if p.omitZero && fv.IsZero() {
			continue
		}
		if err := yield(p, fv); err != nil {
			return err
		}
	}
	return nil
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
		k := &kind{name: snake(typ.Name()), class: row.class, typ: typ, fields: makePlan(typ)}
		for _, p := range k.fields {
			if p.form == formSlice {
				k.lists = append(k.lists, p)
			}
		}
		kinds[typ], byName[k.name] = k, k
		names = append(names, k.name)
	}
	return true
}

func makePlan(typ reflect.Type) []fieldPlan {
	plan := planFields(typ, nil)
	for i := 1; i < len(plan); i++ {
		plan[i].same = slices.Equal(plan[i].in, plan[i-1].in)
	}
	return plan
}

func planFields(typ reflect.Type, in []int) []fieldPlan {
	var plan []fieldPlan
	for f := range typ.Fields() {
		if f.Anonymous {
			plan = append(plan, planFields(f.Type, append(slices.Clone(in), f.Index...))...)
			continue
		}
		key, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		plan = append(plan, fieldPlan{key: key, lead: `,"` + key + `":`, omitZero: opts == "omitzero", form: formOf(f.Type), in: in, at: f.Index[0]})
		if t := f.Type; t.Kind() == reflect.Slice && elements[t.Elem()] == nil {
			elements[t.Elem()] = makePlan(t.Elem())
		}
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
func Name(ev Event) string { return kinds[reflect.TypeOf(ev)].name }

// Class is ev's durability.
func Class(ev Event) Durability { return kinds[reflect.TypeOf(ev)].class }

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
	v := reflect.ValueOf(r.Event)
	_ = each(kinds[v.Type()].fields, v, func(p *fieldPlan, fv reflect.Value) error {
		dst = append(dst, fieldOf(p, fv))
		return nil
	})
	return dst
}

func fieldOf(p *fieldPlan, v reflect.Value) Field {
	f := Field{Key: p.key, Kind: String}
	switch p.form {
	case formString:
		f.Str = v.String()
	case formBool:
		f.Kind = Bool
		if v.Bool() {
			f.Int = 1
		}
	case formInt:
		f.Kind, f.Int = Int, v.Int()
	case formUint:
		f.Kind, f.Int = Int, int64(v.Uint()) //nolint:gosec // ports only
	case formSeconds:
		f.Kind, f.Float = Float, float64(time.Duration(v.Int()).Microseconds())/1e6
	case formDisposition:
		f.Str = mail.Disposition(v.Uint()).String() //nolint:gosec // it is one
	case formTime:
		f.Kind = Time
		f.Time, _ = reflect.TypeAssert[time.Time](v)
	case formAddr:
		ip, _ := reflect.TypeAssert[netip.Addr](v)
		f.Str = ip.String()
	case formSlice:
		f.Kind, f.Any = Object, v.Interface()
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
		_ = each(plan, v.Index(i), func(p *fieldPlan, fv reflect.Value) error {
			list[i] = append(list[i], fieldOf(p, fv))
			return nil
		})
	}
	return list
}

// Items is how many items the lists of ev have, taken together: what makes a
// fact large.
func Items(ev Event) (n int) {
	v := reflect.ValueOf(ev)
	for _, p := range kinds[v.Type()].lists {
		list := v
		for _, k := range p.in {
			list = list.Field(k)
		}
		n += list.Field(p.at).Len()
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

// AppendJSON appends the JSON form of r to dst. It is on the way of every
// message, so it follows the plan of the type instead of asking package json.
func (r *Record) AppendJSON(dst []byte) ([]byte, error) {
	if r.Event == nil {
		return dst, errors.New("record without an event")
	}
	v := reflect.ValueOf(r.Event)
	k := kinds[v.Type()]
	var err error
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
	for _, f := range [...]struct{ key, val string }{
		{`,"node":`, r.Node},
		{`,"source":`, string(r.Source)},
		{`,"config_rev":`, r.ConfigRev},
		{`,"session_id":`, r.Session},
		{`,"queue_id":`, string(r.Message)},
		{`,"message_uid":`, r.UID},
	} {
		if f.val != "" {
			dst = appendString(append(dst, f.key...), f.val)
		}
	}
	err = each(k.fields, v, func(p *fieldPlan, fv reflect.Value) (err error) {
		dst, err = appendValue(append(dst, p.lead...), p.form, fv)
		return err
	})
	return append(dst, '}'), err
}

// appendValue writes a field as package json would.
func appendValue(dst []byte, f form, v reflect.Value) ([]byte, error) {
	switch f {
	case formString:
		return appendString(dst, v.String()), nil
	case formBool:
		return strconv.AppendBool(dst, v.Bool()), nil
	case formInt:
		return strconv.AppendInt(dst, v.Int(), 10), nil
	case formUint:
		return strconv.AppendUint(dst, v.Uint(), 10), nil
	case formSeconds:
		return appendSeconds(dst, Seconds(v.Int())), nil
	case formDisposition:
		return appendString(dst, mail.Disposition(v.Uint()).String()), nil //nolint:gosec // it is one
	case formTime:
		t, _ := reflect.TypeAssert[time.Time](v)
		return appendTime(dst, t)
	case formAddr:
		ip, _ := reflect.TypeAssert[netip.Addr](v)
		if ip.Zone() != "" {
			return appendString(dst, ip.String()), nil
		}
		dst = append(dst, '"')
		if ip.IsValid() {
			dst = ip.AppendTo(dst)
		}
		return append(dst, '"'), nil
	case formSlice:
		return appendSlice(dst, v)
	}
	return dst, fmt.Errorf("field of form %d", f)
}

// appendSlice writes a slice of structs; their plans were made with the kinds.
func appendSlice(dst []byte, v reflect.Value) ([]byte, error) {
	if v.IsNil() {
		return append(dst, "null"...), nil
	}
	plan := elements[v.Type().Elem()]
	dst = append(dst, '[')
	for i := range v.Len() {
		if i > 0 {
			dst = append(dst, ',')
		}
		start := len(dst)
		err := each(plan, v.Index(i), func(p *fieldPlan, fv reflect.Value) (err error) {
			dst, err = appendValue(append(dst, p.lead...), p.form, fv)
			return err
		})
		if err != nil {
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
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			var buf bytes.Buffer
			enc := json.NewEncoder(&buf)
			enc.SetEscapeHTML(false)
			_ = enc.Encode(s) // a string can always be written
			return append(dst, bytes.TrimSuffix(buf.Bytes(), []byte{'\n'})...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
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
