package deliver

import (
	"context"
	"fmt"
	"strings"
	"time"

	"waybill/relay/event"
	"waybill/relay/failure"
	"waybill/relay/mail"
	"waybill/relay/queue"
)

// Quota is how much a next hop takes of us in a time.
type Quota interface {
	// Take counts one message with so many recipients when there is room for it.
	// Otherwise it names the limit, by its configuration key, and says when to come
	// again.
	Take(now time.Time, recipients int) (limit string, again time.Time)
	// Done gives back those that the next hop did not take.
	Done(taken time.Time, recipients, used int)
}

// quotaWords begin the text of messages that wait for a quota, so that they are
// known by it.
const quotaWords = "quota: "

// overQuota reports whether the lease has to wait for its quota, and lets it.
// Otherwise the quota is counted, and done gives back what was not used of it: all but so many recipients.
func (j *job) overQuota(ctx context.Context) (done func(taken int), over bool) {
	if j.connector.Quota == nil {
		return func(int) {}, false
	}
	at, n := time.Now(), len(j.view.Index)
	limit, again := j.connector.Quota.Take(at, n)
	if limit == "" {
		return func(taken int) { j.connector.Quota.Done(at, n, taken) }, false
	}
	again = earlier(again, j.expires)
	if j.saidQuota() && !j.delayDue() {
		j.lease.ReleaseUntil(again)
		return nil, true
	}
	j.emit.Message(j.view.Message.ID, j.view.Message.UID).Emit(event.ThrottleEngaged{
		Connector: j.view.Hop.Connector, Scope: "destination", Limit: limit, Action: "defer",
	})
	o := mail.Outcome{
		Disposition: mail.Deferred, Class: mail.ClassThrottled, ClassRule: failure.RuleQuota,
		Reply: mail.Reply{Enhanced: "4.7.28", Text: fmt.Sprintf("%s%s of send connector %s is used up; there is room again at %s",
			quotaWords, limit, j.view.Hop.Connector, again.UTC().Format(time.DateTime+"Z"))},
	}
	j.finish(ctx, queue.Settlement{Outcomes: j.all(o), NoAttempt: true, Waits: true, Next: again}, nil)
	return nil, true
}

// saidQuota reports whether it stands with the message already that it waits for
// a quota: then nothing need be written.
func (j *job) saidQuota() bool {
	for _, i := range j.view.Index {
		if st := &j.view.Message.States[i]; st.LastClass != mail.ClassThrottled || !strings.HasPrefix(st.Last.Text, quotaWords) {
			return false
		}
	}
	return true
}

// taken is how many recipients the next hop took, or may have taken.
func taken(outcomes []mail.Outcome) (n int) {
	for i := range outcomes {
		if o := &outcomes[i]; o.Disposition == mail.Relayed || o.Uncertain {
			n++
		}
	}
	return n
}
