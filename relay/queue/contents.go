package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"waybill/relay/reuse"
)

const (
	segmentSize   = 64 << 20  // of a shared segment
	spareSegments = 2         // kept ready, so that no message waits for a file to be made
	smallContent  = 256 << 10 // larger contents get a file of their own
	contentHeader = 40        // octets in front of each content
	contentAlign  = 8
	segmentSuffix = ".seg"
	ownSuffix     = ".msg"
)

// contentMagic begins the header of each content.
var contentMagic = [4]byte{'W', 'B', 'c', '1'}

// ErrDamaged is wrapped when a content is not what was accepted. The message
// is isolated, never delivered.
var ErrDamaged = errors.New("damaged content")

// errNoRoom says that the disk guard allows no new segment.
var errNoRoom = errors.New("no room for a new segment")

// traits are what is known of a content. A reader may take none for it.
type traits uint32

// sevenBit says that all octets are below 128.
const sevenBit traits = 1

// traitsOf returns what is known of a content that may be sevenBit.
func traitsOf(seven bool) traits {
	if seven {
		return sevenBit
	}
	return 0
}

// putContentHeader writes the header of a content into b.
func putContentHeader(b []byte, id ident, size int64, sum uint32, is traits) {
	copy(b, contentMagic[:])
	copy(b[8:24], id[:])
	binary.LittleEndian.PutUint64(b[24:], uint64(size)) //nolint:gosec // sizes are positive
	binary.LittleEndian.PutUint32(b[32:], sum)
	binary.LittleEndian.PutUint32(b[36:], uint32(is))
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:contentHeader], castagnoli))
}

// contentTraits is what a header that was checked says of its content.
func contentTraits(b []byte) traits { return traits(binary.LittleEndian.Uint32(b[36:])) }

// checkContentHeader returns the checksum that the content of id must have.
func checkContentHeader(b []byte, id ident, size int64) (sum uint32, err error) {
	switch {
	case [4]byte(b[:4]) != contentMagic, binary.LittleEndian.Uint32(b[4:]) != crc32.Checksum(b[8:contentHeader], castagnoli):
		return 0, fmt.Errorf("%w: header", ErrDamaged)
	case ident(b[8:24]) != id:
		return 0, fmt.Errorf("%w: belongs to %s", ErrDamaged, ident(b[8:24]).QueueID())
	case binary.LittleEndian.Uint64(b[24:]) != uint64(size): //nolint:gosec // sizes are positive
		return 0, fmt.Errorf("%w: size", ErrDamaged)
	}
	return binary.LittleEndian.Uint32(b[32:]), nil
}

// segment is one file of contents: shared by many small ones, or a large one's own.
// Its fields belong to the lock of contents.
type segment struct {
	seq     uint64
	own     bool
	f       file   // open while something may be written
	used    int64  // octets given out
	sealed  bool   // nothing more is given out
	pinned  bool   // never removed by this process
	pending int    // placed or being written, not yet committed
	entry   uint64 // of the journal, the last one that is here
	live    int    // messages whose content is here
	bytes   int64  // of those
	ids     []ident
}

func (s *segment) name() string {
	suffix := segmentSuffix
	if s.own {
		suffix = ownSuffix
	}
	return fmt.Sprintf("%016x%s", s.seq, suffix)
}

// segmentNumber is the number in the name of a segment's file.
func segmentNumber(name string) (uint64, error) {
	base := strings.TrimSuffix(strings.TrimSuffix(name, ownSuffix), segmentSuffix)
	seq, err := strconv.ParseUint(base, 16, 64)
	if err == nil && (&segment{seq: seq, own: strings.HasSuffix(name, ownSuffix)}).name() != name {
		err = fmt.Errorf("%q is no name of a segment", name)
	}
	return seq, err
}

