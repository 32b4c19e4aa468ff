package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"sync"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"
)

// The record of one message, the value of its key. DESIGN.md draws it.
const (
	recordVersion = 5
	recordFirst   = 1 // the oldest version that is still read
	recordPlaced  = 5 // since then the location is at the end, in full size
	recordLive    = 1
	recordDone    = 2
	recordKept    = 3 // done, and everything that a live one has
	// stateRoom is what a recipient's part of a record grows by at most when it is
	// deferred, without the next hop's words.
	stateRoom = 48
	// locationSize is what a location takes at the end of a record, before the checksum:
	// the committer puts it there when it knows it.
	locationSize = 16
	// maxWhys is how many different meanings of failures a record keeps; what
	// recipients were told in other ways is explained anew. By taste.
	maxWhys = 32
	// mostStates is for how many recipients memory is kept that comes back. By taste.
	mostStates = 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errRecord is wrapped by everything that decodeRecord says.
var errRecord = errors.New("damaged queue record")

// location is where a message's content is.
type location struct {
	seq uint64 // of the segment
	off int64  // of the content's header
}

// stored is a message with what only the queue needs to know. It is not
// changed after it was decoded or committed: changes work on a clone.
type stored struct {
	Message
	loc      location
	panics   int       // how often its worker broke
	excused  bool      // it was held before the hand-over target passed
	done     bool      // nothing is left to do; only ID and loc are set, unless it is kept
	kept     bool      // it is done, and can be sent again
	finished time.Time // since when it is kept
	brief    bool      // to be written as short as it can be; no part of the record
}

// end is where the room of a content of size octets ends.
func (l location) end(size int64) int64 {
	return roundUp(l.off+contentHeader+size, contentAlign)
}

// append appends l in its full size.
func (l location) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, l.seq)
	return binary.LittleEndian.AppendUint64(b, uint64(l.off)) //nolint:gosec // offsets are positive
}

// relocate has a record that this program encoded say that the content is at l.
func relocate(record []byte, l location) {
	body := record[:len(record)-4]
	l.append(body[:len(body)-locationSize])
	binary.LittleEndian.PutUint32(record[len(body):], crc32.Checksum(body, castagnoli))
}

func (m *stored) clone() *stored {
	c := *m
	c.States = slices.Clone(m.States)
	return &c
}

// records are those that recycle took back.
var records = sync.Pool{New: func() any { return new(stored) }}

// copied is clone in memory that recycle takes back.
func (m *stored) copied() *stored {
	c := records.Get().(*stored)
	states := c.States
	*c = *m
	c.States = append(states[:0], m.States...)
	return c
}

// recycle gives back the memory of a record that nobody uses any more.
func (m *stored) recycle() {
	states := m.States
	clear(states)
	if cap(states) > mostStates {
		states = nil
	}
	*m = stored{}
	m.States = states[:0]
	records.Put(m)
}

// open reports whether any recipient is not final.
func (m *stored) open() bool {
	for i := range m.States {
		if !m.States[i].Disposition.Final() {
			return true
		}
	}
	return false
}

// why is a rule that decided the class of a failure, and what it says.
type why struct{ rule, means string }

// whysOf are the meanings of m's failures, each once.
func whysOf(m *stored) (list []why) {
	for i := range m.States {
		s := &m.States[i]
		if w := (why{s.LastRule, s.LastMeans}); w != (why{}) && len(list) < maxWhys && !slices.Contains(list, w) {
			list = append(list, w)
		}
	}
	return list
}

type encoder struct {
	b     []byte
	trace int // where the trace begins
}

func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)   { e.b = binary.AppendVarint(e.b, v) }

func (e *encoder) str(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) time(t time.Time) {
	if t.IsZero() {
		e.int(0)
		return
	}
	e.int(t.UnixMicro())
}

func (e *encoder) flags(bits ...bool) {
	var v byte
	for i, on := range bits {
		if on {
			v |= 1 << i
		}
	}
	e.b = append(e.b, v)
}

func (e *encoder) reply(r mail.Reply) {
	e.uint(uint64(max(r.Code, 0)))
	e.str(r.Enhanced)
	e.str(r.Text)
}

// encodeRecord appends the record of m to b.
func encodeRecord(b []byte, m *stored) []byte {
	start := len(b)
	e := &encoder{b: append(b, recordVersion, recordLive)}
	return e.live(m, start)
}

