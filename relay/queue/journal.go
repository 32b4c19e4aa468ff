package queue

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// The journal is what makes a commit durable: one entry for each group of
// changes, written behind the contents that the group names, so that one sync of
// the segment brings both onto the disk. The database learns of it later, and of
// most mail never: what came and went between two saves leaves nothing there.
//
// An entry is found again by its secret: 16 random octets that no content can
// know, so that nobody can have one written by sending it.

// entryHeader is how many octets are in front of the body of an entry.
const entryHeader = 56

// entryMagic begins an entry.
var entryMagic = [4]byte{'W', 'B', 'j', '1'}

// Operations of an entry's body.
const (
	opSet    = 1 // str key, str value
	opDelete = 2 // str key
)

// errJournal says that the journal is not what was written.
var errJournal = errors.New("damaged journal")

// secret marks the entries of one queue.
type secret [16]byte

// entry of the journal, as it was found.
type logged struct {
	number  uint64
	in      uint64 // the segment; 0: the database
	segment uint64 // no new segment may have a lower number
	body    []byte
}

// appendEntry begins an entry in b, which is empty. Its header is written by sealEntry.
func appendEntry(b []byte) []byte { return append(b, make([]byte, entryHeader)...) }

func appendSet(b []byte, key string, value []byte) []byte {
	b = append(b, opSet)
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = append(b, key...)
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

func appendDelete(b, key []byte) []byte {
	b = append(b, opDelete)
	b = binary.AppendUvarint(b, uint64(len(key)))
	return append(b, key...)
}

// sealEntry writes the header of an entry that is whole.
func sealEntry(b []byte, s secret, number, segment uint64) {
	body := b[entryHeader:]
	copy(b, entryMagic[:])
	copy(b[8:24], s[:])
	binary.LittleEndian.PutUint64(b[24:], number)
	binary.LittleEndian.PutUint64(b[32:], segment)
	binary.LittleEndian.PutUint64(b[40:], uint64(len(body)))
	binary.LittleEndian.PutUint32(b[48:], crc32.Checksum(body, castagnoli))
	binary.LittleEndian.PutUint32(b[52:], 0)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:entryHeader], castagnoli))
}

// openEntry reads the header of an entry.
func openEntry(b []byte, s secret) (e logged, size int64, sum uint32, ok bool) {
	if [4]byte(b[:4]) != entryMagic || secret(b[8:24]) != s ||
		binary.LittleEndian.Uint32(b[4:]) != crc32.Checksum(b[8:entryHeader], castagnoli) {
		return logged{}, 0, 0, false
	}
	e = logged{number: binary.LittleEndian.Uint64(b[24:]), segment: binary.LittleEndian.Uint64(b[32:])}
	size = int64(binary.LittleEndian.Uint64(b[40:])) //nolint:gosec // checked by the caller
	return e, size, binary.LittleEndian.Uint32(b[48:]), size >= 0
}

// operations calls f with what the body of an entry does, in its order; a value
// that is nil is of a key that is deleted. They are parts of body.
func operations(body []byte, f func(key, value []byte)) error {
	next := func() ([]byte, bool) {
		n, k := binary.Uvarint(body)
		if k <= 0 || n > uint64(len(body)-k) { //nolint:gosec // k is at most len(body)
			return nil, false
		}
		part := body[k : k+int(n) : k+int(n)] //nolint:gosec // n is at most len(body)
		body = body[k+int(n):]                //nolint:gosec // as above
		return part, true
	}
	for len(body) > 0 {
		op := body[0]
		body = body[1:]
		key, ok := next()
		var value []byte
		if ok && op == opSet {
			value, ok = next()
		}
		if !ok || op != opSet && op != opDelete {
			return fmt.Errorf("%w: operation", errJournal)
		}
		f(key, value)
	}
	return nil
}

// findEntries calls f with each entry of s that is whole and has a number above
// after, in the order of the file. It reads size octets of r.
func findEntries(r io.ReaderAt, size int64, s secret, after uint64, f func(logged)) error {
	const window = 1 << 20
	buf := make([]byte, window+entryHeader)
	for base := int64(0); base < size; base += window {
		n, err := r.ReadAt(buf[:min(int64(len(buf)), size-base)], base)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		part := buf[:n]
		for at := 0; at < len(part); {
			i := bytes.Index(part[at:], s[:])
			if i < 0 {
				break
			}
			at += i + len(s)
			begin := base + int64(at) - 24                                       // of the entry
			if begin < base || begin%contentAlign != 0 || begin >= base+window { // it is no entry, or one of another window
				continue
			}
			e, err := readEntry(r, size, begin, s, after)
			if err != nil {
				return err
			}
			if e.body != nil {
				f(e)
			}
		}
	}
	return nil
}

