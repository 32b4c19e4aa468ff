// Package app wires everything: it turns a configuration into a running relay
// with its readers and its HTTP side.
//
// It exists so that the daemon, the demo and the tests run the very same thing.
// It promises that lifetimes nest, tracking store ⊃ readers ⊃ queue ⊃ sessions,
// and end in reverse; that a start that fails half-way unwinds what it started;
// and that a reload either takes all of the new configuration into use or none.
//
// To add a part, start it in New, beside the parts that it needs, and register
// its end with onStop at once.
package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"waybill/cmd/internal/admin"
	"waybill/cmd/internal/config"
	"waybill/logtrack"
	"waybill/logtrack/trackapi"
	"waybill/logtrack/trackhttp"
	"waybill/metrics"
	"waybill/relay/blocklist"
	"waybill/relay/deliver"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/otlplog"
	"waybill/relay/pickup"
	"waybill/relay/pressure"
	"waybill/relay/protolog"
	"waybill/relay/queue"
	"waybill/relay/route"
	"waybill/relay/smtpin"
	"waybill/relay/throttle"
	"waybill/relay/tlsrpt"
	"waybill/relay/transcript"
)

// Version is set by the linker.
var Version = "dev"

// drainTime is the default of Options.DrainTime. With what follows it stays
// below the 30 s that service managers grant.
const drainTime = 20 * time.Second

// Options configure an App.
type Options struct {
	Config    *config.Config
	Load      func() (*config.Config, error) // reads the configuration again, for a reload; nil: no reload
	Commit    string                         // of the source that the program was built from
	DrainTime time.Duration                  // how long sessions and attempts in hand may take at the end; zero means 20s
}

// App is a relay with everything around it.
type App struct {
	opts    Options
	started time.Time
	log     *protolog.Log
	otlp    *otlplog.Log // nil without a collector
	logger  *zap.Logger
	emit    event.Emitter
	track   *logtrack.Store // nil when tracking is off or broken

	trackBroken error // why the tracking store could not be opened
	metrics     *metrics.Reader
	gather      http.Handler // the exposition
	queue       *queue.Queue
	tap         transcript.Tap // where conversations can be watched
	routes      *routes
	reports     *tlsrpt.Reporter // nil without TLS reports
	listings    *blocklist.Watcher
	deliver     *deliver.Scheduler
	smtpin      *smtpin.Server
	pickup      *pickup.Pickup // nil without a pickup directory
	lockout     *throttle.Lockout
	limits      *throttle.Set
	turns       *throttle.Turns // of contents
	pressure    *pressure.Monitor
	admin       *admin.Handler
	http        net.Listener
	volumes     volumes
	every       time.Duration // between two looks at what changes beside us

	reloadMu  sync.Mutex
	drainMu   sync.Mutex
	config    atomic.Pointer[config.Config]
	tokens    atomic.Pointer[config.Tokens]
	reception atomic.Pointer[reception]
	draining  atomic.Bool
	backingUp sync.Mutex // held while a backup is written

	stops []func() error // in order of start
}

// onStop registers the end of something that was just started.
func (a *App) onStop(f func() error) { a.stops = append(a.stops, f) }

// stop ends everything in reverse order.
func (a *App) stop() error {
	var errs []error
	for _, f := range slices.Backward(a.stops) {
		errs = append(errs, f())
	}
	a.stops = nil
	return errors.Join(errs...)
}

