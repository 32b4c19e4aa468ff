package logtrack

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// reads is what must be read of the facts of a message to answer f.
func (f *filter) reads() readSet {
	if len(f.nots) > 0 {
		return readFiltered
	}
	return readRow
}

// fold is a message as its facts tell.
type fold struct {
	recs     []event.Record // in the order of time
	msg      trackapi.Message
	queued   bool // message_queued is among the facts
	order    []string
	byKey    map[string]*recipientState
	lastWord time.Time // of the latest final fact
	retired  *event.MessageRetired
}

type recipientState struct {
	trackapi.Recipient
	disp mail.Disposition
}

// fold gathers all facts of the messages and folds them.
func (sn *snapshot) fold(ctx context.Context, ids []position, set readSet) (folds map[string]*fold, err error) {
	folds = make(map[string]*fold, len(ids))
	if set == readRow {
		if folds, ids, err = sn.glances(ctx, ids); err != nil {
			return nil, err
		}
	}
	if len(ids) == 0 {
		return folds, nil
	}
	facts, err := sn.messageFacts(ctx, ids, set)
	if err != nil {
		return nil, err
	}
	for id, recs := range facts {
		folds[id] = foldFacts(id, recs)
	}
	return folds, nil
}

// messageFacts gathers all facts of the messages.
func (sn *snapshot) messageFacts(ctx context.Context, ids []position, set readSet) (map[string][]event.Record, error) {
	facts := make(map[string][]event.Record, len(ids))
	want := make(map[string]bool, len(ids))
	for _, pos := range ids {
		want[pos.id] = true
	}
	for _, m := range sn.mem {
		recs := m.recs()
		for i := range recs {
			if id := string(recs[i].Message); want[id] {
				facts[id] = append(facts[id], recs[i])
			}
		}
	}
	blocks, err := sn.blocksOf(ctx, ids, func(string, viewKey) bool { return false })
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	err = parallel(ctx, sn.s.crew, blocks, func(b wantedBlock) error {
		recs, err := sn.recordsOf(b.src, want, set)
		if err != nil {
			sn.failed(b.src, err)
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		for i := range recs {
			id := string(recs[i].Message)
			facts[id] = append(facts[id], recs[i])
		}
		return nil
	})
	return facts, err
}

// wantedBlock is a block, and the messages that it may have facts about.
type wantedBlock struct {
	src *source
	ids []string
}

// blocksOf lists the blocks that are stored or encoded and may have facts about
// messages, but for those that skip has been told of.
func (sn *snapshot) blocksOf(ctx context.Context, ids []position, skip func(id string, key viewKey) bool) (blocks []wantedBlock, err error) {
	keys, accepted := make([]posting, len(ids)), make([]int64, len(ids))
	for i, pos := range ids {
		keys[i], accepted[i] = postingOf(postQueueID, pos.id), acceptMS(pos.id)
	}
	for _, m := range sn.mem {
		b := wantedBlock{src: m}
		for i, pos := range ids {
			if m.may(keys[i]) && m.head.mayHold(accepted[i]) && !skip(pos.id, viewKey{nil, m.head.seq}) {
				b.ids = append(b.ids, pos.id)
			}
		}
		if len(b.ids) > 0 {
			blocks = append(blocks, b)
		}
	}
	for _, p := range sn.parts {
		found, err := p.lookup(ctx, sn.s.crew, keys, accepted)
		if err != nil {
			return nil, err
		}
		at := map[int]int{} // by place among the headers: in blocks, and one
		for i, seqs := range found {
			for _, seq := range seqs {
				place := sn.placeOf(p, seq)
				if place < 0 {
					continue
				}
				h := sn.heads[p][place]
				if !h.mayHold(accepted[i]) || skip(ids[i].id, viewKey{p, seq}) {
					continue
				}
				if at[place] == 0 {
					blocks = append(blocks, wantedBlock{src: &h.stored})
					at[place] = len(blocks)
				}
				if b := &blocks[at[place]-1]; !slices.Contains(b.ids, ids[i].id) {
					b.ids = append(b.ids, ids[i].id)
				}
			}
		}
	}
	return blocks, nil
}

// recordsOf reads the facts of the wanted messages in a block that is stored or encoded.
func (sn *snapshot) recordsOf(src *source, want map[string]bool, set readSet) ([]event.Record, error) {
	v := sn.view(src)
	if err := v.need("queue_id"); err != nil {
		return nil, err
	}
	q := v.col("queue_id")
	if q == nil {
		return nil, nil
	}
	ok := make([]bool, len(q.dict))
	some := false
	for i, id := range q.dict {
		ok[i] = want[id] && id != ""
		some = some || ok[i]
	}
	if !some { // only the hash was equal
		return nil, nil
	}
	var recs []event.Record
	for t, run := range v.types {
		if q.start[t] < 0 || planNames[run.name] == nil {
			continue
		}
		ready := false
		for row := range run.n {
			if !ok[q.codeAt(t, row)] {
				continue
			}
			if !ready {
				if err := v.needRecords(t, set); err != nil {
					return nil, err
				}
				ready = true
			}
			r, err := v.record(run.start+row, set)
			if err != nil {
				return nil, err
			}
			recs = append(recs, r)
		}
	}
	return recs, nil
}

// course is where an imported fact belongs in the life of a message. The IDs of
// such facts do not tell, and the times of some logs have no more than seconds.
// Those of our own have IDs that rise.
func course(r *event.Record) int {
	if r.Source != event.SourceImport {
		return 0
	}
	switch r.Event.(type) { //nolint:gochecksumtype // the others may stand anywhere between
	case event.SenderRefused, event.RecipientRefused, event.MessageRefused:
		return 1
	case event.MessageQueued:
		return 2
	case event.AttemptFinished:
		return 4
	case event.RecipientRelayed, event.RecipientBounced, event.RecipientExpired, event.RecipientDropped:
		return 5
	case event.DSNQueued:
		return 6
	case event.MessageRetired:
		return 7
	}
	return 3
}

// byTime orders facts as they were stated, each once.
func byTime(recs []event.Record) []event.Record {
	slices.SortStableFunc(recs, func(a, b event.Record) int {
		if c := a.Time.Compare(b.Time); c != 0 {
			return c
		}
		if c := course(&a) - course(&b); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return slices.CompactFunc(recs, func(a, b event.Record) bool { return a.ID != "" && a.ID == b.ID })
}

func foldFacts(id string, recs []event.Record) *fold {
	fo := &fold{recs: byTime(recs), byKey: map[string]*recipientState{}}
	fo.msg.QueueID = id
	for i := range fo.recs {
		fo.apply(&fo.recs[i])
	}
	fo.finish()
	return fo
}

// apply is one step of the fold. Facts that say nothing about what became of
// the message are passed over; the switch names them, so that a new fact is decided on.
func (fo *fold) apply(r *event.Record) {
	if fo.msg.UID == "" {
		fo.msg.UID = r.UID
	}
	switch ev := r.Event.(type) {
	case event.MessageQueued:
		fo.info(&ev.Info)
		fo.queued = true
		fo.msg.Time, fo.msg.Parent, fo.msg.Subject, fo.msg.SessionID = r.Time, string(ev.Parent), ev.Subject, r.Session
		for i := range ev.Recipients {
			fo.state(ev.Recipients[i].Address).set(mail.Queued, r.Time)
		}
	case event.MessageRouted:
		fo.info(&ev.Info)
		for i := range ev.Recipients {
			st := fo.state(ev.Recipients[i].Address)
			st.Connector, st.Queue = ev.ConnectorOut, ev.Queue
		}
	case event.AttemptFinished:
		fo.info(&ev.Info)
		fo.msg.Attempts++
		for i := range ev.Recipients {
			fo.attempt(r, &ev, &ev.Recipients[i])
		}
	case event.RecipientRelayed:
		fo.final(r, mail.Relayed, &ev.Final)
	case event.RecipientBounced:
		fo.final(r, mail.Bounced, &ev.Final)
	case event.RecipientExpired:
		fo.final(r, mail.Expired, &ev.Final)
	case event.RecipientDropped:
		fo.final(r, mail.Dropped, &ev.Final)
	case event.RecipientLate:
		fo.info(&ev.Info)
		fo.state(ev.Recipient)
	case event.MessageRetired:
		fo.info(&ev.Info)
		fo.retired = &ev
	case event.QueueHeld:
		fo.hold(r, mail.Held)
	case event.QueueReleased:
		fo.hold(r, mail.Queued)
	case event.DSNQueued:
		fo.info(&ev.Info)
	case event.MessagePoisoned:
		fo.info(&ev.Info)
	case event.SessionOpened, event.SessionClosed, event.SessionRefused, event.ClientAnnounced, event.CommandAnswered, event.TLSNegotiated, event.TLSPolicyFailed, event.TLSDowngraded, event.TLSReportSent, event.TLSReportFailed, event.AuthSucceeded,
		event.AuthFailed, event.SenderRefused, event.RecipientRefused, event.MessageRefused, event.ThrottleEngaged, event.PressureChanged,
		event.AdminActed, event.QueueLoaded, event.ConfigReloaded, event.CertificateReloaded, event.DNSAnswered, event.LookupAnswered, event.TokenRefreshed, event.BackoffChanged, event.ListingChanged, event.Panicked, event.Remarked, event.TranscriptKept:
	}
}

func (fo *fold) info(in *event.Info) {
	m := &fo.msg
	if m.Sender != "" {
		return
	}
	m.Sender, m.HeaderFrom, m.MessageID, m.Size = in.MailFrom, in.HeaderFrom, in.HeaderMessageID, in.Size
	m.Connector, m.AuthUser = in.ConnectorIn, in.AuthUser
	if in.ClientIP.IsValid() {
		m.ClientIP = in.ClientIP.String()
	}
}

func (fo *fold) state(address string) *recipientState {
	key := addressKey(address)
	st := fo.byKey[key]
	if st == nil {
		st = &recipientState{}
		st.Address = address
		fo.byKey[key] = st
		fo.order = append(fo.order, key)
	}
	return st
}

func (st *recipientState) set(d mail.Disposition, at time.Time) {
	if st.disp.Final() && !d.Final() {
		return
	}
	st.disp, st.At = d, at
	if d != mail.Deferred {
		st.Next = time.Time{}
	}
}

func hostOf(name string, ip netip.Addr) string {
	if name == "" && ip.IsValid() {
		return ip.String()
	}
	return name
}

func (fo *fold) attempt(r *event.Record, ev *event.AttemptFinished, rc *event.Recipient) {
	st := fo.state(rc.Address)
	if st.disp.Final() {
		return
	}
	d := rc.Disposition
	if d == 0 {
		d = ev.Disposition
	}
	st.set(d, r.Time)
	st.Attempts = max(st.Attempts+1, ev.Attempt)
	st.Code, st.Enhanced, st.Reply, st.Class = rc.Code, rc.Enhanced, rc.Reply, string(rc.Class)
	if rc.Code == 0 && rc.Reply == "" {
		st.Code, st.Enhanced, st.Reply = ev.Code, ev.Enhanced, ev.Reply
	}
	if st.Class == "" && d != mail.Relayed {
		st.Class = string(ev.Class)
	}
	st.RemoteHost, st.Connector, st.Queue = hostOf(ev.RemoteName, ev.RemoteIP), ev.ConnectorOut, ev.Queue
	if d == mail.Deferred {
		st.Next = ev.NextAttempt
	}
}

func (fo *fold) final(r *event.Record, d mail.Disposition, f *event.Final) {
	fo.info(&f.Info)
	st := fo.state(f.Recipient)
	st.set(d, r.Time)
	st.Attempts = max(st.Attempts, f.Attempts)
	st.Latency = f.TTotal.Float()
	if f.Code != 0 || f.Reply != "" {
		st.Code, st.Enhanced, st.Reply = f.Code, f.Enhanced, f.Reply
	}
	st.Class = string(f.Class)
	if h := hostOf(f.RemoteName, f.RemoteIP); h != "" {
		st.RemoteHost = h
	}
	if f.ConnectorOut != "" {
		st.Connector = f.ConnectorOut
	}
	if f.Queue != "" {
		st.Queue = f.Queue
	}
	if r.Time.After(fo.lastWord) {
		fo.lastWord = r.Time
	}
}

// hold applies a hold or release of this very message.
func (fo *fold) hold(r *event.Record, d mail.Disposition) {
	for _, st := range fo.byKey {
		if !st.disp.Final() {
			st.set(d, r.Time)
		}
	}
}

// worst orders dispositions from the worst off to the best.
var worst = []mail.Disposition{mail.Bounced, mail.Expired, mail.Dropped, mail.Held, mail.Deferred, mail.Queued, mail.Moved, mail.Relayed}

func worstOf(list []*recipientState) mail.Disposition {
	for _, d := range worst {
		if slices.ContainsFunc(list, func(st *recipientState) bool { return st.disp == d }) {
			return d
		}
	}
	return 0
}

// worstRetired is the disposition of a message of which only the last word is left.
func worstRetired(ev *event.MessageRetired) mail.Disposition {
	switch {
	case ev.Bounced > 0:
		return mail.Bounced
	case ev.Expired > 0:
		return mail.Expired
	case ev.Dropped > 0:
		return mail.Dropped
	}
	return mail.Relayed
}

func (fo *fold) states() []*recipientState {
	list := make([]*recipientState, len(fo.order))
	for i, key := range fo.order {
		list[i] = fo.byKey[key]
	}
	return list
}

func (fo *fold) finish() {
	m := &fo.msg
	if m.Time.IsZero() {
		if t := mail.IDTime(m.QueueID); !t.IsZero() {
			m.Time = t.UTC()
		} else if len(fo.recs) > 0 {
			m.Time = fo.recs[0].Time
		}
	}
	states := fo.states()
	d := worstOf(states)
	if d == 0 {
		d = mail.Queued
		if fo.retired != nil {
			d = worstRetired(fo.retired)
		}
	}
	m.Disposition = d.String()
	waiting := len(states) == 0 && fo.retired == nil || slices.ContainsFunc(states, func(st *recipientState) bool { return !st.disp.Final() })
	switch {
	case waiting:
		m.Latency = time.Since(m.Time).Seconds()
	case !fo.lastWord.IsZero():
		m.Latency = event.Since(m.Time, fo.lastWord).Float()
	case fo.retired != nil:
		m.Latency = fo.retired.TTotal.Float()
	}
	m.Recipients = make([]trackapi.Recipient, len(states))
	for i, st := range states {
		m.Recipients[i] = st.Recipient
		m.Recipients[i].Disposition = st.disp.String()
	}
}

func (fo *fold) message() trackapi.Message { return fo.msg }

// keeps reports whether a folded message passes the filters that facts alone cannot answer.
func (f *filter) keeps(fo *fold) bool {
	if len(f.disp) > 0 || len(f.dispNot) > 0 {
		d := fo.selected(f.recipients)
		if len(f.disp) > 0 && !slices.Contains(f.disp, d) || slices.Contains(f.dispNot, d) {
			return false
		}
	}
	latency := time.Duration(fo.msg.Latency * float64(time.Second))
	for _, r := range f.latencies {
		if (latency >= r.low && latency <= r.high) == r.not {
			return false
		}
	}
	for _, p := range f.nots {
		for i := range fo.recs {
			if p.matches(&fo.recs[i]) {
				return false
			}
		}
	}
	return true
}

// selected is the disposition of the worst off among the recipients that all
// of preds select, or among all when there is none.
func (fo *fold) selected(preds []*pred) mail.Disposition {
	list := fo.states()
	if len(preds) > 0 {
		chosen := slices.DeleteFunc(slices.Clone(list), func(st *recipientState) bool {
			return slices.ContainsFunc(preds, func(p *pred) bool { return !p.text(st.Address) })
		})
		if len(chosen) > 0 {
			list = chosen
		}
	}
	if d := worstOf(list); d != 0 {
		return d
	}
	var d mail.Disposition
	_ = d.UnmarshalText([]byte(fo.msg.Disposition)) // finish wrote it
	return d
}
