package deliver_test

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/relay/deliver"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/relaytest"
	"waybill/relay/route"
	"waybill/relay/smtpout"
)

// rig is a real queue, a real send connector and a scripted next hop.
type rig struct {
	t     testing.TB
	host  *relaytest.SmartHost
	rec   *relaytest.Recorder
	queue *queue.Queue
	sched *deliver.Scheduler
	stop  func() // ends the scheduler
}

var fast = []time.Duration{50 * time.Millisecond}

func newRig(t testing.TB, retry deliver.Retry, limits deliver.Limits, host ...relaytest.Option) *rig {
	t.Helper()
	r := &rig{t: t, host: relaytest.NewSmartHost(t, host...), rec: &relaytest.Recorder{}}
	hosts := []route.SmartHost{{Host: r.host.IP(), Port: r.host.Port()}}
	table, err := route.New([]route.Connector{{Name: "hub", Spaces: []route.Space{{Pattern: "*"}}, SmartHosts: hosts}})
	if err != nil {
		t.Fatal(err)
	}
	// One message for each connection makes it plain what an attempt said.
	pool := smtpout.Limits{MessagesPerConnection: 1}
	if limits.ConnectionsPerDestination > 0 {
		pool = smtpout.Limits{ConnectionsPerDestination: limits.ConnectionsPerDestination}
	}
	out, err := smtpout.New(smtpout.Options{Name: "hub", Hostname: "mx1.example.net", SmartHosts: hosts, TLS: smtpout.TLSNone, Emitter: r.rec.Emitter(), AllowLoopback: true, Limits: pool})
	if err != nil {
		t.Fatal(err)
	}
	connector := deliver.Connector{Attempter: out, Retry: retry, Limits: limits}
	r.queue, err = queue.Open(queue.Options{
		Dir: t.TempDir(), Router: table, Emitter: r.rec.Emitter(), NoSync: true, DiskFreeMin: 1,
		Concurrency: func(hop route.Hop) int { return r.sched.Concurrency(hop) },
	})
	if err != nil {
		t.Fatal(err)
	}
	r.sched = deliver.New(deliver.Options{
		Queue: deliver.FromQueue(r.queue), Hostname: "mx1.example.net", Emitter: r.rec.Emitter(), DrainTimeout: 200 * time.Millisecond,
		Connectors: func(name string) (deliver.Connector, bool) { return connector, name == "hub" },
	})
	ctx, cancel := context.WithCancel(context.Background())
	schedCtx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	run := func(ctx context.Context, f func(context.Context) error) <-chan struct{} {
		done := make(chan struct{})
		wg.Go(func() {
			defer close(done)
			if err := f(ctx); err != nil {
				t.Error(err)
			}
		})
		return done
	}
	run(ctx, r.queue.Run)
	ended := run(schedCtx, r.sched.Run)
	r.stop = func() {
		stop()
		<-ended
	}
	t.Cleanup(func() {
		r.stop()
		cancel()
		wg.Wait()
		out.Close()
		if err := r.queue.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

const body = "From: Alice <alice@example.org>\r\nSubject: Lunch?\r\nMessage-ID: <m1@example.org>\r\n\r\nAre you there?\r\n"

// put queues a message and returns its ID.
func (r *rig) put(sender string, notify mail.Notify, rcpts ...string) mail.QueueID {
	r.t.Helper()
	now := time.Now()
	d := mail.Draft{ID: mail.QueueID(mail.NewID(now)), Trace: []byte("Received: by mx1.example.net\r\n"), Header: mail.Header{MessageID: "<m1@example.org>", Subject: "Lunch?"}}
	var err error
	if d.Envelope.Sender, err = mail.ParseAddress(sender); err != nil {
		r.t.Fatal(err)
	}
	for _, s := range rcpts {
		a, err := mail.ParseAddress(s)
		if err != nil {
			r.t.Fatal(err)
		}
		d.Envelope.Recipients = append(d.Envelope.Recipients, mail.Recipient{Address: a, Notify: notify})
	}
	if err := r.queue.Put(context.Background(), d, []byte(body)); err != nil {
		r.t.Fatal(err)
	}
	return d.ID
}

// retired waits until n messages are at their end.
func (r *rig) retired(n int) {
	r.t.Helper()
	r.rec.WaitFor(r.t, "message_retired", n)
}

// about lists the facts about a message that concern its delivery.
func (r *rig) about(id mail.QueueID) []string {
	var list []string
	for _, rec := range r.rec.About(id) {
		if ev, ok := rec.Event.(event.AttemptFinished); ok {
			list = append(list, fmt.Sprintf("attempt %d %s", ev.Attempt, ev.Disposition))
		}
		if ev, ok := rec.Event.(event.RecipientRelayed); ok {
			list = append(list, "relayed "+ev.Recipient)
		}
		if ev, ok := rec.Event.(event.RecipientBounced); ok {
			list = append(list, fmt.Sprintf("bounced %s %s %s", ev.Recipient, ev.Enhanced, ev.Class))
		}
		if ev, ok := rec.Event.(event.RecipientExpired); ok {
			list = append(list, fmt.Sprintf("expired %s %s %s", ev.Recipient, ev.Enhanced, ev.Class))
		}
		if ev, ok := rec.Event.(event.DSNQueued); ok {
			list = append(list, fmt.Sprintf("dsn %s %s", ev.Kind, ev.Suppressed))
		}
	}
	return list
}

func (r *rig) want(id mail.QueueID, want ...string) {
	r.t.Helper()
	if got := r.about(id); !slices.Equal(got, want) {
		r.t.Errorf("facts:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestEndToEnd(t *testing.T) {
	t.Parallel()
	t.Run("relayed, deferred and bounced in one message", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, deliver.Retry{Schedule: fast}, deliver.Limits{})
		r.host.OnRcpt("gone@example.com", 550, "5.1.1 no such user")
		r.host.Do(relaytest.PhaseRcpt+" grey@example.com", relaytest.Action{Times: 2, Reply: "450 4.7.1 greylisted"})
		id := r.put("alice@example.org", 0, "ok@example.com", "gone@example.com", "grey@example.com")
		r.retired(2)
		r.want(id,
			"attempt 1 bounced", "relayed ok@example.com", "bounced gone@example.com 5.1.1 invalid_recipient", "dsn failed ",
			"attempt 2 deferred", "attempt 3 relayed", "relayed grey@example.com")
		var report *relaytest.Message
		for _, m := range r.host.Messages() {
			if m.Envelope.Sender.IsNull() {
				report = &m
			} else if !strings.HasPrefix(string(m.Content), "Received: by mx1.example.net\r\nFrom: Alice") {
				t.Errorf("content %q", m.Content)
			}
		}
		if report == nil || report.Envelope.Recipients[0].Address.String() != "alice@example.org" {
			t.Fatalf("no report came to the sender")
		}
		for _, want := range []string{"Final-Recipient: rfc822; gone@example.com", "Status: 5.1.1", "Undelivered mail: Lunch?", "Remote-MTA: dns; 127.0.0.1", "Message-ID: <m1@example.org>", "Received: by mx1"} {
			if !strings.Contains(string(report.Content), want) {
				t.Errorf("report without %q:\n%s", want, report.Content)
			}
		}
	})
	t.Run("a null sender gets no report", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, deliver.Retry{Schedule: fast}, deliver.Limits{})
		r.host.On(relaytest.PhaseRcpt, 550, "5.1.1 no such user")
		id := r.put("", 0, "gone@example.com")
		r.retired(1)
		r.want(id, "attempt 1 bounced", "bounced gone@example.com 5.1.1 invalid_recipient", "dsn failed null_sender")
		if n, _ := r.host.Received(); n != 0 {
			t.Errorf("%d messages came", n)
		}
	})
	t.Run("success is reported where the next hop does not", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, deliver.Retry{Schedule: fast}, deliver.Limits{}, relaytest.WithoutExtension("DSN"))
		id := r.put("alice@example.org", mail.NotifySuccess, "ok@example.com")
		r.retired(2)
		r.want(id, "attempt 1 relayed", "relayed ok@example.com", "dsn relayed ")
	})
	t.Run("success is left to a next hop with DSN", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, deliver.Retry{Schedule: fast}, deliver.Limits{})
		id := r.put("alice@example.org", mail.NotifySuccess, "ok@example.com")
		r.retired(1)
		r.want(id, "attempt 1 relayed", "relayed ok@example.com")
		if got := r.host.Messages()[0].RcptArgs[0]; !strings.Contains(got, "NOTIFY=SUCCESS") {
			t.Errorf("RCPT %s", got)
		}
	})
	t.Run("a refused connection is tried again until the lifetime ends", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, deliver.Retry{Schedule: []time.Duration{300 * time.Millisecond}, Lifetime: 10 * time.Second}, deliver.Limits{})
		if err := r.host.Close(); err != nil {
			t.Fatal(err)
		}
		id := r.put("", 0, "ok@example.com")
		r.retired(1)
		got := r.about(id)
		if len(got) < 4 || got[0] != "attempt 1 deferred" || !slices.Equal(got[len(got)-2:], []string{"expired ok@example.com 4.4.7 connect", "dsn failed null_sender"}) {
			t.Errorf("facts %q", got)
		}
	})
	t.Run("a 5xx banner is no bounce", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, deliver.Retry{Schedule: fast}, deliver.Limits{})
		r.host.Do(relaytest.PhaseConnect, relaytest.Action{Times: 1, Reply: "554 5.7.1 no service", Close: true})
		id := r.put("alice@example.org", 0, "ok@example.com")
		r.retired(1)
		r.want(id, "attempt 1 deferred", "attempt 2 relayed", "relayed ok@example.com")
	})
	t.Run("many messages over few connections", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, deliver.Retry{Schedule: fast}, deliver.Limits{ConnectionsPerDestination: 3})
		for i := range 100 {
			r.put("alice@example.org", 0, fmt.Sprintf("r%d@example.com", i))
		}
		r.retired(100)
		if n, _ := r.host.Received(); n != 100 {
			t.Errorf("%d messages came, want 100", n)
		}
		if _, _, peak := r.host.Connections(); peak > 3 {
			t.Errorf("%d connections at once, want at most 3", peak)
		}
		if v := r.host.Violations(); len(v) > 0 {
			t.Errorf("violations %v", v)
		}
	})
	t.Run("a next hop that hangs is cut off at the end and not settled", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, deliver.Retry{Schedule: fast}, deliver.Limits{})
		r.host.Do(relaytest.PhaseMail, relaytest.Action{Hang: true})
		id := r.put("alice@example.org", 0, "ok@example.com")
		for r.host.Counts()["MAIL"] == 0 {
			runtime.Gosched()
		}
		r.stop()
		m, err := r.queue.Get(id)
		if err != nil || m.States[0].Attempts != 0 || m.States[0].Disposition != mail.Queued {
			t.Errorf("message %+v: %v", m, err)
		}
		if got := r.about(id); len(got) != 0 {
			t.Errorf("facts %q", got)
		}
	})
}

