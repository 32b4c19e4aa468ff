package queue

import (
	"strings"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"
)

// failure is why the mail of a hop waits: what its last attempt was told.
type failure struct {
	text  string // the reply, with its codes
	class mail.Class
	rule  string // which rule decided the class
	means string // what it means and who must act, in one line
}

// note takes over what an attempt for the recipient came to.
func (s *State) note(o *mail.Outcome) {
	s.Last, s.LastClass, s.LastRule, s.LastMeans = o.Reply, o.Class, o.ClassRule, clip(o.Explanation, maxReply)
	s.Last.Text = clip(s.Last.Text, maxReply)
}

// failures are the latest failures by hop. At start they are gathered from the
// records, since hops remember theirs in memory only. A message that has got
// another hop since brings along what the old one said; it is due at once, and
// the new hop speaks for itself soon.
type failures map[route.Hop]failedAt

type failedAt struct {
	failure
	at time.Time
}

// gather takes over what the recipients that wait were told, if it is news.
func (f failures) gather(m *stored) {
	for i := range m.States {
		s := &m.States[i]
		if s.Disposition.Final() || s.LastClass == mail.ClassNone || !s.LastAt.After(f[s.Hop].at) {
			continue
		}
		hop := route.Hop{Connector: strings.Clone(s.Hop.Connector), Name: strings.Clone(s.Hop.Name)}
		f[hop] = failedAt{ // not with the record's memory
			failure{strings.Clone(clip(s.Last.String(), maxReply)), mail.Class(strings.Clone(string(s.LastClass))), strings.Clone(s.LastRule), strings.Clone(s.LastMeans)}, s.LastAt,
		}
	}
}

// merge takes over what is news in g.
func (f failures) merge(g failures) {
	for hop, failed := range g {
		if failed.at.After(f[hop].at) {
			f[hop] = failed
		}
	}
}

// recall lets hops with mail remember what they said before the start.
func (f failures) recall(hops map[route.Hop]*hopQueue) {
	for hop, failed := range f {
		if h := hops[hop]; h != nil {
			h.last, h.lastAt = failed.failure, failed.at
		}
	}
}
