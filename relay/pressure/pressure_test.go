package pressure

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"waybill/relay/event"
)

type facts struct {
	mu  sync.Mutex
	all []string
}

func (f *facts) Write(r *event.Record) {
	p := r.Event.(event.PressureChanged)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, fmt.Sprintf("%s %d>%d %s", p.Resource, p.Was, p.Level, p.Stage))
}

func (f *facts) take() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() { f.all = nil }()
	return strings.Join(f.all, ", ")
}

// gauge is a fake sampler.
type gauge struct {
	mu sync.Mutex
	v  float64
	ok bool
}

func (g *gauge) set(v float64) { g.mu.Lock(); g.v, g.ok = v, true; g.mu.Unlock() }
func (g *gauge) blind()        { g.mu.Lock(); g.ok = false; g.mu.Unlock() }
func (g *gauge) measure() (Sample, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Sample{g.v, fmt.Sprint(g.v)}, g.ok
}

// run starts a monitor in a bubble; each call of the script's pass lets time go by.
func run(t *testing.T, o Options, script func(m *Monitor, f *facts, pass func(time.Duration))) {
	synctest.Test(t, func(t *testing.T) {
		f := &facts{}
		o.Emitter = event.NewEmitter("n", f)
		m := New(o)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		synctest.Wait()
		script(m, f, func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		})
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// TestStages goes up and down through all stages.
func TestStages(t *testing.T) {
	g := &gauge{ok: true}
	o := Options{
		Resources: []Resource{{Name: "memory", Measure: g.measure}},
		Settings:  Settings{Marks: map[string]Marks{"memory": {Medium: 50, High: 80}}, Patience: time.Minute},
	}
	run(t, o, func(m *Monitor, f *facts, pass func(time.Duration)) {
		for _, step := range []struct {
			name  string
			value float64
			pass  time.Duration
			stage Stage
			facts string
		}{
			{"nothing", 10, 10 * time.Second, Open, ""},
			{"one high look is no alarm", 99, 2 * time.Second, Open, ""},
			{"and it is forgotten", 10, 2 * time.Second, Open, ""},
			{"medium", 50, 4 * time.Second, Slow, "memory 0>1 slow"},
			{"medium for long", 50, time.Minute, Strangers, "memory 1>1 strangers"},
			{"high", 80, 4 * time.Second, All, "memory 1>2 all"},
			{"high for long", 90, time.Minute, Shut, "memory 2>2 shut"},
			{"a little below the mark is not enough", 70, time.Minute, Shut, ""},
			{"for a moment is not enough", 60, 8 * time.Second, Shut, ""},
			{"medium again, for long", 60, 2 * time.Second, Strangers, "memory 2>1 strangers"},
			{"a little below medium is not enough", 45, time.Minute, Strangers, ""},
			{"normal", 40, 10 * time.Second, Open, "memory 1>0 open"},
			{"high at once", 100, 4 * time.Second, All, "memory 0>2 all"},
			{"normal at once", 0, 10 * time.Second, Open, "memory 2>0 open"},
			{"medium begins anew", 55, 4 * time.Second, Slow, "memory 0>1 slow"},
		} {
			g.set(step.value)
			pass(step.pass)
			if v := m.Now(); v.Stage != step.stage || (v.Resource == "memory") != (v.Stage != Open) {
				t.Errorf("%s: %+v, want stage %s", step.name, v, step.stage)
			}
			if got := f.take(); got != step.facts {
				t.Errorf("%s: facts %q, want %q", step.name, got, step.facts)
			}
		}
		g.blind()
		pass(time.Minute)
		if st := m.Status()[0]; st.Level != Medium || st.Resource != "memory" {
			t.Errorf("blind: %+v, want the level as it was", st)
		}
	})
}

func TestDelayGrows(t *testing.T) {
	g := &gauge{ok: true}
	o := Options{
		Resources: []Resource{{Name: "outbox", Measure: g.measure, Most: Slow}},
		Settings:  Settings{Marks: map[string]Marks{"outbox": {Medium: 1, High: 2}}, DelayMost: 5 * time.Second},
	}
	run(t, o, func(m *Monitor, _ *facts, pass func(time.Duration)) {
		g.set(100)
		for i, want := range []time.Duration{0, 1, 2, 3, 4, 5, 5, 5} {
			pass(2 * time.Second)
			if got := m.Now().Delay; got != want*time.Second {
				t.Errorf("look %d: delay %s, want %ds", i, got, want)
			}
		}
		pass(time.Hour)
		if v := m.Now(); v.Stage != Slow {
			t.Errorf("%+v, want a resource that leads to slow at most", v)
		}
		g.set(0)
		pass(10 * time.Second)
		if v := m.Now(); v != (View{}) {
			t.Errorf("%+v after it was over", v)
		}
		m.Configure(Settings{Marks: o.Settings.Marks, DelayStep: -1})
		g.set(100)
		pass(time.Minute)
		if v := m.Now(); v.Stage != Slow || v.Delay != 0 {
			t.Errorf("%+v, want no delay", v)
		}
	})
}

// TestTold: what the owner states is not stated again, but what follows from it is.
func TestTold(t *testing.T) {
	level := &gauge{ok: true}
	o := Options{
		Resources: []Resource{{Name: "disk_space", Told: func() (int, string) { s, _ := level.measure(); return int(s.Value), "1 MiB free" }}},
		Settings:  Settings{Patience: time.Minute},
	}
	run(t, o, func(m *Monitor, f *facts, pass func(time.Duration)) {
		level.set(2)
		pass(2 * time.Second)
		if v := m.Now(); v.Stage != All || v.Detail != "1 MiB free" || f.take() != "" {
			t.Errorf("%+v, want all, without a fact", v)
		}
		pass(time.Minute)
		if v, got := m.Now(), f.take(); v.Stage != Shut || got != "disk_space 2>2 shut" {
			t.Errorf("%+v with fact %q", v, got)
		}
		level.set(0)
		pass(2 * time.Second)
		if v := m.Now(); v.Stage != Open || f.take() != "" {
			t.Errorf("%+v, want open, without a fact", v)
		}
	})
}

func TestNoMarksIsNever(t *testing.T) {
	g := &gauge{ok: true}
	run(t, Options{Resources: []Resource{{Name: "memory", Measure: g.measure}}}, func(m *Monitor, f *facts, pass func(time.Duration)) {
		g.set(1e9)
		pass(time.Hour)
		if v := m.Now(); v.Stage != Open || f.take() != "" {
			t.Errorf("%+v, want open", v)
		}
	})
}

func TestNilMonitor(t *testing.T) {
	var m *Monitor
	if m.Now() != (View{}) || m.Status() != nil {
		t.Error("a nil monitor is pressed")
	}
}

// TestMemory measures this process.
func TestMemory(t *testing.T) {
	limit, _ := MemoryLimit()
	if limit < 64<<20 {
		t.Fatalf("MemoryLimit() = %d, want what the machine has", limit)
	}
	debug.FreeOSMemory() // what was used and is free again would be used first
	measure := Memory(limit)
	before, ok := measure()
	if !ok || before.Value <= 0 || before.Value > 100 {
		t.Fatalf("%+v %t, want a share", before, ok)
	}
	big := make([]byte, 64<<20)
	for i := range big {
		big[i] = byte(i)
	}
	after, _ := measure()
	if grown := (after.Value - before.Value) / 100 * float64(limit); grown < 48<<20 {
		t.Errorf("grown by %.0f octets after 64 MiB were used (%s, %s); %d", grown, before.Text, after.Text, big[len(big)/2])
	}
	if _, ok := Memory(0)(); ok {
		t.Error("a share of nothing is known")
	}
}

func TestWords(t *testing.T) {
	if got := strings.Join(Words(), " "); got != "open slow strangers all shut" {
		t.Errorf("Words() = %s", got)
	}
}
