package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"waybill/relay/badgerdir"
	"waybill/relay/mail"
)

// RescueOptions say what to save, and where to.
type RescueOptions struct {
	Dir   string // of the queue, which no process has open
	To    string // a new directory
	Queue bool   // also make a queue of what could be saved, in To/queue
}

// Rescued says what was saved, and what was not.
type Rescued struct {
	Messages   int          `json:"messages"`           // saved whole, in messages/
	Bytes      int64        `json:"bytes"`              // of those
	Partial    []RescueLoss `json:"partial,omitempty"`  // saved in partial/: the content is not what was accepted
	Lost       []RescueLoss `json:"lost,omitempty"`     // envelopes without any content
	Unreadable int          `json:"unreadable_records"` // records of which no version can be read
	Orphans    int          `json:"orphans"`            // contents without an envelope, in orphans/
	Facts      int          `json:"facts"`              // in facts.jsonl: what the tracking store may not have
	Damage     []string     `json:"damage,omitempty"`   // of the database's files
	Queue      string       `json:"queue,omitzero"`     // the new queue's directory
}

// RescueLoss is a message of which not everything was saved.
type RescueLoss struct {
	ID  mail.QueueID `json:"queue_id"`
	Why string       `json:"why"`
}

// RescuedMessage is the envelope that Rescue writes beside each content.
type RescuedMessage struct {
	ID         mail.QueueID       `json:"queue_id"`
	UID        string             `json:"message_uid,omitzero"`
	Parent     mail.QueueID       `json:"parent_queue_id,omitzero"`
	Accepted   time.Time          `json:"accepted"`
	Expires    time.Time          `json:"expires"`
	Envelope   mail.Envelope      `json:"envelope"`
	Recipients []RescuedRecipient `json:"recipients"`
	Problem    string             `json:"problem,omitzero"` // why the content is not whole
}

// RescuedRecipient is one recipient's state, as far as it is known.
type RescuedRecipient struct {
	Address     string    `json:"address"`
	Disposition string    `json:"disposition"`
	Attempts    int       `json:"attempts"`
	Next        time.Time `json:"next_attempt,omitzero"`
	LastReply   string    `json:"last_reply,omitzero"`
	Open        bool      `json:"open"` // this one still waits for the message
}

// rescue is a rescue under way.
type rescue struct {
	opts     RescueOptions
	contents *contents
	done     Rescued
	messages map[ident]*found
	other    map[string]badgerdir.Entry // holds and marks, the newest version of each
	rows     map[uint64][]byte          // of the outbox
	entries  map[uint64]logged          // of the journal
	finished map[ident]bool             // by entries that the database knows
	found    map[ident]location         // contents by their own headers; nil until somebody asks
	fresh    *rebuild
}

// found is the newest that can be read about a message.
type found struct {
	version uint64 // of record
	record  []byte // nil: none could be read
	deleted bool
}

// Rescue saves what can be read of a queue, damaged or not, and changes nothing
// in it: each message as an .eml file with its envelope beside it, the facts that
// the tracking store may not have, and a new queue when that is wanted.
func Rescue(ctx context.Context, opts RescueOptions) (*Rescued, error) {
	if _, err := os.Stat(filepath.Join(opts.Dir, "badger")); err != nil {
		return nil, fmt.Errorf("rescue: %s is not the directory of a queue: %w", opts.Dir, err)
	}
	lock, err := lockDir(opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("rescue: %w; stop the relay first", err)
	}
	defer func() { _ = lock.Close() }() // opened for reading
	r := &rescue{
		opts: opts, messages: map[ident]*found{}, other: map[string]badgerdir.Entry{}, rows: map[uint64][]byte{}, entries: map[uint64]logged{}, finished: map[ident]bool{},
		contents: &contents{fs: disk{}, dir: filepath.Join(opts.Dir, "segments"), segs: map[uint64]*segment{}},
	}
	if err := r.run(ctx); err != nil {
		return nil, fmt.Errorf("rescue: %w", err)
	}
	return &r.done, nil
}

