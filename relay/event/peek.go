package event

import (
	"fmt"
	"net/netip"
	"reflect"
	"time"
	"unsafe"
)

// Value is a struct, or a field of one, that is read where it lies: by offsets
// and kinds which package reflect told beforehand. Every fact is read field by
// field by the outbox, the log and the tracking store, and reflection was most
// of what that cost. A Value is good for as long as what it was made of is in
// use and does not change.
type Value struct{ at unsafe.Pointer }

// words are those of an [Event], as the runtime has it.
type words struct {
	table uintptr // one for each type
	data  unsafe.Pointer
}

// ValueOf is the fact ev. Facts are structs, and larger than a pointer (the
// table of facts is checked for that when the program starts), so that the
// second word of the interface points to it.
func ValueOf(ev Event) Value {
	return Value{(*words)(unsafe.Pointer(&ev)).data} //nolint:gosec // see above
}

// kindOf is the kind of ev, found by the first word of the interface: each fact
// is asked for its kind by all who take, write and count it. What a word stands
// for is learned from the table of facts; one that is not known, which the
// language does not rule out, is looked up by its type.
func kindOf(ev Event) *kind {
	table := (*words)(unsafe.Pointer(&ev)).table //nolint:gosec // see above
	for i := slotOf(table); slots[i].kind != nil; i = (i + 1) % len(slots) {
		if slots[i].table == table {
			return slots[i].kind
		}
	}
	return kinds[reflect.TypeOf(ev)]
}

// slots are the kinds by the first word of their events; at most half are used.
var slots [256]struct {
	table uintptr
	kind  *kind
}

func slotOf(table uintptr) int { return int(uint64(table)*0x9e3779b97f4a7c15>>56) % len(slots) }

// learn lets kindOf find k by the event ev.
func learn(ev Event, k *kind) {
	table := (*words)(unsafe.Pointer(&ev)).table //nolint:gosec // see above
	i := slotOf(table)
	for slots[i].kind != nil {
		i = (i + 1) % len(slots)
	}
	slots[i].table, slots[i].kind = table, k
}

// Value is the record itself, as [ValueOf] gives its fact.
func (r *Record) Value() Value { return Value{unsafe.Pointer(r)} } //nolint:gosec // read only

// checkPeekable panics when ValueOf cannot read facts of the type.
func checkPeekable(typ reflect.Type) {
	if typ.Kind() != reflect.Struct || typ.Size() <= unsafe.Sizeof(uintptr(0)) {
		panic(fmt.Sprintf("event: a fact must be a struct of more than one word: %v", typ))
	}
}

// Field is the field at an offset, which may be one of an embedded struct.
func (v Value) Field(offset uintptr) Value { return Value{unsafe.Add(v.at, offset)} }

// Text is the value of a field of a string type.
func (v Value) Text() string { return *(*string)(v.at) }

// Time is the value of a field of type [time.Time].
func (v Value) Time() time.Time { return *(*time.Time)(v.at) }

// Addr is the value of a field of type [netip.Addr].
func (v Value) Addr() netip.Addr { return *(*netip.Addr)(v.at) }

// Int is the value of a field of a bool or integer kind.
func (v Value) Int(kind reflect.Kind) int64 {
	switch kind {
	case reflect.Int64, reflect.Uint64:
		return *(*int64)(v.at)
	case reflect.Int, reflect.Uint:
		return int64(*(*int)(v.at))
	case reflect.Bool, reflect.Uint8:
		return int64(*(*uint8)(v.at))
	case reflect.Uint16:
		return int64(*(*uint16)(v.at))
	case reflect.Uint32:
		return int64(*(*uint32)(v.at))
	case reflect.Int8:
		return int64(*(*int8)(v.at))
	case reflect.Int16:
		return int64(*(*int16)(v.at))
	case reflect.Int32:
		return int64(*(*int32)(v.at))
	}
	panic("event: no integer: " + kind.String())
}

// Word is the value of a field of an integer kind of eight octets.
func (v Value) Word() int64 { return *(*int64)(v.at) }

// Octet is the value of a field of type bool or of a kind of one octet without a sign.
func (v Value) Octet() uint8 { return *(*uint8)(v.at) }

// slice is what the runtime has of one.
type slice struct {
	data unsafe.Pointer
	len  int
	_    int
}

// Len is the length of a slice, and -1 for one that is nil.
func (v Value) Len() int {
	s := (*slice)(v.at)
	if s.data == nil {
		return -1
	}
	return s.len
}

// Item is element i of a slice whose elements have the size.
func (v Value) Item(i int, size uintptr) Value {
	return Value{unsafe.Add((*slice)(v.at).data, uintptr(i)*size)}
}

// Reflect is the value as one of type typ, which it must be.
func (v Value) Reflect(typ reflect.Type) reflect.Value { return reflect.NewAt(typ, v.at).Elem() }