// contents keeps the contents of all messages in files beside Badger, and the
// journal between them.
//
// A small content is written and synced by the committer, with the entry of the journal that
// names it; a large one is written and synced before. It is referred to from then on. A segment goes when nothing
// refers to it any more and Badger knows its part of the journal; the keys of the messages that were in it are deleted
// only after that, so that a deleted key that comes back names no content.
type contents struct {
	fs     fsys
	dir    string
	limit  int64 // size of a shared segment
	noSync bool
	spend  func(int64) bool // counts what is about to be allocated, and reports whether it may be

	sweeping sync.Mutex // held while files are removed

	mu        sync.Mutex
	active    *segment
	usual     int             // about how many messages the next one will have
	spares    []*segment      // files that are ready to be active; not among segs
	preparing map[uint64]bool // numbers of files that will be spares
	known     uint64          // the database knows the journal up to this entry
	making    bool            // one is being made
	made      sync.Cond       // making has ended
	makers    sync.WaitGroup
	segs      map[uint64]*segment
	next      uint64
	dead      []*segment    // sealed, nothing refers to them
	ripe      chan struct{} // one of those is wanted as a spare
	frozen    int           // backups under way: nothing is removed or used again
	reader    struct {      // of the sealed segment that was read last
		seq uint64
		f   file
	}
	streak streak
	closed bool
	bytes  int64 // given out, over all segments

	parts [][]byte // of the write under way; the committer's own
}

// newSegment makes the next segment's file. c.mu is held.
func (c *contents) newSegment(own bool) (*segment, error) {
	s := &segment{seq: c.next, own: own}
	f, err := c.fs.create(filepath.Join(c.dir, s.name()))
	if err != nil {
		return nil, err
	}
	s.f = f
	c.next++
	c.segs[s.seq] = s
	return s, nil
}

// rotate seals the active segment and takes a spare one, or waits for the one
// that is being made: then nothing is active when it returns. c.mu is held.
func (c *contents) rotate() error {
	c.seal()
	if len(c.spares) == 0 && c.making {
		c.made.Wait()
		return nil
	}
	if len(c.spares) == 0 {
		if !c.spend(c.limit) {
			return errNoRoom
		}
		s, err := c.ready(c.number(), "")
		if err != nil {
			return err
		}
		c.spares = append(c.spares, s)
	}
	c.active = c.spares[0]
	c.spares = slices.Delete(c.spares, 0, 1)
	c.segs[c.active.seq] = c.active
	return nil
}

// number gives the number of the next file. c.mu is held.
func (c *contents) number() uint64 {
	c.next++
	return c.next - 1
}

// ready makes a shared segment's file, of the file old that nothing refers to
// any more or, when that is empty, a new one. Its name is on disk when it
// returns. A used file is the better one: its blocks are written already, so
// that a sync has nothing but data to write.
func (c *contents) ready(seq uint64, old string) (*segment, error) {
	s := &segment{seq: seq}
	path := filepath.Join(c.dir, s.name())
	var err error
	if old == "" {
		s.f, err = c.fs.create(path)
	} else {
		s.f, err = c.fs.reuse(filepath.Join(c.dir, old), path)
	}
	if err != nil {
		return nil, err
	}
	if err = s.f.allocate(c.limit); err == nil {
		err = c.syncDir()
	}
	if !c.noSync {
		s.f.direct()
	}
	if err != nil {
		return nil, errors.Join(err, s.f.Close(), c.fs.remove(path))
	}
	return s, nil
}

// makeSpare makes a spare segment beside those who write. c.mu is held.
func (c *contents) makeSpare() {
	if c.making || c.closed || len(c.spares) > 0 || !c.spend(c.limit) {
		return
	}
	c.making = true
	seq := c.number()
	c.preparing[seq] = true
	c.makers.Go(func() {
		s, err := c.ready(seq, "")
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.preparing, seq)
		if err == nil { // otherwise whoever needs one meets the error
			c.spares = append(c.spares, s)
		}
		c.making = false
		c.made.Broadcast()
	})
}

// prepare has a segment ready for the first message: many may come at once, and
// all of them would wait for a file to be made and for its name to be on disk.
func (c *contents) prepare() {
	c.mu.Lock()
	c.makeSpare()
	c.mu.Unlock()
}

// seal ends the active segment. c.mu is held.
func (c *contents) seal() {
	if s := c.active; s != nil {
		c.active = nil
		s.sealed = true
		c.usual = len(s.ids) + len(s.ids)/8
		c.settled(s)
	}
}

