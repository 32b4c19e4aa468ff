package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"waybill/cmd/internal/peers"
	"waybill/relay/auth"
)

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
	kick func() error  // tries now what waits
	said func() string // on its standard output, if anything
}

// alive are the relays that run, which must end when the user has enough.
type alive struct {
	mu   sync.Mutex
	next int
	ends map[int]func()
}

// add remembers how something is ended, until it is forgotten.
func (a *alive) add(end func()) (forget func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ends == nil {
		a.ends = map[int]func(){}
	}
	id := a.next
	a.next++
	a.ends[id] = end
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.ends, id)
	}
}

// end ends all. Nothing is added or forgotten after that: who tries waits for
// ever, since the program is about to end.
func (a *alive) end() {
	a.mu.Lock()
	for _, end := range a.ends {
		end()
	}
}

// start starts the relay in a temporary folder.
func (s subject) start(o options, sinkPort int) (*running, error) {
	dir, err := os.MkdirTemp(o.dir, "cell-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // Postfix' own users enter it
		return nil, err
	}
	r, err := s.boot(dir, sinkPort)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", s.name, err), os.RemoveAll(dir))
	}
	return r, nil
}

// end ends the relay after something was done with it, of which err says how it went.
func (s subject) end(o options, r *running, err error) error {
	err = errors.Join(err, r.stop())
	if r.said != nil && err != nil {
		if text := r.said(); text != "" {
			err = fmt.Errorf("%w\n%s said: %s", err, s.name, text)
		}
	}
	return errors.Join(err, os.RemoveAll(r.dir)) //nolint:gosec // our own folder
}

// in starts the relay, does something with it, and ends it.
func (s subject) in(o options, sinkPort int, do func(r *running) error) error {
	r, err := s.start(o, sinkPort)
	if err != nil {
		return err
	}
	if err := s.end(o, r, do(r)); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}

// loadPatience is how long the last message may take after all were accepted.
const loadPatience = 2 * time.Minute

// load hands the relay n messages, all of which must arrive once, and waits
// until it has done what they left to do: that is part of what they cost.
func (s subject) load(o options, to *sink, r *running, conns, n int) (f figure, err error) {
	before := peers.CPU(r.pid)
	l := &load{addr: r.addr, n: n, conns: conns, size: o.size, auth: s.auth, to: sinkUser}
	if f.result, err = l.run(to, loadPatience); err == nil {
		err = f.complete(n)
	}
	if err != nil {
		return f, err
	}
	settle(r.pid)
	f.cpu = float64((peers.CPU(r.pid) - before).Microseconds()) / float64(n)
	return f, nil
}

// warm hands the relay messages that do not count. A relay that has just begun
// still grows its heap, makes its first files and starts processes.
func (s subject) warm(o options, to *sink, r *running, conns int) error {
	if o.warm == 0 {
		return nil
	}
	if _, err := s.load(o, to, r, conns, o.warm); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	return nil
}

// A relay has settled when it takes at most settleShare of a processor for
// settleFor. After settleMost it is measured as it is.
const (
	settleShare = 0.1
	settleFor   = 100 * time.Millisecond
	settleMost  = 3 * time.Second
)

// settle waits until the relay has done what a load left to do.
func settle(pid int) {
	was := peers.CPU(pid)
	for range settleMost / settleFor {
		time.Sleep(settleFor)
		now := peers.CPU(pid)
		if (now - was).Seconds() <= settleShare*settleFor.Seconds() {
			return
		}
		was = now
	}
}

// subjects are the relays that were asked for, of those that can be measured.
func (o options) subjects(names ...string) (list []subject) {
	for _, sub := range []subject{
		o.waybill(aWaybill, setup{tracking: true}),
		o.waybill(aUntracked, setup{}),
		{aPostfix, max(1, o.n/4), postfix(o, nil), ""},
	} {
		if o.has(sub.name) && (len(names) == 0 || slices.Contains(names, sub.name)) {
			list = append(list, sub)
		}
	}
	return list
}

