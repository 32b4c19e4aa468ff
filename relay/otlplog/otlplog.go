// Package otlplog is the reader of facts that sends the record to others: one
// OpenTelemetry log record for each fact, by OTLP over HTTP.
//
// It exists so that those who collect logs with OpenTelemetry get facts with
// their types, and need not take lines apart. A record has the fact's name as
// its event name, the fact's time, the severity that the fact's line has in
// package protolog, and the fields of the line, under the same names, as
// attributes.
//
// It promises that the relay never waits for it. What waits to be sent is
// bounded; when half of the room is taken, protocol facts are left out, and when
// all of it is, every fact; [Stats] counts them by reason. A collector that does
// not answer, or is busy, is tried again for minutes, and one that refuses
// records is not. What the relay has not sent when it ends is lost after a few
// seconds, and counted. This is a copy: the record is package protolog's, and
// nothing that must not be lost depends on a collector.
//
// To add a fact, do nothing here: its fields come from package event, and its
// severity from package protolog.
package otlplog

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"

	"waybill/relay/event"
	"waybill/relay/protolog"
)

// logsPath is where a receiver takes logs (OTLP 1.x, "OTLP/HTTP Request").
const logsPath = "/v1/logs"

// What is sent at once, and what a fact takes, by taste.
const (
	batchRecords = 512
	batchOctets  = 1 << 20
	factOctets   = 1 << 10 // of a fact without lists, about
	itemOctets   = 128     // of an item of a list, about
)

// bounds are what tests make smaller.
type bounds struct {
	room    int           // octets of facts that wait
	every   time.Duration // how long a fact waits for others to be sent with
	request time.Duration // one request
	first   time.Duration // wait after the first failure
	longest time.Duration // the longest wait between two tries
	giveUp  time.Duration // trying to send some facts
	quiet   time.Duration // without trouble, before it is over
	flush   time.Duration // what is left, at the end
}

// By taste: 16 MiB are some 10,000 facts, and a collector is not away for longer
// than minutes when it is started again.
var normal = bounds{
	room: 16 << 20, every: time.Second, request: 10 * time.Second, first: time.Second, longest: 30 * time.Second, giveUp: 5 * time.Minute, quiet: time.Minute, flush: 3 * time.Second,
}

// The reasons for which facts are not sent.
const (
	BufferFull  = "buffer_full" // the collector is slower than the relay, or away
	Unavailable = "unavailable" // the collector did not answer for minutes
	Refused     = "refused"     // the collector does not want them
	Closed      = "closed"      // the relay has ended
)

// Reasons lists them.
func Reasons() []string { return []string{BufferFull, Unavailable, Refused, Closed} }

// ErrFull says that facts are left out, because the collector takes them too slowly.
var ErrFull = errors.New("the collector is too slow: facts are left out")

// Options configure a Log.
type Options struct {
	Endpoint string                      // as [CheckEndpoint] wants it
	Header   func() (http.Header, error) // header fields of requests, asked for each; may be nil
	TLS      *tls.Config                 // nil: the system's authorities
	Compress bool                        // requests with gzip
	Level    string                      // debug, info, warn or error: facts below it are not sent; empty: all are
	Host     string                      // our name
	Version  string                      // of the program

	// Trouble is called with what is wrong when facts can no longer be sent, and
	// with nil when they can be again: once each. It must not wait.
	Trouble func(error)
}

// Stats are what became of the facts so far.
type Stats struct {
	Sent    uint64
	Dropped map[string]uint64 // by reason, see [Reasons]
	Pending int               // facts that wait
}

// CheckEndpoint reports what is wrong with the URL of a collector. Without a path
// to the logs, that of the standard is added. There must be no secret in it: it
// is in error messages.
func CheckEndpoint(endpoint string) error {
	_, err := endpointURL(endpoint)
	return err
}

func endpointURL(endpoint string) (string, error) {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil: // its text has the URL, in which there may be a password
		return "", errors.New("not a URL such as https://collector.example.com:4318")
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Opaque != "":
		return "", errors.New("not an http or https URL such as https://collector.example.com:4318")
	case u.User != nil, u.RawQuery != "", u.Fragment != "", u.ForceQuery:
		return "", errors.New("a URL with a user, a query or a fragment: credentials belong into a header")
	}
	if !strings.HasSuffix(u.Path, logsPath) {
		u.Path = strings.TrimSuffix(u.Path, "/") + logsPath
	}
	return u.String(), nil
}

// Log sends facts. Its methods may be called by many goroutines at once.
type Log struct {
	least    log.Severity
	tellThem func(error)
	bounds   bounds
	exporter *otlploghttp.Exporter
	way      *way
	records  *records

	mu      sync.Mutex
	pending []waiting
	octets  int // in pending
	closed  bool

	sent    atomic.Uint64
	dropped map[string]*atomic.Uint64 // by reason

	wake   chan struct{}
	quit   chan struct{}
	done   chan struct{}
	cancel context.CancelFunc // ends what run is doing

	// These are run's own.
	troubled bool
	trouble  time.Time // the latest
	full     uint64    // facts that were left out for want of room, as known last
}

