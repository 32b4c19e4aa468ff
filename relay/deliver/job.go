package deliver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"waybill/relay/event"
	"waybill/relay/failure"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/smtpout"
)

// job is one lease on its way to its end.
type job struct {
	*Scheduler
	lease     Lease
	view      *queue.Lease
	connector Connector
	expires   time.Time
	now       time.Time // when it was claimed, later when the attempt ended
	damaged   bool
	cut       <-chan struct{} // closed when attempts are cut off
}

// attempt lets the connector attempt the lease, when hop and rate allow, and
// settles it.
func (j *job) attempt(ctx, attempts context.Context) {
	hop := j.view.Hop
	if j.obey(ctx) {
		return
	}
	p, ok := j.hops.enter(hop, j.now)
	if !ok {
		j.putOff(ctx, p)
		return
	}
	verdict, left := inconclusive, false
	leave := func() (until time.Time) {
		left = true
		return j.hops.leave(hop, p, result{verdict, j.connector.Limits.perDestination(), j.pause}, time.Now())
	}
	defer func() {
		if !left { // also when the connector panics
			leave()
		}
	}()

	done, over := j.overQuota(ctx)
	if over {
		return
	}
	used := 0
	defer func() { done(used) }()
	again, err := j.paces.wait(ctx, hop.Connector, j.connector.Limits.MessagesPerMinute, j.connector.Limits.messages(len(j.view.Index)))
	switch {
	case err != nil:
		j.lease.Release()
		return
	case !again.IsZero():
		j.lease.ReleaseUntil(earlier(again, j.expires))
		return
	}
	if j.now = time.Now(); !j.now.Before(j.expires) {
		j.expire(ctx)
		return
	}
	began, epoch := j.now, j.windows.begin(hop)
	res := j.connector.Attempter.Attempt(attempts, hop, j.message())
	used = taken(res.Outcomes)
	j.now = time.Now()
	j.talked(&res)
	outcomes := j.outcomes(&res)
	if res.Closed || (attempts.Err() != nil || j.damaged) && undecided(outcomes) {
		// A reload has just replaced the connector, we broke it off, or the queue
		// has just isolated the message because its content is damaged. Nothing
		// came of it.
		j.lease.Release()
		return
	}
	verdict = judge(outcomes)
	j.learn(&res, outcomes, began, epoch)
	j.share.learn(hop, verdict, outcomes)
	j.settle(ctx, &res, outcomes, verdict, leave())
}

// message is what the connector hands over.
func (j *job) message() smtpout.Message {
	m := j.view.Message
	env := m.Envelope
	if len(j.view.Index) < len(env.Recipients) {
		env.Recipients = make([]mail.Recipient, len(j.view.Index))
		for k, i := range j.view.Index {
			env.Recipients[k] = m.Envelope.Recipients[i]
		}
	}
	return smtpout.Message{ID: m.ID, Envelope: env, Trace: m.Trace, Size: int64(len(m.Trace)) + m.Size, Open: j.open}
}

// open opens the content, and remembers when it was damaged.
func (j *job) open() (io.ReadCloser, error) {
	r, err := j.lease.Open()
	if errors.Is(err, queue.ErrDamaged) {
		j.damaged = true
	}
	return r, err
}

// pause is the retry schedule with jitter.
func (j *job) pause(failures int) time.Duration {
	return jitter(j.connector.Retry.Pause(failures), j.opts.Rand())
}

// outcomes completes what the connector said: exactly one outcome for each
// recipient, with a disposition that follows from the reply, and a class.
func (j *job) outcomes(res *smtpout.Result) []mail.Outcome {
	outcomes := res.Outcomes
	if len(outcomes) != len(j.view.Index) {
		outcomes = make([]mail.Outcome, len(j.view.Index))
	}
	for k, i := range j.view.Index {
		to := j.view.Message.Envelope.Recipients[i].Address
		o := mail.Outcome{
			Disposition: mail.Deferred, Reply: mail.Reply{Enhanced: "4.3.0", Text: "the attempt ended without an outcome"},
			Class: mail.ClassOther, ClassRule: failure.RuleLocal,
		}
		if k < len(res.Outcomes) {
			o = res.Outcomes[k]
		}
		o.Recipient = to
		o.Disposition = dispose(&o)
		j.failures.Load().Complete(&o)
		outcomes[k] = o
	}
	return outcomes
}

