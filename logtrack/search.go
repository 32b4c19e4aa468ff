package logtrack

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// scan walks blocks in the order of a list and gives what it finds in that
// order: an item is given only when no block that is still to come can hold
// one that belongs before it.
type scan struct {
	oldest bool      // oldest first
	blocks []*source // to come: a heap, which the next one is the root of
	edge   func(h *header) int64
	found  map[string]position // items of blocks that were walked, not yet given
	after  position            // the cursor
	hasAft bool
	given  map[string]bool

	crew crew
}

func newScan(c crew, oldest bool, blocks []*source, least, greatest func(h *header) int64) *scan {
	sc := &scan{crew: c, oldest: oldest, edge: greatest, found: map[string]position{}, given: map[string]bool{}}
	if oldest {
		sc.edge = least
	}
	sc.blocks = blocks
	for i := len(blocks)/2 - 1; i >= 0; i-- {
		sc.sink(i)
	}
	return sc
}

// sooner reports whether block i is walked before block j.
func (sc *scan) sooner(i, j int) bool {
	a, b := sc.edge(sc.blocks[i].head), sc.edge(sc.blocks[j].head)
	return sc.oldest && a < b || !sc.oldest && a > b
}

// sink moves block i to where it belongs among those that come after it.
func (sc *scan) sink(i int) {
	for {
		first := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(sc.blocks); child++ {
			if sc.sooner(child, first) {
				first = child
			}
		}
		if first == i {
			return
		}
		sc.blocks[i], sc.blocks[first] = sc.blocks[first], sc.blocks[i]
		i = first
	}
}

// pop takes the block that is walked next.
func (sc *scan) pop() *source {
	next, last := sc.blocks[0], len(sc.blocks)-1
	sc.blocks[0] = sc.blocks[last]
	sc.blocks = sc.blocks[:last]
	sc.sink(0)
	return next
}

// push puts back a block that was not walked in the end.
func (sc *scan) push(src *source) {
	sc.blocks = append(sc.blocks, src)
	for i := len(sc.blocks) - 1; i > 0 && sc.sooner(i, (i-1)/2); i = (i - 1) / 2 {
		sc.blocks[i], sc.blocks[(i-1)/2] = sc.blocks[(i-1)/2], sc.blocks[i]
	}
}

// before reports whether a belongs before b.
func (sc *scan) before(a, b position) bool {
	if sc.oldest {
		return a.compare(b) < 0
	}
	return a.compare(b) > 0
}

// wants reports whether an item was not given yet, and does not stand before the cursor.
func (sc *scan) wants(pos position) bool {
	return !sc.given[pos.id] && (!sc.hasAft || sc.before(sc.after, pos))
}

// add takes an item, unless it was given already or stands before the cursor.
func (sc *scan) add(pos position) {
	if !sc.wants(pos) {
		return
	}
	if old, ok := sc.found[pos.id]; !ok || sc.before(pos, old) {
		sc.found[pos.id] = pos
	}
}

// sure reports whether no block to come can hold an item that belongs before pos.
func (sc *scan) sure(pos position) bool {
	if len(sc.blocks) == 0 {
		return true
	}
	edge := sc.edge(sc.blocks[0].head)
	return sc.oldest && pos.at < edge || !sc.oldest && pos.at > edge
}

// enough reports whether n of the items that were found are sure.
func (sc *scan) enough(n int) bool {
	if n <= 0 {
		return true
	}
	if len(sc.found) < n {
		return false
	}
	for _, pos := range sc.found {
		if sc.sure(pos) {
			if n--; n == 0 {
				return true
			}
		}
	}
	return false
}

// ready takes the items that are known to be next, in order.
func (sc *scan) ready() []position {
	var list []position
	for _, pos := range sc.found {
		if sc.sure(pos) {
			list = append(list, pos)
		}
	}
	for _, pos := range list {
		delete(sc.found, pos.id)
		sc.given[pos.id] = true
	}
	slices.SortFunc(list, func(a, b position) int {
		if sc.oldest {
			return a.compare(b)
		}
		return b.compare(a)
	})
	return list
}