// waiting is a fact that waits, with its size.
type waiting struct {
	rec    event.Record
	octets int
}

// New starts sending. Nobody is connected to before there is a fact. The caller
// must Close the Log.
func New(opts Options) (*Log, error) { return start(opts, normal) }

func start(opts Options, b bounds) (*Log, error) {
	endpoint, err := endpointURL(opts.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("OTLP endpoint: %w", err)
	}
	least := log.SeverityDebug
	if opts.Level != "" {
		if least = severities[opts.Level]; least == log.SeverityUndefined {
			return nil, fmt.Errorf("OTLP level %.20q: want debug, info, warn or error", opts.Level)
		}
	}
	if opts.Trouble == nil {
		opts.Trouble = func(error) {}
	}
	l := &Log{
		least: least, tellThem: opts.Trouble, bounds: b, dropped: map[string]*atomic.Uint64{},
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
	}
	for _, reason := range Reasons() {
		l.dropped[reason] = new(atomic.Uint64)
	}
	l.way = newWay(opts, l.tell)
	compression := otlploghttp.NoCompression
	if opts.Compress {
		compression = otlploghttp.GzipCompression
	}
	ctx, cancel := context.WithCancel(context.Background())
	// Everything that the library would take from its environment variables is
	// said here, so that the configuration file alone counts.
	l.exporter, err = otlploghttp.New(ctx,
		otlploghttp.WithEndpointURL(endpoint), otlploghttp.WithHTTPClient(l.way.client(b.request)), otlploghttp.WithTLSClientConfig(nil), otlploghttp.WithHeaders(nil),
		otlploghttp.WithTimeout(b.request), otlploghttp.WithCompression(compression), otlploghttp.WithMaxResponseSize(maxResponse),
		otlploghttp.WithRetry(otlploghttp.RetryConfig{Enabled: true, InitialInterval: b.first, MaxInterval: b.longest, MaxElapsedTime: b.giveUp}))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("OTLP: %w", err)
	}
	l.records = newRecords(opts)
	l.cancel = cancel
	go l.run(ctx)
	return l, nil
}

// Write takes a fact, if there is room. It never waits.
func (l *Log) Write(r *event.Record) {
	if r.Minor || severityOf(r.Event) < l.least {
		return
	}
	size, room := weight(r), l.bounds.room
	if event.Class(r.Event) == event.Protocol {
		room /= 2
	}
	l.mu.Lock()
	switch {
	case l.closed:
		l.mu.Unlock()
		l.dropped[Closed].Add(1)
		return
	case l.octets+size > room && l.octets > 0:
		l.mu.Unlock()
		l.dropped[BufferFull].Add(1)
		return
	}
	l.pending = append(l.pending, waiting{r.Keep(), size})
	l.octets += size
	enough := len(l.pending) >= batchRecords || l.octets >= batchOctets
	l.mu.Unlock()
	if enough {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// weight is about how many octets a fact takes. Exactness is not worth the time
// of the relay: what matters is what can be large.
func weight(r *event.Record) int {
	n := factOctets + itemOctets*event.Items(r.Event)
	if t, ok := r.Event.(event.TranscriptKept); ok {
		for i := range t.Transcript {
			n += len(t.Transcript[i].Text)
		}
	}
	return n
}

// take gives what is to be sent next.
func (l *Log) take() (batch []waiting) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, octets := 0, 0
	for n < len(l.pending) && n < batchRecords && (n == 0 || octets+l.pending[n].octets <= batchOctets) {
		octets += l.pending[n].octets
		n++
	}
	batch = l.pending[:n:n]
	l.pending = l.pending[n:]
	l.octets -= octets
	if len(l.pending) == 0 {
		l.pending = nil
	}
	return batch
}

// run sends until the Log is closed, and then what is left.
func (l *Log) run(ctx context.Context) {
	defer close(l.done)
	tick := time.NewTicker(l.bounds.every)
	defer tick.Stop()
	for last := false; !last; {
		select {
		case <-tick.C:
		case <-l.wake:
		case <-l.quit:
			last = true
		}
		for batch := l.take(); len(batch) > 0; batch = l.take() {
			l.send(ctx, batch)
		}
		if l.troubled && time.Since(l.trouble) >= l.bounds.quiet {
			l.tell(nil)
		}
	}
}

// send sends some facts, or gives up.
func (l *Log) send(ctx context.Context, batch []waiting) {
	n := uint64(len(batch))
	if ctx.Err() != nil {
		l.dropped[Closed].Add(n)
		return
	}
	try, cancel := context.WithTimeout(ctx, l.bounds.giveUp)
	defer cancel()
	l.way.reset()
	err := l.exporter.Export(try, l.records.of(batch))
	switch rejected := min(l.way.rejected, n); {
	case err == nil:
		l.sent.Add(n - rejected)
		l.dropped[Refused].Add(rejected)
	case ctx.Err() != nil:
		l.dropped[Closed].Add(n)
		return
	case l.way.again, try.Err() != nil:
		l.dropped[Unavailable].Add(n)
	default:
		l.dropped[Refused].Add(n)
	}
	if err != nil {
		l.tell(err)
	}
	if full := l.dropped[BufferFull].Load(); full != l.full {
		l.full = full
		l.tell(ErrFull)
	}
}

// tell says that there is trouble, or that it is over, to those who have not
// heard it.
func (l *Log) tell(err error) {
	if err != nil {
		l.trouble = time.Now()
	}
	if l.troubled == (err != nil) {
		return
	}
	l.troubled = err != nil
	l.tellThem(err)
}

// Close sends what waits, for a few seconds at most. Facts that come later are
// counted as dropped.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	close(l.quit)
	end := time.AfterFunc(l.bounds.flush, l.cancel)
	<-l.done
	end.Stop()
	l.cancel()
	l.way.close()
	return l.exporter.Shutdown(context.Background()) // it holds nothing
}

