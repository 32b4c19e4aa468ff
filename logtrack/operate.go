package logtrack

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/badgerdir"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// erasedList remembers which addresses were erased, as salted hashes, so that
// log lines of before do not bring them back.
type erasedList struct {
	mu   sync.Mutex
	path string
	list erasedFile
}

type erasedFile struct {
	Salt   string               `json:"salt"`
	Erased map[string]time.Time `json:"erased"` // hash: when
}

func (e *erasedList) key(address string) string {
	sum := sha256.Sum256([]byte(e.list.Salt + addressKey(address)))
	return hex.EncodeToString(sum[:16])
}

func (s *Store) loadErased() error {
	e := &s.erased
	e.path = filepath.Join(s.opts.Dir, erasedName)
	b, err := os.ReadFile(e.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, &e.list)
	}
	if err != nil {
		return fmt.Errorf("open tracking store: %s: %w", e.path, err)
	}
	return nil
}

// add remembers that addresses are erased as of now.
func (e *erasedList) add(now time.Time, addresses ...string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.list.Erased == nil {
		var salt [16]byte
		_, _ = rand.Read(salt[:]) // never fails (Go 1.24)
		e.list = erasedFile{Salt: hex.EncodeToString(salt[:]), Erased: map[string]time.Time{}}
	}
	for _, a := range addresses {
		e.list.Erased[e.key(a)] = now.UTC()
	}
	b, err := json.Marshal(e.list)
	if err != nil {
		return err
	}
	tmp := e.path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, e.path)
}

// apply takes addresses that were erased after r out of it.
func (e *erasedList) apply(r *event.Record) (out event.Record, changed, drop bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.list.Erased) == 0 {
		return *r, false, false
	}
	return erase(r, func(address string) bool {
		at, ok := e.list.Erased[e.key(address)]
		return ok && !r.Time.After(at)
	})
}

// gone reports whether a partition cannot be read because the retention took
// it, or because it is damaged and left out.
func gone(err error) bool {
	_, damaged := errors.AsType[*badgerdir.DamageError](err)
	return damaged || errors.Is(err, os.ErrClosed)
}

// Erase takes an address out of all facts: days that have it are written anew.
// Mail that comes later is recorded again. What the log says, and the queue
// holds, stays.
func (s *Store) Erase(ctx context.Context, address string) (done trackapi.Erased, err error) {
	a, err := mail.ParseAddress(strings.Trim(address, "<>"))
	if err != nil || a.IsNull() {
		return done, trackapi.BadParameter("address", fmt.Sprintf("%.60q is not an address", address), "one exact address, such as ann@example.com")
	}
	forms := s.opts.Privacy.hashes(a.Key())
	match := func(s string) bool { return slices.Contains(forms, addressKey(s)) }
	if err := s.erased.add(time.Now(), forms...); err != nil {
		return done, err
	}
	c := func(r *event.Record) (event.Record, bool, bool) { return erase(r, match) }
	stores := []*Store{s}
	if s.talks != nil {
		stores = append(stores, s.talks)
	}
	for _, x := range stores {
		if err := x.settleAll(); err != nil {
			return done, err
		}
		for _, p := range x.partitions() {
			has, err := x.needs(ctx, p, c)
			if gone(err) {
				continue
			}
			if err != nil {
				return done, err
			}
			if !has {
				continue
			}
			one, err := x.rewrite(ctx, p, c)
			done.Facts += one.facts
			if err != nil {
				return done, err
			}
			done.Partitions++
		}
	}
	return done, nil
}

func (s *Store) partitions() []*partition {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.parts)
}

