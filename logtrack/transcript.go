package logtrack

import (
	"context"
	"errors"
	"slices"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// ErrNoSession says that the store has no conversation of a session.
var ErrNoSession = errors.New("no conversation of that session")

// noTalk explains a missing conversation.
const noTalk = "No conversation of this message was kept: those of failed and slow sessions and attempts are, and what the connectors' transcript keys " +
	"name, for tracking.transcript_retention. A session that is still open has none yet."

// Transcript is the SMTP conversations that carried a message: the session that
// handed it in, and those of its attempts, as far as they were kept. It returns
// ErrNotFound when the store has no fact about the message.
func (s *Store) Transcript(ctx context.Context, queueID string) (*trackapi.Transcript, error) {
	sn, pos, err := s.lookup(queueID)
	if err != nil {
		return nil, err
	}
	defer sn.release()
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	fo, err := sn.one(ctx, pos)
	if err != nil {
		return nil, err
	}
	received := map[string]bool{}
	type try struct {
		session string
		attempt int
	}
	ended := map[try]mail.Disposition{}
	for i := range fo.recs {
		r := &fo.recs[i]
		switch ev := r.Event.(type) { //nolint:gochecksumtype // the other facts lead to no conversation
		case event.MessageQueued:
			if r.Session != "" {
				received[r.Session] = true
			}
		case event.AttemptFinished:
			ended[try{ev.OutSession, ev.Attempt}] = ev.Disposition
		}
	}
	in, err := s.talks.kept(ctx, "session_id", postSession, received, fo.msg.Time)
	if err != nil {
		return nil, err
	}
	out, err := s.talks.kept(ctx, "queue_id", postQueueID, map[string]bool{pos.id: true}, fo.msg.Time)
	if err != nil {
		return nil, err
	}
	in = slices.DeleteFunc(in, func(r event.Record) bool { return r.Message != "" }) // an attempt's, which the other list has
	tr := conversations(append(in, out...))
	for i := range tr.Conversations {
		c := &tr.Conversations[i]
		if d := ended[try{c.Session, c.Attempt}]; d != 0 && c.Direction == event.Outbound {
			c.Disposition = d.String()
		}
	}
	if len(tr.Conversations) == 0 {
		tr.Note = noTalk
	}
	return tr, nil
}

// SessionTranscript is the conversation of a session that clients opened, or
// those of the attempts that one of ours carried. It returns ErrNoSession when
// none was kept.
func (s *Store) SessionTranscript(ctx context.Context, session string) (*trackapi.Transcript, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	session = ident(session)
	var from time.Time
	if b, ok := packULID(session); ok {
		from = time.UnixMilli(ulidMS(b))
	}
	list, err := s.talks.kept(ctx, "session_id", postSession, map[string]bool{session: true}, from)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, ErrNoSession
	}
	return conversations(list), nil
}

// conversations makes the answer of records, in the order of time.
func conversations(list []event.Record) *trackapi.Transcript {
	out := &trackapi.Transcript{Conversations: []trackapi.Conversation{}}
	for i := range list {
		r := &list[i]
		ev, ok := r.Event.(event.TranscriptKept)
		if !ok {
			continue
		}
		peer := hostOf(ev.RemoteName, ev.RemoteIP)
		if peer == "" && ev.ClientIP.IsValid() {
			peer = ev.ClientIP.String()
		}
		c := trackapi.Conversation{
			Session: r.Session, QueueID: string(r.Message), Direction: ev.Direction, Connector: ev.Connector, Peer: peer, AuthUser: ev.AuthUser,
			Time: ev.Began, Reason: ev.Reason, Attempt: ev.Attempt, Said: ev.Lines, Cut: ev.Cut, Lines: make([]trackapi.TranscriptLine, len(ev.Transcript)),
		}
		for k, l := range ev.Transcript {
			c.Lines[k] = trackapi.TranscriptLine{Seq: l.Seq, At: l.At.Float(), From: l.From, Text: l.Text, Bytes: l.Bytes}
		}
		out.Conversations = append(out.Conversations, c)
	}
	slices.SortStableFunc(out.Conversations, func(a, b trackapi.Conversation) int { return a.Time.Compare(b.Time) })
	return out
}