// settled closes a segment that is no longer written to, and notes when
// nothing refers to it. c.mu is held.
func (c *contents) settled(s *segment) {
	if !s.sealed || s.pending > 0 {
		return
	}
	if s.f != nil {
		_ = s.f.Close() // everything in it is on disk, or of no concern
		s.f = nil
		if !s.own && !c.full(s) {
			_ = c.fs.truncate(filepath.Join(c.dir, s.name()), s.used) // gives the rest back; no harm if not
		}
	}
	if s.live == 0 && !s.pinned {
		c.dead = append(c.dead, s)
		if c.wanted(s) {
			select {
			case c.ripe <- struct{}{}:
			default: // it is known
			}
		}
	}
}

// wanted reports whether the file of s, when nothing refers to it, is to be used
// again. c.mu is held.
func (c *contents) wanted(s *segment) bool {
	return s.entry <= c.known && !s.own && c.full(s) && !c.closed && len(c.spares) < spareSegments
}

// full reports whether a shared segment was used nearly to its end.
func (c *contents) full(s *segment) bool { return s.used >= c.limit-c.limit/16 }

// content is one that a change brings: a large one is in a file of its own
// already, a small one is placed and written by the committer.
type content struct {
	rec    []byte   // header and content of a small one
	record int      // which of its change's pairs says where it is
	entry  int      // where the value of that is in the entry under way
	seg    *segment // where it is; of a small one known once it was placed
	off    int64
}

func (ct *content) location() location { return location{ct.seg.seq, ct.off} }

// newContent is a small content. rec has room for the header in front, and is not
// changed until the commit has ended.
func newContent(id ident, rec []byte, is traits) content {
	body := rec[contentHeader:]
	putContentHeader(rec, id, int64(len(body)), crc32.Checksum(body, castagnoli), is)
	return content{rec: rec}
}

// create opens a file for one large content.
func (c *contents) create() (*segment, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.newSegment(true)
	if err != nil {
		return nil, fmt.Errorf("new content file: %w", err)
	}
	s.sealed = true
	s.pending = 1
	return s, nil
}

// takeContent takes a content that is at hand. Where it goes into a file of its
// own, the caller must answer with commit or abort.
func (q *Queue) takeContent(id ident, text []byte) (*content, error) {
	rec := pages(contentHeader + len(text))
	copy(rec[contentHeader:], text)
	ct := newContent(id, rec, 0)
	if len(text) <= smallContent {
		return &ct, nil
	}
	s, err := q.contents.create()
	if err != nil {
		return nil, err
	}
	if _, err = s.f.WriteAt(rec, 0); err == nil {
		err = q.contents.sync(s)
	}
	if err != nil {
		q.contents.abort(s)
		return nil, err
	}
	return &content{seg: s}, nil
}

// commit says that the message id now refers to size octets in s, which are written.
func (c *contents) commit(s *segment, id ident, size int64) {
	c.mu.Lock()
	s.pending--
	if s.own {
		s.used = contentHeader + size
		c.bytes += s.used
	}
	if s.ids == nil && !s.own {
		s.ids = make([]ident, 0, c.usual)
	}
	s.refer(id, size)
	c.settled(s)
	c.mu.Unlock()
}

func (s *segment) refer(id ident, size int64) {
	s.live++
	s.bytes += contentHeader + size
	s.ids = append(s.ids, id)
}

// abort says that what was written for one content is not needed.
func (c *contents) abort(s *segment) {
	c.mu.Lock()
	s.pending--
	c.settled(s)
	c.mu.Unlock()
}

// release says that a message of size octets no longer refers to s.
func (c *contents) release(s *segment, size int64) {
	c.mu.Lock()
	s.live--
	s.bytes -= contentHeader + size
	c.settled(s)
	c.mu.Unlock()
}

// sync brings what was written to s onto the disk. s has something pending.
func (c *contents) sync(s *segment) error {
	if c.noSync {
		return nil
	}
	if err := s.f.sync(); err != nil {
		return fmt.Errorf("sync %s: %w", s.name(), err)
	}
	return nil
}

func (c *contents) syncDir() error {
	if c.noSync {
		return nil
	}
	return c.fs.syncDir(c.dir)
}

