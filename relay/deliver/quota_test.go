package deliver

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/route"
	"waybill/relay/smtpout"
)

// fakeQuota has room for so many recipients, and for more after a while.
type fakeQuota struct {
	mu    sync.Mutex
	room  int
	again time.Duration
	asked int
	back  int
}

func (q *fakeQuota) Take(now time.Time, n int) (limit string, again time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asked++
	if n > q.room {
		return "recipients_per_day", now.Add(q.again)
	}
	q.room -= n
	return "", time.Time{}
}

func (q *fakeQuota) Done(_ time.Time, n, used int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.back += n - used
	q.room += n - used
}

// TestQuota lets a message wait for a quota: without an attempt, with the reason
// at hand, and with one write however often it is put off.
func TestQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, facts := newFakeQueue(t), &sink{}
		quota := &fakeQuota{room: 2, again: time.Hour}
		_, stop := start(t, q, Connector{Quota: quota, Attempter: attempter(func(_ context.Context, _ route.Hop, m smtpout.Message) smtpout.Result {
			return answer(m, relayed)
		})}, func(o *Options) { o.Emitter = event.NewEmitter("test", facts) })
		q.add(internet, nil, "a@example.com", "b@example.com")
		synctest.Wait()
		late := q.add(internet, nil, "c@example.com")
		synctest.Wait()
		list := q.settlements()
		if len(list) != 2 || list[0].NoAttempt || !list[1].NoAttempt || !list[1].Waits {
			t.Fatalf("settlements = %+v, want an attempt, and a wait", list)
		}
		o := list[1].Outcomes[0]
		if o.Disposition != mail.Deferred || o.Class != mail.ClassThrottled || !strings.HasPrefix(o.Reply.Text, "quota: recipients_per_day of send connector internet") {
			t.Errorf("outcome = %+v, want one that names the quota", o)
		}
		time.Sleep(150 * time.Minute)
		synctest.Wait()
		if got := len(q.settlements()); got != 2 || quota.asked < 4 {
			t.Errorf("%d settlements after %d questions, want 2: the reason stands there already", got, quota.asked)
		}
		if late.States[0].Last.Text != o.Reply.Text {
			t.Errorf("the message says %q of itself, want the reason", late.States[0].Last.Text)
		}
		engaged := 0
		for _, name := range facts.names() {
			if name == "throttle_engaged" {
				engaged++
			}
		}
		if engaged != 1 {
			t.Errorf("it was stated %d times that the quota engaged, want once", engaged)
		}
		quota.mu.Lock()
		quota.room = 1
		quota.mu.Unlock()
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := q.settlements(); len(got) != 3 || got[2].NoAttempt {
			t.Errorf("settlements = %+v, want the attempt as the third", got)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestQuotaGivesBack counts what the next hop took, or may have taken.
func TestQuotaGivesBack(t *testing.T) {
	for _, test := range []struct {
		name     string
		outcomes []mail.Outcome
		want     int
	}{
		{"all", []mail.Outcome{{Disposition: mail.Relayed}, {Disposition: mail.Relayed}}, 2},
		{"one is refused", []mail.Outcome{{Disposition: mail.Relayed}, {Disposition: mail.Bounced}}, 1},
		{"uncertain", []mail.Outcome{{Disposition: mail.Deferred, Uncertain: true}, {Disposition: mail.Deferred}}, 1},
		{"no session", nil, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := taken(test.outcomes); got != test.want {
				t.Errorf("taken = %d, want %d", got, test.want)
			}
		})
	}
}
