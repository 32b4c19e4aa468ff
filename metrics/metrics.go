// Package metrics is the reader of facts that keeps their running summary:
// Prometheus counters and histograms. Levels (queue depth, ages, free space)
// are not facts; they are read when Prometheus asks, see [Levels].
//
// It exists so that a number on a dashboard and a line in the log never
// disagree: both come from the one statement of the fact. It promises that every
// metric exists from the start with all its label values at 0, that a label
// takes its values from a closed set whatever a peer sends (what does not fit
// is folded into "other", and waybill_metric_label_overflow_total counts it
// where that was not expected), and that writing a fact takes no lock of its
// own. The number of series is bounded by configuration: about 6,000 with eight
// connectors each way. The queue label alone holds names from outside, on gauges
// only, for the 50 largest or oldest queues.
//
// A durable fact that was stated again after a crash is counted by the new
// process, which counts from 0 anyhow.
//
// To add a metric, add its family to tables (facts) or to levels (levels), feed
// it in Write, and run "go generate": exposition.golden and the reference show
// the change. A metric that nothing states does not exist here. Left out until
// something does:
// waybill_remote_quota_used_ratio, waybill_oauth_token_refreshes_total and
// waybill_oauth_token_expiry_timestamp_seconds (no such connectors),
// the waybill_canary family and waybill_domain_check_ok (no such checks), waybill_protocol_log_sessions_total (lines are counted, not
// sessions: waybill_protocol_log_lines_total), and compactions and stalls of
// Badger.
package metrics

//go:generate go test -run "TestExposition|TestReference" -update

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// maxNames bounds the values of a connector or provider label.
const maxNames = 50

// Options configure a Reader.
type Options struct {
	Connectors     []string      // names of the receive connectors
	SendConnectors []string      // names of the send connectors
	Providers      []string      // roll-ups of next hops
	Levels         func() Levels // asked at each scrape; may be nil, see [Reader.SetLevels]
	Version        string        // for waybill_build_info
	Revision       string        // likewise: the commit
}

// Reader counts facts. It is an [event.Sink].
type Reader struct {
	tables atomic.Pointer[tables]
	levels levels

	mu   sync.Mutex // held while tables are made anew
	defs *definer
	opts Options
}

// New registers all metrics with reg, which must not have them yet.
func New(reg prometheus.Registerer, opts Options) *Reader {
	r := &Reader{defs: &definer{reg: reg, known: map[string]prometheus.Collector{}}, opts: opts}
	r.opts.Connectors = union(nil, opts.Connectors)
	r.opts.SendConnectors = union(nil, opts.SendConnectors)
	r.opts.Providers = union(nil, opts.Providers)
	r.tables.Store(newTables(r.defs, r.opts))
	r.levels.define(r.defs, opts)
	if opts.Levels != nil {
		r.SetLevels(opts.Levels)
	}
	reg.MustRegister(&r.levels)
	return r
}

// SetLevels says where levels are read from now on. Before it is called, only
// the levels that need nobody are exposed.
func (r *Reader) SetLevels(f func() Levels) { r.levels.read.Store(&f) }

// SetConnectors adds the connectors of a new configuration. Counters of
// connectors that are gone stay, as Prometheus expects.
func (r *Reader) SetConnectors(receive, send []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opts.Connectors = union(r.opts.Connectors, receive)
	r.opts.SendConnectors = union(r.opts.SendConnectors, send)
	r.tables.Store(newTables(r.defs, r.opts))
}

// union appends the names that are new, up to the cap.
func union(have, names []string) []string {
	seen := map[string]bool{other: true}
	var all []string
	for _, list := range [][]string{have, names} {
		for _, name := range list {
			if !seen[name] && len(all) < maxNames {
				seen[name] = true
				all = append(all, name)
			}
		}
	}
	return all
}

// Metrics lists every metric of the package, in the order of the reference.
func (r *Reader) Metrics() []Metric {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Metric(nil), r.defs.catalogue...)
}

// ObserveQuery counts one answered question to the tracking API. kind is
// search, timeline, aggregate, events, values or transcript.
func (r *Reader) ObserveQuery(kind string, took time.Duration) {
	r.tables.Load().queryDuration.observe(took.Seconds(), "", kind)
}