func (r *rescue) run(ctx context.Context) (err error) {
	if err := newDirectory(r.opts.To); err != nil {
		return err
	}
	for _, sub := range []string{"messages", "partial", "orphans"} {
		if err := os.Mkdir(filepath.Join(r.opts.To, sub), 0o700); err != nil {
			return err
		}
	}
	if err := r.contents.load(); err != nil {
		r.done.Damage = append(r.done.Damage, err.Error())
	}
	if err := r.readDatabase(); err != nil {
		return err
	}
	r.readJournal()
	if r.opts.Queue {
		r.done.Queue = filepath.Join(r.opts.To, "queue")
		if r.fresh, err = newRebuild(r.done.Queue, 1); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				r.fresh.abandon()
			}
		}()
	}
	if err := r.saveMessages(ctx); err != nil {
		return err
	}
	if len(r.done.Damage) > 0 || r.done.Unreadable > 0 {
		if err := r.saveOrphans(ctx); err != nil {
			return err
		}
	}
	if err := r.saveFacts(); err != nil {
		return err
	}
	if r.fresh != nil {
		if err := r.endQueue(); err != nil {
			return err
		}
	}
	for _, sub := range []string{"partial", "orphans"} { // those that are empty
		_ = os.Remove(filepath.Join(r.opts.To, sub))
	}
	return writeJSON(filepath.Join(r.opts.To, "report.json"), &r.done)
}

// readDatabase reads all that can be read of the database, and of the tables
// that a start put aside.
func (r *rescue) readDatabase() error {
	dir := filepath.Join(r.opts.Dir, "badger")
	damage, err := badgerdir.Read(dir, r.take)
	if err != nil {
		return err
	}
	for _, d := range damage {
		r.carve(filepath.Join(dir, d.File))
	}
	aside, err := filepath.Glob(filepath.Join(r.opts.Dir, straysName, "*", "*.sst"))
	if err != nil {
		return err
	}
	for _, name := range aside {
		damage = append(damage, badgerdir.ReadTable(name, r.take)...)
	}
	for _, d := range damage {
		r.done.Damage = append(r.done.Damage, d.String())
	}
	return nil
}

// readJournal takes what the journal has beyond the database: each of its entries
// is newer than all that is there.
func (r *rescue) readJournal() {
	has := r.other[keyJournal]
	if has.Deleted || has.Value == nil {
		return // a queue of a program without a journal, or one that lost its database
	}
	m, secret, err := decodeMark(has.Value)
	if err != nil {
		r.done.Damage = append(r.done.Damage, err.Error())
		return
	}
	for _, seq := range slices.Sorted(maps.Keys(r.contents.segs)) {
		s := r.contents.segs[seq]
		if s.own {
			continue
		}
		f, err := r.contents.fs.open(filepath.Join(r.contents.dir, s.name()))
		if err == nil {
			err = findEntries(f, s.used, secret, 0, func(e logged) {
				switch {
				case e.number <= m.number:
					r.takeFinished(e)
				case s.seq >= m.floor:
					r.entries[e.number] = e
				}
			})
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			r.done.Damage = append(r.done.Damage, fmt.Sprintf("%s: %v", s.name(), err))
		}
	}
	last := m.number
	for _, n := range slices.Sorted(maps.Keys(r.entries)) {
		if n <= m.number {
			continue
		}
		if n != last+1 {
			r.done.Damage = append(r.done.Damage, fmt.Sprintf("the journal has entry %d and not %d before it", n, last+1))
		}
		last = n
		err := operations(r.entries[n].body, func(key, value []byte) {
			r.take(badgerdir.Entry{Key: key, Value: value, Version: journalVersion + n, Deleted: value == nil})
		})
		if err != nil {
			r.done.Damage = append(r.done.Damage, fmt.Sprintf("entry %d of the journal: %v", n, err))
		}
	}
	if _, told := readWitness(filepath.Join(r.opts.Dir, witnessName)); told > last {
		r.done.Damage = append(r.done.Damage, fmt.Sprintf("the journal ends with entry %d, and %d were committed", last, told))
	}
}

