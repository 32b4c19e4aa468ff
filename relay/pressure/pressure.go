// Package pressure knows how hard the relay is pressed, and what it does about
// it.
//
// It exists because a relay that takes more than it can carry ends up carrying
// nothing: it looks at the resources that run out (disk, memory, queue) every two
// seconds, gives each a level, normal, medium or high, and turns the levels into
// one [Stage] that reception asks about: first acknowledgements slow down, then
// strangers are refused, then everybody, then nobody is let in any more.
//
// It promises that a level is entered and left at different marks and only after
// several looks, so that nothing flaps; that asking costs one atomic load; and
// that every change of a level or stage is stated once, as
// [event.PressureChanged]: by the owner of the resource where the owner keeps the
// level, such as the queue for its disk, and else here.
//
// To add a resource, add its word to [event.Resources], and a [Resource] with a
// Measure or a Told where the [Monitor] is made.
package pressure

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"waybill/relay/event"
)

// Levels of a resource.
const (
	Normal = iota
	Medium
	High
)

// Stage is what the relay does about it. Each stage does what those before it do.
type Stage uint8

// The stages.
const (
	Open      Stage = iota // nothing
	Slow                   // acknowledgements of MAIL wait, longer and longer
	Strangers              // who has not logged in, and may not relay, is refused: 452
	All                    // everybody is refused: 452
	Shut                   // connections are turned away, sessions end: 421
)

var stages = [...]string{"open", "slow", "strangers", "all", "shut"}

// String is the word of facts and of the API.
func (s Stage) String() string { return stages[s] }

// Marks are where the levels of a resource begin, in its own unit. Zero is never.
type Marks struct {
	Medium, High float64
}

// Sample is what a measurement found.
type Sample struct {
	Value float64
	Text  string // for people
}

// Resource is one thing that can run out. It has either Measure or Told.
type Resource struct {
	Name    string                       // a word of [event.Resources]
	Measure func() (s Sample, ok bool)   // not ok: unknown now, the level stays
	Told    func() (level int, s string) // its owner keeps the level, and states its changes
	Most    Stage                        // the strictest stage that it leads to; zero means Shut
}

// Settings may change while the relay runs.
type Settings struct {
	Marks     map[string]Marks // by resource
	Patience  time.Duration    // how long medium may last before strangers are refused, and high before the doors close; zero means 2m
	DelayStep time.Duration    // how much longer each look at medium makes acknowledgements wait; zero means 1s, negative none
	DelayMost time.Duration    // the longest wait; zero means 20s
}

// Options configure a Monitor.
type Options struct {
	Resources []Resource
	Settings  Settings
	Emitter   event.Emitter
	Every     time.Duration // between two looks; zero means 2s
}

// By taste: a level is entered when two looks in a row say so, so that one slow
// sync is no alarm, and left when five do, below this share of its mark.
const (
	rises = 2
	falls = 5
	relax = 0.85
)

// state is one resource as it is.
type state struct {
	Resource
	level  int
	since  time.Time // of the level
	stage  Stage
	up     int // looks in a row that were above
	down   int // and below
	sample Sample
	slowed time.Time // since when it is not normal; zero when it is
}

// Monitor looks at resources.
type Monitor struct {
	emit  event.Emitter
	every time.Duration

	mu       sync.Mutex
	settings Settings
	states   []*state
	polls    int // at medium or above, in a row

	view atomic.Pointer[View]
}

// View is how things are.
type View struct {
	Stage    Stage
	Delay    time.Duration // of acknowledgements
	Resource string        // that the stage is because of; empty when open
	Detail   string
}

// New returns a Monitor, which has not looked yet.
func New(o Options) *Monitor {
	if o.Every <= 0 {
		o.Every = 2 * time.Second
	}
	m := &Monitor{emit: o.Emitter, every: o.Every}
	for _, r := range o.Resources {
		if r.Most == 0 {
			r.Most = Shut
		}
		m.states = append(m.states, &state{Resource: r})
	}
	m.Configure(o.Settings)
	m.view.Store(&View{})
	return m
}