// waybill is a Waybill that is set up in a way.
func (o options) waybill(name string, set setup) subject {
	sub := subject{name: name, n: o.n, boot: waybill(o, set)}
	if set.logins {
		sub.auth = login
	}
	return sub
}

// postfix boots a Postfix, whose main.cf has these parameters too.
func postfix(o options, extra map[string]string) func(string, int) (*running, error) {
	return func(dir string, sinkPort int) (*running, error) {
		p, err := peers.StartPostfix(dir, peers.PostfixOptions{RelayPort: sinkPort, Extra: extra})
		if err != nil {
			return nil, err
		}
		forget := o.alive.add(func() { _ = p.Stop() }) // the program ends
		return &running{addr: local(p.Port), pid: p.PID(), dir: dir, kick: p.Flush, stop: func() error {
			forget()
			return p.Stop()
		}}, nil
	}
}

// waybill boots the built program with a minimal configuration.
func waybill(o options, set setup) func(string, int) (*running, error) {
	return func(dir string, sinkPort int) (*running, error) {
		port, err := peers.FreePort()
		if err != nil {
			return nil, err
		}
		p, err := startWaybill(o, dir, port, sinkPort, set)
		if err != nil {
			return nil, err
		}
		return &running{addr: local(port), pid: p.cmd.Process.Pid, dir: dir, http: p.http, stop: p.stop, kick: p.kick, said: p.said}, nil
	}
}

// setup is how a Waybill under test is configured.
type setup struct {
	tracking    bool
	transcripts bool   // of every session and attempt
	logins      bool   // are required
	names       string // a name server: mail goes out by MX, as it says
	cert, key   string // files of the certificate, if any
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

// process is a Waybill that runs.
type process struct {
	cmd   *exec.Cmd
	log   string
	http  int
	ended chan struct{} // closed when it has
	err   error         // how it ended, once it has
}

// startWaybill starts the program.
func startWaybill(o options, dir string, port, sinkPort int, set setup) (*process, error) {
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
	var more []string // further keys
	if set.logins {
		keys, c, err := addLogin(dir)
		if err != nil {
			return nil, err
		}
		more, connector = append(more, keys), c
	}
	if set.cert != "" {
		more = append(more, fmt.Sprintf("certificates: {default: {cert_file: %s, key_file: %s}}\n", set.cert, set.key))
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
	p := &process{cmd: exec.Command(o.binary, "serve", "--config", conf), log: filepath.Join(dir, "stderr"), http: httpPort} //nolint:gosec // the program under test
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }() // the child has its own
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.ended = make(chan struct{})
	forget := o.alive.add(func() {
		_ = p.cmd.Process.Kill() // it may be stopped, and nothing of it is kept
		<-p.ended
	})
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
		forget()
	}()
	up := make(chan error, 1)
	go func() { up <- peers.WaitPort(port, time.Minute) }()
	select {
	case err = <-up:
	case <-p.ended:
		err = errors.Join(errors.New("it ended when it should begin"), p.err)
	}
	if err != nil {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.ended                // so that it has said all
		if text := p.said(); text != "" {
			err = fmt.Errorf("%w\n%s said: %s", err, o.binary, text)
		}
		return nil, err
	}
	return p, nil
}

// said is the beginning of what the program wrote on its standard output: of a
// crash that is the reason.
func (p *process) said() string {
	text, _ := os.ReadFile(p.log) // best effort: it explains another error
	return strings.TrimSpace(string(text[:min(len(text), 2000)]))
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

// stopPatience is how long the program may take to end.
const stopPatience = 2 * time.Minute

// stop ends the program. One that has ended by itself is an error.
func (p *process) stop() error {
	select {
	case <-p.ended:
		return errors.Join(errors.New("it ended by itself"), p.err)
	default:
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	late := time.AfterFunc(stopPatience, func() { _ = p.cmd.Process.Kill() }) // it may end at the same moment
	defer late.Stop()
	<-p.ended
	return p.err
}
