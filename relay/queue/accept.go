package queue

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"
)

// Incoming is a content on its way into the queue. One goroutine uses it, and
// ends it with Commit or Abort.
type Incoming struct {
	q    *Queue
	buf  *buffer
	ct   content  // what is committed
	n    int      // octets in buf
	own  *segment // the file of a large content
	at   int64    // octets in it
	sum  uint32   // of those
	err  error
	done bool
}

func storageReply(err error) error {
	return &mail.ReplyError{Reply: mail.Reply{Code: 452, Enhanced: "4.3.0", Text: "Mail storage is not available, try again later"}, Reason: "storage", Err: err}
}

func fullReply(err error) error {
	return &mail.ReplyError{Reply: mail.Reply{Code: 452, Enhanced: "4.3.1", Text: "Insufficient system storage, try again later"}, Reason: "backpressure", Err: err}
}

// Begin prepares to take a message of about sizeHint octets, or any size when
// it is 0. When the queue takes no mail, the error is a *mail.ReplyError with a
// 452 reply (RFC 5321 section 4.2.2).
func (q *Queue) Begin(ctx context.Context, sizeHint int64) (*Incoming, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case <-q.closing:
		return nil, storageReply(ErrClosed)
	default:
	}
	if err := q.failure(); err != nil {
		return nil, storageReply(fmt.Errorf("%w: %w", ErrStorage, err))
	}
	if why := q.refusal(); why != "" {
		return nil, fullReply(errors.New(why))
	}
	if !q.guard.room(sizeHint) {
		return nil, fullReply(fmt.Errorf("no room for %d octets", sizeHint))
	}
	if sizeHint <= 0 {
		sizeHint = q.lastSize.Load()
	}
	return &Incoming{q: q, buf: getBuffer(int(min(sizeHint, smallContent)) + contentHeader)}, nil
}

// Write takes the next part of the content. A content of up to 256 KiB stays
// in memory until Commit; a larger one goes into a file of its own as it comes.
func (in *Incoming) Write(p []byte) (int, error) {
	if in.done {
		return 0, os.ErrClosed
	}
	if in.err != nil {
		return 0, in.err
	}
	written := 0
	if room := in.buf.b[contentHeader+in.n:]; len(p) > 0 && len(p) <= len(room) && &p[0] == &room[0] { // it is there already
		in.n += len(p)
		return len(p), nil
	}
	for len(p) > 0 {
		room := len(in.buf.b) - contentHeader - in.n
		if room == 0 {
			if in.err = in.more(); in.err != nil {
				return written, in.err
			}
			continue
		}
		n := copy(in.buf.b[contentHeader+in.n:], p[:min(room, len(p))])
		in.n += n
		written += n
		p = p[n:]
	}
	return written, nil
}

// Room is where the next octets of the content go: what is received there is not
// copied when Write gets it. It may be empty.
func (in *Incoming) Room() []byte {
	if in.done || in.err != nil {
		return nil
	}
	if len(in.buf.b)-contentHeader-in.n < usefulRoom && len(in.buf.b) < smallContent+contentHeader {
		in.enlarge()
	}
	return in.buf.b[contentHeader+in.n:]
}

// usefulRoom is how much room a read should have, by taste.
const usefulRoom = 4 << 10

// enlarge takes a larger buffer.
func (in *Incoming) enlarge() {
	larger := getBuffer(len(in.buf.b) + 1)
	copy(larger.b, in.buf.b[:contentHeader+in.n])
	putBuffer(in.buf)
	in.buf = larger
}

// fit takes a smaller buffer where one is enough, for the time until the commit
// and until the content is sent on.
func (in *Incoming) fit() {
	n := contentHeader + in.n
	if bufferSize(n) == len(in.buf.b) {
		return
	}
	smaller := getBuffer(n)
	copy(smaller.b, in.buf.b[:n])
	putBuffer(in.buf)
	in.buf = smaller
}

// more makes room in the buffer: by a larger one, or by writing it out.
func (in *Incoming) more() error {
	if len(in.buf.b) < smallContent+contentHeader {
		in.enlarge()
		return nil
	}
	if in.own == nil {
		own, err := in.q.contents.create()
		if err != nil {
			return in.q.writeFailed(err)
		}
		in.own = own
	}
	return in.flush()
}

// flush writes the buffer to the content's own file.
func (in *Incoming) flush() error {
	if !in.q.guard.spend(int64(in.n)) {
		return fullReply(errors.New("the disk is nearly full"))
	}
	part := in.buf.b[contentHeader : contentHeader+in.n]
	if _, err := in.own.f.WriteAt(part, contentHeader+in.at); err != nil {
		return in.q.writeFailed(err)
	}
	in.sum = crc32.Update(in.sum, castagnoli, part)
	in.at += int64(in.n)
	in.n = 0
	return nil
}

