package deliver

import (
	"math/rand/v2"
	"strings"
	"time"
)

// Defaults of [Retry].
const (
	DefaultLifetime = 48 * time.Hour
	DefaultDelayDSN = 4 * time.Hour
)

// DefaultSchedule is glitch, transient, long: four tries a minute apart, six at
// five minutes, then every ten.
func DefaultSchedule() []time.Duration {
	const m = time.Minute
	return []time.Duration{m, m, m, m, 5 * m, 5 * m, 5 * m, 5 * m, 5 * m, 5 * m, 10 * m}
}

// shortestPause keeps a schedule of zeros from spinning.
const shortestPause = 10 * time.Millisecond

var defaultSchedule = DefaultSchedule()

// Retry says how long and how often to try. Zero fields mean the defaults.
type Retry struct {
	Schedule []time.Duration // pauses after the first, second, ... failure; the last repeats
	Lifetime time.Duration   // from acceptance; zero means the message's own, from the queue
	DelayDSN time.Duration   // age at which the sender is told that the message is late; negative: never

	// Domains has other values for some recipient domains: "example.com", or
	// "*.example.com" for its sub-domains. The most specific one counts, and
	// nothing of the others.
	Domains map[string]Retry
}

// For is r for the mail to a domain (as route.Hop names it), and the key of
// Domains that it is from; empty: the connector's own.
func (r *Retry) For(domain string) (of Retry, key string) {
	if len(r.Domains) == 0 {
		return *r, ""
	}
	if d, ok := r.Domains[domain]; ok {
		return d, domain
	}
	for rest := domain; ; {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			return *r, ""
		}
		if d, ok := r.Domains["*."+parent]; ok {
			return d, "*." + parent
		}
		rest = parent
	}
}

// Pause is how long to wait after the attempt-th failure, counting from 1,
// without jitter.
func (r *Retry) Pause(attempt int) time.Duration {
	schedule := r.Schedule
	if len(schedule) == 0 {
		schedule = defaultSchedule
	}
	return max(shortestPause, schedule[min(max(attempt, 1), len(schedule))-1])
}

func (r *Retry) delayDSN() time.Duration {
	if r.DelayDSN == 0 {
		return DefaultDelayDSN
	}
	return r.DelayDSN
}

// jitterShare is how far a pause may differ from the schedule, to each side, so
// that messages that failed together do not come back together.
const jitterShare = 0.1

// jitter changes d by up to ten percent to each side; random is in [0,1).
func jitter(d time.Duration, random float64) time.Duration {
	return d + time.Duration(float64(d)*jitterShare*(2*random-1))
}

func random() float64 { return rand.Float64() } //nolint:gosec // spreads load, guards no secret
