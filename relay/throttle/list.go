package throttle

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"
)

// Row is what one key has used of one rule.
type Row struct {
	Rule    string
	By      string
	What    string
	Key     string
	Used    int64 // of Burst, or of Amount when Per is zero; above it is a debt
	Amount  int64
	Per     time.Duration
	Burst   int64
	Action  string
	Engaged bool      // the next request would be delayed or refused
	Until   time.Time // when it would not; zero when not engaged, or when nobody knows
	Hits    int64     // how often the rule delayed or refused the key
	Hit     time.Time // the last time
}

// Select says which rows are asked for. Zero fields select all.
type Select struct {
	Rule  string // exact
	Key   string // a part, in any case
	All   bool   // also keys that the rule has not stopped lately
	Limit int    // at most so many; zero means 1000
}

// lately is how long a key that was stopped is shown without asking for all.
const lately = 10 * time.Minute

// List returns what was used, those first that are stopped now, then those that
// have used most of their limit. total is how many there were before the limit.
func (s *Set) List(now time.Time, sel Select) (rows []Row, total int) {
	if s == nil {
		return nil, 0
	}
	if sel.Limit <= 0 {
		sel.Limit = 1000
	}
	p := s.now.Load()
	for _, l := range p.all {
		if sel.Rule == "" || sel.Rule == l.Name {
			rows = l.table.rows(now, l, sel, rows)
		}
	}
	s.mu.Lock()
	lockout := s.lockout
	s.mu.Unlock()
	if lockout != nil && (sel.Rule == "" || sel.Rule == lockoutRule) {
		rows = lockout.rows(now, sel, rows)
	}
	share := func(r *Row) float64 { return float64(r.Used) / float64(max(r.Burst, 1)) }
	slices.SortFunc(rows, func(a, b Row) int {
		if a.Engaged != b.Engaged {
			if a.Engaged {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(share(&b), share(&a)), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Key, b.Key))
	})
	total = len(rows)
	return rows[:min(total, sel.Limit)], total
}

// lockoutRule is how the listing names the sources that a [Lockout] holds off.
// Accounts have no row: their names are not kept.
const lockoutRule = "users/lockout"

// rows appends a row for each source that is held off, or has failed when all are
// asked for.
func (l *Lockout) rows(now time.Time, sel Select, rows []Row) []Row {
	shown := &Rule{By: BySource}
	part := strings.ToLower(sel.Key)
	l.mu.Lock()
	defer l.mu.Unlock()
	for ip, f := range l.sources {
		held := f.holds(now)
		if f.over(now, l.limits.Window) || !held && !sel.All {
			continue
		}
		r := Row{
			Rule: lockoutRule, By: BySource.String(), What: "failed logins", Key: shown.show(key{ip: ip}), Used: int64(f.now),
			Amount: int64(l.limits.Source), Per: l.limits.Window, Burst: int64(l.limits.Source), Action: Defer.String(), Engaged: held, Hits: int64(f.level),
		}
		if held {
			r.Until = f.until
		}
		if part == "" || strings.Contains(r.Key, part) {
			rows = append(rows, r)
		}
	}
	return rows
}

// release forgets the failures of one source or account, or of all.
func (l *Lockout) release(keyText string) (n int) {
	shown := &Rule{By: BySource}
	l.mu.Lock()
	defer l.mu.Unlock()
	for ip := range l.sources {
		if keyText == "" || strings.EqualFold(shown.show(key{ip: ip}), keyText) {
			delete(l.sources, ip)
			n++
		}
	}
	for acc := range l.accounts {
		if keyText == "" || acc == accountOf(keyText) {
			delete(l.accounts, acc)
			n++
		}
	}
	for p, a := range l.known {
		if a.level > 0 && (keyText == "" || p.account == accountOf(keyText) || strings.EqualFold(shown.show(key{ip: p.source}), keyText)) {
			a.failures = failures{}
			n++
		}
	}
	return n
}

// rows appends the rows of one table. It holds the table's lock for as long as
// it takes to copy what is selected.
func (t *table) rows(now time.Time, l *limit, sel Select, rows []Row) []Row {
	part := strings.ToLower(sel.Key)
	t.mu.Lock()
	defer t.mu.Unlock()
	for b := t.ends.prev; b != &t.ends; b = b.prev { // the latest first
		r := Row{
			Rule: l.Name, By: l.By.String(), What: l.What.String(), Amount: l.Amount, Per: l.Per, Burst: l.Burst, Action: l.Action.String(), Hits: b.hits, Hit: b.hit,
		}
		switch {
		case l.atOnce():
			r.Used, r.Burst = b.open, l.Amount
			r.Engaged = b.open >= l.Amount
		case b.rate == nil:
			continue
		default:
			tokens := b.rate.TokensAt(now)
			r.Used = int64(math.Ceil(float64(l.Burst) - tokens))
			if r.Engaged = tokens < 1; r.Engaged {
				r.Until = now.Add(time.Duration((1 - tokens) / l.perSecond() * float64(time.Second)))
			}
		}
		stopped := r.Engaged || b.hits > 0 && now.Sub(b.hit) <= lately
		if !stopped && (!sel.All || r.Used <= 0) {
			continue
		}
		r.Key = l.show(b.key)
		if part == "" || strings.Contains(strings.ToLower(r.Key), part) {
			rows = append(rows, r)
		}
	}
	return rows
}

// Release forgets what was used: of one key of one rule, of all keys of a rule
// when keyText is empty, or of one key in all rules when rule is empty. Keys are
// as List writes them. What is there now, such as open connections, stays
// counted. It returns how many keys it forgot.
func (s *Set) Release(rule, keyText string) int {
	if s == nil || rule == "" && keyText == "" {
		return 0
	}
	s.mu.Lock()
	limits, lockout := s.now.Load().all, s.lockout
	s.mu.Unlock()
	n := 0
	for _, l := range limits {
		if rule != "" && rule != l.Name || l.atOnce() {
			continue
		}
		l.table.mu.Lock()
		for b := l.table.ends.next; b != &l.table.ends; {
			next := b.next
			if keyText == "" || strings.EqualFold(l.show(b.key), keyText) {
				l.table.forget(b)
				n++
			}
			b = next
		}
		l.table.mu.Unlock()
	}
	if lockout != nil && (rule == "" || rule == lockoutRule) {
		n += lockout.release(keyText)
	}
	return n
}

// Rules lists the names of all rules.
func (s *Set) Rules() (names []string) {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.now.Load().all {
		names = append(names, l.Name)
	}
	if s.lockout != nil {
		names = append(names, lockoutRule)
	}
	slices.Sort(names)
	return names
}