// find returns the segment numbered seq, or nil.
func (c *contents) find(seq uint64) *segment {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.segs[seq]
}

// usage returns the octets and the number of files.
func (c *contents) usage() (bytes int64, files int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes, len(c.segs)
}

// sweep removes the files that nothing refers to, or makes spares of them, and
// returns the ids whose keys may be deleted now: no file has their segment's
// number any more. An active segment that is worth it is sealed first.
func (c *contents) sweep() ([]ident, error) {
	c.sweeping.Lock()
	defer c.sweeping.Unlock()
	c.mu.Lock()
	if c.frozen > 0 {
		c.mu.Unlock()
		return nil, nil
	}
	if s := c.active; s != nil && s.live == 0 && s.pending == 0 && s.used >= c.limit/16 {
		c.seal()
	}
	var dead, needed []*segment
	for _, s := range c.dead {
		if s.entry <= c.known {
			dead = append(dead, s)
		} else { // it has a part of the journal
			needed = append(needed, s)
		}
	}
	c.dead = needed
	c.mu.Unlock()

	var ids []ident
	for i, s := range dead {
		if c.recycle(s) {
			ids = append(ids, s.ids...)
			continue
		}
		if err := c.fs.remove(filepath.Join(c.dir, s.name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			c.mu.Lock()
			c.dead = append(c.dead, dead[i:]...)
			c.mu.Unlock()
			return ids, fmt.Errorf("remove segment: %w", err)
		}
		c.mu.Lock()
		c.gone(s)
		c.mu.Unlock()
		ids = append(ids, s.ids...)
	}
	return ids, nil
}

// freeze begins or ends a time during which every content stays where it is.
func (c *contents) freeze(begin bool) {
	c.sweeping.Lock() // a sweep that has begun comes to its end
	defer c.sweeping.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if begin {
		c.frozen++
	} else {
		c.frozen--
	}
}

// recycle makes a spare of a dead segment, if it is worth it and one is wanted.
func (c *contents) recycle(s *segment) bool {
	c.mu.Lock()
	if !c.wanted(s) {
		c.mu.Unlock()
		return false
	}
	seq := c.number()
	c.preparing[seq] = true
	c.mu.Unlock()
	spare, err := c.ready(seq, s.name())
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.preparing, seq)
	if err != nil { // then it is removed, if it is still there
		return false
	}
	c.gone(s)
	c.spares = append(c.spares, spare)
	return true
}

// sparse returns a shared segment of which little is still needed, or nil.
// Copying its stragglers forward frees the rest.
func (c *contents) sparse() *segment {
	c.mu.Lock()
	defer c.mu.Unlock()
	var best *segment
	for _, s := range c.segs {
		if s.own || !s.sealed || s.pinned || s.pending > 0 || s.live == 0 || s.bytes > s.used/4 {
			continue
		}
		if best == nil || s.used-s.bytes > best.used-best.bytes {
			best = s
		}
	}
	return best
}

// stragglers lists the ids that were stored in s.
func (c *contents) stragglers(s *segment) []ident {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]ident(nil), s.ids...)
}

// forget drops an id that now lives in another segment from the list of s, so
// that its key does not go with it.
func (c *contents) forget(s *segment, id ident) {
	c.mu.Lock()
	if i := slices.Index(s.ids, id); i >= 0 {
		s.ids[i] = s.ids[len(s.ids)-1]
		s.ids = s.ids[:len(s.ids)-1]
	}
	c.mu.Unlock()
}

// pin keeps s for as long as this process lives.
func (c *contents) pin(s *segment) {
	c.mu.Lock()
	s.pinned = true
	c.mu.Unlock()
}

// load takes the files that are there at start. Sizes are those of the files
// until trim says better.
func (c *contents) load() error {
	files, err := c.fs.list(c.dir)
	if err != nil {
		return err
	}
	for name, size := range files {
		seq, err := segmentNumber(name)
		if err != nil {
			continue // not ours
		}
		s := &segment{seq: seq, own: strings.HasSuffix(name, ownSuffix), sealed: true, used: size}
		c.segs[seq] = s
		c.bytes += size
		c.next = max(c.next, seq+1)
	}
	return nil
}