// takeFinished notes which messages an entry finished. The database knows the
// entry, but may never have heard of such a message.
func (r *rescue) takeFinished(e logged) {
	_ = operations(e.body, func(key, value []byte) { // what cannot be read finishes nothing
		if id, ok := parseIdent(mail.QueueID(strings.TrimPrefix(string(key), prefixMessage))); ok && isDone(string(key), value) {
			r.finished[id] = true
		}
	})
}

// journalVersion is above all versions of the database.
const journalVersion = 1 << 63

// carve looks for whole records in a damaged file, wherever they begin: each
// has its own checksum and its message's ID.
func (r *rescue) carve(name string) {
	b, err := os.ReadFile(name) //nolint:gosec // below the queue's own directory
	if err != nil {
		return // its damage says so
	}
	text := string(b)
	const idSize = 26 // its length stands before it
	for at := 0; ; at++ {
		i := bytes.IndexByte(b[min(at+2, len(b)):], idSize)
		if i < 0 {
			return
		}
		at += i
		if b[at] < recordFirst || b[at] > recordVersion || b[at+1] != recordLive && b[at+1] != recordDone {
			continue
		}
		m, n := carveRecord(text[at:])
		if n == 0 || crc32.Checksum(b[at:at+n], castagnoli) != binary.LittleEndian.Uint32(b[at+n:]) {
			continue
		}
		r.takeCarved(m, b[at:at+n+4])
		at += n
	}
}

// carveRecord reads the record that s begins with, and returns how long it is
// without its checksum, or 0.
func carveRecord(s string) (m *stored, n int) {
	d := &decoder{s: s[2:]}
	m = &stored{}
	if s[1] == recordDone {
		d.done(m, s[0])
	} else {
		d.live(m, s[0])
	}
	if _, ok := parseIdent(m.ID); d.bad || !ok || len(d.s) < 4 {
		return nil, 0
	}
	return m, len(s) - len(d.s)
}

// takeCarved keeps a record without a version, when there is none with one: the
// one that is further on.
func (r *rescue) takeCarved(m *stored, record []byte) {
	id, _ := parseIdent(m.ID)
	f := r.messages[id]
	if f == nil {
		f = &found{}
		r.messages[id] = f
	}
	if f.deleted || f.version > 0 && f.record != nil {
		return
	}
	if f.record != nil {
		if was, err := decodeRecord(f.record); err == nil && was.progress() >= m.progress() {
			return
		}
	}
	f.record = record
}

// progress orders the records of one message.
func (m *stored) progress() int {
	if m.done {
		return 1 << 62
	}
	n := m.panics
	for i := range m.States {
		n += m.States[i].Attempts
		if m.States[i].Disposition.Final() {
			n += 1 << 40
		}
	}
	return n
}

// take keeps the newest version of what is needed.
func (r *rescue) take(e badgerdir.Entry) {
	key := currentKey(string(e.Key))
	if e.Deleted && strings.HasPrefix(key, prefixMark) {
		return // it was moved
	}
	switch {
	case strings.HasPrefix(key, prefixMessage):
		id, ok := parseIdent(mail.QueueID(key[len(prefixMessage):]))
		if !ok {
			return
		}
		f := r.messages[id]
		if f == nil {
			f = &found{}
			r.messages[id] = f
		}
		if e.Version < f.version && (f.record != nil || f.deleted) {
			return
		}
		if !e.Deleted {
			if m, err := decodeRecord(e.Value); err != nil || m.ID != id.QueueID() {
				return
			}
		}
		f.version, f.record, f.deleted = e.Version, e.Value, e.Deleted
	case strings.HasPrefix(key, prefixOutbox) && len(key) == len(prefixOutbox)+8:
		seq := binary.BigEndian.Uint64(e.Key[len(prefixOutbox):])
		if e.Deleted {
			r.rows[seq] = nil
		} else if _, gone := r.rows[seq]; !gone {
			r.rows[seq] = e.Value
		}
	case strings.HasPrefix(key, prefixEntry) && len(key) == len(prefixEntry)+8 && !e.Deleted:
		n := binary.BigEndian.Uint64(e.Key[len(prefixEntry):])
		r.entries[n] = logged{number: n, body: e.Value}
	case strings.HasPrefix(key, prefixHold), key == keyOutbox, key == keyTold, key == keyJournal:
		if was, ok := r.other[key]; !ok || e.Version >= was.Version {
			r.other[key] = e
		}
	}
}

