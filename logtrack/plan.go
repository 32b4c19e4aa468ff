package logtrack

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// kind is how a field's Go type is stored.
type kind uint8

const (
	kindString kind = iota
	kindInt         // every integer, bool, disposition; seconds as microseconds
	kindTime
	kindAddr
	kindList // slice of structs
	kindJSON // anything else, as its JSON text
)

// leaf is one field of a fact.
type leaf struct {
	name   string // JSON name; of a list's element: list.field
	kind   kind
	index  []int
	offset uintptr
	typ    reflect.Type
	size   uintptr // of a list's element
	sub    []leaf  // of a list: the fields of its elements

	is      reflect.Kind
	seconds bool   // its values are in nanoseconds, those of its column in microseconds
	key     string // of its column in a block
	nanos   string // of the column of what is below the microsecond
}

// plan is how to take one type of fact apart and to put it together again.
type plan struct {
	name   string
	typ    reflect.Type
	class  event.Durability
	place  byte // in journalTypes
	leaves []leaf
	byName map[string]getter // every column of its facts

	recipients *leaf              // the list, or nil
	keys       [readSets][]string // by readSet: the columns to read
}

// heads are the fields of the record itself.
var heads = []string{"ts", "event_id", "node", "source", "config_rev", "session_id", "queue_id", "message_uid"}

var (
	plans     = makePlans()
	planNames = namePlans()
)

func makePlans() map[reflect.Type]*plan {
	all := map[reflect.Type]*plan{}
	for _, name := range event.Names() {
		var r event.Record
		line := fmt.Sprintf(`{"schema":1,"event":%q,"ts":"2000-01-01T00:00:00Z"}`, name)
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			panic(fmt.Sprintf("logtrack: fact %s: %v", name, err)) // a test of package event would fail too
		}
		typ := reflect.TypeOf(r.Event)
		p := &plan{name: name, typ: typ, class: event.Class(r.Event), leaves: planLeaves(typ, nil, 0, "")}
		p.byName = p.getters()
		if i := slices.IndexFunc(p.leaves, func(l leaf) bool { return l.name == "recipients" && l.kind == kindList }); i >= 0 {
			p.recipients = &p.leaves[i]
		}
		for set := range p.keys {
			p.keys[set] = p.columns(readSet(set))
		}
		all[typ] = p
	}
	return all
}

func namePlans() map[string]*plan {
	m := make(map[string]*plan, len(plans))
	for _, p := range plans {
		m[p.name] = p
	}
	return m
}

func planLeaves(typ reflect.Type, index []int, base uintptr, prefix string) []leaf {
	var leaves []leaf
	for f := range typ.Fields() {
		at := append(slices.Clone(index), f.Index...)
		if f.Anonymous {
			leaves = append(leaves, planLeaves(f.Type, at, base+f.Offset, prefix)...)
			continue
		}
		key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		l := leaf{name: prefix + key, index: at, offset: base + f.Offset, typ: f.Type, kind: kindOf(f.Type, prefix == ""), is: f.Type.Kind(), seconds: f.Type == reflect.TypeFor[event.Seconds]()}
		l.key, l.nanos = colKey(l.name, l.isText()), colKey(l.name+"/ns", false)
		if l.kind == kindList {
			l.size = f.Type.Elem().Size()
			l.sub = planLeaves(f.Type.Elem(), nil, 0, key+".")
		}
		leaves = append(leaves, l)
	}
	return leaves
}

func kindOf(t reflect.Type, top bool) kind {
	switch t {
	case reflect.TypeFor[time.Time]():
		return kindTime
	case reflect.TypeFor[netip.Addr]():
		return kindAddr
	case reflect.TypeFor[mail.Disposition](), reflect.TypeFor[event.Seconds]():
		return kindInt
	}
	switch t.Kind() {
	case reflect.String:
		return kindString
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return kindInt
	case reflect.Slice:
		if top && t.Elem().Kind() == reflect.Struct {
			return kindList
		}
	}
	return kindJSON
}

// isText reports whether the leaf's column holds strings.
func (l *leaf) isText() bool { return l.kind == kindString || l.kind == kindAddr || l.kind == kindJSON }

// text is the leaf's value in struct v, for a leaf that isText.
func (l *leaf) text(v event.Value) string {
	f := v.Field(l.offset)
	switch l.kind {
	case kindString:
		return f.Text()
	case kindAddr:
		if a := f.Addr(); a.IsValid() {
			return a.String()
		}
		return ""
	}
	rv := f.Reflect(l.typ)
	if rv.IsZero() {
		return ""
	}
	b, err := json.Marshal(rv.Interface())
	if err != nil {
		return ""
	}
	return string(b)
}

// num is the leaf's value in struct v as an integer, and for times the
// nanoseconds below the microsecond.
func (l *leaf) num(v event.Value) (n, nanos int64) {
	f := v.Field(l.offset)
	if l.kind == kindTime {
		return packTime(f.Time())
	}
	n = f.Int(l.is)
	if l.seconds {
		n = time.Duration(n).Microseconds()
	}
	return n, 0
}

func (l *leaf) setText(v reflect.Value, s string) {
	if s == "" {
		return
	}
	f := v.FieldByIndex(l.index)
	switch l.kind {
	case kindString:
		f.SetString(s)
	case kindAddr:
		if a, err := netip.ParseAddr(s); err == nil {
			*f.Addr().Interface().(*netip.Addr) = a
		}
	default:
		_ = json.Unmarshal([]byte(s), f.Addr().Interface()) // what text wrote; otherwise the field stays zero
	}
}

func (l *leaf) setNum(v reflect.Value, n, nanos int64) {
	if n == 0 && nanos == 0 {
		return
	}
	f := v.FieldByIndex(l.index)
	switch {
	case l.kind == kindTime:
		f.Set(reflect.ValueOf(unpackTime(n, nanos)))
	case l.seconds:
		if n > math.MaxInt64/1000 || n < math.MinInt64/1000 {
			return
		}
		f.SetInt(n * 1000)
	case f.Kind() == reflect.Bool:
		f.SetBool(n != 0)
	case f.CanUint():
		f.SetUint(uint64(n)) //nolint:gosec // the bits that num took
	default:
		f.SetInt(n)
	}
}

// packTime makes a time an integer: microseconds since 1970, those from 0 on
// moved up by one, so that 0 stands for the zero time.
func packTime(t time.Time) (micros, nanos int64) {
	if t.IsZero() {
		return 0, 0
	}
	micros = t.UnixMicro()
	nanos = int64(t.Nanosecond() % 1000)
	if micros >= 0 {
		micros++
	}
	return micros, nanos
}

func unpackTime(micros, nanos int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	if micros > 0 {
		micros--
	}
	return time.UnixMicro(micros).Add(time.Duration(nanos)).UTC()
}
