package backoff

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"waybill/relay/mail"
	"waybill/relay/route"
)

// State is how one next hop is treated at present, and why.
type State struct {
	Hop         route.Hop
	Mode        Mode
	Rule        string
	Why         string // in words, from the rule
	Since       time.Time
	Until       time.Time
	Times       int // how often it was asked for, each time for longer
	PerMinute   int // messages; 0: no limit
	Connections int // at once; 0: no limit
	Provider    string
	Reply       mail.Reply // that asked for it
	Verb        string     // which command it answered
}

// Change is one from one state to another.
type Change struct {
	Was Mode
	State
}

// Set remembers next hops that have asked for less. Its methods may be called by
// many goroutines.
type Set struct {
	rules atomic.Pointer[Rules]
	busy  atomic.Int64 // entries of of: without any, nobody waits for mu
	mu    sync.RWMutex
	of    map[route.Hop]*entry
}

type entry struct {
	state State
	hits  map[string]*hits // by rule, of those that take several
	last  time.Time        // when it was told of last
}

type hits struct {
	n     int
	since time.Time
}

// Bounds of what is remembered, chosen by taste.
const (
	maxEntries = 100_000
	remembered = 24 * time.Hour // of a mode after its end: who asks again within that time is left alone for longer
)

// NewSet makes a Set that goes by rules.
func NewSet(rules Rules) *Set {
	s := &Set{of: map[route.Hop]*entry{}}
	s.rules.Store(&rules)
	return s
}

// Use changes the rules, and ends the modes of rules that no longer ask for them.
func (s *Set) Use(rules Rules, now time.Time) (ended []Change) {
	s.rules.Store(&rules)
	return s.clear(now, func(st *State) bool {
		return !slices.ContainsFunc(rules, func(r Rule) bool { return r.Name == st.Rule && r.Do == st.Mode })
	})
}

// Tell tells what hop answered to an attempt that began at began. It returns
// what that changes: replies to attempts that were under way when a mode began
// tell nothing new.
func (s *Set) Tell(hop route.Hop, provider string, outcomes []mail.Outcome, began, now time.Time) (c Change, changed bool) {
	rules := *s.rules.Load()
	var rule *Rule
	var o *mail.Outcome
	var last *mail.Outcome
	for i := range outcomes { // the strongest counts
		if last != nil && outcomes[i].Reply == last.Reply && outcomes[i].Verb == last.Verb {
			continue // a thousand recipients, and one reply for all
		}
		last = &outcomes[i]
		if r, ok := rules.Match(provider, &outcomes[i]); ok && (rule == nil || r.Do.strength() > rule.Do.strength()) {
			rule, o = r, &outcomes[i]
		}
	}
	if rule == nil {
		return Change{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.of[hop]
	if e == nil {
		if len(s.of) >= maxEntries {
			return Change{}, false
		}
		e = &entry{state: State{Hop: hop, Mode: None}}
		s.of[hop] = e
		s.busy.Store(int64(len(s.of)))
	}
	e.last = now
	if !e.enough(rule, now) {
		return Change{}, false
	}
	was := e.state
	active := was.Mode != None && now.Before(was.Until)
	if active && (was.Mode.strength() > rule.Do.strength() || was.Mode == rule.Do && began.Before(was.Since)) {
		return Change{}, false
	}
	times := 1
	if was.Rule == rule.Name {
		times = was.Times + 1
	}
	pause := time.Duration(rule.For)
	for k := 1; k < times && pause < time.Duration(rule.Longest); k++ {
		pause *= 2
	}
	e.state = State{
		Hop: hop, Mode: rule.Do, Rule: rule.Name, Why: rule.Why, Since: now, Until: now.Add(min(pause, time.Duration(rule.Longest))), Times: times,
		Provider: provider, Reply: o.Reply, Verb: o.Verb,
	}
	switch rule.Do {
	case Slow:
		e.state.PerMinute, e.state.Connections = max(1, rule.PerMinute>>min(times-1, 30)), rule.Connections
	case Single:
		e.state.Connections = 1
	case None, Pause:
	}
	c = Change{Was: None, State: e.state}
	if active {
		c.Was = was.Mode
	}
	return c, true
}

// enough counts a reply that rule knows, and reports whether there were as many
// as it takes. The caller holds mu.
func (e *entry) enough(rule *Rule, now time.Time) bool {
	if rule.Hits == 1 {
		return true
	}
	h := e.hits[rule.Name]
	if h == nil || now.Sub(h.since) > time.Duration(rule.Within) {
		if e.hits == nil {
			e.hits = map[string]*hits{}
		}
		h = &hits{since: now}
		e.hits[rule.Name] = h
	}
	if h.n++; h.n < rule.Hits {
		return false
	}
	delete(e.hits, rule.Name)
	return true
}

// Of returns how hop is treated now, and whether that is not as usual. It is
// fast: ask it for each message.
func (s *Set) Of(hop route.Hop, now time.Time) (State, bool) {
	if s.busy.Load() == 0 {
		return State{}, false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.of[hop]; e != nil && e.state.Mode != None && now.Before(e.state.Until) {
		return e.state, true
	}
	return State{}, false
}

// Sweep ends the modes whose time has come and returns them, and forgets what
// nobody has asked for again.
func (s *Set) Sweep(now time.Time) (ended []Change) {
	if s.busy.Load() == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for hop, e := range s.of {
		switch {
		case e.state.Mode != None && !now.Before(e.state.Until):
			ended = append(ended, e.end(now))
		case e.state.Mode == None && now.Sub(e.last) > remembered:
			delete(s.of, hop)
		}
	}
	s.busy.Store(int64(len(s.of)))
	slices.SortFunc(ended, func(a, b Change) int { return strings.Compare(a.Hop.Name, b.Hop.Name) })
	return ended
}

// Clear ends all modes now, as when an operator asks for a retry.
func (s *Set) Clear(now time.Time) (ended []Change) {
	return s.clear(now, func(*State) bool { return true })
}

func (s *Set) clear(now time.Time, which func(*State) bool) (ended []Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.of {
		if e.state.Mode != None && which(&e.state) {
			ended = append(ended, e.end(now))
		}
	}
	slices.SortFunc(ended, func(a, b Change) int { return strings.Compare(a.Hop.Name, b.Hop.Name) })
	return ended
}

// end ends the mode of e. Rule and Times stay, for when it is asked for again.
func (e *entry) end(now time.Time) Change {
	was := e.state
	e.state = State{Hop: was.Hop, Mode: None, Rule: was.Rule, Times: was.Times, Provider: was.Provider}
	e.last = now
	return Change{Was: was.Mode, State: e.state}
}

// Count is how many next hops are in each mode.
func (s *Set) Count(now time.Time) map[Mode]int {
	n := map[Mode]int{}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, e := range s.of {
		if e.state.Mode != None && now.Before(e.state.Until) {
			n[e.state.Mode]++
		}
	}
	return n
}