// tables are the families that facts feed. They are replaced as a whole when
// connectors come.
type tables struct {
	events, connections, sessionsClosed, commands               *counters
	received, receivedBytes, rejected, rcptRejected, enqueued   *counters
	auth, handshakes, handshakeFailures, throttle               *counters
	queueActions, attempts, completed, failures, responses      *counters
	slo, tlsSessions, dnsQueries, reused, dsn, certReloads      *counters
	tlsPolicyFailures, tlsDowngrades, tlsReports                *counters
	receiveDuration, acceptDuration, messageSize, queryDuration *histograms
	latency, stages, attemptsPerRecipient, dnsDuration          *histograms
	reload                                                      *reload

	lookups        *counters
	tokenRefreshes *counters
	lookupDuration *histograms

	backoffs, attemptQuestions, converted *counters
}

// newTables is long because it is the list of all metrics.
func newTables(d *definer, o Options) *tables {
	receive, send := connectorDim(o.Connectors, "receive connector"), connectorDim(o.SendConnectors, "send connector")
	origin := connectorDim(append([]string{internal}, o.Connectors...), `receive connector, or "`+internal+`" for reports that the relay made`)
	provider := dim{label: "provider", words: o.Providers, fold: foldCounted}
	d.begin()
	t := &tables{}

	t.connections = d.counters("connections_total", "Inbound connections, by what became of them at once.", receive, resultDim)
	t.sessionsClosed = d.counters("sessions_closed_total", "SMTP sessions that ended, by cause.", directionDim, causeDim)
	t.commands = d.counters("commands_total", "SMTP commands answered, by the class of the reply.", receive, commandDim, codeClassDim)
	t.received = d.counters("messages_received_total", "Messages accepted from clients: on stable storage and acknowledged.", receive, protocolDim)
	t.receivedBytes = d.counters("message_bytes_total", "Octets of content of the messages accepted from clients.", receive, protocolDim)
	t.rejected = d.counters("messages_rejected_total", "Transactions refused at MAIL or for their content.", receive, refusalDim)
	t.rcptRejected = d.counters("recipients_rejected_total", "Recipients refused at RCPT.", receive, refusalDim)
	t.enqueued = d.counters("recipients_enqueued_total", "Recipients of queued messages, reports of the relay among them.", origin)
	t.receiveDuration = d.histograms("receive_duration_seconds", "From MAIL to our acknowledgement.",
		[]float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60}, receive)
	t.acceptDuration = d.histograms("accept_duration_seconds", "From the end of the content to our acknowledgement: checks and stable storage.",
		[]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5})
	t.messageSize = d.histograms("message_size_bytes", "Octets of content of the messages accepted from clients.",
		[]float64{1 << 10, 10 << 10, 50 << 10, 100 << 10, 500 << 10, 1 << 20, 5 << 20, 10 << 20, 35 << 20}, receive)
	t.auth = d.counters("auth_attempts_total", "Authentications that ended.", receive, mechanismDim, authResultDim)
	t.handshakes = d.counters("tls_handshakes_total", "Inbound TLS handshakes that ended.", receive, versionDim, handshakeDim)
	t.handshakeFailures = d.counters("tls_handshake_failures_total", "Inbound TLS handshakes that failed, by reason.", receive, tlsReasonDim)
	t.throttle = d.counters("throttle_actions_total", "How often a limit of ours delayed or refused something.",
		connectorDim(union(o.Connectors, o.SendConnectors), "receive or send connector"), scopeDim, throttleDim)

	t.queueActions = d.counters("queue_actions_total", "Actions of operators on the queue.", actionDim, actionResultDim)
	t.attempts = d.counters("delivery_attempts_total", "Delivery attempts, by their worst recipient.", send, provider, attemptDim)
	t.completed = d.counters("recipients_completed_total", "Recipients that reached their final disposition.", provider, finalDim)
	t.failures = d.counters("delivery_failures_total", "Recipients that an attempt did not relay, by cause.", provider, classDim, permanenceDim)
	t.responses = d.counters("remote_responses_total",
		"Replies of next hops, one for each recipient of an attempt. Attempts that failed in the DNS, while connecting or by a timeout had none.", provider, codeDim)
	t.latency = d.histograms("delivery_latency_seconds", "From accepted to relayed, of relayed recipients.",
		[]float64{.1, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 43200, 86400, 172800, 345600}, provider)
	t.stages = d.histograms("delivery_stage_duration_seconds", "Stages of delivery attempts; sched is our own lag. A stage that did not happen is not counted.",
		[]float64{.001, .005, .01, .05, .1, .25, .5, 1, 5, 10, 30, 60}, stageDim, send)
	t.attemptsPerRecipient = d.histograms("delivery_attempts_per_recipient", "Attempts that a recipient took until it was relayed, bounced or expired.",
		[]float64{1, 2, 3, 4, 6, 8, 12, 20})
	t.slo = d.counters("slo_recipients_total",
		"Recipients handed over or finally answered within the target, and those for which the target passed (counted when it passes).", priorityDim, sloDim)
	t.tlsSessions = d.counters("tls_sessions_total", "Outbound TLS handshakes; version none for those that failed.", provider, versionDim, verifyDim)
	t.tlsPolicyFailures = d.counters("tls_policy_failures_total",
		"How often a next hop was not as the TLS level of the send connector, or the policy of its domain, asks for.", tlsPolicyDim, tlsReasonDim)
	t.tlsDowngrades = d.counters("tls_downgrades_total", "Sessions in plain text with hosts that had TLS before.", provider)
	t.tlsReports = d.counters("tls_reports_total", "Reports on TLS (RFC 8460): handed over, failed for now, and given up.", reportMethodDim, reportResultDim)
	t.backoffs = d.counters("backoff_entered_total", "How often a next hop asked for less mail, by what was done about it.", backoffDim, provider)
	t.lookups = d.counters("lookups_total", "Questions about users and recipients to directories and next hops, by how they ended.", lookupDim, lookupEndDim)
	t.lookupDuration = d.histograms("lookup_duration_seconds", "Time of those questions that the cache could not answer.",
		[]float64{.001, .005, .01, .05, .1, .25, .5, 1, 5, 10, 30}, lookupDim)
	t.dnsQueries = d.counters("dns_queries_total", "DNS questions, by how they ended.", dnsTypeDim, dnsResultDim)
	t.attemptQuestions = d.counters("delivery_dns_questions_total",
		"DNS questions of delivery attempts, by whether the cache answered them. Divided by delivery_attempts_total: look-ups per attempt.", send, answeredDim)
	t.dnsDuration = d.histograms("dns_duration_seconds", "Time of DNS questions that the cache could not answer.",
		[]float64{.001, .005, .01, .05, .1, .25, .5, 1, 5, 10, 30}, dnsTypeDim)
	t.converted = d.counters("contents_converted_total",
		"Delivery attempts whose content was encoded for a next hop that does not take it as it is, by the encoding of its parts.", send, encodingDim)
	t.reused = d.counters("connections_reused_total", "Delivery attempts on a connection that an earlier attempt had opened.", send)
	t.dsn = d.counters("dsn_total", "Delivery status notifications.", dsnKindDim, dsnResultDim)

	t.events = d.counters("tracking_events_total", "Facts that the relay stated.", eventDim)
	t.queryDuration = d.histograms("tracking_query_duration_seconds", "Time to answer a question to the tracking API.",
		[]float64{.001, .005, .01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}, queryDim)
	t.certReloads = d.counters("tls_certificate_reloads_total", "Certificates that were read again.", okDim)
	t.tokenRefreshes = d.counters("oauth_token_refreshes_total", "Requests for an OAuth token to log in with at next hops.", send, okDim)
	t.reload = d.reloadState()
	d.done()
	return t
}

