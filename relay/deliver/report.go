package deliver

import (
	"context"
	"errors"
	"io"
	"mime"
	netmail "net/mail"
	"slices"
	"strings"
	"time"

	"waybill/relay/dsn"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/smtpout"
)

// ReportPolicy is whom reports go to. The zero ReportPolicy tells every sender,
// and nobody of reports that cannot be delivered.
type ReportPolicy struct {
	// Refuse says why the sender of m must get no report, in a word of
	// [event.Suppressions]; empty: they may. It is asked once for a report, and
	// may take some seconds. Nil: all may.
	Refuse     func(ctx context.Context, m *mail.Draft) string
	Postmaster mail.Address // is told of reports that cannot be delivered; null: nobody is
}

// SetReports changes whom reports go to.
func (s *Scheduler) SetReports(p ReportPolicy) { s.reporting.Store(&p) }

// Reporter makes the reports for recipients that an operator bounced. Its
// method Reports is for queue.Options. It asks nobody whether the sender is
// forged: the operator has decided.
type Reporter struct {
	Hostname   string
	Postmaster mail.Address                                 // as in [ReportPolicy]
	Content    func(id mail.QueueID) (io.ReadCloser, error) // Trace and content, as queue.Queue.Content gives; may be nil
}

// Reports composes at most one report about the recipients of m with the given
// indexes, and says when there is to be none.
func (r Reporter) Reports(m *queue.Message, index []int, outcomes []mail.Outcome) []queue.Report {
	rep := report{hostname: r.Hostname, message: m, now: time.Now(), expires: m.ExpiresAt, policy: ReportPolicy{Postmaster: r.Postmaster}}
	draft := m.Draft
	draft.Trace = nil // it comes with the content
	rep.draft = &draft
	if r.Content != nil {
		rep.open = func() (io.ReadCloser, error) { return r.Content(m.ID) }
	}
	for k, i := range index {
		if k < len(outcomes) && outcomes[k].Disposition != mail.Deferred {
			rep.add(i, outcomes[k], false, "")
		}
	}
	return rep.compose(context.Background()) // which asks nobody
}

// delayDue reports whether a sender is to be told that the lease's recipients are late.
func (j *job) delayDue() bool {
	at := j.delayAt()
	return !at.IsZero() && !j.now.Before(at)
}

// delayAt is when that will be, or zero when it will not.
func (j *job) delayAt() time.Time {
	m := j.view.Message
	if j.view.Hop.Connector == "" || !slices.ContainsFunc(j.view.Index, func(i int) bool { return !m.States[i].DelaySent }) {
		return time.Time{}
	}
	return delayAt(m, j.connector.Retry, j.view.Shift)
}

// delayAt is when the sender of m is told that it is late, or zero when they are
// not. All times of m are moved by shift.
func delayAt(m *queue.Message, retry Retry, shift time.Duration) (at time.Time) {
	if after := retry.delayDSN(); after >= 0 {
		at = m.Begins().Add(shift + after)
	}
	if by := m.Envelope.DeliverBy; by.Deadline.After(m.AcceptedAt) && !by.Return { // RFC 2852; otherwise a host before us has told it
		at = earlier(at, by.Deadline.Add(shift))
	}
	return at
}

// traced reports whether BY= asks to tell of a relay to res: by-trace, or a next
// hop at which by-mode N is lost (RFC 2852 section 4).
func (j *job) traced(res *smtpout.Result) bool {
	by := j.view.Message.Envelope.DeliverBy
	return res != nil && !by.IsZero() && (by.Trace || !res.DeliverBy)
}