// TestReporterWithQueue has an operator bounce a message: the Reporter tells the sender.
func TestReporterWithQueue(t *testing.T) {
	t.Parallel()
	var q *queue.Queue
	table, err := route.New(nil) // nothing can be routed
	if err != nil {
		t.Fatal(err)
	}
	rec := &relaytest.Recorder{}
	reporter := deliver.Reporter{Hostname: "mx1.example.net", Content: func(id mail.QueueID) (io.ReadCloser, error) { return q.Content(id) }}
	q, err = queue.Open(queue.Options{Dir: t.TempDir(), Router: table, Emitter: rec.Emitter(), NoSync: true, DiskFreeMin: 1, Reports: reporter.Reports})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	r := &rig{t: t, queue: q, rec: rec}
	id := r.put("alice@example.org", 0, "bob@example.com")
	if _, err := q.Act(context.Background(), queue.Action{Action: "bounce", Filter: queue.Filter{ID: id}, Actor: "op", Reason: "not wanted"}); err != nil {
		t.Fatal(err)
	}
	recs := rec.WaitFor(t, "dsn_queued", 1)
	dsnID := recs[0].Event.(event.DSNQueued).DSN
	content, err := q.Content(dsnID)
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	b, err := io.ReadAll(content)
	if err != nil || !strings.Contains(string(b), "Final-Recipient: rfc822; bob@example.com") || strings.Count(string(b), "Received: by mx1.example.net") != 1 {
		t.Errorf("report (%v):\n%s", err, b)
	}
}

// BenchmarkEndToEnd measures messages through queue, scheduler and engine, on a
// queue that does not sync.
func BenchmarkEndToEnd(b *testing.B) {
	r := newRig(b, deliver.Retry{}, deliver.Limits{ConnectionsPerDestination: 20}, relaytest.WithKeep(1))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		r.put("alice@example.org", 0, "bob@example.com")
	}
	for {
		if n, _ := r.host.Received(); n >= b.N {
			break
		}
		runtime.Gosched()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}