// boundary is where a list that is cut can go on: everything before it has
// been given.
func (sc *scan) boundary() (position, bool) {
	if len(sc.blocks) == 0 {
		return position{}, false
	}
	edge := sc.edge(sc.blocks[0].head)
	if sc.oldest {
		return position{edge - 1, "~"}, true
	}
	return position{edge + 1, ""}, true
}

// next walks blocks until at least n items are ready, or none are left.
// each gives the items of one block. As many blocks are walked at a time as
// there are hands, and no other is begun once what was found is enough.
func (sc *scan) next(ctx context.Context, n int, each func(*source) ([]position, error)) ([]position, error) {
	var list []position
	for {
		list = append(list, sc.ready()...)
		if len(list) >= n || len(sc.blocks) == 0 {
			return list, nil
		}
		if err := sc.walk(ctx, n-len(list), each); err != nil {
			return list, err
		}
	}
}

// walk walks blocks until n items more seem to be ready: a block that is being
// walked meanwhile may have some that belong before them.
func (sc *scan) walk(ctx context.Context, n int, each func(*source) ([]position, error)) error {
	var mu sync.Mutex // for all that follows
	var walking []*source
	return sc.crew.work(func() (i int, ok, more bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(sc.blocks) == 0 || len(walking) > 0 && sc.enough(n) {
			return 0, false, false
		}
		walking = append(walking, sc.pop())
		return len(walking) - 1, true, len(sc.blocks) > 0
	}, func(i int) error {
		mu.Lock()
		src := walking[i]
		mu.Unlock()
		err := ctx.Err()
		var list []position
		if err == nil {
			list, err = each(src)
		}
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			sc.push(src)
			return err
		}
		for _, pos := range list {
			sc.add(pos)
		}
		return nil
	})
}

func limitOf(q trackapi.Query) (int, error) {
	switch {
	case q.Limit == 0:
		return trackapi.DefaultLimit, nil
	case q.Limit < 0 || q.Limit > trackapi.MaxLimit:
		return 0, trackapi.BadParameter("limit", "out of range", "a number of at most 1000; use the cursor for more")
	}
	return q.Limit, nil
}

// Messages searches messages: it finds the facts that pass all filters, and
// folds the facts of their messages. Wrong parameters give a *trackapi.Problem.
func (s *Store) Messages(ctx context.Context, q trackapi.Query) (*trackapi.Messages, error) {
	f, err := compile(q, false, s.opts.Privacy)
	if err != nil {
		return nil, err
	}
	limit, err := limitOf(q)
	if err != nil {
		return nil, err
	}
	sig := signature("messages", q)
	after, hasAfter, err := readCursor(q.Cursor, sig)
	if err != nil {
		return nil, err
	}
	fromMS, toMS := floorMS(f.from), floorMS(f.to)
	lo, hi := max(fromMS, f.accLo), min(toMS, f.accHi)
	switch { // what stands before the cursor need not be looked at
	case hasAfter && q.Sort == "time":
		lo = max(lo, after.at)
	case hasAfter:
		hi = min(hi, after.at)
	}
	mayHold := func(minAcc, maxAcc, minTS, maxTS int64) bool {
		if minAcc == 0 && minTS <= f.to && maxTS >= f.from { // messages whose queue ID tells no time
			return true
		}
		return maxAcc >= lo && minAcc <= hi
	}
	sn, err := s.snapshot(func(m *meta) bool { return m.HasMsg && mayHold(m.MinAcc, m.MaxAcc, m.MinTS, m.MaxTS) })
	if err != nil {
		return nil, err
	}
	defer sn.release()
	defer s.observe("search", sn)
	foldCtx, cancelFold := context.WithTimeout(ctx, s.opts.QueryTimeout*3/2) // what was found in time is answered
	defer cancelFold()
	ctx, cancel := s.deadline(ctx)
	defer cancel()

	preds := f.candidates()
	blocks, err := sn.blocks(ctx, preds, func(h *header) bool { return h.hasMsg && mayHold(h.minAcc, h.maxAcc, h.minTS, h.maxTS) })
	if err != nil {
		return nil, err
	}
	sc := newScan(s.crew, q.Sort == "time", blocks, func(h *header) int64 { return h.minAcc }, func(h *header) int64 { return h.maxAcc })
	sc.after, sc.hasAft = after, hasAfter
	indexed := slices.ContainsFunc(preds, func(p *pred) bool {
		return p.post != postNone && p.post != postRecipientDomain && p.post != postSenderDomain || p.failed
	})
	gather := indexed && f.reads() == readRow
	each := func(src *source) ([]position, error) { return sn.look(src, preds, f, sc.wants, gather) }

	out := &trackapi.Messages{Messages: []trackapi.Message{}}
	more, all := false, len(blocks)
	var last position
	for len(out.Messages) <= limit && !more {
		ids, err := sc.next(ctx, limit+1-len(out.Messages), each)
		cut := isCut(ctx, err)
		if err != nil && !cut {
			return nil, err
		}
		if len(ids) == 0 && !cut {
			break
		}
		if more, err = s.addMessages(foldCtx, sn, f, ids, limit, out, &last); isCut(foldCtx, err) {
			cut = true
		} else if err != nil {
			return nil, err
		}
		if cut {
			out.Cut = fmt.Sprintf("stopped after %s with %d blocks to go; give a shorter time range or an exact filter, or follow the cursor", s.opts.QueryTimeout, len(sc.blocks))
			if b, ok := sc.boundary(); ok && !more && err == nil {
				last = b
			}
			if last != (position{}) {
				out.Cursor = last.cursor(sig)
			}
			break
		}
	}
	if more {
		out.Cursor = last.cursor(sig)
	}
	out.Estimate = int64(len(out.Messages))
	if out.Cursor != "" {
		out.Estimate = sc.estimate(all, len(out.Messages), sn.folded)
	}
	if len(out.Messages) == 0 {
		out.Hint = s.hint(f)
		if out.Hint == "" && slices.ContainsFunc(f.preds, func(p *pred) bool { return p.term.Field == "reason" }) {
			out.Hint = "what was refused is no message: its facts have the reason (waybill track export, GET /api/v1/events)"
		}
	}
	sn.finish(&out.Page, q.Explain)
	return out, nil
}