// reports composes what a settlement has to tell the sender, in one report.
func (j *job) reports(ctx context.Context, s *queue.Settlement, res *smtpout.Result) (reports []queue.Report, delaySent bool) {
	rep := report{hostname: j.opts.Hostname, message: j.view.Message, draft: &j.view.Message.Draft, now: j.now, expires: j.expires, policy: *j.reporting.Load()}
	delayDue := j.delayDue()
	for k, i := range j.view.Index {
		o := &s.Outcomes[k]
		host := ""
		if res != nil {
			host = res.RemoteName
		}
		switch o.Disposition {
		case mail.Relayed:
			// RFC 3461 section 5.2.2: where the next hop has DSN, it reports itself.
			wants := j.view.Message.Envelope.Recipients[i].Notify
			if res != nil && !res.DSN && wants.Wants(mail.NotifySuccess) || j.traced(res) && !wants.Wants(mail.NotifyNever) {
				rep.add(i, *o, res != nil, host)
				rep.recipients[len(rep.recipients)-1].Traced = j.traced(res)
			}
		case mail.Deferred:
			if delayDue {
				delaySent = true
				if !j.view.Message.States[i].DelaySent {
					rep.add(i, *o, res != nil, host)
				}
			}
		case mail.Queued, mail.Held, mail.Bounced, mail.Expired, mail.Dropped, mail.Moved:
			rep.add(i, *o, res != nil, host)
		}
	}
	if len(rep.recipients) == 0 {
		return nil, delaySent
	}
	rep.open = j.lease.Open
	return rep.compose(ctx), delaySent
}

// report gathers the recipients of one report.
type report struct {
	hostname     string
	message      *queue.Message
	draft        *mail.Draft
	open         func() (io.ReadCloser, error)
	now, expires time.Time
	recipients   []dsn.Recipient
	policy       ReportPolicy
}

// add adds recipient i of the message. Without an attempt, what its state
// remembers of the last one is told, unless it was ended here: then the words are
// ours, whatever a next hop said before, and no other host's (RFC 3464 section 2.3.5).
func (r *report) add(i int, o mail.Outcome, attempted bool, host string) {
	st := &r.message.States[i]
	rcpt := dsn.Recipient{Recipient: r.message.Envelope.Recipients[i], Outcome: o, Host: host, Attempts: st.Attempts, At: st.LastAt}
	ended := o.Disposition == mail.Bounced
	switch {
	case attempted:
		rcpt.Attempts, rcpt.At = st.Attempts+1, r.now
	case !ended:
		rcpt.Host = st.LastHost
	}
	if o.Disposition == mail.Expired || !attempted && !ended {
		rcpt.Last, rcpt.LastRemote = st.Last, remoteSaid(st)
	}
	r.recipients = append(r.recipients, rcpt)
}

// remoteSaid reports whether the last reply in st is likely the next hop's own:
// the state does not tell.
func remoteSaid(st *queue.State) bool {
	switch st.LastClass {
	case mail.ClassDNS, mail.ClassConnect, mail.ClassTimeout:
		return false
	}
	return st.Last.Code != 0 && st.LastHost != ""
}

// compose makes the report, and a fact for those failures of which nobody is told.
func (r *report) compose(ctx context.Context) []queue.Report {
	var wanted, failed []dsn.Recipient
	for _, rcpt := range r.recipients {
		switch {
		case rcpt.Wanted() && !r.draft.Envelope.Sender.IsNull():
			wanted = append(wanted, rcpt)
		case rcpt.Kind() == dsn.Failed:
			failed = append(failed, rcpt)
		}
	}
	if r.draft.Envelope.Sender.IsNull() {
		return r.double(failed, event.SuppressedNullSender)
	}
	var reports []queue.Report
	switch why := r.refused(ctx, wanted); why {
	case "":
		reports, wanted = r.send(dsn.Options{Recipients: wanted}, wanted)
		failed = append(failed, wanted...) // what could not be composed
	case event.SuppressedLoop:
		reports = r.double(onlyFailed(wanted), why)
	default:
		reports = suppress(onlyFailed(wanted), why)
	}
	return append(reports, suppress(failed, event.SuppressedNotify)...)
}