// New opens stores and listeners. [App.Run] does the rest, and gives them back.
func New(opts Options) (_ *App, err error) {
	if opts.DrainTime <= 0 {
		opts.DrainTime = drainTime
	}
	a := &App{opts: opts, started: time.Now(), every: watchInterval}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.stop())
		}
	}()
	cfg := opts.Config
	a.config.Store(cfg)
	if err := a.openReaders(cfg); err != nil {
		return nil, err
	}
	in, err := newReception(cfg, nil, nil, a.emit.Source(event.SourceSMTPIn), prober{a})
	if err != nil {
		return nil, err
	}
	a.reception.Store(in.take(a.emit.Source(event.SourceBoot)))
	a.onStop(func() error { a.reception.Load().others.close(); return nil })
	a.onStop(func() error { return a.reception.Load().outside.close() })
	if err := a.openLookups(cfg); err != nil {
		return nil, err
	}
	a.openBlocklists(cfg)
	if err := a.openQuotas(cfg); err != nil {
		return nil, err
	}
	if err := a.routes.load(cfg); err != nil {
		return nil, err
	}
	a.onStop(a.routes.close)
	if err := a.openQueue(cfg); err != nil {
		return nil, err
	}
	rules, err := cfg.Backoff.Rules()
	if err != nil {
		return nil, err
	}
	failures, err := cfg.Replies.Rules()
	if err != nil {
		return nil, err
	}
	a.deliver = deliver.New(deliver.Options{
		Backoff: rules, Failures: failures, Reports: a.reporting(cfg),
		Queue: deliver.FromQueue(a.queue), Connectors: a.routes.connector, Hostname: cfg.Hostname, Emitter: a.emit, DrainTimeout: opts.DrainTime,
		Router: a.routes,
	})
	down := a.deliver.Down
	a.routes.down.Store(&down)
	a.openPressure(cfg)
	if err := a.openThrottles(cfg); err != nil {
		return nil, err
	}
	if err := a.openHTTP(cfg); err != nil {
		return nil, err
	}
	a.volumes.open(cfg)
	a.metrics.SetLevels(a.levels)
	if err := a.openPickup(cfg); err != nil {
		return nil, err
	}
	// Mail comes last: when a connector cannot listen, none does, and nobody has
	// connected yet.
	return a, a.openReception(cfg)
}

// openReaders opens the log, the tracking store and the metrics, and makes the
// Emitter that feeds them.
func (a *App) openReaders(cfg *config.Config) (err error) {
	if a.log, err = protolog.New(logOptions(cfg)); err != nil {
		return err
	}
	a.onStop(a.log.Close)
	a.logger = a.log.Logger()
	receive, send := connectorNames(cfg)
	registry := metrics.NewRegistry()
	a.metrics = metrics.New(registry, metrics.Options{
		Connectors: receive, SendConnectors: send, Providers: providers(), Version: Version, Revision: a.opts.Commit,
	})
	a.gather = metrics.Handler(registry)
	sinks := []event.Sink{a.metrics, a.log}
	if cfg.Telemetry.Endpoint != "" {
		if err := a.openTelemetry(cfg); err != nil {
			return err
		}
		sinks = append(sinks, a.otlp)
	}
	if err := a.openReports(cfg); err != nil {
		return err
	}
	if a.reports != nil {
		sinks = append(sinks, a.reports)
	}
	if cfg.Tracking.Engine != "off" {
		if err := a.openTracking(cfg); err != nil {
			return err
		}
		if a.track != nil {
			sinks = append(sinks, a.track)
		}
	}
	a.emit = event.NewEmitter(cfg.Hostname, event.Sample(sinks...)).Config(cfg.Revision())
	return nil
}

func (a *App) openQueue(cfg *config.Config) (err error) {
	opts := queueOptions(cfg)
	opts.Router, opts.Emitter = a.routes, a.emit.Source(event.SourceQueue)
	opts.Concurrency, opts.Down, opts.Latest = a.concurrency, a.shut, deliver.Latest(a.routes.connector, a.started)
	switch {
	case a.track != nil:
		opts.Confirm = a.track
	case a.trackBroken != nil:
		opts.Confirm = brokenTracking{a.trackBroken}
	}
	opts.Reports = func(m *queue.Message, index []int, outcomes []mail.Outcome) []queue.Report {
		return deliver.Reporter{Hostname: cfg.Hostname, Postmaster: doubleBounces(a.config.Load()), Content: a.queue.Content}.Reports(m, index, outcomes)
	}
	if a.queue, err = queue.Open(opts); err != nil {
		return err
	}
	a.onStop(a.queue.Close)
	return nil
}

// concurrency is asked by the queue, which is open before the scheduler is.
func (a *App) concurrency(hop route.Hop) int {
	if a.deliver == nil {
		return 0
	}
	return a.deliver.Concurrency(hop)
}

// shut is asked by the queue as concurrency is.
func (a *App) shut(hop route.Hop) bool { return a.deliver != nil && a.deliver.Shut(hop) }