// writeFailed answers for a write that failed: a full disk is the guard's
// business and passes, too many open files pass too, anything else stops the queue.
func (q *Queue) writeFailed(err error) error {
	if isFull(err) || errors.Is(err, errNoRoom) || errors.Is(err, errLogFull) {
		q.guard.full()
		return fullReply(err)
	}
	if isExhausted(err) { // nothing is wrong with the disk
		return storageReply(err)
	}
	q.fail(err)
	return storageReply(fmt.Errorf("%w: %w", ErrStorage, err))
}

// Size is how many octets were written.
func (in *Incoming) Size() int64 { return in.at + int64(in.n) }

// Abort forgets the content. After Commit it does nothing.
func (in *Incoming) Abort() {
	if in.done {
		return
	}
	in.done = true
	in.discard(in.own)
}

func (in *Incoming) discard(seg *segment) {
	if seg != nil {
		in.q.contents.abort(seg)
	}
	if in.buf != nil {
		putBuffer(in.buf)
		in.buf = nil
	}
}

// Commit makes the message durable: when it returns nil, the relay is
// responsible for it. Errors are *mail.ReplyError, except for those of the
// caller (no recipients, a bad or known ID, ctx done before the work began).
func (in *Incoming) Commit(ctx context.Context, d mail.Draft) error {
	if in.done {
		return os.ErrClosed
	}
	in.done = true
	if err := errors.Join(ctx.Err(), in.err); err != nil {
		in.discard(in.own)
		return err
	}
	q := in.q
	now := time.Now()
	id, err := q.identify(&d, now)
	if err != nil {
		in.discard(in.own)
		return err
	}
	size := in.Size()
	q.lastSize.Store(size)
	ct, err := in.finish(id, traitsOf(d.SevenBit))
	if err != nil {
		in.discard(nil)
		return err
	}
	c := newChange()
	if err := q.enqueue(c, id, d, size, ct, now); err != nil {
		in.discard(in.own)
		return err
	}
	if in.own == nil {
		c.after(func() {
			if q.recent.addContent(id, in.buf, in.n, now) {
				in.buf = nil
			}
		})
	}
	if err := q.submit(c); err != nil {
		in.discard(in.own)
		if noRoom(err) {
			return q.writeFailed(err)
		}
		return storageReply(err)
	}
	in.discard(nil)
	return nil
}

// identify checks what the queue needs of a draft, and gives it its identity
// where it has none.
func (q *Queue) identify(d *mail.Draft, now time.Time) (ident, error) {
	if len(d.Envelope.Recipients) == 0 {
		return ident{}, errors.New("message without recipients")
	}
	if d.ID == "" {
		d.ID = mail.QueueID(mail.NewID(now))
	}
	id, ok := parseIdent(d.ID)
	if !ok {
		return ident{}, fmt.Errorf("bad queue ID %.40q", d.ID)
	}
	if q.queued(id) {
		return ident{}, fmt.Errorf("message %s is queued already", d.ID)
	}
	if d.UID == "" {
		d.UID = mail.NewUID(now)
	}
	return id, nil
}

func (q *Queue) queued(id ident) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.sched.find(id) != nil
}

// isKept reports whether a message that was relayed is kept under id.
func (q *Queue) isKept(id ident) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.kept.index[id] != nil
}

// finish makes the content ready to be committed: a large one is where it stays then.
func (in *Incoming) finish(id ident, is traits) (*content, error) {
	q := in.q
	if in.own == nil {
		in.fit()
		in.ct = newContent(id, in.buf.b[:contentHeader+in.n], is)
		return &in.ct, nil
	}
	err := in.flush()
	if err == nil {
		var head [contentHeader]byte
		putContentHeader(head[:], id, in.at, in.sum, is)
		if _, werr := in.own.f.WriteAt(head[:], 0); werr != nil {
			err = q.writeFailed(werr)
		}
	}
	if err == nil {
		// Synced here, and not by the committer, so that large contents do not hold up the others.
		if serr := q.contents.sync(in.own); serr != nil {
			q.fail(serr)
			err = storageReply(fmt.Errorf("%w: %w", ErrStorage, serr))
		}
	}
	if err != nil {
		q.contents.abort(in.own)
		return nil, err
	}
	in.ct = content{seg: in.own}
	return &in.ct, nil
}