// encodeNew returns the record of m, and the part of it that is m's trace. It is
// written in room first, so that it takes no more memory than it needs: it stays until
// the next save.
func encodeNew(room *[]byte, m *stored) (record, trace []byte) {
	e := &encoder{b: append((*room)[:0], recordVersion, recordLive)}
	*room = e.live(m, 0)
	record = bytes.Clone(*room)
	if end := e.trace + len(m.Trace); end > e.trace {
		trace = record[e.trace:end:end]
	}
	return record, trace
}

// encodeKept appends the record of m, of which nothing is left to do and which
// is kept, to b.
func encodeKept(b []byte, m *stored) []byte {
	start := len(b)
	e := &encoder{b: append(b, recordVersion, recordKept)}
	e.time(m.finished)
	return e.live(m, start)
}

func (e *encoder) live(m *stored, start int) []byte {
	e.str(string(m.ID))
	e.int(m.Size)
	e.time(m.AcceptedAt)
	e.time(m.ExpiresAt)
	e.str(m.UID)
	e.str(string(m.Parent))
	e.int(int64(m.Priority))
	e.flags(m.excused, m.Envelope.UTF8)
	e.uint(uint64(max(m.panics, 0)))
	e.str(m.HeldBy)
	e.str(m.HeldWhy)
	e.time(m.HeldUntil)
	e.str(m.Poison)

	v := &m.Envelope
	e.str(v.Sender.Local)
	e.str(v.Sender.Domain)
	e.int(v.Size)
	e.uint(uint64(v.Body))
	e.str(v.Ret)
	e.str(v.EnvID)
	e.str(v.Auth)
	e.flags(v.RequireTLS, v.TLSOptional)
	e.int(int64(v.Priority))
	e.time(v.Release)
	e.time(v.DeliverBy.Deadline)
	e.flags(v.DeliverBy.Return, v.DeliverBy.Trace)

	o := &m.Origin
	for _, s := range []string{o.Session, o.Connector, o.ClientName, o.Helo, o.User, o.Mechanism, o.Protocol, o.TLSVersion, o.TLSCipher} {
		e.str(s)
	}
	var client [32]byte
	b, _ := o.Client.AppendBinary(client[:0]) // never fails
	e.uint(uint64(len(b)))
	e.b = append(e.b, b...)
	e.time(o.MailAt)
	e.time(o.DataEndedAt)

	e.str(m.Header.MessageID)
	e.str(m.Header.From)
	e.str(m.Header.Subject)
	e.int(int64(m.Header.Received))
	e.int(int64(m.Header.Bytes))
	e.uint(uint64(len(m.Trace)))
	e.trace = len(e.b)
	e.b = append(e.b, m.Trace...)

	var few [4]route.Hop
	hops := few[:0]
	for i := range m.States {
		if !slices.Contains(hops, m.States[i].Hop) {
			hops = append(hops, m.States[i].Hop)
		}
	}
	e.uint(uint64(len(hops)))
	for _, h := range hops {
		e.str(h.Connector)
		e.str(h.Name)
	}
	whys := whysOf(m)
	e.uint(uint64(len(whys)))
	for _, w := range whys {
		e.str(w.rule)
		e.str(w.means)
	}
	e.uint(uint64(len(v.Recipients)))
	for i := range v.Recipients {
		r, s := &v.Recipients[i], &m.States[i]
		e.str(r.Address.Local)
		e.str(r.Address.Domain)
		e.uint(uint64(r.Notify))
		e.str(r.ORcpt)
		e.uint(uint64(s.Disposition))
		e.uint(uint64(slices.Index(hops, s.Hop))) //nolint:gosec // it is there
		e.uint(uint64(max(s.Attempts, 0)))
		e.time(s.Due)
		e.reply(s.Last)
		e.str(string(s.LastClass))
		e.uint(uint64(slices.Index(whys, why{s.LastRule, s.LastMeans}) + 1)) //nolint:gosec // 0: none
		e.time(s.LastAt)
		e.str(s.LastHost)
		e.flags(s.DelaySent, s.Late)
		e.time(s.since)
		e.int(int64(s.backoff))
		e.int(int64(s.queued))
	}
	return e.end(m.loc, start)
}

