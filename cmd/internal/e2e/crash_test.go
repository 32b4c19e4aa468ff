//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/relaytest"
)

// What TestCrash can be told.
const (
	crashKills = "WAYBILL_CRASH_KILLS" // how often to kill; 100 when not set
	crashSeed  = "WAYBILL_CRASH_SEED"  // of the moments, the messages and the sink's moods
)

// crashDaemons are killed side by side, and share the kills: a kill is mostly
// waiting.
const crashDaemons = 2

// crashAtOnce is limits.connections_per_destination: how many attempts can be under
// way at a kill. As many again can be over without having been written down.
const crashAtOnce = 10

// chances are random numbers for many goroutines.
type chances struct {
	mu sync.Mutex
	r  *rand.Rand
}

func (c *chances) n(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r.IntN(n)
}

// ledger is what the sender knows: which messages were acknowledged.
type ledger struct {
	mu    sync.Mutex
	acked map[string][]string // queue ID → recipients
}

func (l *ledger) add(id string, to []string) {
	l.mu.Lock()
	l.acked[id] = to
	l.mu.Unlock()
}

func (l *ledger) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// moods is a sink that refuses some recipients, defers others once or twice, and
// whole messages now and then, and takes its time.
func moods(c *chances) relaytest.Behaviour {
	var mu sync.Mutex
	asked := map[string]int{}
	return func(phase, arg string) (string, time.Duration, bool) {
		switch phase {
		case relaytest.PhaseRcpt:
			switch {
			case strings.Contains(arg, ".no@"):
				return "550 5.1.1 no such user", 0, false
			case strings.Contains(arg, ".later@"):
				mu.Lock()
				asked[arg]++
				n := asked[arg]
				mu.Unlock()
				if n < 2 {
					return "451 4.7.1 greylisted", 0, false
				}
			}
		case relaytest.PhaseDot:
			wait := time.Duration(c.n(20)) * time.Millisecond
			if c.n(30) == 0 {
				return "451 4.3.0 again please", wait, false
			}
			return "", wait, false
		}
		return "", 0, false
	}
}

// TestCrash kills daemons with the signal that cannot be caught, at 100 random
// moments under load: while it starts and reads its queue, accepts,
// delivers, retires, gives segments back and merges its tables. Then it compares
// what the sender was told with what the sink got, what is queued, what tracking
// knows, and what is counted. Nothing is lost, no more is sent twice than was in
// flight, and every message has one message_queued and one final fact for each
// recipient.
func TestCrash(t *testing.T) {
	t.Parallel()
	kills := 100
	if n, err := strconv.Atoi(os.Getenv(crashKills)); err == nil {
		kills = n
	}
	seed := rand.Uint64()
	if n, err := strconv.ParseUint(os.Getenv(crashSeed), 10, 64); err == nil {
		seed = n
	}
	t.Logf("%s=%d %s=%d", crashSeed, seed, crashKills, kills)
	for i := range crashDaemons {
		if share := (kills + i) / crashDaemons; share > 0 {
			t.Run(fmt.Sprintf("daemon %d", i+1), func(t *testing.T) {
				t.Parallel()
				crash(t, seed+uint64(i), share)
			})
		}
	}
}

