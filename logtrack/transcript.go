package logtrack

import (
	"context"
	"slices"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
)

// Transcript is the SMTP conversations that carried a message: the session that
// handed it in, and those of its attempts, as far as they were kept. It returns
// ErrNotFound when the store has no fact about the message.
func (s *Store) Transcript(ctx context.Context, queueID string) (*trackapi.Transcript, error) {
	sn, pos, err := s.lookup(queueID)
	if err != nil {
		return nil, err
	}
	defer sn.release()
	defer s.observe("timeline", sn)
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	fo, err := sn.one(ctx, pos)
	if err != nil {
		return nil, err
	}
	out := &trackapi.Transcript{Conversations: []trackapi.Conversation{}}
	sessions := map[string]bool{} // which to look up: session ids without a transcript so far
	for i := range fo.recs {
		r := &fo.recs[i]
		switch ev := r.Event.(type) { //nolint:gochecksumtype // the other facts carry no conversation
		case event.MessageQueued:
			if r.Session != "" {
				sessions[r.Session] = true
			}
		case event.AttemptFinished:
			if len(ev.Transcript) == 0 {
				if ev.OutSession != "" {
					sessions[ev.OutSession] = true
				}
				continue
			}
			out.Conversations = append(out.Conversations, trackapi.Conversation{
				Session: ev.OutSession, Direction: event.Outbound, Peer: where(ev.Hop), Time: r.Time.Add(-time.Duration(sum(ev.Stages))), Lines: linesOf(ev.Transcript),
			})
		}
	}
	for _, c := range out.Conversations {
		delete(sessions, c.Session)
	}
	if err := sn.sessionTranscripts(ctx, sessions, fo.msg.Time, out); err != nil {
		return nil, err
	}
	slices.SortStableFunc(out.Conversations, func(a, b trackapi.Conversation) int { return a.Time.Compare(b.Time) })
	if len(out.Conversations) == 0 {
		out.Note = "No conversation of this message was kept: transcripts are kept for failed and slow sessions, or as the receive connector's transcript setting says."
	}
	return out, nil
}

// sessionTranscripts adds the transcripts of sessions from the facts that closed them.
func (sn *snapshot) sessionTranscripts(ctx context.Context, sessions map[string]bool, from time.Time, out *trackapi.Transcript) error {
	if len(sessions) == 0 {
		return nil
	}
	p := &pred{term: trackapi.Term{Field: "session_id"}, field: fields["session_id"], post: postSession}
	for id := range sessions {
		p.keys = append(p.keys, id)
	}
	p.text = func(s string) bool { return sessions[s] }
	closed := &pred{term: trackapi.Term{Field: "event"}, field: fields["event"], fact: func(name string) bool { return name == "session_closed" }}
	// A session closes at or after the acceptance; the clock may have stepped a little.
	return sn.allFacts(ctx, []*pred{p, closed}, from.Add(-time.Hour), time.UnixMicro(1<<62), func(r *event.Record) {
		ev, ok := r.Event.(event.SessionClosed)
		if !ok || len(ev.Transcript) == 0 {
			return
		}
		peer := hostOf(ev.RemoteName, ev.RemoteIP)
		if peer == "" && ev.ClientIP.IsValid() {
			peer = ev.ClientIP.String()
		}
		out.Conversations = append(out.Conversations, trackapi.Conversation{
			Session: r.Session, Direction: ev.Direction, Peer: peer, Time: r.Time.Add(-time.Duration(ev.Duration)), Lines: linesOf(ev.Transcript),
		})
	})
}

func linesOf(list []event.Line) []trackapi.TranscriptLine {
	lines := make([]trackapi.TranscriptLine, len(list))
	for i, l := range list {
		lines[i] = trackapi.TranscriptLine{At: l.At.Float(), From: l.From, Text: l.Text}
	}
	return lines
}