// Configure takes other settings into use. Levels follow with the next looks.
func (m *Monitor) Configure(s Settings) {
	if s.Patience <= 0 {
		s.Patience = 2 * time.Minute
	}
	if s.DelayStep == 0 {
		s.DelayStep = time.Second
	}
	if s.DelayMost <= 0 {
		s.DelayMost = 20 * time.Second
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settings = s
}

// Run looks until ctx is done.
func (m *Monitor) Run(ctx context.Context) error {
	tick := time.NewTicker(m.every)
	defer tick.Stop()
	for {
		m.look(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Now is how things are, as of the last look. A nil Monitor is never pressed.
func (m *Monitor) Now() View {
	if m == nil {
		return View{}
	}
	return *m.view.Load()
}

// look measures everything once.
func (m *Monitor) look(now time.Time) {
	m.mu.Lock()
	var changes []event.PressureChanged
	var v View
	for _, st := range m.states {
		was, wasStage := st.level, st.stage
		m.measure(st)
		if st.level != was || st.since.IsZero() {
			st.since = now
		}
		switch {
		case st.level == Normal:
			st.slowed = time.Time{}
		case st.slowed.IsZero():
			st.slowed = now
		}
		st.stage = min(m.stageOf(st, now), st.Most)
		if st.stage > v.Stage {
			v = View{Stage: st.stage, Resource: st.Name, Detail: st.sample.Text}
		}
		if st.level != was && st.Told == nil || st.stage != wasStage && (st.Told == nil || st.level == was) {
			changes = append(changes, event.PressureChanged{
				Resource: st.Name, Level: st.level, Was: was, Stage: st.stage.String(), Detail: st.sample.Text,
			})
		}
	}
	if v.Stage == Open {
		m.polls = 0
	} else {
		m.polls++
		v.Delay = min(max(time.Duration(m.polls)*m.settings.DelayStep, 0), m.settings.DelayMost)
	}
	m.view.Store(&v)
	m.mu.Unlock()
	for _, c := range changes { // a reader may be slow, and must not hold up who asks
		m.emit.Emit(c)
	}
}

// measure sets the level of one resource.
func (m *Monitor) measure(st *state) {
	if st.Told != nil {
		st.level, st.sample.Text = st.Told()
		return
	}
	s, ok := st.Measure()
	if !ok {
		return
	}
	st.sample = s
	marks := m.settings.Marks[st.Name]
	want, keep := marks.level(s.Value, 1), marks.level(s.Value, relax)
	switch {
	case want > st.level:
		st.down = 0
		if st.up++; st.up >= rises {
			st.level, st.up = want, 0
		}
	case keep < st.level:
		st.up = 0
		if st.down++; st.down >= falls {
			st.level, st.down = keep, 0
		}
	default:
		st.up, st.down = 0, 0
	}
}

// level is the level that v is in, of marks that are lowered by a factor.
func (k Marks) level(v, factor float64) int {
	switch {
	case k.High > 0 && v >= k.High*factor:
		return High
	case k.Medium > 0 && v >= k.Medium*factor:
		return Medium
	}
	return Normal
}

// stageOf is what a resource's level, and how long it has lasted, leads to.
func (m *Monitor) stageOf(st *state, now time.Time) Stage {
	p := m.settings.Patience
	switch {
	case st.level == High && now.Sub(st.since) >= p:
		return Shut
	case st.level == High:
		return All
	case st.level == Medium && now.Sub(st.slowed) >= p:
		return Strangers
	case st.level == Medium:
		return Slow
	}
	return Open
}

// Status is one resource, for people.
type Status struct {
	Resource string
	Level    int
	Stage    Stage
	Text     string
	Since    time.Time // of the level
}

// Status lists all resources, in the order of the options.
func (m *Monitor) Status() (list []Status) {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, st := range m.states {
		list = append(list, Status{Resource: st.Name, Level: st.level, Stage: st.stage, Text: st.sample.Text, Since: st.since})
	}
	return list
}

// Words are the words of [event.PressureChanged.Stage].
func Words() []string { return stages[:] }
