package demo

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"waybill/relay/relaytest"
)

// hop is a next hop of the demo: a real server on loopback with a temper.
type hop struct {
	name   string // also its send connector
	domain string // its address space
	temper string // for the person who watches
	make   func() relaytest.Behaviour
	down   bool // nobody listens
	tls    bool
	ascii  bool // it does not offer 8BITMIME
}

func hops() []hop {
	return []hop{
		{name: "partner", domain: "partner.example", temper: "takes everything at once, over TLS", make: willing, tls: true},
		{name: "greylist", domain: "greylist.example", temper: "refuses each recipient's first try", make: greylister},
		{name: "strict", domain: "strict.example", temper: "knows few recipients, has a content policy, takes only ASCII", make: strict, ascii: true},
		{name: "cloud", domain: "cloud.example", temper: "throttles now and then", make: throttler},
		{name: "stall", domain: "stall.example", temper: "thinks for seconds before it says yes", make: staller},
		{name: "down", domain: "down.example", temper: "does not answer at all", down: true},
		{name: "home", domain: "*", temper: "the senders' own mailboxes: takes their bounces", make: willing},
	}
}

func willing() relaytest.Behaviour {
	return func(phase, _ string) (string, time.Duration, bool) {
		if phase == relaytest.PhaseDot {
			return "", time.Duration(5+rand.IntN(30)) * time.Millisecond, false //nolint:gosec // a demo's dice
		}
		return "", 0, false
	}
}

func greylister() relaytest.Behaviour {
	var mu sync.Mutex
	first := map[string]time.Time{}
	return func(phase, arg string) (string, time.Duration, bool) {
		if phase != relaytest.PhaseRcpt {
			return "", 2 * time.Millisecond, false
		}
		mu.Lock()
		defer mu.Unlock()
		if len(first) > 10_000 {
			clear(first)
		}
		seen, ok := first[arg]
		if !ok {
			first[arg] = time.Now()
		}
		if !ok || time.Since(seen) < 4*time.Second {
			return "451 4.7.1 Greylisted, please try again in 5 seconds", 0, false
		}
		return "", 0, false
	}
}

func strict() relaytest.Behaviour {
	return func(phase, arg string) (string, time.Duration, bool) {
		h := fnv.New32a()
		_, _ = h.Write([]byte(arg)) // never fails
		switch {
		case phase == relaytest.PhaseRcpt && h.Sum32()%3 == 0:
			return "550 5.1.1 The email account that you tried to reach does not exist", 0, false
		case phase == relaytest.PhaseDot && rand.IntN(20) == 0: //nolint:gosec // a demo's dice
			return "554 5.7.1 Message rejected by content policy", 0, false
		}
		return "", 3 * time.Millisecond, false
	}
}

func throttler() relaytest.Behaviour {
	return func(phase, _ string) (string, time.Duration, bool) {
		switch n := rand.IntN(100); { //nolint:gosec // a demo's dice
		case phase == relaytest.PhaseMail && n < 15:
			return "432 4.3.2 Concurrent connections limit exceeded", 0, false
		case phase == relaytest.PhaseDot && n < 5:
			return "451 4.7.500 Server busy. Please try again later", 0, false
		case phase == relaytest.PhaseDot:
			return "", time.Duration(40+rand.IntN(120)) * time.Millisecond, false //nolint:gosec // a demo's dice
		}
		return "", 10 * time.Millisecond, false
	}
}

func staller() relaytest.Behaviour {
	return func(phase, _ string) (string, time.Duration, bool) {
		if phase == relaytest.PhaseDot {
			return "", time.Duration(1500+rand.IntN(4000)) * time.Millisecond, false //nolint:gosec // a demo's dice
		}
		return "", 0, false
	}
}

// startHops starts the next hops and returns their send connectors as YAML.
func startHops() (connectors string, stop func(), err error) {
	var hosts []*relaytest.SmartHost
	stop = func() {
		for _, h := range hosts {
			_ = h.Close() // the demo is over
		}
	}
	var b strings.Builder
	for _, h := range hops() {
		addr := "127.0.0.1:9" // the discard port: nobody listens
		level := "none"
		if !h.down {
			opts := []relaytest.Option{relaytest.WithHostname("mx." + h.name + ".example"), relaytest.WithBehaviour(h.make()), relaytest.WithKeep(1)}
			if h.tls {
				opts = append(opts, relaytest.WithTLS("localhost"))
				level = "opportunistic"
			}
			if h.ascii {
				opts = append(opts, relaytest.WithoutExtension("8BITMIME"))
			}
			host, err := relaytest.StartSmartHost("127.0.0.1:0", opts...)
			if err != nil {
				stop()
				return "", nil, err
			}
			hosts = append(hosts, host)
			addr = host.Addr()
		}
		fmt.Fprintf(&b, "  - name: %s\n    address_spaces: [{space: %q, cost: 10}]\n    route: smart_hosts\n    smart_hosts: [%q]\n    tls: {level: %s}\n"+
			"    retry: {schedule: [5s, 10s, 20s, 30s], lifetime: 5m, delay_dsn: 1m}\n", h.name, h.domain, addr, level)
	}
	return b.String(), stop, nil
}
