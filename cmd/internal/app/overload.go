package app

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"go.uber.org/zap"

	"waybill/cmd/internal/config"
	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/pressure"
	"waybill/relay/throttle"
)

// throttleRules are the rules of the configuration.
func throttleRules(c *config.Config) ([]throttle.Rule, error) {
	var rules []throttle.Rule
	for i := range c.Throttles {
		r, err := c.Throttles[i].Rule()
		if err != nil {
			return nil, fmt.Errorf("throttle %s: %w", c.Throttles[i].Name, err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// openThrottles makes what limits clients.
func (a *App) openThrottles(cfg *config.Config) error {
	rules, err := throttleRules(cfg)
	if err != nil {
		return err
	}
	a.lockout = throttle.NewLockout(lockoutLimits(cfg))
	if a.limits, err = throttle.NewSet(rules...); err != nil {
		return err
	}
	a.limits.Include(a.lockout)
	a.turns = throttle.NewTurns(cfg.BackPressure.Contents, a.quiet)
	return nil
}

// quiet reports whether there are next to no deliveries, which accepting mail could
// slow down: not more than processors.
func (a *App) quiet() bool {
	now, _ := a.deliver.Active()
	return now <= runtime.GOMAXPROCS(0)
}

// pressureSettings are the marks of the configuration.
func pressureSettings(c *config.Config) pressure.Settings {
	b := c.BackPressure
	times := func(m config.DurationMarks) pressure.Marks {
		return pressure.Marks{Medium: time.Duration(m.Medium).Seconds(), High: time.Duration(m.High).Seconds()}
	}
	s := pressure.Settings{
		Marks: map[string]pressure.Marks{
			"memory":       {Medium: float64(b.Memory.Medium), High: float64(b.Memory.High)},
			"queue_length": {Medium: float64(b.QueueLength.Medium), High: float64(b.QueueLength.High)},
			"disk_latency": times(b.DiskLatency),
			"outbox":       times(b.OutboxLag),
		},
		Patience: time.Duration(b.Patience), DelayStep: time.Duration(b.DelayStep), DelayMost: time.Duration(b.DelayMost),
	}
	if b.DelayStep == 0 {
		s.DelayStep = -1
	}
	return s
}

// openPressure makes the monitor of what can run out.
func (a *App) openPressure(cfg *config.Config) {
	limit, own := pressure.MemoryLimit()
	if own && os.Getenv("GOMEMLIMIT") == "" {
		// What is the process' own to use up is the collector's to keep within.
		debug.SetMemoryLimit(limit / 10 * 9)
	}
	told := func(resource string) func() (int, string) {
		return func() (int, string) {
			l := a.queue.Brief()
			text := l.Closed
			if resource == "disk_space" {
				text = strconv.FormatInt(l.DiskFree>>20, 10) + " MiB free"
			}
			return l.Pressure[resource], text
		}
	}
	took := func(d time.Duration) (pressure.Sample, bool) {
		return pressure.Sample{Value: d.Seconds(), Text: d.Round(time.Millisecond).String()}, true
	}
	a.pressure = pressure.New(pressure.Options{
		Settings: pressureSettings(cfg), Emitter: a.emit.Source(event.SourcePolicy),
		Resources: []pressure.Resource{
			{Name: "disk_space", Told: told("disk_space")},
			{Name: "storage_error", Told: told("storage_error")},
			{Name: "memory", Measure: pressure.Memory(limit)},
			{Name: "disk_latency", Measure: func() (pressure.Sample, bool) { return took(a.queue.CommitLatency()) }},
			{Name: "queue_length", Measure: func() (pressure.Sample, bool) {
				n := a.queue.Brief().Messages
				return pressure.Sample{Value: float64(n), Text: strconv.Itoa(n) + " messages"}, true
			}},
			// A tracking store that lags may slow mail down, and not stop it: see docs/explanation/loss-policy.md.
			{Name: "outbox", Most: pressure.Slow, Measure: func() (pressure.Sample, bool) { return took(a.queue.Brief().OutboxAge) }},
		},
	})
}

// maxSessions is how many sessions the process' file descriptors allow: half of
// them, or all but what queue, stores and deliveries may need.
func (a *App) maxSessions(cfg *config.Config) int {
	files := fileLimit()
	if files <= 0 {
		return 0
	}
	most := max(files/2, files-4096)
	wanted := 0
	for _, r := range cfg.Receive {
		wanted += r.Limits.Connections
	}
	if wanted > most {
		a.logger.Warn("file descriptors allow fewer connections than the receive connectors do", zap.Int("connections", wanted),
			zap.Int("allowed", most), zap.Int("file_descriptors", files), zap.String("hint", "raise the limit of open files (ulimit -n, LimitNOFILE=)"))
	}
	return most
}

// pressureStatus is the state of back-pressure for the API.
func (a *App) pressureStatus() trackapi.Pressure {
	p := trackapi.Pressure{Stage: a.pressure.Now().Stage.String(), Delay: a.pressure.Now().Delay.Seconds()}
	for _, s := range a.pressure.Status() {
		p.Resources = append(p.Resources, trackapi.PressedResource{Resource: s.Resource, Level: s.Level, Stage: s.Stage.String(), Detail: s.Text, Since: s.Since})
	}
	return p
}
