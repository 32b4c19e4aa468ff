package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"

	"github.com/dgraph-io/badger/v4"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		crashChild(dir)
		return
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"))
}

// recorder is a sink that keeps what it is told.
type recorder struct {
	mu   sync.Mutex
	recs []event.Record
}

func (r *recorder) Write(rec *event.Record) {
	r.mu.Lock()
	r.recs = append(r.recs, rec.Keep())
	r.mu.Unlock()
}

func (r *recorder) all() []event.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]event.Record(nil), r.recs...)
}

// names lists the facts about message id, or all, in order.
func (r *recorder) names(id mail.QueueID) []string {
	var names []string
	for _, rec := range r.all() {
		if id == "" || rec.Message == id {
			names = append(names, event.Name(rec.Event))
		}
	}
	return names
}

// find returns the events of type E.
func find[E event.Event](r *recorder) []E {
	var list []E
	for _, rec := range r.all() {
		if ev, ok := rec.Event.(E); ok {
			list = append(list, ev)
		}
	}
	return list
}

// domains routes by the recipient's domain through connector "out"; domains in
// refused are unroutable.
type domains struct {
	mu        sync.Mutex
	connector string
	refused   map[string]bool
}

func (d *domains) Route(q route.Query) route.Decision {
	d.mu.Lock()
	defer d.mu.Unlock()
	if q.Via.Target() != "" {
		return route.Decision{Hop: q.Via, Connector: &route.Connector{Name: q.Via.Connector}, Why: "redirected"}
	}
	domain := q.Recipient.DomainKey()
	if d.refused[domain] {
		return route.Decision{Hop: route.Unroutable, Why: "no address space matches"}
	}
	c := d.connector
	if c == "" {
		c = "out"
	}
	return route.Decision{Hop: route.Hop{Connector: c, Name: domain}, Connector: &route.Connector{Name: c}, Space: "*", Why: "only one"}
}

// confirmer is a tracking store that is told what it has on disk.
type confirmer struct {
	mu     sync.Mutex
	n      int            // calls of Stored
	mark   uint64         // Mark, counted up by each call
	behind bool           // nothing is stored
	err    error          // of Stored and Sync
	again  []event.Record // given to Write
}

func (c *confirmer) Write(r *event.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.again = append(c.again, r.Keep())
}

func (c *confirmer) Mark() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mark++
	return c.mark
}

func (c *confirmer) Stored() (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	if c.behind {
		return 0, c.err
	}
	return c.mark, c.err
}

func (c *confirmer) Sync() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *confirmer) set(behind bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.behind, c.err = behind, err
}

// roomy is the real file system with a volume that others do not fill: what a
// test proves must not hang on how much of the disk is free at the moment.
type roomy struct{ disk }

func (roomy) space(string) (free, size int64, err error) { return 100 << 30, 200 << 30, nil }

type harness struct {
	*Queue
	rec *recorder
	dir string
}

func (h *harness) opts() Options { return h.Queue.opts }

// open opens a queue in a temporary directory, and closes it when the test ends.
func open(t testing.TB, change func(*Options)) *harness {
	t.Helper()
	rec := &recorder{}
	opts := Options{
		Dir: t.TempDir(), Router: &domains{}, Emitter: event.NewEmitter("n1", rec), Confirm: &confirmer{}, DiskFreeMin: 1 << 20,
		tune: tuning{fs: roomy{}, segment: 4 << 20, tick: 20 * time.Millisecond},
	}
	if change != nil {
		change(&opts)
	}
	q, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return &harness{q, rec, opts.Dir}
}

// reopen closes h and opens its directory again.
func (h *harness) reopen(t testing.TB, change func(*Options)) *harness {
	t.Helper()
	if c, ok := h.Queue.opts.Confirm.(*confirmer); ok && change == nil { // as after a crash: its facts are stated again
		c.set(true, errors.New("nothing is stored"))
	}
	if err := h.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	opts := h.opts()
	return open(t, func(o *Options) {
		o.Dir, o.Router, o.tune, o.KeepRelayed, o.KeepMaxBytes = opts.Dir, opts.Router, opts.tune, opts.KeepRelayed, opts.KeepMaxBytes
		if change != nil {
			change(o)
		}
	})
}

