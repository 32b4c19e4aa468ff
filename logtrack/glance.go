package logtrack

import (
	"context"
	"errors"
	"slices"
	"sync"

	"waybill/relay/event"
)

// What a row of a list tells of a settled message, its acceptance and its
// recipients' final facts tell: the attempts in between need only be counted.
// glances reads just that, and leaves the messages that are not settled, or
// of which there is more to tell, to be read whole.

// glimpse is what was seen of a message.
type glimpse struct {
	recs     []event.Record
	attempts int  // of which nothing else was read
	odd      bool // a fact may say more than those that were read
	blocks   []viewKey
}

// add adds what another block has of the message.
func (g *glimpse) add(o *glimpse) {
	g.recs = append(g.recs, o.recs...)
	g.attempts += o.attempts
	g.odd = g.odd || o.odd
}

// rowRoles says what facts are to a glimpse. Facts that are not in it make a
// message odd.
var rowRoles = map[string]rowRole{
	"message_queued": roleQueued, "recipient_relayed": roleFinal, "recipient_bounced": roleFinal, "attempt_finished": roleAttempt,
	"message_routed": roleSilent, "message_retired": roleSilent, "dsn_queued": roleSilent, "session_opened": roleSilent, "session_closed": roleSilent,
	"tls_negotiated": roleSilent, "auth_succeeded": roleSilent, "recipient_refused": roleSilent, "remarked": roleSilent,
	"transcript_kept": roleSilent, "lookup_answered": roleSilent, "dns_answered": roleSilent, "command_answered": roleSilent, "token_refreshed": roleSilent,
}

type rowRole uint8

const (
	roleOdd     rowRole = iota
	roleQueued          // who, what, when
	roleFinal           // what became of a recipient
	roleAttempt         // counts
	roleSilent          // says nothing that a settled message's row needs
)

// glances folds the messages that a glance is enough for, and lists the others.
func (sn *snapshot) glances(ctx context.Context, ids []position) (folds map[string]*fold, rest []position, err error) {
	seen := make(map[string]*glimpse, len(ids))
	for _, pos := range ids {
		if seen[pos.id] = sn.glimpsed[pos.id]; seen[pos.id] == nil {
			seen[pos.id] = &glimpse{}
		}
	}
	for _, m := range sn.mem {
		recs := m.recs()
		for i := range recs {
			if g := seen[string(recs[i].Message)]; g != nil {
				g.recs = append(g.recs, recs[i])
			}
		}
	}
	blocks, err := sn.blocksOf(ctx, ids, func(id string, key viewKey) bool { return slices.Contains(seen[id].blocks, key) })
	if err != nil {
		return nil, nil, err
	}
	var mu sync.Mutex
	err = parallel(ctx, sn.s.crew, blocks, func(b wantedBlock) error {
		sn.looked.Add(1)
		found := make([]glimpse, len(b.ids))
		err := b.src.body(func(body []byte) error { return glanceAt(b.src.head, body, b.ids, found) })
		if err != nil && !errors.Is(err, errNotPicked) {
			sn.failed(b.src, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for i, id := range b.ids {
			g := seen[id]
			g.add(&found[i])
			g.odd = g.odd || err != nil
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	folds = make(map[string]*fold, len(ids))
	for _, pos := range ids {
		g := seen[pos.id]
		if !g.odd && len(g.recs) > 0 {
			if fo := foldFacts(pos.id, g.recs); fo.settled(g) {
				fo.msg.Attempts += g.attempts
				folds[pos.id] = fo
				continue
			}
		}
		rest = append(rest, pos)
	}
	return folds, rest, nil
}

// settled reports whether nothing that was not read could change the row.
func (fo *fold) settled(g *glimpse) bool {
	if !fo.queued || len(fo.order) == 0 {
		return false
	}
	for _, st := range fo.byKey {
		switch {
		case !st.disp.Final() || st.RemoteHost == "" || st.Connector == "" || st.Queue == "":
			return false
		case st.Code == 0 && st.Reply == "", st.Attempts == 0 && g.attempts > 0:
			return false
		}
	}
	queued := 0
	for i := range fo.recs {
		if _, ok := fo.recs[i].Event.(event.MessageQueued); ok {
			queued++
		}
	}
	return queued == 1
}

// glanceAt reads what one block has of some messages.
func glanceAt(head *header, body []byte, ids []string, found []glimpse) error {
	k, err := newPicker(head, body)
	if err != nil {
		return err
	}
	defer k.release()
	codes, err := k.messages(ids)
	if err != nil || k.queue.d == nil {
		return err
	}
	return k.glance(codes, found)
}

// glance reads what the block has of the messages with some codes.
func (k *picker) glance(codes []uint32, found []glimpse) error {
	k.of = resized(k.of, k.queue.entries)
	clear(k.of)
	for i, code := range codes {
		if code > 0 {
			k.of[code] = int32(i) + 1
		}
	}
	var rows []pickedRow
	var of []int32 // the message of each row
	at := 0
	for _, t := range k.queue.d.cover {
		run := &k.types[t]
		role := rowRoles[run.name]
		for row, code := range k.queue.codes[at : at+run.n] {
			i := k.of[code] - 1
			if i < 0 {
				continue
			}
			switch role {
			case roleQueued, roleFinal:
				rows, of = append(rows, pickedRow{int(t), row}), append(of, i)
			case roleAttempt:
				found[i].attempts++
			case roleOdd:
				found[i].odd = true
			case roleSilent:
			}
		}
		at += run.n
	}
	if len(rows) == 0 {
		return nil
	}
	recs, err := k.pick(rows, func(t int) readSet { return leadSets[k.types[t].name] })
	if err != nil {
		return err
	}
	for i, r := range recs {
		g := &found[of[i]]
		g.recs = append(g.recs, r)
	}
	return nil
}