// Write counts the fact of r.
func (r *Reader) Write(rec *event.Record) {
	t := r.tables.Load()
	t.events.addAt(1, places{place(event.Number(rec.Event))}) // the label's words are event.Names
	if ev, ok := rec.Event.(event.CommandAnswered); ok {      // half of all facts, and a few words of stack
		t.commands.inc(ev.Connector, ev.Verb, codeClass(ev.Code))
		return
	}
	t.count(rec)
}

// count counts what is told in a fact beyond its name.
func (t *tables) count(rec *event.Record) {
	switch ev := rec.Event.(type) {
	case event.SessionOpened:
		if ev.Direction == event.Inbound {
			t.connections.inc(ev.Connector, "accepted")
		}
	case event.SessionClosed:
		t.sessionsClosed.inc(ev.Direction, ev.Cause)
	case event.SessionRefused:
		t.connections.inc(ev.Connector, ev.Reason)
	case event.CommandAnswered:
		// Write did.
	case event.TLSNegotiated:
		t.tls(&ev)
	case event.TLSPolicyFailed:
		t.tlsPolicyFailures.inc(ev.Policy, ev.Reason)
	case event.TLSDowngraded:
		t.tlsDowngrades.inc(providerOf(ev.Provider))
	case event.TLSReportSent:
		t.tlsReports.inc(ev.Method, "sent")
	case event.TLSReportFailed:
		result := "failed"
		if ev.Final {
			result = "given_up"
		}
		t.tlsReports.inc(ev.Method, result)
	case event.AuthSucceeded:
		t.auth.inc(ev.Connector, ev.Mechanism, "ok")
	case event.AuthFailed:
		result := "failed"
		if ev.Reason == "unavailable" {
			result = "error"
		}
		t.auth.inc(ev.Connector, ev.Mechanism, result)
	case event.SenderRefused:
		t.rejected.inc(ev.Connector, ev.Reason)
	case event.RecipientRefused:
		t.rcptRejected.inc(ev.Connector, ev.Reason)
	case event.MessageRefused:
		t.rejected.inc(ev.Connector, ev.Reason)
	case event.MessageQueued:
		t.queued(&ev, rec.UID)
	case event.AttemptFinished:
		t.attempt(&ev, rec.UID)
	case event.RecipientRelayed:
		t.latency.observe(ev.TTotal.Float(), rec.UID, providerOf(ev.Provider))
		t.final(&ev.Final, "relayed")
	case event.RecipientBounced:
		t.final(&ev.Final, "bounced")
	case event.RecipientExpired:
		t.final(&ev.Final, "expired")
	case event.RecipientDropped:
		t.final(&ev.Final, "dropped")
	case event.RecipientLate:
		t.slo.inc(priorityOf(ev.Priority), "late")
	case event.ThrottleEngaged:
		t.throttle.inc(ev.Connector, ev.Scope, ev.Action)
	case event.DSNQueued:
		result := "queued"
		if ev.Suppressed != "" {
			result = "suppressed"
		}
		t.dsn.inc(ev.Kind, result)
	case event.AdminActed:
		t.queueActions.inc(ev.Action, ev.Result)
	case event.QueueHeld, event.QueueReleased:
		// What an operator did is stated as AdminActed; a hold may also end by itself.
	case event.ConfigReloaded:
		t.reload.note(rec.Time, ev.Error == "")
	case event.CertificateReloaded:
		result := "ok"
		if ev.Error != "" {
			result = "error"
		}
		t.certReloads.inc(result)
	case event.DNSAnswered:
		t.dnsQueries.inc(ev.Type, ev.Result)
		if ev.Result != "cached" {
			t.dnsDuration.observe(ev.Took.Float(), "", ev.Type)
		}
	case event.LookupAnswered:
		t.lookups.inc(ev.Lookup, ev.Result)
		if ev.Result != event.LookupCached && ev.Result != event.LookupStale {
			t.lookupDuration.observe(ev.Took.Float(), "", ev.Lookup)
		}
	case event.TokenRefreshed:
		result := "ok"
		if ev.Error != "" {
			result = "error"
		}
		t.tokenRefreshes.inc(ev.Connector, result)
	case event.BackoffChanged:
		if ev.Mode != event.BackoffNone {
			t.backoffs.inc(ev.Mode, providerOf(ev.Provider))
		}
	case event.ClientAnnounced, event.TranscriptKept, event.MessageRouted, event.PressureChanged, event.ListingChanged, event.QueueLoaded, event.MessagePoisoned, event.MessageRetired, event.Panicked, event.Remarked:
		// Counted by name above; what they say beyond that is a level or is in the record.
	}
}

