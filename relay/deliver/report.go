package deliver

import (
	"errors"
	"io"
	"slices"
	"time"

	"waybill/relay/dsn"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/smtpout"
)

// Reporter makes the reports for recipients that an operator bounced. Its
// method Reports is for queue.Options.
type Reporter struct {
	Hostname string
	Content  func(id mail.QueueID) (io.ReadCloser, error) // Trace and content, as queue.Queue.Content gives; may be nil
}

// Reports composes at most one report about the recipients of m with the given
// indexes, and says when there is to be none.
func (r Reporter) Reports(m *queue.Message, index []int, outcomes []mail.Outcome) []queue.Report {
	rep := report{hostname: r.Hostname, message: m, now: time.Now(), expires: m.ExpiresAt}
	draft := m.Draft
	draft.Trace = nil // it comes with the content
	rep.draft = draft
	if r.Content != nil {
		rep.open = func() (io.ReadCloser, error) { return r.Content(m.ID) }
	}
	for k, i := range index {
		if k < len(outcomes) && outcomes[k].Disposition != mail.Deferred {
			rep.add(i, outcomes[k], false, "")
		}
	}
	return rep.compose()
}

// delayDue reports whether a sender is to be told that the lease's recipients are late.
func (j *job) delayDue() bool {
	at := j.delayAt()
	return !at.IsZero() && !j.now.Before(at)
}

// delayAt is when that will be, or zero when it will not.
func (j *job) delayAt() (at time.Time) {
	m := j.view.Message
	if j.view.Hop.Connector == "" || !slices.ContainsFunc(j.view.Index, func(i int) bool { return !m.States[i].DelaySent }) {
		return time.Time{}
	}
	if after := j.connector.Retry.delayDSN(); after >= 0 {
		at = m.Begins().Add(after)
	}
	if by := m.Envelope.DeliverBy; by.Deadline.After(m.AcceptedAt) && !by.Return { // RFC 2852; otherwise a host before us has told it
		at = earlier(at, by.Deadline)
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
func (j *job) reports(s *queue.Settlement, res *smtpout.Result) (reports []queue.Report, delaySent bool) {
	rep := report{hostname: j.opts.Hostname, message: j.view.Message, draft: j.view.Message.Draft, open: j.lease.Open, now: j.now, expires: j.expires}
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
	return rep.compose(), delaySent
}

// report gathers the recipients of one report.
type report struct {
	hostname     string
	message      *queue.Message
	draft        mail.Draft
	open         func() (io.ReadCloser, error)
	now, expires time.Time
	recipients   []dsn.Recipient
}

// add adds recipient i of the message. Without an attempt, what its state
// remembers of the last one is told.
func (r *report) add(i int, o mail.Outcome, attempted bool, host string) {
	st := &r.message.States[i]
	rcpt := dsn.Recipient{Recipient: r.message.Envelope.Recipients[i], Outcome: o, Host: host, Attempts: st.Attempts, At: st.LastAt}
	if attempted {
		rcpt.Attempts, rcpt.At = st.Attempts+1, r.now
	} else {
		rcpt.Host = st.LastHost
	}
	if o.Disposition == mail.Expired || !attempted {
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
func (r *report) compose() []queue.Report {
	if len(r.recipients) == 0 {
		return nil
	}
	var reports []queue.Report
	var wanted, failed []dsn.Recipient
	for _, rcpt := range r.recipients {
		switch {
		case rcpt.Wanted() && !r.draft.Envelope.Sender.IsNull():
			wanted = append(wanted, rcpt)
		case rcpt.Kind() == dsn.Failed:
			failed = append(failed, rcpt)
		}
	}
	if len(wanted) > 0 {
		content, draft, err := dsn.Compose(dsn.Options{
			Hostname: r.hostname, Original: r.draft, Size: r.message.Size, AcceptedAt: r.message.AcceptedAt, Expires: r.expires,
			Now: r.now, Recipients: wanted, Open: r.open,
		})
		if err == nil {
			reports = append(reports, queue.Report{Draft: draft, Content: content, Fact: factOf(wanted, "")})
		} else if !errors.Is(err, dsn.ErrNotWanted) { // it has no other errors
			failed = append(failed, wanted...)
		}
	}
	if len(failed) > 0 {
		why := "notify"
		if r.draft.Envelope.Sender.IsNull() {
			why = "null_sender"
		}
		reports = append(reports, queue.Report{Fact: factOf(failed, why)})
	}
	return reports
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