// estimate is about how many items there are from here on, when walking some
// of all blocks found what it did, and kept of folded ones passed the filter.
func (sc *scan) estimate(all, kept, folded int) int64 {
	walked := max(1, all-len(sc.blocks))
	found := float64(len(sc.given)+len(sc.found)) * float64(all) / float64(walked)
	return max(int64(found*float64(kept)/float64(max(1, folded))), int64(kept)+1)
}

// addMessages folds the next candidates and adds those that the filter keeps;
// more means that the page is full and something is left.
func (s *Store) addMessages(ctx context.Context, sn *snapshot, f *filter, ids []position, limit int, out *trackapi.Messages, last *position) (more bool, err error) {
	for len(ids) > 0 {
		n := min(len(ids), limit+1-len(out.Messages))
		sn.folded += n
		folds, err := sn.fold(ctx, ids[:n], f.reads())
		if err != nil {
			return false, err
		}
		for i, pos := range ids[:n] {
			fo := folds[pos.id]
			if fo == nil || !f.keeps(fo) {
				if len(out.Messages) < limit {
					*last = pos
				}
				continue
			}
			if len(out.Messages) == limit {
				return true, nil
			}
			out.Messages = append(out.Messages, fo.message())
			*last = ids[i]
		}
		ids = ids[n:]
	}
	return false, nil
}

// hint says why a query finds nothing, when the reason is not the query, or is empty.
func (s *Store) hint(f *filter) string {
	if p := s.opts.Privacy; p != nil && p.NoSubjects && slices.ContainsFunc(f.preds, func(p *pred) bool { return p.term.Field == "subject" }) {
		return "subjects are not recorded: tracking.subject is off"
	}
	return ""
}

// missing says which days no answer has, or is empty.
func (s *Store) missing() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.leftOut) == 0 {
		return ""
	}
	return "damaged days were left out: " + strings.Join(s.leftOut, ", ")
}

func (sn *snapshot) finish(p *trackapi.Page, explain bool) {
	if n := sn.bad.Load(); n > 0 && p.Cut == "" {
		p.Cut = fmt.Sprintf("%d damaged blocks were left out; the log says which", n)
	}
	if p.Cut == "" {
		p.Cut = sn.s.missing()
	}
	p.Explain = sn.explain(explain)
	p.TookMS = sn.took()
}

