package deliver

import (
	"waybill/relay/event"
	"waybill/relay/smtpout"
)

// talked states what was said in an attempt, if the connector wants it kept. It
// does not go through the queue with the attempt's own fact: a conversation may
// be lost in a crash, and must not make the queue's transactions large.
func (j *job) talked(res *smtpout.Result) {
	if len(res.Transcript) == 0 {
		return
	}
	m := j.view.Message
	j.emit.Session(res.Session).Message(m.ID, m.UID).Emit(event.TranscriptKept{
		Direction: event.Outbound, Connector: j.view.Hop.Connector, RemoteName: res.RemoteName, RemoteIP: res.Remote.Addr(),
		Attempt: j.view.Attempt, Reason: res.Kept.Reason, Began: res.Kept.Began, Lines: res.Kept.Lines, Cut: res.Kept.Cut, Transcript: res.Transcript,
	})
}