// trim ends the start: segments are cut behind their last live content (ends),
// and those that nothing refers to wait for sweep.
func (c *contents) trim(ends map[uint64]int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.segs {
		switch end := ends[s.seq]; {
		case s.pinned:
		case s.live == 0:
			c.dead = append(c.dead, s)
		case !s.own && end < s.used:
			if c.fs.truncate(filepath.Join(c.dir, s.name()), end) == nil {
				c.bytes -= s.used - end
				s.used = end
			}
		}
	}
}

// close closes what is open.
func (c *contents) close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.makers.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, s := range c.spares {
		errs = append(errs, s.f.Close(), c.fs.remove(filepath.Join(c.dir, s.name())))
	}
	c.spares = nil
	for _, s := range c.segs {
		if s.f != nil {
			errs = append(errs, s.f.Close())
			s.f = nil
		}
	}
	if c.reader.f != nil {
		errs = append(errs, c.reader.f.Close())
		c.reader.f = nil
	}
	return errors.Join(errs...)
}

// open returns the content of id at loc, checked: a small one is read whole, a
// large one is read once for its checksum before the caller gets the first octet.
func (c *contents) open(id ident, loc location, size int64) (io.ReadCloser, error) {
	s := c.find(loc.seq)
	if s == nil {
		return nil, fmt.Errorf("%w: segment %016x is not there", ErrDamaged, loc.seq)
	}
	if size <= smallContent {
		buf := getBuffer(int(size) + contentHeader)
		rec := buf.b[:int(size)+contentHeader]
		if err := c.read(s, rec, loc.off); err != nil {
			putBuffer(buf)
			return nil, err
		}
		sum, err := checkContentHeader(rec, id, size)
		if err == nil && crc32.Checksum(rec[contentHeader:], castagnoli) != sum {
			err = fmt.Errorf("%w: checksum", ErrDamaged)
		}
		if err != nil {
			putBuffer(buf)
			return nil, err
		}
		return &bufferReader{buf: buf, rest: rec[contentHeader:], is: contentTraits(rec)}, nil
	}
	f, err := c.openFile(s)
	if err != nil {
		return nil, err
	}
	is, err := checkLarge(f, id, loc.off, size)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &fileReader{io.NewSectionReader(f, loc.off+contentHeader, size), f, is}, nil
}

// read reads all of rec at off of s. Most reads are of what has just come, or of
// what lies beside what was read before: the file that is open serves those. An
// open costs seven system calls, a read one.
func (c *contents) read(s *segment, rec []byte, off int64) error {
	c.mu.Lock()
	f := s.f
	if f == nil && c.reader.f != nil && c.reader.seq == s.seq {
		f = c.reader.f
	}
	from, n := c.streak.next(s.seq, off)
	c.mu.Unlock()
	if f != nil {
		if n > 0 {
			f.willNeed(from, n)
		}
		if err := readFull(f, rec, off); !errors.Is(err, os.ErrClosed) {
			return err
		}
	}
	f, err := c.openFile(s)
	if err != nil {
		return err
	}
	err = readFull(f, rec, off)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || s.own || c.segs[s.seq] != s {
		return errors.Join(err, f.Close())
	}
	f, c.reader.f, c.reader.seq = c.reader.f, f, s.seq
	if f != nil {
		_ = f.Close() // it was only read; who still does opens it again
	}
	return err
}

// streak notices that a segment is read from one place on, as a queue is that
// empties: by several at a time, so that the kernel does not see it.
type streak struct {
	seq  uint64
	last int64 // offset of the last read
	run  int   // how many were near the one before
	upto int64 // what was asked for ends here
}

const (
	streakNear  = 256 << 10 // of one read to the next
	streakAfter = 8         // so many of those
	streakAhead = 1 << 20   // is asked for then
)

// next takes note of a read, and returns what will be read soon and was not asked
// for, if that is known.
func (k *streak) next(seq uint64, off int64) (from, n int64) {
	if seq != k.seq || off-k.last > streakNear || k.last-off > streakNear {
		*k = streak{seq: seq, last: off}
		return 0, 0
	}
	k.last = off
	if k.run++; k.run < streakAfter || off+streakAhead/2 < k.upto {
		return 0, 0
	}
	from = max(off, k.upto)
	k.upto = from + streakAhead
	return from, streakAhead
}