func floorMS(micros int64) int64 {
	ms := micros / 1000
	if micros%1000 < 0 {
		ms--
	}
	return ms
}

// candidates are the filters by which messages are looked for. Every fact that
// tells a final disposition repeats what identifies the message, so a search
// for a disposition can look for those facts.
func (f *filter) candidates() []*pred {
	if len(f.disp) == 0 || len(f.recipients) > 1 {
		return f.preds
	}
	words := make([]string, 0, len(f.disp))
	for _, d := range f.disp {
		switch d {
		case mail.Deferred, mail.Relayed, mail.Bounced, mail.Expired, mail.Dropped:
			words = append(words, d.String())
		default:
			return f.preds
		}
	}
	for _, p := range f.preds {
		switch p.term.Field {
		case "sender", "recipient", "domain", "message_id", "queue_id", "client_ip", "auth_user":
		default:
			return f.preds
		}
	}
	p := &pred{term: trackapi.Term{Field: "disposition"}, field: fields["disposition"]}
	if p.dispositions(words) != nil {
		return f.preds
	}
	return append(slices.Clone(f.preds), p)
}

// candidates lists the messages in a block with a fact that passes preds.
func (sn *snapshot) candidates(src *source, preds []*pred, f *filter) ([]position, error) {
	var list []position
	add := func(id string, ts func() int64) {
		if acc := acceptMS(id); acc > 0 {
			if at := acc * 1000; at+999 >= f.from && at < f.to {
				list = append(list, position{acc, id})
			}
		} else if t := ts(); t >= f.from && t < f.to {
			list = append(list, position{0, id})
		}
	}
	if recs := src.recs(); recs != nil {
		seen := map[mail.QueueID]bool{}
		for i := range recs {
			r := &recs[i]
			if r.Message == "" || seen[r.Message] {
				continue
			}
			ok := true
			for _, p := range preds {
				if ok = p.matches(r); !ok {
					break
				}
			}
			if ok {
				seen[r.Message] = acceptMS(string(r.Message)) > 0
				add(string(r.Message), r.Time.UnixMicro)
			}
		}
		return list, nil
	}
	v := sn.view(src)
	rows, err := v.rows(preds, nil)
	if err == nil && len(rows) > 0 {
		err = v.need("queue_id")
	}
	if err != nil {
		sn.failed(src, err)
		return nil, nil
	}
	q := v.col("queue_id")
	if len(rows) == 0 || q == nil {
		return nil, nil
	}
	seen := make([]bool, len(q.dict))
	for _, row := range rows {
		t, at := v.typeOf(row)
		if code := q.codeAt(t, at); code > 0 && !seen[code] {
			id := q.dict[code]
			if acceptMS(id) > 0 {
				seen[code] = true
			} else if err := v.need("ts#"); err != nil { // its own time counts
				sn.failed(src, err)
				return nil, nil
			}
			add(id, func() int64 { return unpackTime(v.col("ts#").numAt(t, at), 0).UnixMicro() })
		}
	}
	return list, nil
}