// crash is TestCrash for one daemon.
func crash(t *testing.T, seed uint64, kills int) {
	t.Helper()
	c := &chances{r: rand.New(rand.NewPCG(seed, 1))}
	sink, err := relaytest.StartSmartHost("127.0.0.1:0", relaytest.WithBehaviour(moods(c)), relaytest.WithKeep(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	in := port(t)
	conf := strings.Replace(relayConf(in, int(sink.Port())), "retry:", fmt.Sprintf("limits: {connections_per_destination: %d}, retry:", crashAtOnce), 1)
	d := start(t, conf)

	book := &ledger{acked: map[string][]string{}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for client := range 8 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; {
				i = submit(ctx, in, client, i, c, book)
				select { // the daemon is down: knock again
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	began := time.Now()
	var starting, working int
	for range kills {
		if c.n(4) == 0 { // while it starts, or just has
			starting++
			pause(t, d, time.Duration(10+c.n(400))*time.Millisecond)
		} else {
			working++
			d.ready()
			enough := book.size() + 5 + c.n(100)
			eventually(t, time.Minute, "load", func() error {
				if n := book.size(); n < enough {
					return fmt.Errorf("%d messages, want %d", n, enough)
				}
				return nil
			})
			pause(t, d, time.Duration(c.n(300))*time.Millisecond)
		}
		d.kill()
		d.boot()
	}
	cancel()
	wg.Wait()
	t.Logf("%d kills at the start, %d under load, in %s; %d messages acknowledged", starting, working, time.Since(began).Round(time.Second), book.size())
	d.ready()
	d.drainCrash(3 * time.Minute)
	reconcileCrash(t, d, book, sink, kills)
	afterCrash(t, d, in, c)
}

// pause waits while the daemon works; it must not end by itself.
func pause(t *testing.T, d *daemon, wait time.Duration) {
	t.Helper()
	select {
	case <-time.After(wait):
	case <-d.done:
		t.Fatalf("the daemon has ended by itself: %v", d.err)
	}
}

// drainCrash waits until the queue is empty. Messages that were in flight at
// several kills in a row wait longer, or were set apart: an operator lets them go.
func (d *daemon) drainCrash(patience time.Duration) {
	d.t.Helper()
	apart := 0
	eventually(d.t, patience, "the queue to be empty", func() error {
		q, err := d.api.Queues(context.Background())
		if err != nil || q.Messages == 0 {
			return err
		}
		for _, act := range []trackapi.QueueAction{
			{Action: "release", Filter: trackapi.QueueFilter{State: "poison"}, Reason: "killed by the test"},
			{Action: "retry", Filter: trackapi.QueueFilter{All: true}, Reason: "killed by the test"},
		} {
			did, err := d.api.ActOnQueue(context.Background(), act)
			if err != nil {
				return err
			}
			if act.Action == "release" {
				apart += did.Messages
			}
		}
		<-time.After(time.Second)
		return fmt.Errorf("%d messages are queued", q.Messages)
	})
	d.t.Logf("%d messages had been set apart, because they were in flight at three kills in a row", apart)
}

// tale is what tracking tells of one message.
type tale struct {
	queued, retired, reports int
	recipients               []string
	finals                   map[string]int
	bounced                  int
}

// tales reads all facts.
func (d *daemon) tales() map[string]*tale {
	d.t.Helper()
	all := map[string]*tale{}
	now := time.Now()
	q := trackapi.Query{
		From: now.Add(-time.Hour), To: now.Add(time.Minute), Limit: 1000, Sort: "time",
		Event: "message_queued,recipient_relayed,recipient_bounced,recipient_expired,recipient_dropped,message_retired,dsn_queued",
	}
	for {
		got, err := d.api.Events(context.Background(), q)
		if err != nil {
			d.t.Fatal(err)
		}
		for _, raw := range got.Events {
			var r struct {
				Event      string `json:"event"`
				ID         string `json:"queue_id"`
				Recipient  string `json:"recipient"`
				Recipients []struct {
					Address string `json:"address"`
				} `json:"recipients"`
			}
			if err := json.Unmarshal(raw, &r); err != nil {
				d.t.Fatal(err)
			}
			f := all[r.ID]
			if f == nil {
				f = &tale{finals: map[string]int{}}
				all[r.ID] = f
			}
			switch r.Event {
			case "message_queued":
				f.queued++
				for _, to := range r.Recipients {
					f.recipients = append(f.recipients, to.Address)
				}
			case "message_retired":
				f.retired++
			case "dsn_queued":
				f.reports++
			case "recipient_bounced":
				f.bounced++
				f.finals[r.Recipient]++
			default:
				f.finals[r.Recipient]++
			}
		}
		if q.Cursor = got.Cursor; q.Cursor == "" {
			return all
		}
	}
}

var reported = regexp.MustCompile(`(?m)^Final-Recipient: rfc822; ?(\S+@sink\.test)`)

// reconcileCrash compares sender, sink and tracking.
func reconcileCrash(t *testing.T, d *daemon, book *ledger, sink *relaytest.SmartHost, kills int) {
	t.Helper()
	arrived, about := map[string]int{}, map[string]int{}
	for _, m := range sink.Messages() {
		if m.Envelope.Sender.IsNull() {
			for _, found := range reported.FindAllSubmatch(m.Content, -1) {
				about[string(found[1])]++
			}
			continue
		}
		for _, r := range m.Envelope.Recipients {
			arrived[r.Address.String()]++
		}
	}
	recipients, refused, deferred, twice := 0, 0, 0, 0
	for id, to := range book.acked {
		for _, r := range to {
			recipients++
			switch {
			case strings.Contains(r, ".no@"):
				refused++
				if about[r] == 0 {
					t.Errorf("%s to %s was acknowledged and refused, and no report arrived", id, r)
				}
				if arrived[r] > 0 {
					t.Errorf("%s to %s arrived, though it was refused", id, r)
				}
			case arrived[r] == 0:
				t.Errorf("%s to %s was acknowledged and did not arrive", id, r)
			}
			if strings.Contains(r, ".later@") {
				deferred++
			}
		}
	}
	for _, n := range arrived {
		twice += n - 1
	}
	for _, n := range about {
		twice += n - 1
	}
	t.Logf("%d recipients, of which the sink refused %d and deferred %d; %d arrivals more than one over %d kills", recipients, refused, deferred, twice, kills)
	if most := kills * 2 * crashAtOnce * 4; twice > most {
		t.Errorf("%d arrivals too many, want at most the %d recipients in flight at %d kills", twice, most, kills)
	}
	if refused == 0 || deferred == 0 {
		t.Error("none was refused or deferred: this proves less than it should")
	}
	all := d.tales()
	for id, f := range all {
		if f.queued != 1 || f.retired != 1 || len(f.finals) != len(f.recipients) {
			t.Errorf("%s has %d message_queued, %d message_retired, and finals for %d of %d recipients", id, f.queued, f.retired, len(f.finals), len(f.recipients))
		}
		for r, n := range f.finals {
			if n != 1 {
				t.Errorf("%s to %s has %d final facts, want one", id, r, n)
			}
		}
		if f.bounced > 0 && f.reports == 0 {
			t.Errorf("%s bounced for %d recipients, and there is no report", id, f.bounced)
		}
	}
	for id := range book.acked {
		if all[id] == nil {
			t.Errorf("%s was acknowledged, and tracking does not know it", id)
		}
	}
	t.Logf("%d messages in tracking, with reports and those whose 250 was cut off", len(all))
}

// afterCrash counts: the daemon starts cleanly, takes messages, and its counters
// and its store agree about them.
func afterCrash(t *testing.T, d *daemon, in int, c *chances) {
	t.Helper()
	d.stop()
	d.boot()
	d.ready()
	from := time.Now()
	book := &ledger{acked: map[string][]string{}}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { submit(ctx, in, 100, 0, c, book) })
	eventually(t, time.Minute, "messages", func() error {
		if n := book.size(); n < 50 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	cancel()
	wg.Wait()
	d.empty(time.Minute)
	eventually(t, time.Minute, "counters and tracking to agree", func() error {
		got, err := d.api.Aggregate(context.Background(), trackapi.AggregateQuery{
			Query: trackapi.Query{From: from, To: time.Now().Add(time.Minute)}, Metric: "count", By: []string{"event"}, Top: 50,
		})
		if err != nil {
			return err
		}
		facts := map[string]int{}
		for _, s := range got.Series {
			facts[s.Labels["event"]] = int(*s.Points[0].Value)
		}
		m := d.metrics()
		for name, counted := range map[string]float64{
			"recipient_relayed": m.sum("waybill_recipients_completed_total", `disposition="relayed"`),
			"recipient_bounced": m.sum("waybill_recipients_completed_total", `disposition="bounced"`),
			"message_queued":    m.sum("waybill_messages_received_total", "") + float64(facts["dsn_queued"]),
		} {
			if int(counted) != facts[name] || counted == 0 {
				return fmt.Errorf("%s: counted %v, tracking has %d", name, counted, facts[name])
			}
		}
		if n := m.sum("waybill_queue_messages", ""); n != 0 {
			return fmt.Errorf("the gauge says that %v messages are queued", n)
		}
		return nil
	})
}

// submit sends messages over one connection until it breaks, and notes each that
// was acknowledged. It returns the next number to use.
func submit(ctx context.Context, port, client, i int, c *chances, book *ledger) int {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return i
	}
	defer conn.Close()
	br := bufio.NewReader(conn)
	reply := func() (string, error) {
		for {
			line, err := br.ReadString('\n')
			if err != nil || len(line) < 4 || line[3] == ' ' {
				return strings.TrimSpace(line), err
			}
		}
	}
	if _, err := reply(); err != nil {
		return i
	}
	fmt.Fprint(conn, "EHLO load.test\r\n")
	if _, err := reply(); err != nil {
		return i
	}
	for ; ctx.Err() == nil; i++ {
		var to []string
		for k := range 1 + c.n(4) {
			kind := [...]string{"ok", "ok", "ok", "ok", "later", "no"}[c.n(6)]
			to = append(to, fmt.Sprintf("c%d-%d-%d.%s@sink.test", client, i, k, kind))
		}
		size := 500 + c.n(8000)
		if c.n(60) == 0 {
			size = 300 << 10 // these have a file of their own
		}
		var cmd strings.Builder
		cmd.WriteString("MAIL FROM:<load@load.test>\r\n")
		for _, r := range to {
			fmt.Fprintf(&cmd, "RCPT TO:<%s>\r\n", r)
		}
		cmd.WriteString("DATA\r\n")
		fmt.Fprint(conn, cmd.String())
		for range len(to) + 2 {
			if _, err := reply(); err != nil {
				return i + 1
			}
		}
		fmt.Fprintf(conn, "Subject: %d\r\n\r\n%s.\r\n", i, strings.Repeat("0123456789012345678901234567890123456789012345678901234567890123456789012345\r\n", size/78+1))
		line, err := reply()
		if err != nil {
			return i + 1
		}
		if text, ok := strings.CutPrefix(line, "250 2.0.0 queued as "); ok {
			book.add(strings.Fields(text)[0], to)
		}
		select { // a steady load, not the most there can be
		case <-ctx.Done():
		case <-time.After(time.Duration(c.n(20)) * time.Millisecond):
		}
	}
	return i
}