// end appends what each record ends with.
func (e *encoder) end(l location, start int) []byte {
	e.b = l.append(e.b)
	return binary.LittleEndian.AppendUint32(e.b, crc32.Checksum(e.b[start:], castagnoli))
}

// encodeDone appends the record of a message that is finished: all that is
// left of it until its segment goes.
func encodeDone(b []byte, id mail.QueueID, loc location) []byte {
	start := len(b)
	b = slices.Grow(b, 3+len(id)+locationSize+4)
	e := &encoder{b: append(b, recordVersion, recordDone)}
	e.str(string(id))
	return e.end(loc, start)
}

// decoder reads what encoder wrote. After the first error everything is zero.
// Strings share the memory of one copy of the record.
type decoder struct {
	s   string
	bad bool
}

func (d *decoder) fail() { d.s, d.bad = "", true }

func (d *decoder) byte() byte {
	if d.s == "" {
		d.fail()
		return 0
	}
	b := d.s[0]
	d.s = d.s[1:]
	return b
}

func (d *decoder) uint() uint64 {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		b := d.byte()
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if b == 0 && shift > 0 || shift == 63 && b > 1 { // not the shortest form, or too large
				d.fail()
				return 0
			}
			return v
		}
	}
	d.fail()
	return 0
}

func (d *decoder) int() int64 {
	u := d.uint()
	v := int64(u >> 1)
	if u&1 != 0 {
		v = ^v
	}
	return v
}

// small reads a number that must be below limit.
func (d *decoder) small(limit int) int {
	v := d.uint()
	if v >= uint64(limit) { //nolint:gosec // limits are positive
		d.fail()
		return 0
	}
	return int(v) //nolint:gosec // below limit
}

func (d *decoder) str() string {
	n := d.uint()
	if n > uint64(len(d.s)) {
		d.fail()
		return ""
	}
	s := d.s[:n]
	d.s = d.s[n:]
	return s
}

func (d *decoder) time() time.Time {
	v := d.int()
	if v == 0 {
		return time.Time{}
	}
	return time.UnixMicro(v).UTC()
}

func (d *decoder) flags(bits ...*bool) {
	v := d.byte()
	if v>>len(bits) != 0 {
		d.fail()
		return
	}
	for i, p := range bits {
		*p = v&(1<<i) != 0
	}
}

func (d *decoder) reply() mail.Reply {
	return mail.Reply{Code: d.small(1000), Enhanced: d.str(), Text: d.str()}
}

// decodeRecord reads a record of either kind. It keeps nothing of b.
func decodeRecord(b []byte) (*stored, error) {
	if len(b) < 6 {
		return nil, fmt.Errorf("%w: %d octets", errRecord, len(b))
	}
	if b[0] < recordFirst || b[0] > recordVersion {
		return nil, fmt.Errorf("%w: version %d, this program reads versions %d to %d", errRecord, b[0], recordFirst, recordVersion)
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("%w: checksum", errRecord)
	}
	d := &decoder{s: string(body[2:])}
	m := &stored{}
	switch body[1] {
	case recordLive:
		d.live(m, b[0])
	case recordKept:
		m.finished = d.time()
		d.live(m, b[0])
		m.done, m.kept = true, true
	case recordDone:
		d.done(m, b[0])
	default:
		return nil, fmt.Errorf("%w: kind %d", errRecord, body[1])
	}
	if d.bad || d.s != "" {
		return nil, fmt.Errorf("%w: fields", errRecord)
	}
	if _, ok := parseIdent(m.ID); !ok || m.loc.off < 0 || m.Size < 0 {
		return nil, fmt.Errorf("%w: identity", errRecord)
	}
	return m, nil
}

// done reads what is left of a message that is finished.
func (d *decoder) done(m *stored, version byte) {
	m.done = true
	m.ID = mail.QueueID(d.str())
	if version < recordPlaced {
		m.loc.seq, m.loc.off = d.uint(), d.int()
	} else {
		m.loc = d.location()
	}
}

// location reads one in its full size.
func (d *decoder) location() location {
	if len(d.s) < locationSize {
		d.fail()
		return location{}
	}
	b := []byte(d.s[:locationSize])
	d.s = d.s[locationSize:]
	return location{binary.LittleEndian.Uint64(b), int64(binary.LittleEndian.Uint64(b[8:]))} //nolint:gosec // checked by the caller
}