// Events searches facts. Each is answered as the log has it.
func (s *Store) Events(ctx context.Context, q trackapi.Query) (*trackapi.Events, error) {
	out := &trackapi.Events{Events: []json.RawMessage{}}
	err := s.events(ctx, q, &out.Page, func(r *event.Record) error {
		b, err := r.MarshalJSON()
		if err != nil {
			return err
		}
		out.Events = append(out.Events, b)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// rowRef is where a fact was found.
type rowRef struct {
	src *source
	row int
}

func (s *Store) events(ctx context.Context, q trackapi.Query, page *trackapi.Page, each func(*event.Record) error) error {
	f, err := compile(q, true, s.opts.Privacy)
	if err != nil {
		return err
	}
	limit, err := limitOf(q)
	if err != nil {
		return err
	}
	sig := signature("events", q)
	after, hasAfter, err := readCursor(q.Cursor, sig)
	if err != nil {
		return err
	}
	switch { // what stands before the cursor need not be looked at
	case hasAfter && q.Sort == "time":
		f.from = max(f.from, after.at)
	case hasAfter:
		f.to = min(f.to, after.at+1)
	}
	inRange := func(lo, hi int64) bool { return hi >= f.from && lo < f.to }
	sn, err := s.snapshot(func(m *meta) bool { return inRange(m.MinTS, m.MaxTS) })
	if err != nil {
		return err
	}
	defer sn.release()
	defer s.observe("search", sn)
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	blocks, err := sn.blocks(ctx, f.preds, func(h *header) bool { return inRange(h.minTS, h.maxTS) })
	if err != nil {
		return err
	}
	sc := newScan(s.crew, q.Sort == "time", blocks, func(h *header) int64 { return h.minTS }, func(h *header) int64 { return h.maxTS })
	sc.after, sc.hasAft = after, hasAfter
	refs := newRefs()
	list, err := sc.next(ctx, limit+1, func(src *source) ([]position, error) { return sn.facts(src, f, refs) })
	cut := isCut(ctx, err)
	if err != nil && !cut {
		return err
	}
	var last position
	for i, pos := range list {
		if i == limit {
			page.Cursor, cut = last.cursor(sig), false
			break
		}
		r, err := sn.record(refs.at(pos.id), readAll)
		if err != nil {
			sn.failed(refs.at(pos.id).src, err)
		} else if err := each(&r); err != nil {
			return err
		}
		last = pos
	}
	if cut {
		page.Cut = fmt.Sprintf("stopped after %s with %d blocks to go; give a shorter time range or an exact filter, or follow the cursor", s.opts.QueryTimeout, len(sc.blocks))
		if b, ok := sc.boundary(); ok {
			page.Cursor = b.cursor(sig)
		}
	}
	if last == (position{}) {
		page.Hint = s.hint(f)
	}
	sn.finish(page, q.Explain)
	return nil
}

// facts lists the facts of a block that pass f.
func (sn *snapshot) facts(src *source, f *filter, refs *refs) ([]position, error) {
	var list []position
	if recs := src.recs(); recs != nil {
		for i := range recs {
			if r := &recs[i]; f.matches(r) {
				list = append(list, refs.add(r.Time.UnixMicro(), r.ID, rowRef{src, i}))
			}
		}
		return list, nil
	}
	v := sn.view(src)
	rows, err := v.rows(f.preds, f.nots)
	if err == nil && len(rows) > 0 {
		err = v.need("event_id", "ts#")
	}
	if err != nil {
		sn.failed(src, err)
		return nil, nil
	}
	if len(rows) == 0 {
		return nil, nil
	}
	ids, ts := v.col("event_id"), v.col("ts#")
	for _, row := range rows {
		t, at := v.typeOf(row)
		micros := unpackTime(ts.numAt(t, at), 0).UnixMicro()
		if micros >= f.from && micros < f.to {
			list = append(list, refs.add(micros, ids.textAt(t, at), rowRef{src, row}))
		}
	}
	return list, nil
}

// record reads one fact.
func (sn *snapshot) record(ref rowRef, set readSet) (event.Record, error) {
	if recs := ref.src.recs(); recs != nil {
		return recs[ref.row], nil
	}
	v := sn.view(ref.src)
	t, _ := v.typeOf(ref.row)
	if err := v.needRecords(t, set); err != nil {
		return event.Record{}, err
	}
	return v.record(ref.row, set)
}

// allFacts calls each with every fact that passes preds in [from, to), in no order.
func (sn *snapshot) allFacts(ctx context.Context, preds []*pred, from, to time.Time, each func(*event.Record)) error {
	f := &filter{preds: preds, from: from.UnixMicro(), to: to.UnixMicro()}
	blocks, err := sn.blocks(ctx, preds, func(h *header) bool { return h.maxTS >= f.from && h.minTS < f.to })
	if err != nil {
		return err
	}
	for _, src := range blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		refs := newRefs()
		list, err := sn.facts(src, f, refs)
		if err != nil {
			return err
		}
		for _, pos := range list {
			r, err := sn.record(refs.at(pos.id), readAll)
			if err != nil {
				sn.failed(src, err)
				continue
			}
			each(&r)
		}
	}
	return nil
}