// readEntry reads the entry at off; it has no body when it is not whole, or when
// its number is not above after.
func readEntry(r io.ReaderAt, size, off int64, s secret, after uint64) (logged, error) {
	var head [entryHeader]byte
	if off+entryHeader > size {
		return logged{}, nil
	}
	if _, err := r.ReadAt(head[:], off); err != nil {
		return logged{}, err
	}
	e, n, sum, ok := openEntry(head[:], s)
	if !ok || e.number <= after || n > size-off-entryHeader {
		return logged{}, nil
	}
	body := make([]byte, n)
	if _, err := r.ReadAt(body, off+entryHeader); err != nil && !errors.Is(err, io.EOF) {
		return logged{}, err
	}
	if crc32.Checksum(body, castagnoli) == sum {
		e.body = body
	}
	return e, nil
}

// mark is how far the database knows the journal: what keyJournal has.
type mark struct {
	number uint64 // of the last entry that it knows
	floor  uint64 // later ones are in segments with this number or a higher one
}

const markSize = 32

func (m mark) encode(s secret) []byte {
	b := binary.BigEndian.AppendUint64(nil, m.number)
	b = binary.BigEndian.AppendUint64(b, m.floor)
	return append(b, s[:]...)
}

func decodeMark(v []byte) (m mark, s secret, err error) {
	if len(v) != markSize {
		return m, s, fmt.Errorf("%w: %s has %d octets", errRecord, keyJournal, len(v))
	}
	m.number, m.floor = binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])
	return m, secret(v[16:]), nil
}

// loadJournal brings the database to where the journal ends. Nothing else has
// read records or facts yet.
func (q *Queue) loadJournal() error {
	var has []byte
	var direct []logged
	err := q.db.View(func(txn *badger.Txn) error {
		item, err := getMark(txn, keyJournal)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if has, err = item.ValueCopy(nil); err != nil {
			return err
		}
		direct, err = directEntries(txn)
		return err
	})
	if err != nil {
		return err
	}
	var entries []logged
	if has == nil { // a new queue, or one of a program without a journal
		_, _ = rand.Read(q.secret[:]) // it never fails
	} else {
		if q.reached, q.secret, err = decodeMark(has); err != nil {
			return q.advise(err)
		}
		if entries, err = q.contents.entries(q.reached, q.secret); err != nil {
			return fmt.Errorf("read journal: %w", err)
		}
	}
	for _, e := range direct {
		q.direct = append(q.direct, e.number)
		if e.number > q.reached.number {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b logged) int { return cmp.Compare(a.number, b.number) })
	if n := len(entries); n > 0 && entries[n-1].number > q.witness.entries && q.unfinished(entries[n-1]) {
		entries = entries[:n-1]
	}
	last := q.reached.number
	for _, e := range entries {
		if e.number != last+1 {
			return q.advise(fmt.Errorf("the journal has entry %d and not %d before it: a file in %s is damaged or missing", e.number, last+1, q.contents.dir))
		}
		last = e.number
	}
	if told := q.witness.entries; told > last && !q.opts.NoSync {
		return q.advise(fmt.Errorf("the journal ends with entry %d, and %d were committed: a file in %s is damaged or missing", last, told, q.contents.dir))
	}
	list, err := newest(entries)
	if err != nil {
		return q.advise(err)
	}
	for _, e := range entries {
		q.contents.next = max(q.contents.next, e.segment)
	}
	return q.beginJournal(list, mark{number: last, floor: q.contents.next})
}

// unfinished reports whether e, which is the last entry, is on the disk without the
// contents that came with it. One sync was to bring both there: when the power
// fails before it ends, any part may be there, and nobody was told that it is.
func (q *Queue) unfinished(e logged) (torn bool) {
	_ = operations(e.body, func(key, value []byte) { // whoever uses the entry meets its errors
		if !bytes.HasPrefix(key, []byte(prefixMessage)) || value == nil {
			return
		}
		m, err := decodeRecord(value)
		if err != nil || m.done || m.loc.seq != e.in {
			return
		}
		id, _ := parseIdent(m.ID)
		r, err := q.contents.open(id, m.loc, m.Size)
		if err == nil {
			err = r.Close()
		}
		torn = torn || errors.Is(err, ErrDamaged)
	})
	return torn
}

// beginJournal has the journal go on behind m, and the database have list before.
func (q *Queue) beginJournal(list []saving, m mark) error {
	if err := q.save(list, m); err != nil {
		return err
	}
	q.journal, q.com.floor = m.number+1, m.floor
	q.overlay.begin(m, &base{txn: q.db.NewTransaction(false)})
	return nil
}