// Repair writes days with damaged blocks anew, without those, and puts aside
// what cannot be opened at all. [Store.Reindex] can then bring the facts back.
func (s *Store) Repair(ctx context.Context) (done trackapi.Repaired, err error) {
	keep := func(r *event.Record) (event.Record, bool, bool) { return *r, false, false }
	stores := []*Store{s}
	if s.talks != nil {
		stores = append(stores, s.talks)
	}
	for _, x := range stores {
		if err := x.settleAll(); err != nil {
			return done, err
		}
		for _, p := range x.partitions() {
			bad, err := x.needs(ctx, p, keep)
			if err != nil || !bad {
				if err != nil && !gone(err) {
					return done, err
				}
				continue
			}
			one, err := x.rewrite(ctx, p, keep)
			done.Blocks += one.damaged
			if err != nil {
				return done, err
			}
			done.Partitions++
		}
		n, err := x.putAside()
		done.Partitions += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// putAside moves partitions that could not be opened to "damaged", where a
// person may look at them or remove them.
func (s *Store) putAside() (n int, err error) {
	s.mu.Lock()
	left := slices.Clone(s.leftOut)
	s.mu.Unlock()
	aside := filepath.Join(s.opts.Dir, "damaged")
	for _, name := range left {
		if err := os.MkdirAll(aside, 0o700); err != nil {
			return n, err
		}
		to := filepath.Join(aside, name+"-"+time.Now().UTC().Format("150405.000000"))
		if err := os.Rename(filepath.Join(s.opts.Dir, "parts", name), to); err != nil && !errors.Is(err, os.ErrNotExist) {
			return n, err
		}
		n++
		s.mu.Lock()
		s.leftOut = slices.DeleteFunc(slices.Clone(s.leftOut), func(x string) bool { return x == name })
		s.mu.Unlock()
	}
	return n, nil
}

// bounds of a check.
const (
	maxListed   = 100
	maxCompared = 5 << 20 // messages
)

// Verify reads every fact, looks every value up in the indexes, and compares
// the messages that have not left with those of the queue. queued lists the
// queue; it is called before and after; nil: there is no queue to compare with.
func (s *Store) Verify(ctx context.Context, queued func(context.Context) (map[mail.QueueID]bool, error)) (*trackapi.Verified, error) {
	began := time.Now()
	v := &trackapi.Verified{}
	var before map[mail.QueueID]bool
	var err error
	if queued != nil {
		if before, err = queued(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.settleAll(); err != nil {
		return nil, err
	}
	open := map[mail.QueueID]bool{}    // queued, and not retired
	retired := map[mail.QueueID]bool{} // whose message_queued has not come yet
	seen := func(r *event.Record) {
		if r.Message == "" || r.Source == event.SourceImport || len(open) > maxCompared {
			return
		}
		switch r.Event.(type) { //nolint:gochecksumtype // the first and the last of a message
		case event.MessageQueued:
			if retired[r.Message] {
				delete(retired, r.Message)
			} else {
				open[r.Message] = true
			}
		case event.MessageRetired:
			if open[r.Message] {
				delete(open, r.Message)
			} else {
				retired[r.Message] = true
			}
		}
	}
	for _, p := range s.partitions() {
		if err := s.verifyPartition(ctx, p, v, seen); err != nil && !gone(err) {
			return nil, err
		}
	}
	if err := s.verifyTalks(ctx, v); err != nil {
		return nil, err
	}
	s.mu.Lock()
	v.LeftOut = append(v.LeftOut, s.leftOut...)
	mem := s.memory()
	s.mu.Unlock()
	for _, src := range mem {
		recs, err := src.facts()
		if err != nil {
			return nil, err
		}
		for i := range recs {
			seen(&recs[i])
			v.Facts++
		}
	}
	if queued != nil {
		after, err := queued(ctx)
		if err != nil {
			return nil, err
		}
		if len(open) > maxCompared {
			v.Note = "there are too many messages to compare them with the queue"
		} else {
			compareQueue(v, before, after, open, began)
		}
	}
	v.TookMS = float64(time.Since(began).Microseconds()) / 1000
	v.OK = len(v.Damaged) == 0 && len(v.LeftOut) == 0 && v.Unindexed == 0 && v.Duplicates == 0 && v.Differs == 0
	return v, nil
}

// verifyTalks reads the conversations.
func (s *Store) verifyTalks(ctx context.Context, v *trackapi.Verified) error {
	if s.talks == nil {
		return nil
	}
	for _, p := range s.talks.partitions() {
		if err := s.talks.verifyPartition(ctx, p, v, func(*event.Record) {}); err != nil && !gone(err) {
			return err
		}
	}
	s.talks.mu.Lock()
	defer s.talks.mu.Unlock()
	for _, name := range s.talks.leftOut {
		v.LeftOut = append(v.LeftOut, "transcripts/"+name)
	}
	return nil
}

// verifyPartition reads all of a partition.
func (s *Store) verifyPartition(ctx context.Context, p *partition, v *trackapi.Verified, seen func(*event.Record)) error {
	if err := s.read(p); err != nil {
		return err
	}
	defer p.release()
	v.Partitions++
	ids := map[[16]byte]struct{}{}
	for _, h := range p.headers() {
		if err := ctx.Err(); err != nil {
			return err
		}
		v.Blocks++
		recs, err := s.allRecords(p, h)
		if errors.Is(err, errUnknownFact) {
			v.Note = "facts of a newer version were not read"
			continue
		}
		if rows := int(h.rows); err == nil && len(recs) != rows {
			v.Duplicates += rows - len(recs) // allRecords gives each once
		}
		if err != nil {
			v.Damaged = append(v.Damaged, trackapi.DamagedBlock{Partition: p.name, Block: h.seq, Facts: int(h.rows), Error: err.Error()})
			continue
		}
		v.Facts += int64(len(recs))
		for i := range recs {
			seen(&recs[i])
			if key, _ := idKey(&recs[i]); recs[i].ID != "" {
				if _, twice := ids[key]; twice {
					v.Duplicates++
				}
				ids[key] = struct{}{}
			}
		}
		n, err := s.unindexed(ctx, p, h)
		if err != nil {
			return err
		}
		v.Unindexed += n
	}
	return nil
}

// unindexed counts the values of a block that the index does not lead to.
func (s *Store) unindexed(ctx context.Context, p *partition, h *header) (n int, err error) {
	keys, err := postingsOf(newViewCache(1).get(p, h))
	if err != nil {
		return 0, err
	}
	found, err := p.lookup(ctx, s.crew, keys, nil)
	if err != nil {
		return 0, err
	}
	for _, blocks := range found {
		if !slices.Contains(blocks, h.seq) {
			n++
		}
	}
	return n, nil
}

// compareQueue says which messages the store and the queue see differently.
func compareQueue(v *trackapi.Verified, before, after map[mail.QueueID]bool, open map[mail.QueueID]bool, began time.Time) {
	v.Queued = len(after)
	note := func(list *[]string, id mail.QueueID) {
		v.Differs++
		if len(*list) < maxListed {
			*list = append(*list, string(id))
		}
	}
	for id := range before {
		if after[id] && !open[id] {
			note(&v.Missing, id)
		}
	}
	for id := range open {
		// What was accepted or left a moment ago may have a fact on its way.
		if t := mail.IDTime(string(id)); !before[id] && !after[id] && t.Before(began.Add(-10*time.Second)) {
			note(&v.Lingering, id)
		}
	}
	slices.Sort(v.Missing)
	slices.Sort(v.Lingering)
}

var indexNames = map[byte]string{
	postSender: "sender", postSenderDomain: "sender domain", postRecipient: "recipient", postRecipientDomain: "recipient domain",
	postQueueID: "queue_id", postMessageID: "message_id", postClientIP: "client_ip", postAuthUser: "auth_user", postSession: "session_id",
	postRemote: "remote_host", postParent: "parent", postExternal: "external_id",
}

// Operation is [Store.Stats] with its partitions and indexes, for operators.
func (s *Store) Operation() trackapi.TrackStats {
	st := s.Stats()
	out := trackapi.TrackStats{
		Facts: st.Events, Blocks: st.Blocks, Bytes: st.Bytes, Oldest: st.Oldest, IndexLag: st.IndexLag.Seconds(), Waiting: st.Waiting,
		Duplicates: st.Duplicates, Dropped: st.Dropped, WriteErrors: st.WriteErrors, Tails: st.Tails, TailsDropped: st.TailsDropped,
		CacheBytes: st.CacheBytes, Degraded: st.Degraded, Transcripts: []trackapi.TrackPartition{}, Indexes: []trackapi.TrackIndex{},
	}
	sizes := map[byte]trackapi.TrackIndex{}
	out.Partitions = s.listPartitions(sizes)
	if s.talks != nil {
		out.Transcripts = s.talks.listPartitions(nil)
	}
	for kind := postNone + 1; kind <= postExternal; kind++ {
		x := sizes[kind]
		x.Index = indexNames[kind]
		out.Indexes = append(out.Indexes, x)
	}
	return out
}

func (s *Store) listPartitions(sizes map[byte]trackapi.TrackIndex) []trackapi.TrackPartition {
	list := []trackapi.TrackPartition{}
	for _, p := range s.partitions() {
		s.mu.Lock() // guards bytes
		size := p.bytes
		s.mu.Unlock()
		p.mu.Lock()
		m := p.meta
		x := trackapi.TrackPartition{Name: p.name, Facts: m.Rows, Blocks: m.Blocks, Bytes: size, Open: p.db != nil}
		if m.Blocks > 0 {
			x.Oldest, x.Newest = time.UnixMicro(m.MinTS).UTC(), time.UnixMicro(m.MaxTS).UTC()
		}
		for _, r := range p.runs {
			for kind, sec := range r.sections {
				if sizes != nil {
					e := sizes[kind]
					e.Entries += int64(sec.entries)
					e.Bytes += int64(sec.size)
					sizes[kind] = e
				}
			}
		}
		p.mu.Unlock()
		list = append(list, x)
	}
	return list
}