func (t *tables) queued(ev *event.MessageQueued, uid string) {
	n := float64(len(ev.Recipients))
	if ev.ConnectorIn == "" { // a report that the relay made
		t.enqueued.add(n, internal)
		return
	}
	t.enqueued.add(n, ev.ConnectorIn)
	from := t.received.at([]string{ev.ConnectorIn, ev.Protocol})
	t.received.addAt(1, from)
	t.receivedBytes.addAt(max(float64(ev.Size), 0), from)
	t.messageSize.observeAt(float64(ev.Size), "", places{from[0]})
	if ev.TAccept == 0 { // not known any more
		return
	}
	t.receiveDuration.observeAt((ev.TReceive + ev.TAccept).Float(), "", places{from[0]})
	t.acceptDuration.observe(ev.TAccept.Float(), uid) // the part that is ours has the exemplar
}

func (t *tables) tls(ev *event.TLSNegotiated) {
	version, result := ev.Version, "ok"
	if ev.Failure != "" {
		version, result = "none", "failed"
	}
	if ev.Direction == event.Inbound {
		t.handshakes.inc(ev.Connector, version, result)
		if result == "failed" {
			t.handshakeFailures.inc(ev.Connector, ev.Reason)
		}
		return
	}
	verify := ev.Verify
	if verify == "" {
		verify = "none"
	}
	t.tlsSessions.inc(providerOf(ev.Provider), version, verify)
}