func (a *App) openReception(cfg *config.Config) error {
	subjects, err := newSubjects(cfg)
	if err != nil {
		return err
	}
	a.smtpin, err = smtpin.New(smtpin.Options{
		Hostname: cfg.Hostname, Connectors: a.reception.Load().connectors, Acceptor: acceptor{a.queue, subjects}, Emitter: a.emit.Source(event.SourceSMTPIn),
		DrainTimeout: a.opts.DrainTime, Ready: a.queue.Ready, Lockout: a.lockout, Tap: &a.tap, Throttles: a.limits, Turns: a.turns, Pressure: a.pressure, MaxSessions: a.maxSessions(cfg),
	})
	if err != nil {
		return err
	}
	return a.smtpin.Listen()
}

// acceptor lets reception use the queue without knowing it, and keeps of the
// subject what the configuration allows.
type acceptor struct {
	queue    *queue.Queue
	subjects subjects
}

type incoming struct {
	*queue.Incoming
	subjects subjects
}

// Begin prepares for one content.
func (q acceptor) Begin(ctx context.Context, sizeHint int64) (smtpin.Incoming, error) {
	in, err := q.queue.Begin(ctx, sizeHint)
	if err != nil {
		return nil, err // not in: a nil *queue.Incoming is not a nil Incoming
	}
	return incoming{in, q.subjects}, nil
}

// Commit takes responsibility for the message.
func (in incoming) Commit(ctx context.Context, d mail.Draft) error {
	d.Header.Subject = in.subjects.keep(d.Header.Subject)
	return in.Incoming.Commit(ctx, d)
}

func (a *App) openHTTP(cfg *config.Config) (err error) {
	tokens, err := readTokens(cfg)
	if err != nil {
		return err
	}
	a.tokens.Store(tokens)
	subjects, err := newSubjects(cfg)
	if err != nil {
		return err
	}
	opts := admin.Options{
		Queue: a.queue, Throttles: a.limits, Metrics: a.gather, Ready: a.Ready, Acted: a.acted, Slowed: a.slowed, Explain: a.deliver.Explain, Ends: deliver.Ends(a.routes.connector, a.started), Reload: a.Reload, Backup: a.Backup, Status: a.Status, Emitter: a.emit.Source(event.SourceAdmin),
		Hosts: []string{cfg.Hostname}, Tap: &a.tap, Drain: a.Drain, Drained: a.Drained, Subject: subjects.keep, SendConnectors: a.sendConnectors,
	}
	if a.track != nil {
		opts.Tracking, opts.TrackStore = trackhttp.New(trackhttp.Options{Store: a.track}), a.track
	}
	opts.TrackBroken = a.trackBroken
	if cfg.HTTP.TokensFile != "" {
		opts.Authenticate = func(token string) (config.Token, bool) { return a.tokens.Load().Find(token) }
	}
	a.admin = admin.New(opts)
	if a.http, err = net.Listen("tcp", cfg.HTTP.Listen); err != nil {
		return fmt.Errorf("http.listen: %w", err)
	}
	a.onStop(func() error {
		if err := a.http.Close(); !errors.Is(err, net.ErrClosed) { // as it is after serving
			return err
		}
		return nil
	})
	return nil
}

// Addr is where the HTTP side listens.
func (a *App) Addr() string { return a.http.Addr().String() }

// Receive lists where each receive connector listens.
func (a *App) Receive() map[string][]net.Addr { return a.smtpin.Addrs() }

// Logger is the operational log.
func (a *App) Logger() *zap.Logger { return a.logger }

// Ready says why no mail is taken, or nil.
func (a *App) Ready() error {
	if a.draining.Load() {
		return errors.New("draining: the program is about to end")
	}
	if err := a.queue.Ready(); err != nil {
		return err
	}
	if p := a.pressure.Now(); p.Stage >= pressure.All {
		return fmt.Errorf("back-pressure: %s is short: %s", p.Resource, p.Detail)
	}
	return nil
}

