package relaytest

import (
	"slices"
	"sync"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// Recorder is an [event.Sink] that keeps every record. Its zero value is ready
// to use.
type Recorder struct {
	mu      sync.Mutex
	records []event.Record
	changed chan struct{} // closed when a record comes; nil while nobody waits
}

// Write keeps a copy of r.
func (r *Recorder) Write(rec *event.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, rec.Keep())
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// Emitter returns an Emitter that writes to r.
func (r *Recorder) Emitter() event.Emitter { return event.NewEmitter("test", r) }

// Records returns what has been recorded so far, in order.
func (r *Recorder) Records() []event.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.records)
}

// Named returns the records of facts with that name, such as "attempt_finished".
func (r *Recorder) Named(name string) []event.Record {
	return slices.DeleteFunc(r.Records(), func(rec event.Record) bool { return event.Name(rec.Event) != name })
}

// About returns the records that carry the queue ID.
func (r *Recorder) About(id mail.QueueID) []event.Record {
	return slices.DeleteFunc(r.Records(), func(rec event.Record) bool { return rec.Message != id })
}

// Names returns the names of all records' facts, in order.
func (r *Recorder) Names() []string {
	var names []string
	for _, rec := range r.Records() {
		names = append(names, event.Name(rec.Event))
	}
	return names
}

// Reset forgets everything.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = nil
}

// Wait waits until done says that the records are complete, and reports whether
// it did within timeout; zero means 20 seconds. Done is called with the records
// so far, again after each new one.
func (r *Recorder) Wait(timeout time.Duration, done func([]event.Record) bool) bool {
	if timeout == 0 {
		timeout = waitLimit
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		r.mu.Lock()
		if r.changed == nil {
			r.changed = make(chan struct{})
		}
		records, changed := slices.Clone(r.records), r.changed
		r.mu.Unlock()
		if done(records) {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		}
	}
}

// WaitFor waits until there are n facts with that name and returns them. It
// fails the test when they do not come.
func (r *Recorder) WaitFor(t TB, name string, n int) []event.Record {
	t.Helper()
	var got []event.Record
	ok := r.Wait(0, func(all []event.Record) bool {
		got = slices.DeleteFunc(all, func(rec event.Record) bool { return event.Name(rec.Event) != name })
		return len(got) >= n
	})
	if !ok {
		t.Fatalf("%d facts %q, want %d; there are %q", len(got), name, n, r.Names())
	}
	return got
}