func (d *decoder) live(m *stored, version byte) {
	m.ID = mail.QueueID(d.str())
	if version < recordPlaced {
		m.loc.seq, m.loc.off = d.uint(), d.int()
	}
	m.Size = d.int()
	m.AcceptedAt, m.ExpiresAt = d.time(), d.time()
	m.UID = d.str()
	m.Parent = mail.QueueID(d.str())
	p := d.int()
	if p < -1 || p > 1 {
		d.fail()
	}
	m.Priority = mail.Priority(p) //nolint:gosec // checked
	d.flags(&m.excused, &m.Envelope.UTF8)
	m.panics = d.small(1 << 20)
	m.HeldBy, m.HeldWhy, m.HeldUntil, m.Poison = d.str(), d.str(), d.time(), d.str()

	v := &m.Envelope
	v.Sender = mail.Address{Local: d.str(), Domain: d.str()}
	v.Size = d.int()
	v.Body = mail.Body(d.small(3)) //nolint:gosec // below 3
	v.Ret, v.EnvID, v.Auth = d.str(), d.str(), d.str()
	if version > 1 {
		d.flags(&v.RequireTLS, &v.TLSOptional)
		if p := d.int(); p < -9 || p > 9 {
			d.fail()
		} else {
			v.Priority = int8(p)
		}
		v.Release = d.time()
	}
	if version > 2 {
		v.DeliverBy.Deadline = d.time()
		d.flags(&v.DeliverBy.Return, &v.DeliverBy.Trace)
	}

	o := &m.Origin
	for _, s := range []*string{&o.Session, &o.Connector, &o.ClientName, &o.Helo, &o.User, &o.Mechanism, &o.Protocol, &o.TLSVersion, &o.TLSCipher} {
		*s = d.str()
	}
	if client := d.str(); client != "" {
		var a netip.AddrPort
		if a.UnmarshalBinary([]byte(client)) != nil {
			d.fail()
		}
		o.Client = a
	}
	o.MailAt, o.DataEndedAt = d.time(), d.time()
	m.Header = mail.Header{MessageID: d.str(), From: d.str(), Subject: d.str(), Received: int(d.int()), Bytes: int(d.int())}
	if trace := d.str(); trace != "" {
		m.Trace = []byte(trace)
	}

	hops := make([]route.Hop, d.small(len(d.s)/2+1)) // each takes two octets at least
	for i := range hops {
		hops[i] = route.Hop{Connector: d.str(), Name: d.str()}
	}
	var whys []why
	if version > 3 {
		whys = make([]why, d.small(min(len(d.s)/2, maxWhys)+1))
		for i := range whys {
			whys[i] = why{d.str(), d.str()}
		}
	}
	n := d.small(len(d.s)/16 + 1) // each takes 16 octets at least
	v.Recipients = make([]mail.Recipient, n)
	m.States = make([]State, n)
	for i := range n {
		r, s := &v.Recipients[i], &m.States[i]
		r.Address = mail.Address{Local: d.str(), Domain: d.str()}
		r.Notify = mail.Notify(d.small(16)) //nolint:gosec // below 16
		if r.ORcpt = d.str(); version < 4 {
			r.ORcpt = mail.ReadableORcpt(r.ORcpt)
		}
		s.Disposition = mail.Disposition(d.small(int(mail.Moved) + 1)) //nolint:gosec // small
		if h := d.small(len(hops)); !d.bad {
			s.Hop = hops[h]
		}
		s.Attempts = d.small(1 << 30)
		s.Due = d.time()
		s.Last = d.reply()
		s.LastClass = mail.Class(d.str())
		if version > 3 {
			if w := d.small(len(whys) + 1); w > 0 {
				s.LastRule, s.LastMeans = whys[w-1].rule, whys[w-1].means
			}
		}
		s.LastAt = d.time()
		s.LastHost = d.str()
		d.flags(&s.DelaySent, &s.Late)
		s.since = d.time()
		s.backoff, s.queued = time.Duration(d.int()), time.Duration(d.int())
		if s.Disposition == 0 {
			d.fail()
		}
	}
	if version >= recordPlaced {
		m.loc = d.location()
	}
}