// openFile opens the file of s to read.
func (c *contents) openFile(s *segment) (file, error) {
	f, err := c.fs.open(filepath.Join(c.dir, s.name()))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return f, err
}

// gone forgets s, whose file has another name now or none. c.mu is held.
func (c *contents) gone(s *segment) {
	delete(c.segs, s.seq)
	c.bytes -= s.used
	if c.reader.f != nil && c.reader.seq == s.seq {
		_ = c.reader.f.Close() // it was only read
		c.reader.f = nil
	}
}

// checkLarge reads a large content for its checksum, and returns what is known of it.
func checkLarge(f file, id ident, off, size int64) (traits, error) {
	var head [contentHeader]byte
	if err := readFull(f, head[:], off); err != nil {
		return 0, err
	}
	want, err := checkContentHeader(head[:], id, size)
	if err != nil {
		return 0, err
	}
	buf := getBuffer(smallContent)
	defer putBuffer(buf)
	var sum uint32
	for at := int64(0); at < size; {
		part := buf.b[:min(int64(smallContent), size-at)]
		if err := readFull(f, part, off+contentHeader+at); err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, castagnoli, part)
		at += int64(len(part))
	}
	if sum != want {
		return 0, fmt.Errorf("%w: checksum", ErrDamaged)
	}
	return contentTraits(head[:]), nil
}

// readFull reads all of b; a file that ends before is damaged.
func readFull(f file, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: cut off", ErrDamaged)
	}
	return err
}

// buffer is pooled memory, in three sizes.
type buffer struct{ b []byte }

var bufferSizes = [...]int{16<<10 + contentHeader, 64<<10 + contentHeader, smallContent + contentHeader}

var bufferPools [len(bufferSizes)]sync.Pool

// bufferSize is the size of the buffer that getBuffer returns for n octets.
func bufferSize(n int) int {
	for _, size := range bufferSizes {
		if n <= size {
			return size
		}
	}
	return n
}

// getBuffer returns a buffer for n octets, at most smallContent and a header.
func getBuffer(n int) *buffer {
	for i, size := range bufferSizes {
		if n <= size {
			if b, ok := bufferPools[i].Get().(*buffer); ok {
				return b
			}
			return &buffer{pages(size)}
		}
	}
	return &buffer{pages(n)}
}

// pages returns n octets with room behind them up to the end of a page: Go has what
// is as large as that begin with one, as a direct write wants it.
func pages(n int) []byte { return make([]byte, n, roundUp(int64(n), page)) }

func putBuffer(b *buffer) {
	reuse.Spoil(b.b)
	for i, size := range bufferSizes {
		if len(b.b) == size {
			bufferPools[i].Put(b)
		}
	}
}

type bufferReader struct {
	buf  *buffer
	rest []byte
	is   traits
}

func (r *bufferReader) Read(p []byte) (int, error) {
	switch {
	case r.buf == nil:
		return 0, os.ErrClosed
	case len(r.rest) == 0:
		return 0, io.EOF
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// SevenBit reports whether all octets are known to be below 128.
func (r *bufferReader) SevenBit() bool { return r.is&sevenBit != 0 }

// Bytes is what is left to read, without reading it. It is good until Close.
func (r *bufferReader) Bytes() []byte { return r.rest }

// WriteTo lets io.Copy do without a buffer of its own.
func (r *bufferReader) WriteTo(w io.Writer) (int64, error) {
	if r.buf == nil {
		return 0, os.ErrClosed
	}
	n, err := w.Write(r.rest)
	r.rest = r.rest[n:]
	return int64(n), err
}

// Close gives the buffer back.
func (r *bufferReader) Close() error {
	if r.buf != nil {
		putBuffer(r.buf)
		r.buf, r.rest = nil, nil
	}
	return nil
}

type fileReader struct {
	*io.SectionReader
	f  file
	is traits
}

// SevenBit reports whether all octets are known to be below 128.
func (r *fileReader) SevenBit() bool { return r.is&sevenBit != 0 }

// Close closes the file.
func (r *fileReader) Close() error { return r.f.Close() }