// dispose decides between trying again and giving up.
func dispose(o *mail.Outcome) mail.Disposition {
	switch {
	case o.Disposition == mail.Relayed:
		return mail.Relayed
	case o.Disposition != mail.Bounced:
		return mail.Deferred
	case !o.Remote:
		return mail.Bounced
	case sessionVerb(o.Verb) && o.Reply.Code != 521 && o.Reply.Code != 556:
		// The host refuses us, not the message: another host or another day may
		// do better. 521 and 556 say that it never takes mail (RFC 7504).
		return mail.Deferred
	case o.Verb == "RCPT" && o.Reply.Code == 552 && (o.Reply.Enhanced == "5.5.3" || strings.Contains(strings.ToLower(o.Reply.Text), "too many")):
		return mail.Deferred // RFC 5321 section 4.5.3.1.10: an old way to say 452
	}
	return mail.Bounced
}

// sessionVerb reports whether verb belongs to the session before any message.
func sessionVerb(verb string) bool {
	switch verb {
	case "CONNECT", "EHLO", "HELO", "STARTTLS", "AUTH":
		return true
	}
	return false
}

// undecided reports whether the outcomes tell nothing that must be remembered.
func undecided(outcomes []mail.Outcome) bool {
	for i := range outcomes {
		if outcomes[i].Disposition != mail.Deferred || outcomes[i].Uncertain {
			return false
		}
	}
	return true
}

// judge says what the outcomes tell of the hop. It is unreachable when every
// recipient failed for a while before MAIL was answered.
func judge(outcomes []mail.Outcome) verdict {
	for i := range outcomes {
		o := &outcomes[i]
		if o.Disposition != mail.Deferred {
			return reached
		}
		switch o.Verb {
		case "MAIL", "RCPT", "DATA", "BDAT", ".", "RSET":
			return reached
		}
		switch o.Class {
		case mail.ClassDNS, mail.ClassConnect, mail.ClassTimeout, mail.ClassTLS, mail.ClassAuth:
		default:
			if !o.Remote { // such as content that could not be read
				return inconclusive
			}
		}
	}
	return unreachable
}

// putOff gives the lease back until its hop is back, which one message at a time
// sees to. Nothing is written, unless the sender is to be told of the delay.
func (j *job) putOff(ctx context.Context, p pass) {
	pause := j.connector.Retry.Pause(p.failures)
	probe := p.until
	if !probe.After(j.now) { // a probe is under way
		probe = j.now.Add(pause / 10)
	}
	next := earlier(probe.Add(time.Duration(j.opts.Rand()*float64(pause)/5)), j.limit())
	if j.elsewhere() {
		why := mail.Outcome{
			Disposition: mail.Deferred, Reply: mail.Reply{Enhanced: "4.4.1", Text: "the next hop cannot be reached, and there is another way"},
			Class: mail.ClassConnect, ClassRule: failure.RuleLocal,
		}
		j.finish(ctx, queue.Settlement{Outcomes: j.all(why), Next: next, NoAttempt: true, Elsewhere: true}, nil)
		return
	}
	if j.delayDue() {
		j.wait(ctx, next, mail.Outcome{
			Reply: mail.Reply{Enhanced: "4.4.1", Text: "waiting for the next hop, which cannot be reached"},
			Class: mail.ClassConnect, ClassRule: failure.RuleLocal,
		})
		return
	}
	j.lease.Park(probe, earlier(j.delayAt(), j.limit()))
}

// elsewhere reports whether the router has another hop for any of the lease's
// recipients, now that theirs cannot be reached.
func (j *job) elsewhere() bool {
	if j.opts.Router == nil {
		return false
	}
	for _, i := range j.view.Index {
		if hop := j.opts.Router.Route(j.view.Message.Query(i)).Hop; hop.Connector != "" && hop != j.view.Hop {
			return true
		}
	}
	return false
}

