package deliver

import (
	"waybill/relay/failure"
	"waybill/relay/mail"
	"waybill/relay/queue"
)

// SetFailures changes the rules by which replies are understood. What was
// recorded stays as it is.
func (s *Scheduler) SetFailures(rules failure.Rules) { s.failures.Store(&rules) }

// Explain says what the last failure of a queued recipient means, as it was
// recorded then, or else by the rules in use now. It is the zero Meaning when
// nothing has failed.
func (s *Scheduler) Explain(st *queue.State) failure.Meaning {
	if st.Last == (mail.Reply{}) || st.Disposition == mail.Relayed {
		return failure.Meaning{}
	}
	o := s.last(st)
	return failure.Meaning{Class: o.Class, Rule: o.ClassRule, Permanence: o.Permanence, Explanation: o.Explanation}
}

// last is the last failure of a recipient, as far as its state tells.
func (s *Scheduler) last(st *queue.State) mail.Outcome {
	o := mail.Outcome{Disposition: mail.Deferred, Reply: st.Last, Remote: remoteSaid(st)}
	if st.Disposition == mail.Bounced {
		o.Disposition = mail.Bounced
	}
	switch {
	case st.LastRule != "":
		o.Class, o.ClassRule, o.Explanation = st.LastClass, st.LastRule, st.LastMeans
	case !o.Remote:
		o.Class = st.LastClass
	}
	s.failures.Load().Complete(&o)
	if st.LastClass != mail.ClassNone {
		o.Class = st.LastClass
	}
	return o
}
