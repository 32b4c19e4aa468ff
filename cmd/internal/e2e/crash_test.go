//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/relaytest"
)

// TestKill9 kills the daemon in the middle of a load, again and again, and
// counts: every message that got its 250 arrives or is reported, and tracking
// has one message_queued and one final fact for each, and one report for each
// that bounced.
func TestKill9(t *testing.T) {
	const rounds, inFlight = 5, 40 // limits.connections_per_destination is 40
	in := port(t)
	sink, err := relaytest.StartSmartHost("127.0.0.1:0", relaytest.WithBehaviour(func(phase, arg string) (string, time.Duration, bool) {
		switch {
		case phase == relaytest.PhaseDot && rand.IntN(10) == 0:
			return "451 4.3.0 again please", 0, false
		case phase == relaytest.PhaseRcpt && strings.Contains(arg, "7@sink.test"):
			return "550 5.1.1 no such user", 0, false
		}
		return "", 0, false
	}), relaytest.WithKeep(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	d := start(t, relayConf(in, int(sink.Port())))

	var mu sync.Mutex
	acked := map[string]string{} // queue id → recipient
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for c := range 16 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; {
				i = submit(ctx, in, c, i, func(id, to string) {
					mu.Lock()
					acked[id] = to
					mu.Unlock()
				})
				select { // the daemon is down: knock again
				case <-ctx.Done():
				case <-time.After(30 * time.Millisecond):
				}
			}
		})
	}
	total := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acked)
	}
	for r := range rounds {
		enough := total() + 150 + rand.IntN(300)
		eventually(t, time.Minute, "load", func() error {
			if n := total(); n < enough {
				return fmt.Errorf("%d messages, want %d", n, enough)
			}
			return nil
		})
		d.kill()
		t.Logf("round %d: killed after %d messages", r+1, total())
		d.boot()
		d.ready()
	}
	cancel()
	wg.Wait()
	d.empty(2 * time.Minute)

	arrived := map[string]int{} // by recipient, or by the one that a report is about
	about := regexp.MustCompile(`(?m)^Final-Recipient: rfc822; ?(\S+@sink\.test)`)
	for _, m := range sink.Messages() {
		to := m.Envelope.Recipients[0].Address.String()
		if found := about.FindSubmatch(m.Content); found != nil && m.Envelope.Sender.IsNull() {
			to = string(found[1])
		}
		arrived[to]++
	}
	twice, bounced := 0, 0
	for id, to := range acked {
		if arrived[to] == 0 {
			t.Errorf("%s to %s was acknowledged, and neither it nor a report arrived", id, to)
		}
		if arrived[to] > 1 {
			twice++
		}
	}
	t.Logf("%d acknowledged, %d arrived, %d of them more than once, over %d kills", len(acked), len(arrived), twice, rounds)
	if most := rounds * inFlight; twice > most {
		t.Errorf("%d messages arrived more than once, want at most the %d attempts in flight at %d kills", twice, most, rounds)
	}
	facts := d.facts()
	for id, to := range acked {
		f := facts[id]
		finals := f["recipient_relayed"] + f["recipient_bounced"] + f["recipient_expired"] + f["recipient_dropped"]
		if f["message_queued"] != 1 || finals != 1 || f["message_retired"] != 1 {
			t.Errorf("%s: %d message_queued, %d final facts, %d message_retired; want one of each", id, f["message_queued"], finals, f["message_retired"])
		}
		want := 0
		if strings.HasSuffix(to, "7@sink.test") {
			want = 1
			bounced++
		}
		if f["recipient_bounced"] != want || f["dsn_queued"] != want {
			t.Errorf("%s to %s: %d recipient_bounced and %d dsn_queued, want %d", id, to, f["recipient_bounced"], f["dsn_queued"], want)
		}
	}
	if t.Logf("%d bounced", bounced); bounced == 0 {
		t.Error("none bounced: this proves less than it should")
	}
}

// facts counts the facts of every message, by reading all of them.
func (d *daemon) facts() map[string]map[string]int {
	d.t.Helper()
	counts := map[string]map[string]int{}
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
				Event string `json:"event"`
				ID    string `json:"queue_id"`
			}
			if err := json.Unmarshal(raw, &r); err != nil {
				d.t.Fatal(err)
			}
			if counts[r.ID] == nil {
				counts[r.ID] = map[string]int{}
			}
			counts[r.ID][r.Event]++
		}
		if q.Cursor = got.Cursor; q.Cursor == "" {
			return counts
		}
	}
}

// submit sends messages over one connection until it breaks, and reports each
// that was acknowledged. It returns the next number to use.
func submit(ctx context.Context, port, client, i int, acked func(id, to string)) int {
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
		to := fmt.Sprintf("c%d-%d@sink.test", client, i)
		fmt.Fprintf(conn, "MAIL FROM:<load@load.test>\r\nRCPT TO:<%s>\r\nDATA\r\n", to)
		for range 3 {
			if _, err := reply(); err != nil {
				return i + 1
			}
		}
		fmt.Fprintf(conn, "Subject: %d\r\n\r\n%s\r\n.\r\n", i, strings.Repeat("x", 500))
		line, err := reply()
		if err != nil {
			return i + 1
		}
		if text, ok := strings.CutPrefix(line, "250 2.0.0 queued as "); ok {
			acked(strings.Fields(text)[0], to)
		}
	}
	return i
}
