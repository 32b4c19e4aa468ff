package logtrack

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// A journal file holds the records of one block until the block is sealed:
// magic, then frames of length, checksum and payload. The first frame is the
// schema that the others were written with, so that a file outlives a change
// of the facts.

const (
	journalMagic = "WBTJ\x01"
	journalExt   = ".wj"
	maxFrame     = 64 << 20
)

// schemaType is one type of fact in a journal's schema frame.
type schemaType struct {
	Name   string       `json:"name"`
	Leaves []schemaLeaf `json:"leaves"`
}

type schemaLeaf struct {
	Name string       `json:"name"`
	Kind kind         `json:"kind"`
	Sub  []schemaLeaf `json:"sub,omitempty"`
}

var (
	journalTypes = func() (list []*plan) {
		for _, p := range plans {
			list = append(list, p)
		}
		slices.SortFunc(list, func(a, b *plan) int { return strings.Compare(a.name, b.name) })
		for i, p := range list {
			p.place = byte(i) // far fewer than 256
		}
		return list
	}()
	journalStart = func() []byte {
		var types []schemaType
		for _, p := range journalTypes {
			types = append(types, schemaType{p.name, schemaLeaves(p.leaves)})
		}
		b, err := json.Marshal(types)
		if err != nil {
			panic(err) // plain structs
		}
		return appendFrame([]byte(journalMagic), b)
	}()
)

func schemaLeaves(leaves []leaf) []schemaLeaf {
	var list []schemaLeaf
	for _, l := range leaves {
		list = append(list, schemaLeaf{l.name, l.kind, schemaLeaves(l.sub)})
	}
	return list
}

func appendFrame(dst, payload []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(payload))) //nolint:gosec // bounded by the facts
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(payload, castagnoli))
	return append(dst, payload...)
}

// appendRecord frames r as journal files have it.
func appendRecord(dst []byte, r *event.Record) []byte {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	p := planOf(r)
	dst = binary.AppendUvarint(dst, uint64(p.place))
	micros, nanos := packTime(r.Time)
	dst = binary.AppendVarint(dst, micros)
	dst = binary.AppendVarint(dst, nanos)
	for _, s := range [...]string{r.ID, r.Node, string(r.Source), r.ConfigRev, r.Session, string(r.Message), r.UID} { // heads
		dst = appendString(dst, s)
	}
	dst = appendLeaves(dst, p.leaves, event.ValueOf(r.Event))
	payload := dst[at+8:]
	binary.LittleEndian.PutUint32(dst[at:], uint32(len(payload))) //nolint:gosec // bounded by the facts
	binary.LittleEndian.PutUint32(dst[at+4:], crc32.Checksum(payload, castagnoli))
	return dst
}

func appendLeaves(dst []byte, leaves []leaf, v event.Value) []byte {
	for i := range leaves {
		l := &leaves[i]
		switch l.kind {
		case kindString:
			dst = appendString(dst, v.Field(l.offset).Text())
		case kindAddr:
			dst = appendAddr(dst, v.Field(l.offset).Addr())
		case kindJSON:
			dst = appendString(dst, l.text(v))
		case kindList:
			list := v.Field(l.offset)
			n := list.Len()
			dst = binary.AppendUvarint(dst, uint64(n+1)) //nolint:gosec // a length, or -1
			for j := range n {
				dst = appendLeaves(dst, l.sub, list.Item(j, l.size))
			}
		default:
			n, nanos := l.num(v)
			dst = binary.AppendVarint(dst, n)
			if l.kind == kindTime {
				dst = binary.AppendVarint(dst, nanos)
			}
		}
	}
	return dst
}

// appendAddr is appendString of the text of a, which is empty for the zero one.
func appendAddr(dst []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return append(dst, 0)
	}
	var room [64]byte
	text := a.AppendTo(room[:0])
	return append(binary.AppendUvarint(dst, uint64(len(text))), text...)
}

// readJournal calls yield with each whole record of a journal file, and
// returns how many octets at the end it could not use: the torn tail that a
// crash leaves. It fails only when reading itself does.
func readJournal(f io.Reader, yield func(event.Record)) (torn int, err error) {
	b, err := io.ReadAll(f)
	if err != nil {
		return 0, err
	}
	rest, ok := strings.CutPrefix(string(b), journalMagic)
	if !ok {
		return len(b), nil
	}
	src := []byte(rest)
	frame, next, ok := cutFrame(src)
	if !ok {
		return len(src), nil
	}
	var schema []schemaType
	if json.Unmarshal(frame, &schema) != nil {
		return len(src), nil
	}
	src = next
	for len(src) > 0 {
		frame, next, ok := cutFrame(src)
		if !ok {
			return len(src), nil
		}
		r, err := readRecord(frame, schema)
		switch {
		case errors.Is(err, errUnknownFact):
		case err != nil:
			return len(src), nil
		default:
			yield(r)
		}
		src = next
	}
	return 0, nil
}

