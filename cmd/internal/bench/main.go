// Command bench measures Waybill against Debian's Postfix on this machine: the
// same load, the same sink, the same disk, in alternating rounds of one run.
// Ratios count; single figures are this machine's.
//
// It starts the built bin/waybill and a Postfix of its own on loopback, and
// needs root for Postfix.
package main

import (
	"cmp"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"waybill/cmd/internal/peers"
	"waybill/relay/auth"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	n, rounds, size, queued int
	idle, tls               int
	million, millionSize    int
	destinations            int
	direct                  bool
	soak                    time.Duration
	binary, dir             string
	relays                  string
	only                    string
}

// cells are what there is to measure, in the order in which it is.
var cells = []struct {
	name string
	rare bool // only when it is asked for by name: it takes long
	run  func(o options) error
}{
	{"compare", false, compare},
	{"drain", false, drain},
	{"latency", false, latency},
	{"memory", false, memoryInUse},
	{"large", false, large},
	{"tls", false, tlsSessions},
	{"idle", false, idleConnections},
	{"queue", false, longQueue},
	{"million", true, million},
	{"soak", true, soak},
}

func run() error {
	var o options
	flag.IntVar(&o.n, "n", 20000, "messages in a round")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds; the table has their medians")
	flag.IntVar(&o.size, "size", 10<<10, "octets of a message")
	flag.IntVar(&o.queued, "queued", 100000, "messages for the queue's memory and restart")
	flag.IntVar(&o.idle, "idle", 10000, "sessions that are open and say nothing; 0 leaves them out")
	flag.IntVar(&o.tls, "tls-sessions", 10000, "sessions with a TLS 1.3 handshake in a round; 0 leaves them out")
	flag.StringVar(&o.binary, "waybill", "bin/waybill", "the program")
	flag.StringVar(&o.dir, "dir", "", "where spools go: on the disk to be measured (default: a temporary folder)")
	flag.IntVar(&o.million, "million", 1_000_000, "messages of the cell million")
	flag.IntVar(&o.millionSize, "million-size", 1<<10, "octets of its messages: what is measured does not depend on it, and the disk is spared")
	flag.IntVar(&o.destinations, "destinations", 10_000, "destinations of its messages")
	flag.BoolVar(&o.direct, "direct", false, "fill the queue of the cell million by its files and not by SMTP: faster, and its figures are those after a restart only")
	flag.DurationVar(&o.soak, "soak", 0, "measures the cell soak alone, for so long")
	flag.StringVar(&o.only, "only", "", "cells to measure, apart by commas: "+cellNames()+" (default: all that do not take long)")
	flag.StringVar(&o.relays, "relays", "waybill,waybill-untracked,postfix", "which relays the cell compare measures. There are waybill-transcripts too, which keeps every conversation, and waybill-login, where clients log in")
	flag.Parse()
	if o.soak > 0 && o.only == "" {
		o.only = "soak"
	}
	asked := map[string]bool{}
	for name := range strings.SplitSeq(o.only, ",") {
		if asked[name] = true; name != "" && !strings.Contains(cellNames()+", ", name+", ") {
			return fmt.Errorf("no cell %s; there are %s", name, cellNames())
		}
	}
	if o.dir == "" {
		d, err := os.MkdirTemp("", "waybill-bench-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(d) }() // temporary
		o.dir = d
	}
	if err := os.Chmod(o.dir, 0o755); err != nil { //nolint:gosec // Postfix' own users enter it
		return err
	}
	for _, c := range cells {
		if !asked[c.name] && (o.only != "" || c.rare) {
			continue
		}
		if err := c.run(o); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// subject is one relay under test.
type subject struct {
	name string
	n    int // messages in a round: slow relays get fewer
	boot func(dir string, sinkPort int) (*running, error)
	auth string // of AUTH PLAIN, base64; empty: no login
}

// running is a relay that runs.
type running struct {
	addr string
	pid  int // of the process, or of the first of a tree
	dir  string
	http int // Waybill's HTTP port, or 0
	stop func() error
	kick func() error // tries now what waits
}

// in starts the relay in a temporary folder, does something with it, and ends it.
func (s subject) in(o options, sinkPort int, do func(r *running) error) error {
	dir, err := os.MkdirTemp(o.dir, "cell-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()     // temporary
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // Postfix' own users enter it
		return err
	}
	r, err := s.boot(dir, sinkPort)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	if err := errors.Join(do(r), r.stop()); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}

// subjects are the relays that were asked for, of those that can be measured.
func (o options) subjects(names ...string) (list []subject) {
	for _, sub := range []subject{
		{"waybill", o.n, waybill(o.binary, setup{tracking: true}), ""},
		{"waybill-untracked", o.n, waybill(o.binary, setup{}), ""},
		{"waybill-transcripts", o.n, waybill(o.binary, setup{tracking: true, transcripts: true}), ""},
		{"waybill-login", o.n, waybill(o.binary, setup{tracking: true, logins: true}), login},
		{"postfix", max(1000, o.n/4), postfix, ""},
	} {
		if slices.Contains(strings.Split(o.relays, ","), sub.name) && (len(names) == 0 || slices.Contains(names, sub.name)) {
			list = append(list, sub)
		}
	}
	return list
}

// cell is one row of the table: a relay at a number of connections.
type cell struct {
	relay string
	conns int
}

func cellNames() string {
	var names []string
	for _, c := range cells {
		names = append(names, c.name)
	}
	return strings.Join(names, ", ")
}

// compare runs every relay at 20 and 100 connections in alternating rounds.
func compare(o options) error {
	s, err := newSink("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer s.close()
	subjects := o.subjects()
	ceiling := map[int][]float64{}
	figures := map[cell][]figure{}
	var order []cell
	for round := range o.rounds {
		for _, conns := range []int{20, 100} {
			rate, err := groupedAppends(o.dir, o.size, conns)
			if err != nil {
				return err
			}
			ceiling[conns] = append(ceiling[conns], rate)
		}
		for _, sub := range subjects {
			for _, conns := range []int{20, 100} {
				f, err := measure(o, s, sub, conns)
				if err != nil {
					return fmt.Errorf("%s at %d connections: %w", sub.name, conns, err)
				}
				c := cell{sub.name, conns}
				if round == 0 {
					order = append(order, c)
				}
				figures[c] = append(figures[c], f)
				fmt.Fprintf(os.Stderr, "round %d  %-22s %3d connections: %6.0f accepted/s  p99 %-8s %6.0f end to end/s  %4.0f CPU µs  lost %d twice %d\n",
					round+1, sub.name, conns, f.AcceptRate, f.P99.Round(100*time.Microsecond), f.EndRate, f.cpu, f.Accepted-f.Arrived, f.Twice)
			}
		}
	}
	fmt.Printf("\nMedians of %d rounds, %d octets, 1 recipient, both sync before 250:\n\n", o.rounds, o.size)
	fmt.Println("| relay | connections | accepted/s | end to end/s | p50 of 250 after DATA | p99 | CPU µs/message |")
	fmt.Println("|---|---|---|---|---|---|---|")
	for _, c := range order {
		fs := figures[c]
		fmt.Printf("| %s | %d | %.0f | %.0f | %s | %s | %.0f |\n", c.relay, c.conns, median(fs, func(f figure) float64 { return f.AcceptRate }),
			median(fs, func(f figure) float64 { return f.EndRate }), ms(median(fs, func(f figure) float64 { return float64(f.P50) })),
			ms(median(fs, func(f figure) float64 { return float64(f.P99) })), median(fs, func(f figure) float64 { return f.cpu }))
	}
	fmt.Println()
	for _, conns := range []int{20, 100} {
		if w := figures[cell{"waybill", conns}]; len(w) > 0 {
			is, can := median(w, func(f figure) float64 { return f.AcceptRate }), middle(ceiling[conns])
			verdict("disk", is >= can/2, fmt.Sprintf("%d connections: %.0f accepted/s, the disk takes %.0f grouped appends/s of this size from %d writers: %.2f ×, at least 0.5", conns, is, can, conns, is/can))
		}
	}
	gains(figures, "transcripts off", "waybill", "waybill-transcripts")
	gains(figures, "no login", "waybill", "waybill-login")
	if has := func(name string) bool { return len(figures[cell{name, 20}]) > 0 }; has("waybill") && has("waybill-untracked") && has("postfix") {
		for _, conns := range []int{20, 100} {
			w, off, p := figures[cell{"waybill", conns}], figures[cell{"waybill-untracked", conns}], figures[cell{"postfix", conns}]
			accept := func(f figure) float64 { return f.AcceptRate }
			end := func(f figure) float64 { return f.EndRate }
			cpu := func(f figure) float64 { return f.cpu }
			p99 := func(f figure) float64 { return float64(f.P99) }
			fmt.Printf("%d connections: accept %.1f × Postfix, end to end %.1f ×, p99 %.2f ×, CPU %.2f ×; tracking off gains %.0f %% accept, %.0f %% end to end\n", conns,
				median(w, accept)/median(p, accept), median(w, end)/median(p, end), median(w, p99)/median(p, p99), median(w, cpu)/median(p, cpu),
				100*(median(off, accept)/median(w, accept)-1), 100*(median(off, end)/median(w, end)-1))
			against := func(what string, of func(figure) float64, most bool, target float64) {
				is, word := median(w, of)/median(p, of), "at least"
				ok := is >= target
				if most {
					ok, word = is <= target, "at most"
				}
				verdict(what, ok, fmt.Sprintf("%d connections: %.2f × Postfix, %s %.2f", conns, is, word, target))
			}
			against("accept", accept, false, 8)
			against("end to end", end, false, 5)
			against("CPU", cpu, true, 0.2)
			if conns == 20 {
				against("p99", p99, true, 0.5)
			}
		}
	}
	return nil
}

// gains says what is gained by being one relay and not the other.
func gains(figures map[cell][]figure, what, is, not string) {
	for _, conns := range []int{20, 100} {
		a, b := figures[cell{is, conns}], figures[cell{not, conns}]
		if len(a) == 0 || len(b) == 0 {
			continue
		}
		more := func(of func(figure) float64) float64 { return 100 * (median(a, of)/median(b, of) - 1) }
		fmt.Printf("%d connections: %s gains %.0f %% accept, %.0f %% end to end, %.0f %% CPU\n", conns, what,
			more(func(f figure) float64 { return f.AcceptRate }), more(func(f figure) float64 { return f.EndRate }), more(func(f figure) float64 { return f.cpu }))
	}
}

type figure struct {
	result
	cpu float64 // µs a message
}

func measure(o options, s *sink, sub subject, conns int) (f figure, err error) {
	err = sub.in(o, s.port(), func(r *running) error {
		before := peers.CPU(r.pid)
		l := &load{addr: r.addr, n: sub.n, conns: conns, size: o.size, auth: sub.auth, to: func(i int) string { return fmt.Sprintf("user%d@sink.test", i%1000) }}
		f.result, err = l.run(s, 2*time.Minute)
		f.cpu = float64((peers.CPU(r.pid) - before).Microseconds()) / float64(max(1, f.Accepted))
		return err
	})
	return f, err
}

func median(fs []figure, of func(figure) float64) float64 {
	var v []float64
	for _, f := range fs {
		v = append(v, of(f))
	}
	return middle(v)
}

// middle is the median of v.
func middle[T cmp.Ordered](v []T) T {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func ms(ns float64) string { return fmt.Sprintf("%.1f ms", ns/1e6) }

func postfix(dir string, sinkPort int) (*running, error) {
	p, err := peers.StartPostfix(dir, peers.PostfixOptions{RelayPort: sinkPort})
	if err != nil {
		return nil, err
	}
	return &running{addr: local(p.Port), pid: p.PID(), dir: dir, stop: p.Stop, kick: p.Flush}, nil
}

// waybill boots the built program with a minimal configuration.
func waybill(binary string, set setup) func(string, int) (*running, error) {
	return func(dir string, sinkPort int) (*running, error) {
		port, err := peers.FreePort()
		if err != nil {
			return nil, err
		}
		p, err := startWaybill(binary, dir, port, sinkPort, set)
		if err != nil {
			return nil, err
		}
		return &running{addr: local(port), pid: p.cmd.Process.Pid, dir: dir, http: p.http, stop: p.stop, kick: p.kick}, nil
	}
}

// setup is how a Waybill under test is configured.
type setup struct {
	tracking    bool
	transcripts bool   // of every session and attempt
	logins      bool   // are required
	names       string // a name server: mail goes out by MX, as it says
}

// login is the name and the password of setup.logins, as AUTH PLAIN sends them.
var login = base64.StdEncoding.EncodeToString([]byte("\x00bench\x00bench password"))

// addLogin makes the user file, and says what the configuration and the receive connector need for it.
func addLogin(dir string) (keys, connector string, err error) {
	file := filepath.Join(dir, "users.yaml")
	users, err := auth.CreateUsers(file)
	if err == nil {
		err = users.Add(auth.User{Name: "bench", AnySender: true}, auth.NewSecret("bench password"))
	}
	return fmt.Sprintf("users: {file: %s}\n", file), ", auth: {required: true, mechanisms: [PLAIN], before_tls: true}", err
}

type process struct {
	cmd  *exec.Cmd
	log  string
	http int
}

// startWaybill starts the program; more are further keys of its configuration.
func startWaybill(binary, dir string, port, sinkPort int, set setup, more ...string) (*process, error) {
	httpPort, err := peers.FreePort()
	if err != nil {
		return nil, err
	}
	engine := "badger"
	if !set.tracking {
		engine = "off"
	}
	transcript := "failures"
	if set.transcripts {
		transcript = "all"
	}
	connector := ""
	if set.logins {
		keys, c, err := addLogin(dir)
		if err != nil {
			return nil, err
		}
		more, connector = append(more, keys), c
	}
	way := fmt.Sprintf(`route: smart_hosts, smart_hosts: ["127.0.0.1:%d"]`, sinkPort)
	if set.names != "" {
		way = "route: mx"
		more = append(more, fmt.Sprintf("dns: {servers: [%q]}\n", set.names))
	}
	conf := filepath.Join(dir, "waybill.yaml")
	text := fmt.Sprintf(`hostname: relay.test
data_dir: %[1]s/data
receive_connectors:
  - {name: in, usage: internal, listen: ["127.0.0.1:%[2]d"], remote_ranges: ["127.0.0.0/8"], permissions: [submit, relay], limits: {connections: 20000, connections_per_source: 20000}, transcript: %[6]s%[7]s}
send_connectors:
  - {name: sink, address_spaces: [{space: "*", cost: 10}], %[3]s, tls: {level: none}, transcript: %[6]s}
tracking: {engine: %[4]s}
http: {listen: "127.0.0.1:%[5]d"}
log: {file: %[1]s/waybill.log}
`, dir, port, way, engine, httpPort, transcript, connector) + strings.Join(more, "")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(binary, "serve", "--config", conf), log: filepath.Join(dir, "stderr"), http: httpPort} //nolint:gosec // the program under test
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }() // the child has its own
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	if err := peers.WaitPort(port, time.Minute); err != nil {
		text, _ := os.ReadFile(p.log) // it explains the error
		return nil, fmt.Errorf("%w\n%s", err, text)
	}
	return p, nil
}

// kick tries now what waits, as an operator does.
func (p *process) kick() error {
	body := strings.NewReader(`{"action": "retry", "filter": {"all": true}, "reason": "bench", "dry_run": false}`)
	resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/api/v1/queue/actions", p.http), "application/json", body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // read below
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("retry: %s: %s", resp.Status, answer)
	}
	return err
}

func (p *process) stop() error {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	return p.cmd.Wait()
}

// longQueue fills the queue while the next hop is down, and restarts.
func longQueue(o options) error {
	dir, err := os.MkdirTemp(o.dir, "queue-")
	if err != nil {
		return err
	}
	dead, err := peers.FreePort()
	if err != nil {
		return err
	}
	port, err := peers.FreePort()
	if err != nil {
		return err
	}
	p, err := startWaybill(o.binary, dir, port, dead, setup{tracking: true})
	if err != nil {
		return err
	}
	l := &load{addr: fmt.Sprintf("127.0.0.1:%d", port), n: o.queued, conns: 20, size: o.size, to: func(i int) string { return fmt.Sprintf("user%d@domain%d.test", i, i%1000) }}
	r, err := l.run(nil, 0)
	if err != nil {
		return err
	}
	full, err := peers.RSS(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	if err := p.stop(); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	began := time.Now()
	if p, err = startWaybill(o.binary, dir, port, dead, setup{tracking: true}); err != nil {
		return err
	}
	ready := time.Since(began)
	again, err := peers.RSS(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	fmt.Printf("\n%d messages queued for a next hop that is down: accepted %.0f/s, RSS %d MiB; restart to ready %s, RSS %d MiB\n",
		r.Accepted, r.AcceptRate, full>>20, ready.Round(10*time.Millisecond), again>>20)
	return p.stop()
}