func (t *tables) attempt(ev *event.AttemptFinished, uid string) {
	at := t.attempts.at([]string{ev.ConnectorOut, providerOf(ev.Provider), attemptWord(ev.Disposition)})
	send, provider := at[0], at[1]
	t.attempts.addAt(1, at)
	if ev.Reused {
		t.reused.addAt(1, places{send})
	}
	if ev.Converted != "" {
		t.converted.addAt(1, places{send, t.converted.find(1, encodingOf(ev.Converted))})
	}
	if ev.DNSAsked > 0 {
		cached := min(max(ev.DNSCached, 0), ev.DNSAsked)
		t.attemptQuestions.addAt(float64(cached), places{send, t.attemptQuestions.find(1, "cache")})
		t.attemptQuestions.addAt(float64(ev.DNSAsked-cached), places{send, t.attemptQuestions.find(1, "server")})
	}
	for i := range ev.Recipients {
		rcpt := &ev.Recipients[i]
		class := string(rcpt.Class)
		if rcpt.Code != 0 && class != string(mail.ClassDNS) && class != string(mail.ClassConnect) && class != string(mail.ClassTimeout) {
			t.responses.addAt(1, places{provider, t.responses.find(1, codeWord(rcpt.Code))})
		}
		if class == "" {
			class = other
		}
		switch rcpt.Disposition {
		case mail.Deferred, mail.Expired:
			t.failures.addAt(1, places{provider, t.failures.find(1, class), t.failures.find(2, "temporary")})
		case mail.Bounced:
			t.failures.addAt(1, places{provider, t.failures.find(1, class), t.failures.find(2, "permanent")})
		}
	}

	// Stages. The longest one carries the exemplar: it is what a person who
	// clicks on the graph wants to see, and exemplars cost more than counting.
	stages := [...]event.Seconds{ev.TSched, ev.TDNS, ev.TConnect, ev.TBanner, ev.TTLS, ev.TAuth, ev.TEnvelope, ev.TData, ev.TReply} // as stageDim
	longest := 0
	for i := range stages {
		if stages[i] > stages[longest] {
			longest = i
		}
	}
	for i, took := range stages {
		if i > 0 && took <= 0 {
			continue
		}
		id := ""
		if i == longest {
			id = uid
		}
		t.stages.observeAt(max(took, 0).Float(), id, places{place(i), send})
	}
}

func (t *tables) final(ev *event.Final, disposition string) {
	t.completed.inc(providerOf(ev.Provider), disposition)
	if disposition == "dropped" {
		return // an operator's decision is neither an answer nor a delay of ours
	}
	t.attemptsPerRecipient.observe(float64(ev.Attempts), "")
	switch {
	case ev.Late: // RecipientLate said so
	case disposition == "expired":
		t.slo.inc(priorityOf(ev.Priority), "late")
	default:
		t.slo.inc(priorityOf(ev.Priority), "within")
	}
}

func attemptWord(d mail.Disposition) string {
	switch d {
	case mail.Relayed, mail.Deferred, mail.Bounced:
		return d.String()
	case mail.Expired: // it was deferred, once too often
		return "deferred"
	}
	return "error"
}

func providerOf(s string) string {
	if s == "" { // the attempt ended before the next hop was known
		return other
	}
	return s
}

func priorityOf(s string) string {
	if s == "" {
		return "normal"
	}
	return s
}