func cutFrame(src []byte) (frame, rest []byte, ok bool) {
	if len(src) < 8 {
		return nil, nil, false
	}
	n := binary.LittleEndian.Uint32(src)
	if n == 0 || n > maxFrame || uint64(len(src)-8) < uint64(n) { //nolint:gosec // a length
		return nil, nil, false
	}
	frame = src[8 : 8+n]
	return frame, src[8+n:], crc32.Checksum(frame, castagnoli) == binary.LittleEndian.Uint32(src[4:])
}

func readRecord(src []byte, schema []schemaType) (event.Record, error) {
	var r event.Record
	i, src, err := readUvarint(src, uint64(len(schema)))
	if err != nil || i >= len(schema) {
		return r, damaged("type")
	}
	st := schema[i]
	var micros, nanos int64
	if micros, src, err = readVarint(src); err != nil {
		return r, err
	}
	if nanos, src, err = readVarint(src); err != nil {
		return r, err
	}
	var source, message string
	for _, dst := range [...]*string{&r.ID, &r.Node, &source, &r.ConfigRev, &r.Session, &message, &r.UID} {
		if *dst, src, err = readString(src); err != nil {
			return r, err
		}
	}
	r.Time, r.Source, r.Message = unpackTime(micros, nanos), event.Source(source), mail.QueueID(message)
	p := planNames[st.Name]
	if p == nil {
		return r, errUnknownFact
	}
	v := reflect.New(p.typ).Elem()
	if _, err := readLeaves(src, st.Leaves, p.leaves, v, true); err != nil {
		return r, err
	}
	r.Event = v.Interface().(event.Event)
	return r, nil
}

// readLeaves reads fields as the file's schema has them into those that this
// version has under the same name and kind, and passes over the others.
func readLeaves(src []byte, schema []schemaLeaf, leaves []leaf, v reflect.Value, live bool) ([]byte, error) {
	for i, sl := range schema {
		var l *leaf
		if live {
			if i < len(leaves) && leaves[i].name == sl.Name && leaves[i].kind == sl.Kind {
				l = &leaves[i]
			} else if at := slices.IndexFunc(leaves, func(l leaf) bool { return l.name == sl.Name && l.kind == sl.Kind }); at >= 0 {
				l = &leaves[at]
			}
		}
		var err error
		switch sl.Kind {
		case kindString, kindAddr, kindJSON:
			var s string
			if s, src, err = readString(src); err != nil {
				return nil, err
			}
			if l != nil {
				l.setText(v, s)
			}
		case kindList:
			if src, err = readList(src, sl, l, v); err != nil {
				return nil, err
			}
		default:
			var n, nanos int64
			if n, src, err = readVarint(src); err != nil {
				return nil, err
			}
			if sl.Kind == kindTime {
				if nanos, src, err = readVarint(src); err != nil {
					return nil, err
				}
			}
			if l != nil {
				l.setNum(v, n, nanos)
			}
		}
	}
	return src, nil
}

func readList(src []byte, sl schemaLeaf, l *leaf, v reflect.Value) ([]byte, error) {
	n, src, err := readUvarint(src, uint64(len(src)))
	if err != nil || n == 0 {
		return src, err
	}
	n--
	if len(sl.Sub) == 0 && n > 0 {
		return nil, damaged("list of nothing")
	}
	var list reflect.Value
	if l != nil {
		list = reflect.MakeSlice(l.typ, n, n)
	}
	for i := range n {
		if l == nil {
			src, err = readLeaves(src, sl.Sub, nil, reflect.Value{}, false)
		} else {
			src, err = readLeaves(src, sl.Sub, l.sub, list.Index(i), true)
		}
		if err != nil {
			return nil, err
		}
	}
	if l != nil {
		v.FieldByIndex(l.index).Set(list)
	}
	return src, nil
}

// segment is the journal file of one block. The flusher owns file and young;
// the store's lock guards the rest.
type segment struct {
	path  string
	buf   []byte // framed, not yet written
	file  *os.File
	dirty bool  // written, not yet synced
	young bool  // its name is not yet synced
	err   error // the first error; the file is not used again after it
}

func journalPath(dir string, seq uint32) string {
	return filepath.Join(dir, fmt.Sprintf("%010d%s", seq, journalExt))
}

func journalSeq(name string) (uint32, bool) {
	base, ok := strings.CutSuffix(name, journalExt)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(base, 10, 32)
	return uint32(n), err == nil
}

// write appends b to the file, which is created at the first call.
func (g *segment) write(b []byte) error {
	if g.file == nil {
		f, err := os.OpenFile(g.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		g.file, g.young = f, true
		if _, err := f.Write(journalStart); err != nil {
			return err
		}
	}
	_, err := g.file.Write(b)
	return err
}

// sync syncs what write wrote, and the name of the file. Under load most files
// are stored as blocks and removed before either is due.
func (g *segment) sync() error {
	err := g.file.Sync()
	if err == nil && g.young {
		err = syncDir(filepath.Dir(g.path))
		g.young = err != nil
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the store's own directory
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