func (r *rescue) saveMessages(ctx context.Context) error {
	ids := make([]ident, 0, len(r.messages))
	for id := range r.messages {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b ident) int { return bytes.Compare(a[:], b[:]) })
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		f := r.messages[id]
		if f.deleted {
			continue
		}
		if f.record == nil {
			r.done.Unreadable++
			continue
		}
		m, err := decodeRecord(f.record)
		if err != nil || m.done {
			continue // take has looked at it already
		}
		if err := r.saveMessage(id, m); err != nil {
			return err
		}
	}
	return nil
}

// saveMessage writes one message: whole, or as much as there is.
func (r *rescue) saveMessage(id ident, m *stored) error {
	content, err := r.contents.open(id, m.loc, m.Size)
	if err != nil {
		if at, ok := r.search(id); ok { // it was copied forward, and the record of that is lost
			if c, err2 := r.contents.open(id, at, m.Size); err2 == nil {
				content, err = c, nil
			}
		}
	}
	if err != nil {
		return r.savePart(id, m, err)
	}
	defer func() { _ = content.Close() }() // opened for reading
	base := filepath.Join(r.opts.To, "messages", string(m.ID))
	if err := writeMessage(base, m, content, ""); err != nil {
		return err
	}
	r.done.Messages++
	r.done.Bytes += m.Size
	if r.fresh == nil {
		return nil
	}
	eml, err := os.Open(base + ".eml") //nolint:gosec // was just written
	if err != nil {
		return err
	}
	defer func() { _ = eml.Close() }() // opened for reading
	return r.fresh.add(id, m, io.NewSectionReader(eml, int64(len(m.Trace)), m.Size))
}

// savePart writes what there is of a content that is not what was accepted.
func (r *rescue) savePart(id ident, m *stored, cause error) error {
	if s := r.contents.find(m.loc.seq); s == nil {
		if m.ExpiresAt.After(time.Now()) {
			r.done.Lost = append(r.done.Lost, RescueLoss{m.ID, cause.Error()})
		}
		// Otherwise its segment went long ago, and an old table still has its record.
		return nil
	}
	f, err := os.Open(filepath.Join(r.contents.dir, r.contents.find(m.loc.seq).name()))
	if err != nil {
		r.done.Lost = append(r.done.Lost, RescueLoss{m.ID, err.Error()})
		return nil
	}
	defer func() { _ = f.Close() }() // opened for reading
	var head [contentHeader]byte
	n, _ := f.ReadAt(head[:], m.loc.off) // what is missing is zero
	if _, err := checkContentHeader(head[:], id, m.Size); err != nil && n == contentHeader && ident(head[8:24]) != id && [4]byte(head[:4]) == contentMagic {
		r.done.Lost = append(r.done.Lost, RescueLoss{m.ID, err.Error()}) // another message is there
		return nil
	}
	if err := writeMessage(filepath.Join(r.opts.To, "partial", string(m.ID)), m, io.NewSectionReader(f, m.loc.off+contentHeader, m.Size), cause.Error()); err != nil {
		return err
	}
	r.done.Partial = append(r.done.Partial, RescueLoss{m.ID, cause.Error()})
	return nil
}

// search looks for a content by its header, in all segments.
func (r *rescue) search(id ident) (location, bool) {
	if r.found == nil {
		r.found = map[ident]location{}
		r.scanContents(func(id ident, loc location, _ int64) { r.found[id] = loc })
	}
	loc, ok := r.found[id]
	return loc, ok
}