// run runs the housekeeping until the test ends.
func (h *harness) run(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := h.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func address(t testing.TB, s string) mail.Address {
	t.Helper()
	a, err := mail.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func draft(t testing.TB, recipients ...string) mail.Draft {
	t.Helper()
	d := mail.Draft{ID: mail.QueueID(mail.NewID(time.Now())), UID: mail.NewUID(time.Now())}
	d.Envelope.Sender = address(t, "sender@example.org")
	for _, r := range recipients {
		d.Envelope.Recipients = append(d.Envelope.Recipients, mail.Recipient{Address: address(t, r)})
	}
	d.Origin = mail.Origin{Session: "s1", Connector: "in", Protocol: "ESMTP", MailAt: time.Now().Add(-time.Second), DataEndedAt: time.Now()}
	d.Trace = []byte("Received: from test\r\n")
	return d
}

func (h *harness) put(t testing.TB, content string, recipients ...string) mail.QueueID {
	t.Helper()
	d := draft(t, recipients...)
	if err := h.Put(t.Context(), d, []byte(content)); err != nil {
		t.Fatalf("Put: %v", err)
	}
	return d.ID
}

func (h *harness) claim(t testing.TB) *Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := h.Claim(ctx)
	if err != nil {
		t.Fatalf("Claim: %v", err)
	}
	return l
}

// idle checks that nothing can be claimed.
func (h *harness) idle(t testing.TB) {
	t.Helper()
	if l, err := h.tryClaim(); err != nil || l != nil {
		t.Fatalf("tryClaim() = %v, %v, want nothing", l, err)
	}
}

func outcomes(l *Lease, d mail.Disposition) []mail.Outcome {
	list := make([]mail.Outcome, len(l.Index))
	for k, i := range l.Index {
		list[k] = mail.Outcome{Recipient: l.Message.Envelope.Recipients[i].Address, Disposition: d, Remote: true, Verb: "."}
		switch d {
		case mail.Relayed:
			list[k].Reply = mail.Reply{Code: 250, Enhanced: "2.0.0", Text: "ok"}
		case mail.Bounced:
			list[k].Reply, list[k].Class = mail.Reply{Code: 550, Enhanced: "5.1.1", Text: "no such user"}, mail.ClassInvalidRecipient
		default:
			list[k].Reply, list[k].Class = mail.Reply{Code: 451, Enhanced: "4.7.1", Text: "later"}, mail.ClassGreylist
		}
	}
	return list
}

func (h *harness) settle(t testing.TB, l *Lease, d mail.Disposition, next time.Time) {
	t.Helper()
	if err := h.Settle(t.Context(), l, Settlement{Outcomes: outcomes(l, d), Next: next}); err != nil {
		t.Fatalf("Settle: %v", err)
	}
}

func read(t testing.TB, open func() (io.ReadCloser, error)) string {
	t.Helper()
	r, err := open()
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	return string(b)
}

// eventually waits until ok is true, with what the housekeeping does meanwhile.
// The disk may be slow: what waits for hundreds of commits takes minutes then.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(5 * time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 5 minutes: %s", what)
		}
	}
}

// stated waits for n events of type E: a fact is published some time after what
// it tells of is on disk, and known to who asked for it.
func stated[E event.Event](t testing.TB, r *recorder, n int) []E {
	t.Helper()
	var list []E
	eventually(t, fmt.Sprintf("%d of %T", n, *new(E)), func() bool {
		list = find[E](r)
		return len(list) >= n
	})
	return list
}

func equalStrings(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s = %s, want %s", what, strings.Join(got, " "), strings.Join(want, " "))
	}
}

func (h *harness) contentOf(id mail.QueueID) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return h.Content(id) }
}

// finalIn returns the final that r states, or nil.
func finalIn(r *event.Record) (*event.Final, mail.Disposition) {
	if ev, ok := r.Event.(event.RecipientRelayed); ok {
		return &ev.Final, mail.Relayed
	}
	if ev, ok := r.Event.(event.RecipientBounced); ok {
		return &ev.Final, mail.Bounced
	}
	if ev, ok := r.Event.(event.RecipientExpired); ok {
		return &ev.Final, mail.Expired
	}
	if ev, ok := r.Event.(event.RecipientDropped); ok {
		return &ev.Final, mail.Dropped
	}
	return nil, 0
}

// inDatabaseOnly changes the database behind the back of the queue.
func (h *harness) inDatabaseOnly(t *testing.T, key, value []byte) {
	t.Helper()
	if err := h.saveAll(); err != nil {
		t.Fatal(err)
	}
	if err := h.db.Update(func(txn *badger.Txn) error { return txn.Set(key, value) }); err != nil {
		t.Fatal(err)
	}
	if err := h.saveOnce(false); err != nil { // reads what is there since
		t.Fatal(err)
	}
}
