package logtrack

import (
	"context"
	"time"

	"go.uber.org/zap"

	"waybill/relay/event"
)

// carryTogether is how many messages' facts are read at once.
const carryTogether = 500

// carry writes the facts of messages that the queue still has again, before
// their partition is removed: the retention never takes the history of a
// message before its last word.
func (s *Store) carry(p *partition) {
	m := p.summary()
	if s.opts.Pending == nil || !m.HasMsg {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ids, err := s.opts.Pending(ctx, time.UnixMilli(m.MaxAcc+1))
	if err != nil {
		s.log.Warn("the queue did not say what it has; the history of its oldest messages may be lost", zap.Error(err))
		return
	}
	var list []position
	for _, id := range ids {
		if acc := acceptMS(string(id)); acc >= m.MinAcc && acc <= m.MaxAcc {
			list = append(list, position{acc, string(id)})
		}
	}
	if len(list) == 0 || p.acquire(false) != nil {
		return
	}
	sn := &snapshot{s: s, started: time.Now(), parts: []*partition{p}, heads: map[*partition][]*header{p: p.headers()}}
	defer sn.release()
	n := 0
	for len(list) > 0 {
		k := min(len(list), carryTogether)
		facts, err := sn.messageFacts(ctx, list[:k], readAll)
		if err != nil {
			s.log.Warn("the history of queued messages cannot be read", zap.String("partition", p.name), zap.Error(err))
			return
		}
		for _, recs := range facts {
			for i := range recs {
				if event.Class(recs[i].Event) != event.Protocol {
					s.Write(&recs[i])
					n++
				}
			}
		}
		list = list[k:]
	}
	s.log.Info("facts of queued messages outlive their partition", zap.String("partition", p.name), zap.Int("facts", n))
}