// settle commits what an attempt did. The hop is not to be tried before until.
func (j *job) settle(ctx context.Context, res *smtpout.Result, outcomes []mail.Outcome, v verdict, until time.Time) {
	s := queue.Settlement{Outcomes: outcomes, Reached: v == reached}
	if v == unreachable {
		s.DownUntil = until
	}
	worst, waiting, uncertain := 0, false, false
	for k := range outcomes {
		o := &outcomes[k]
		uncertain = uncertain || o.Uncertain
		waiting = waiting || o.Disposition == mail.Deferred
		if severity(o.Disposition) > severity(outcomes[worst].Disposition) {
			worst = k
		}
	}
	s.Attempt = j.finished(res, &outcomes[worst])
	s.Attempt.Uncertain = uncertain
	if waiting {
		if !j.now.Before(j.expires) {
			for k := range outcomes {
				if outcomes[k].Disposition == mail.Deferred {
					outcomes[k] = j.expired(outcomes[k])
				}
			}
		} else {
			s.Next = j.now.Add(j.pause(j.view.Attempt))
			if s.Next.Before(until) {
				s.Next = until.Add(time.Duration(j.opts.Rand() * float64(until.Sub(j.now)) / 10))
			}
			s.Next = earlier(s.Next, j.limit())
			s.Attempt.NextAttempt = s.Next
			if s.Elsewhere = v == unreachable && j.elsewhere(); s.Elsewhere {
				s.Attempt.NextAttempt = j.now // where the router sends it
			}
		}
	}
	j.finish(ctx, s, res)
}

// limit is when something is due at the latest: the end, or the moment to tell
// the sender that it is late.
func (j *job) limit() time.Time {
	if by := j.view.Message.Envelope.DeliverBy.Deadline.Add(j.view.Shift); by.After(j.now) {
		return earlier(j.expires, by)
	}
	return j.expires
}

// severity orders dispositions: bounced before deferred before relayed.
func severity(d mail.Disposition) int {
	switch d {
	case mail.Bounced, mail.Expired:
		return 2
	case mail.Relayed:
		return 0
	case mail.Queued, mail.Deferred, mail.Held, mail.Dropped, mail.Moved:
	}
	return 1
}

// maxReply is how much of a reply a fact keeps.
const maxReply = 512

// finished is the fact of the attempt, without what the queue fills in.
func (j *job) finished(res *smtpout.Result, worst *mail.Outcome) event.AttemptFinished {
	return event.AttemptFinished{
		Hop: event.Hop{
			ConnectorOut: j.view.Hop.Connector, Queue: j.view.Hop.Name, Provider: res.Provider,
			RemoteName: res.RemoteName, RemoteIP: res.Remote.Addr(), RemotePort: res.Remote.Port(),
		},
		Answer: event.Answer{
			Code: worst.Reply.Code, Enhanced: worst.Reply.Enhanced, Reply: clip(worst.Reply.Text, maxReply), Verb: worst.Verb,
			Class: worst.Class, ClassRule: worst.ClassRule, Permanence: worst.Permanence, Explanation: worst.Explanation,
		},
		Disposition: worst.Disposition,
		OutSession:  res.Session,
		LocalIP:     res.Local.Addr(),
		Reused:      res.Reused,
		TLSVersion:  res.TLSVersion,
		TLSCipher:   res.TLSCipher,
		TLSVerify:   res.TLSVerify,
		TLSPolicy:   res.TLSPolicy,
		TLSFailure:  res.TLSFailure,
		Attempt:     j.view.Attempt,
		Stages:      event.StagesOf(res.Stages),
		DNSAsked:    res.Questions,
		DNSCached:   res.Cached,
		Converted:   res.Converted,
	}
}

// wait settles the lease without an attempt: its recipients go on waiting, for why.
func (j *job) wait(ctx context.Context, next time.Time, why mail.Outcome) {
	why.Disposition = mail.Deferred
	j.finish(ctx, queue.Settlement{Outcomes: j.all(why), Next: earlier(next, j.expires), NoAttempt: true}, nil)
}