// Status is what GET /api/v1/status answers.
func (a *App) Status() trackapi.Status {
	cfg := a.config.Load()
	s := trackapi.Status{
		Version: Version, Hostname: cfg.Hostname, Node: cfg.Hostname, Started: a.started.UTC(), Config: cfg.Revision(), Ready: true, Schema: event.Schema,
	}
	if err := a.Ready(); err != nil {
		s.Ready, s.Why = false, err.Error()
	}
	s.Pressure = a.pressureStatus()
	s.Tracking, s.TrackingWhy = a.trackingState()
	if a.track != nil {
		t := a.track.Stats()
		s.Oldest, s.Events, s.IndexLag, s.StoreSize = t.Oldest, t.Events, t.IndexLag.Seconds(), t.Bytes
	}
	return s
}

// Run relays until ctx is done, then drains: no new sessions, the transactions
// and attempts in hand come to their end, and everything is closed.
func (a *App) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.stop()) }()
	a.logger.Info("started", zap.String("version", Version), zap.String("hostname", a.config.Load().Hostname),
		zap.String("http", a.Addr()), zap.Any("receive", addresses(a.Receive())), zap.String("config_rev", a.config.Load().Revision()))
	if a.config.Load().HTTP.TokensFile == "" {
		a.logger.Info("the API has no tokens and answers on loopback only", zap.String("hint", "set http.tokens_file to give others access"))
	}
	a.emit.Source(event.SourceBoot).Emit(event.ConfigReloaded{Revision: a.config.Load().Revision()})

	// What serves others outlives what is served: the HTTP side and the stores
	// go on until sessions and attempts have ended.
	outer, stopOuter := context.WithCancel(context.WithoutCancel(ctx))
	defer stopOuter()
	around, outer := errgroup.WithContext(outer)
	relay, inner := errgroup.WithContext(ctx)
	context.AfterFunc(outer, func() { a.draining.Store(true) }) // also when something around fails

	relay.Go(func() error { return a.smtpin.Run(inner) })
	relay.Go(func() error { return a.runPickup(inner) })
	relay.Go(func() error {
		err := a.deliver.Run(inner)
		if errors.Is(err, queue.ErrStorage) {
			// Nothing is accepted any more, and clients and operators are told why,
			// until somebody has looked at the disk and starts the relay again.
			<-inner.Done()
		}
		return err
	})
	relay.Go(func() error {
		select { // the relay does not go on without what is around it
		case <-outer.Done():
			return errAround
		case <-inner.Done():
			a.draining.Store(true)
			return nil
		}
	})
	around.Go(func() error { return a.queue.Run(outer) })
	around.Go(func() error { return a.pressure.Run(outer) })
	around.Go(func() error { return boundGarbage(outer) })
	around.Go(func() error { return a.runUnload(outer) })
	around.Go(func() error { return a.runLookups(outer) })
	around.Go(func() error { return a.watch(outer) })
	around.Go(func() error { return a.watchTokens(outer) })
	around.Go(func() error { return a.watchSendTokens(outer) })
	around.Go(func() error { return a.watchQuotas(outer) })
	around.Go(func() error { return a.admin.Run(outer) })
	around.Go(func() error { return a.serveHTTP(outer) })
	if a.track != nil {
		around.Go(func() error { return a.track.Run(outer) })
	}
	err = relay.Wait()
	stopOuter()
	if aroundErr := around.Wait(); err == nil || errors.Is(err, errAround) {
		err = aroundErr
	}
	a.logger.Info("stopped", zap.Error(err))
	return err
}

var errAround = errors.New("a part around the relay has ended")

// serveHTTP answers until ctx is done.
func (a *App) serveHTTP(ctx context.Context) error {
	srv := &http.Server{
		Handler: a.admin, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    zap.NewStdLog(a.logger.Named("http")),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(a.http) }()
	select {
	case err := <-done:
		return fmt.Errorf("http: %w", err)
	case <-ctx.Done():
	}
	a.tap.Close() // those who watch would not end by themselves
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if srv.Shutdown(end) != nil { // a tail that does not end by itself
		_ = srv.Close() // nothing is left to serve
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("http: %w", err)
	}
	return nil
}

func addresses(of map[string][]net.Addr) map[string][]string {
	out := map[string][]string{}
	for name, list := range of {
		for _, addr := range list {
			out[name] = append(out[name], addr.String())
		}
	}
	return out
}