// Stats reads the counts.
func (l *Log) Stats() Stats {
	s := Stats{Sent: l.sent.Load(), Dropped: map[string]uint64{}}
	for reason, n := range l.dropped {
		s.Dropped[reason] = n.Load()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Pending = len(l.pending)
	return s
}

// severities are the levels of package protolog.
var severities = map[string]log.Severity{"debug": log.SeverityDebug, "info": log.SeverityInfo, "warn": log.SeverityWarn, "error": log.SeverityError}

func severityOf(ev event.Event) log.Severity { return severities[protolog.Severity(ev)] }

// records makes the library's records of ours. They can only be had by emitting
// them: it is the processor of its own provider.
type records struct {
	logger log.Logger
	fields []event.Field
	attrs  []attribute.KeyValue
	made   []sdklog.Record
}

func newRecords(opts Options) *records {
	r := &records{}
	about := resource.NewSchemaless(
		attribute.String("service.name", "waybill"), attribute.String("service.version", opts.Version),
		attribute.String("service.instance.id", opts.Host), attribute.String("host.name", opts.Host))
	provider := sdklog.NewLoggerProvider(sdklog.WithResource(about), sdklog.WithProcessor(r), sdklog.WithAllowKeyDuplication(),
		sdklog.WithAttributeCountLimit(-1), sdklog.WithAttributeValueLengthLimit(-1), sdklog.WithAttributeValueDepthLimit(-1))
	r.logger = provider.Logger("waybill/relay", log.WithInstrumentationVersion(opts.Version))
	return r
}

// of makes the records of a batch. They are valid until it is called again.
func (r *records) of(batch []waiting) []sdklog.Record {
	clear(r.made) // hold no text of a message
	r.made = r.made[:0]
	for i := range batch {
		r.emit(&batch[i].rec)
	}
	return r.made
}

func (r *records) emit(rec *event.Record) {
	r.fields, r.attrs = rec.AppendFields(r.fields[:0]), r.attrs[:0]
	for i := range r.fields {
		if f := &r.fields[i]; f.Key != "ts" { // which is the record's own time
			r.attrs = append(r.attrs, attributeOf(f))
		}
	}
	name := event.Name(rec.Event)
	var out log.Record
	out.SetEventName(name)
	out.SetBody(attribute.StringValue(name)) // for those who do not show event names
	out.SetTimestamp(rec.Time)
	out.SetSeverity(severityOf(rec.Event))
	out.SetSeverityText(protolog.Severity(rec.Event))
	out.AddAttributes(r.attrs...)
	r.logger.Emit(context.Background(), out)
}

// attributeOf makes an attribute of a field. Text that is not UTF-8, which peers
// may send, would have the whole request refused.
func attributeOf(f *event.Field) attribute.KeyValue {
	key := attribute.Key(f.Key)
	switch f.Kind {
	case event.String:
		return key.String(strings.ToValidUTF8(f.Str, "\uFFFD"))
	case event.Int:
		return key.Int64(f.Int)
	case event.Float:
		return key.Float64(f.Float)
	case event.Time:
		return key.String(f.Time.Format(time.RFC3339Nano))
	case event.Bool:
		return key.Bool(f.Int != 0)
	case event.Object:
		var list []attribute.Value
		for _, item := range f.List() {
			var values []attribute.KeyValue
			for i := range item {
				values = append(values, attributeOf(&item[i]))
			}
			list = append(list, attribute.MapValue(values...))
		}
		return attribute.KeyValue{Key: key, Value: attribute.SliceValue(list...)}
	}
	return key.String("")
}

// Enabled implements [sdklog.Processor].
func (r *records) Enabled(context.Context, sdklog.EnabledParameters) bool { return true }

// OnEmit keeps a record.
func (r *records) OnEmit(_ context.Context, rec *sdklog.Record) error {
	r.made = append(r.made, rec.Clone())
	return nil
}

// Shutdown implements [sdklog.Processor]. There is nothing to do.
func (r *records) Shutdown(context.Context) error { return nil }

// ForceFlush implements [sdklog.Processor]. There is nothing to do.
func (r *records) ForceFlush(context.Context) error { return nil }