// scanContents finds all headers of contents that are whole.
func (r *rescue) scanContents(each func(id ident, loc location, size int64)) {
	for _, s := range r.contents.segs {
		f, err := os.Open(filepath.Join(r.contents.dir, s.name()))
		if err != nil {
			continue // whoever needs what is there says so
		}
		var head [contentHeader]byte
		for off := int64(0); off+contentHeader <= s.used; off += contentAlign {
			if n, err := f.ReadAt(head[:], off); err != nil && n < contentHeader {
				break
			}
			size := int64(binary.LittleEndian.Uint64(head[24:])) //nolint:gosec // checked below
			if [4]byte(head[:4]) != contentMagic || size < 0 || off+contentHeader+size > s.used {
				continue
			}
			id := ident(head[8:24])
			if _, err := checkContentHeader(head[:], id, size); err != nil {
				continue
			}
			each(id, location{s.seq, off}, size)
			if s.own {
				break
			}
			off += roundUp(contentHeader+size, contentAlign) - contentAlign // the loop goes on behind it
		}
		_ = f.Close() // opened for reading
	}
}

// saveOrphans writes contents that no record names. Some were never
// acknowledged, or were relayed long ago: nobody can tell any more.
func (r *rescue) saveOrphans(ctx context.Context) error {
	type orphan struct {
		id   ident
		loc  location
		size int64
	}
	var list []orphan
	r.scanContents(func(id ident, loc location, size int64) {
		if f := r.messages[id]; (f == nil || f.record == nil && !f.deleted) && !r.finished[id] {
			list = append(list, orphan{id, loc, size})
		}
	})
	for _, o := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		content, err := r.contents.open(o.id, o.loc, o.size)
		if err != nil {
			continue
		}
		err = writeContent(filepath.Join(r.opts.To, "orphans", string(o.id.QueueID())+".eml"), nil, content)
		if err = errors.Join(err, content.Close()); err != nil {
			return err
		}
		r.done.Orphans++
	}
	return nil
}

// saveFacts writes the facts of the outbox that are not confirmed.
func (r *rescue) saveFacts() error {
	confirmed := number(r.other[keyOutbox].Value)
	var seqs []uint64
	for seq, v := range r.rows {
		if v != nil && seq >= confirmed {
			seqs = append(seqs, seq)
		}
	}
	if len(seqs) == 0 {
		return nil
	}
	slices.Sort(seqs)
	var all bytes.Buffer
	for _, seq := range seqs {
		lines, err := unpackFacts(r.rows[seq])
		if err != nil {
			r.done.Damage = append(r.done.Damage, fmt.Sprintf("facts of transaction %d: %v", seq, err))
			continue
		}
		all.Write(lines)
		r.done.Facts += bytes.Count(lines, []byte("\n"))
		if r.fresh != nil {
			if err := r.fresh.set(outboxKey(seq), r.rows[seq]); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(filepath.Join(r.opts.To, "facts.jsonl"), all.Bytes(), 0o600)
}

// endQueue gives the new queue its holds and marks.
func (r *rescue) endQueue() error {
	for key, e := range r.other {
		if e.Deleted || key == keyJournal { // it begins one of its own
			continue
		}
		if err := r.fresh.set([]byte(restingKey(key)), e.Value); err != nil {
			return err
		}
	}
	return r.fresh.close()
}

// writeMessage writes base.eml and base.json.
func writeMessage(base string, m *stored, content io.Reader, problem string) error {
	if err := writeContent(base+".eml", m.Trace, content); err != nil {
		return err
	}
	out := RescuedMessage{
		ID: m.ID, UID: m.UID, Parent: m.Parent, Accepted: m.AcceptedAt, Expires: m.ExpiresAt, Envelope: m.Envelope, Problem: problem,
	}
	for i := range m.States {
		s := &m.States[i]
		rcpt := RescuedRecipient{
			Address: m.Envelope.Recipients[i].Address.String(), Disposition: s.Disposition.String(), Attempts: s.Attempts, Open: !s.Disposition.Final(),
		}
		if rcpt.Open {
			rcpt.Next = s.Due
		}
		if s.Last.Code != 0 {
			rcpt.LastReply = s.Last.String()
		}
		out.Recipients = append(out.Recipients, rcpt)
	}
	return writeJSON(base+".json", &out)
}

func writeContent(name string, trace []byte, content io.Reader) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // below a directory that the operator named
	if err != nil {
		return err
	}
	_, err = f.Write(trace)
	if err == nil {
		_, err = io.Copy(f, content)
	}
	return errors.Join(err, f.Close())
}

func writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o600)
}