// enqueue adds a new message, whose content is ct, to c.
func (q *Queue) enqueue(c *change, id ident, d mail.Draft, size int64, ct *content, now time.Time) error {
	at := now.UTC().Truncate(time.Microsecond)
	m := records.Get().(*stored)
	m.Draft, m.Size, m.AcceptedAt, m.ExpiresAt = d, size, at, at.Add(q.opts.Lifetime)
	m.States = slices.Grow(m.States, len(d.Envelope.Recipients))[:len(d.Envelope.Recipients)]
	if ct.seg != nil {
		m.loc = ct.location()
	}
	due := at
	if r := d.Envelope.Release.UTC().Truncate(time.Microsecond); r.After(at) { // RFC 4865: its life begins when it may leave
		m.Envelope.Release = r
		due, m.ExpiresAt, m.excused = r, r.Add(q.opts.Lifetime), true
	} else {
		m.Envelope.Release = time.Time{}
	}
	if by := m.Envelope.DeliverBy; by.Return && by.Deadline.Before(m.ExpiresAt) { // RFC 2852: then it goes back
		m.ExpiresAt = by.Deadline
	}
	routing := q.routing.Load()
	var few [1]route.Decision
	decisions := q.decide(&m.Message, few[:0])
	for i := range m.States {
		m.States[i] = State{Disposition: mail.Queued, Hop: decisions[i].Hop, Due: due, since: at}
	}
	held, holds := q.holdOnArrival(m, now)
	value, trace := encodeNew(&c.room, m)
	if n := int64(len(value) + stateRoom*len(m.States)); n > q.recordBytes {
		return tooMany("envelope", n, q.recordBytes)
	}
	c.bring(ct)
	c.set = append(c.set, pair{messageKey(d.ID), value, !q.isKept(id)})

	emit := q.opts.Emitter.Message(d.ID, d.UID)
	queued := messageQueued(&m.Message, now)
	if err := q.stateQueued(c, emit.Session(d.Origin.Session), &queued, d.Origin.DataEndedAt); err != nil {
		return err
	}
	if err := q.stateRoutes(c, emit, queued.Info, queued.Recipients, decisions); err != nil {
		return err
	}
	if held != nil {
		if err := q.stateHeld(c, emit, held); err != nil {
			return err
		}
	}
	if n := len(m.States); n > manyRecipients { // the facts of its end are about as large as those of its beginning
		if need := int64(len(value) + len(packFacts(nil, c.lines)) + (stateRoom+factRoom)*n); need > q.changeBytes {
			return tooMany("envelope and facts", need, q.changeBytes)
		}
	}
	ws, _ := q.waits(m, decisions)
	m.asRead(trace)
	c.after(func() {
		m.loc = ct.location()
		q.contents.commit(ct.seg, id, size)
		q.recent.add(id, m, len(value)+recordRoom, now)
		e := q.sched.add(newEntry(id, m))
		q.heldOnArrival(e, m, holds)
		us := now.UnixMicro()
		for _, w := range ws {
			q.sched.set(e, w.hop, w.when, w.tried, us)
		}
		if q.routing.Load() != routing {
			q.misrouted(id)
		}
	})
	return nil
}

const (
	// manyRecipients of one message are no more than a change takes, whatever is
	// said of them.
	manyRecipients = 200
	// factRoom is what a recipient's part of a fact grows by at most, compressed,
	// when it says what became of it, without the next hop's words.
	factRoom = 48
)

// tooMany says that a message has more recipients than the queue can see through
// to their end.
func tooMany(what string, is, most int64) error {
	return &mail.ReplyError{
		Reply:  mail.Reply{Code: 452, Enhanced: "4.5.3", Text: "Too many recipients in one transaction"},
		Reason: "recipients", Err: fmt.Errorf("%s of %d octets, at most %d", what, is, most),
	}
}

// decide asks the router about every recipient of m, and appends what it says to ds.
func (q *Queue) decide(m *Message, ds []route.Decision) []route.Decision {
	ds = slices.Grow(ds, len(m.Envelope.Recipients))
	for i := range m.Envelope.Recipients {
		ds = append(ds, q.routeOf(m, i))
	}
	return ds
}

func (q *Queue) routeOf(m *Message, i int) route.Decision {
	d := q.opts.Router.Route(m.Query(i))
	if d.Hop == (route.Hop{}) {
		d.Hop = route.Unroutable
	}
	return d
}

// stateRoutes states one MessageRouted for each hop of the decisions, which are about
// those recipients, in this order. The list stays as it is from now on.
func (q *Queue) stateRoutes(c *change, emit event.Emitter, info event.Info, recipients []event.Recipient, ds []route.Decision) error {
next:
	for k := range ds {
		for l := range ds[:k] {
			if ds[l].Hop == ds[k].Hop { // told already
				continue next
			}
		}
		ev := event.MessageRouted{
			Info: info, ConnectorOut: ds[k].Hop.Connector, Queue: ds[k].Hop.Name, Space: ds[k].Space, Why: ds[k].Why,
		}
		ev.Recipients = recipients
		if slices.ContainsFunc(ds, func(d route.Decision) bool { return d.Hop != ds[k].Hop }) {
			ev.Recipients = nil
			for l := k; l < len(ds); l++ {
				if ds[l].Hop == ds[k].Hop {
					ev.Recipients = append(ev.Recipients, recipients[l])
				}
			}
		}
		by := emit.Source(event.SourceRouting)
		if ds[k].Revision != "" { // the configuration that decided, and not the one of the start
			by = by.Config(ds[k].Revision)
		}
		if err := q.state(c, by, ev); err != nil {
			return err
		}
	}
	return nil
}

// Put queues a message whose content is at hand: Begin, Write and Commit in one.
func (q *Queue) Put(ctx context.Context, d mail.Draft, content []byte) error {
	in, err := q.Begin(ctx, int64(len(content)))
	if err != nil {
		return err
	}
	defer in.Abort()
	if _, err := in.Write(content); err != nil {
		return err
	}
	return in.Commit(ctx, d)
}