// bounce settles the lease without an attempt: its recipients fail for good.
func (j *job) bounce(ctx context.Context, why mail.Outcome) {
	why.Disposition = mail.Bounced
	j.finish(ctx, queue.Settlement{Outcomes: j.all(why), NoAttempt: true}, nil)
}

// expire settles the lease without an attempt: the lifetime has ended.
func (j *job) expire(ctx context.Context) {
	outcomes := j.all(mail.Outcome{})
	for k, i := range j.view.Index {
		st := &j.view.Message.States[i]
		last := j.last(st)
		if st.Last == (mail.Reply{}) && j.view.Hop.Connector == "" {
			last = unroutable
			j.failures.Load().Complete(&last)
		}
		last.Recipient = outcomes[k].Recipient
		outcomes[k] = j.expired(last)
	}
	j.finish(ctx, queue.Settlement{Outcomes: outcomes, NoAttempt: true}, nil)
}

// all repeats o for each recipient of the lease.
func (j *job) all(o mail.Outcome) []mail.Outcome {
	outcomes := make([]mail.Outcome, len(j.view.Index))
	for k, i := range j.view.Index {
		outcomes[k] = o
		outcomes[k].Recipient = j.view.Message.Envelope.Recipients[i].Address
	}
	return outcomes
}

// unroutable is why recipients of route.Unroutable wait.
var unroutable = mail.Outcome{
	Reply: mail.Reply{Enhanced: "4.4.4", Text: "no send connector takes the recipient"},
	Class: mail.ClassBadDomain, ClassRule: failure.RuleUnroutable,
}

// expired is the end of a recipient whose lifetime has passed (RFC 3463 status
// x.4.7). The class stays that of the last failure: it says why nothing came of it.
func (j *job) expired(last mail.Outcome) mail.Outcome {
	text := "delivery time expired after " + shortDuration(j.now.Sub(j.view.Message.Begins().Add(j.view.Shift)))
	if last.Reply != (mail.Reply{}) {
		text += "; last: " + clip(last.Reply.String(), maxReply-len(text)-len("; last: "))
	}
	o := mail.Outcome{
		Recipient: last.Recipient, Disposition: mail.Expired, Reply: mail.Reply{Enhanced: "4.4.7", Text: text},
		Class: last.Class, ClassRule: failure.RuleExpired, Uncertain: last.Uncertain,
		Permanence: last.Permanence, Explanation: last.Explanation,
	}
	if o.Class == mail.ClassNone {
		o.Class = mail.ClassOther
	}
	return o
}

// finish adds the reports to s and commits it. Res is nil when no attempt was made.
func (j *job) finish(ctx context.Context, s queue.Settlement, res *smtpout.Result) {
	for k := range s.Outcomes {
		j.failures.Load().Complete(&s.Outcomes[k])
	}
	s.Expires, s.Hurry = j.expires, j.cut
	ctx = context.WithoutCancel(ctx) // what is done is done, whoever wants to stop: it must be written down
	s.Reports, s.DelaySent = j.reports(ctx, &s, res)
	if err := j.lease.Settle(ctx, s); err != nil {
		j.remark(j.view, "settlement", err)
	}
}

// remark says that the queue did not take the end of a lease. The queue itself
// says when its storage fails.
func (s *Scheduler) remark(v *queue.Lease, what string, err error) {
	s.emit.Message(v.Message.ID, v.Message.UID).Emit(event.Remarked{Remark: what + " failed", Detail: clip(err.Error(), maxReply)})
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// clip cuts s to at most limit octets of whole characters.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "")
}

// shortDuration is d in hours and minutes, such as "48h" or "1h5m".
func shortDuration(d time.Duration) string {
	d = d.Round(time.Minute)
	h, m := int(d.Hours()), int(d.Minutes())%60
	switch {
	case h == 0:
		return fmt.Sprintf("%dm", m)
	case m == 0:
		return fmt.Sprintf("%dh", h)
	}
	return fmt.Sprintf("%dh%dm", h, m)
}