// refused says why the sender must not be told.
func (r *report) refused(ctx context.Context, wanted []dsn.Recipient) string {
	if len(wanted) == 0 {
		return ""
	}
	if r.open != nil && isReport(r.open) {
		return event.SuppressedLoop
	}
	if r.policy.Refuse == nil {
		return ""
	}
	return r.policy.Refuse(ctx, r.draft)
}

// double tells the postmaster, if one wants to know, of a report that failed:
// its sender is nobody, or a machine that would answer. A report to the
// postmaster that fails is told to nobody: that would go round.
func (r *report) double(failed []dsn.Recipient, why string) []queue.Report {
	postmaster := r.policy.Postmaster
	if postmaster.IsNull() || len(failed) == 0 {
		return suppress(failed, why)
	}
	if slices.ContainsFunc(failed, func(rcpt dsn.Recipient) bool { return rcpt.Address.Key() == postmaster.Key() }) {
		return suppress(failed, event.SuppressedLoop)
	}
	reports, left := r.send(dsn.Options{Recipients: failed, Postmaster: postmaster}, failed)
	return append(reports, suppress(left, why)...)
}

// send composes a report about recipients. What is left was not composed.
func (r *report) send(opts dsn.Options, recipients []dsn.Recipient) (reports []queue.Report, left []dsn.Recipient) {
	if len(recipients) == 0 {
		return nil, nil
	}
	opts.Hostname, opts.Original, opts.Size, opts.AcceptedAt = r.hostname, *r.draft, r.message.Size, r.message.AcceptedAt
	opts.Expires, opts.Now, opts.Open = r.expires, r.now, r.open
	content, draft, err := dsn.Compose(opts)
	switch {
	case err == nil:
		return []queue.Report{{Draft: draft, Content: content, Fact: factOf(recipients, "")}}, nil
	case errors.Is(err, dsn.ErrNotWanted):
		return nil, nil
	}
	return nil, onlyFailed(recipients) // it has no other errors
}

// suppress states that nobody is told of failures, and why.
func suppress(failed []dsn.Recipient, why string) []queue.Report {
	if len(failed) == 0 {
		return nil
	}
	return []queue.Report{{Fact: factOf(failed, why)}}
}

func onlyFailed(list []dsn.Recipient) []dsn.Recipient {
	return slices.DeleteFunc(slices.Clone(list), func(rcpt dsn.Recipient) bool { return rcpt.Kind() != dsn.Failed })
}

// maxHeader is how much of a header section is read to find out what a message is.
const maxHeader = 64 << 10

// isReport reports whether a message is a delivery report or a receipt: those
// are written by machines, which may answer a report about them with another
// one. They should have the null sender (RFC 3464 section 2, RFC 8098 section
// 3); what has not comes from a host that knows no better.
func isReport(open func() (io.ReadCloser, error)) bool {
	rc, err := open()
	if err != nil {
		return false
	}
	defer func() { _ = rc.Close() }()
	m, err := netmail.ReadMessage(io.LimitReader(rc, maxHeader))
	if err != nil {
		return false
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" {
		return false
	}
	switch strings.ToLower(params["report-type"]) {
	case "delivery-status", "disposition-notification":
		return true
	}
	return false
}

func factOf(recipients []dsn.Recipient, suppressed string) event.DSNQueued {
	ev := event.DSNQueued{Kind: string(dsn.KindOf(recipients)), Suppressed: suppressed, Recipients: make([]event.Recipient, len(recipients))}
	for i := range recipients {
		o := &recipients[i].Outcome
		ev.Recipients[i] = event.Recipient{
			Address: recipients[i].Address.String(), Original: recipients[i].ORcpt, Disposition: o.Disposition,
			Code: o.Reply.Code, Enhanced: o.Reply.Enhanced, Reply: clip(o.Reply.Text, maxReply), Class: o.Class,
		}
	}
	return ev
}