// newest is what the entries leave of each key, in no order.
func newest(entries []logged) ([]saving, error) {
	last := map[string]held{}
	for _, e := range entries {
		err := operations(e.body, func(key, value []byte) { last[currentKey(string(key))] = held{value: value} })
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", e.number, err)
		}
	}
	list := make([]saving, 0, len(last))
	for key, e := range last {
		list = append(list, saving{key, e.value})
	}
	return list, nil
}

// directEntries reads the entries that are in the database, because there was no
// room for them elsewhere.
func directEntries(txn *badger.Txn) (list []logged, err error) {
	opts := badger.DefaultIteratorOptions
	opts.Prefix = []byte(prefixEntry)
	it := txn.NewIterator(opts)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		key := it.Item().Key()
		body, err := it.Item().ValueCopy(nil)
		if err != nil {
			return nil, err
		}
		if len(key) == len(prefixEntry)+8 {
			list = append(list, logged{number: binary.BigEndian.Uint64(key[len(prefixEntry):]), body: body})
		}
	}
	return list, nil
}

func directKey(number uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(prefixEntry), number)
}

// entries reads the journal behind m from the segments.
func (c *contents) entries(m mark, secret secret) (list []logged, err error) {
	for _, s := range c.segs {
		if s.own || s.seq < m.floor {
			continue
		}
		f, err := c.fs.open(filepath.Join(c.dir, s.name()))
		if err != nil {
			return nil, err
		}
		had := len(list)
		err = findEntries(f, s.used, secret, m.number, func(e logged) {
			e.in = s.seq
			list = append(list, e)
		})
		if err == nil && len(list) > had && !c.noSync {
			// A process that was killed may have left the last of them, and its contents, in
			// the kernel's memory alone. What the database knows must not go with it.
			err = f.sync()
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name(), err)
		}
	}
	return list, nil
}

// placed is where a group goes: its contents, one behind the other, and the entry
// of the journal behind them.
type placed struct {
	seg             *segment
	from, entry, to int64
	floor           uint64 // the lowest number of a segment that a later entry can be in
}

// place gives a group its place: list, and an entry of n octets. The segment has
// each of the list and the entry pending, until commit or abort. It returns
// errNoRoom when there is none.
func (c *contents) place(number uint64, list []*content, n int) (p placed, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.floor = c.floor()
	for !p.fit(c.active, list, n, c.limit) {
		if c.active != nil && c.active.used == 0 { // it would not fit into another, either
			return p, errNoRoom
		}
		if err := c.rotate(); err != nil {
			return p, fmt.Errorf("new segment: %w", err)
		}
	}
	s := p.seg
	c.bytes += p.to - s.used
	s.used = p.to
	if s.used > c.limit/2 {
		c.makeSpare()
	}
	s.pending += len(list) + 1
	s.entry = number
	for _, ct := range list {
		ct.seg = s
	}
	return p, nil
}

// fit lays a group out behind what s has, and reports whether it has room there.
func (p *placed) fit(s *segment, list []*content, n int, limit int64) bool {
	if s == nil {
		return false
	}
	part, whole := s.f.units()
	p.seg, p.from = s, s.used
	at := s.used
	for _, ct := range list {
		ct.off = at
		at += roundUp(int64(len(ct.rec)), part)
	}
	p.entry = at
	p.to = roundUp(at+int64(n), whole)
	return p.to <= limit
}

// write writes a group to where it was placed.
func (c *contents) write(p placed, list []*content, entry []byte) error {
	parts := c.parts[:0]
	for i, ct := range list {
		end := p.entry
		if i+1 < len(list) {
			end = list[i+1].off
		}
		parts = append(parts, fill(ct.rec, end-ct.off))
	}
	parts = append(parts, fill(entry, p.to-p.entry))
	c.parts = parts
	err := p.seg.f.writeParts(parts, p.from)
	clear(parts)
	return err
}

// fill returns b with zeros behind it, n octets in all.
func fill(b []byte, n int64) []byte {
	had := len(b)
	b = slices.Grow(b, int(n)-had)[:n]
	clear(b[had:])
	return b
}

// floor is the lowest number of a shared segment that something may still be
// written to. It never gets less. c.mu is held.
func (c *contents) floor() uint64 {
	least := c.next
	if c.active != nil {
		least = min(least, c.active.seq)
	}
	for _, s := range c.spares {
		least = min(least, s.seq)
	}
	for seq := range c.preparing {
		least = min(least, seq)
	}
	return least
}

// saved says that the database knows the journal up to number: segments that are
// of no other use can go.
func (c *contents) saved(number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = number
	if len(c.dead) > 0 {
		select {
		case c.ripe <- struct{}{}:
		default: // it is known
		}
	}
}

// nextNumber is the number that the next file will have.
func (c *contents) nextNumber() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next
}
