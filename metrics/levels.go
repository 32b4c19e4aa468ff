package metrics

import (
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"waybill/relay/event"
	"waybill/relay/queue"
	"waybill/relay/route"
)

// Levels is what is so right now. It is asked for at each scrape and must come
// from memory. Parts that are nil or empty are not exposed.
type Levels struct {
	Queue        *queue.Levels
	Hops         []queue.HopStatus // with Queue
	Lifetime     time.Duration     // how long a message may wait
	Connections  []Connections
	Turns        *Turns
	Tracking     *Tracking
	Log          *Log
	OTLP         *OTLP
	Disks        []Disk // beside the queue's own
	Certificates []Certificate
	Stores       []Store
	Stage        int            // of back-pressure, 0 to 4; with Queue
	Backoffs     map[string]int // next hops that have asked for less mail, by mode; with Queue
	Tokens       []Token
	Quotas       []Quota
	Listings     []Listing
}

// Listing is what a DNS blocklist says of an address of ours.
type Listing struct {
	List     string // as configured
	Address  string
	Known    bool
	Listed   bool
	Answered time.Time // zero: not yet
}

// Token is an OAuth token that a send connector logs in with.
type Token struct {
	Connector string
	Expires   time.Time // zero: there is none
}

// Quota is one limit that a next hop sets us, and how much of it is used.
type Quota struct {
	Connector   string
	Quota       string // a word of quotas
	Used, Limit int
	Forecast    time.Duration // until it is used up, as things go; negative: not within its window
}

// Connections are the open sessions of one connector.
type Connections struct {
	Direction string // event.Inbound or event.Outbound
	Connector string
	Open      int
	Limit     int // 0: none
}

// Turns are those by which contents are taken in.
type Turns struct {
	Limit         int // 0: none
	Held, Waiting int
	Waited        time.Duration // how long contents have waited for theirs, all together
}

// Tracking is the state of the tracking store.
type Tracking struct {
	Broken      bool          // it could not be opened: nothing else is known
	Degraded    bool          // damaged parts are left out, facts were lost, or blocks cannot be stored
	IndexLag    time.Duration // age of the oldest fact that search does not show yet
	Oldest      time.Time     // of the oldest fact kept; zero when there is none
	Bytes       int64
	Dropped     map[string]uint64 // facts not kept, by reason: buffer_full (protocol facts, under load), store_failed, closed, panic
	WriteErrors uint64
}

// Log is what became of the log's lines.
type Log struct {
	Written, Sampled, Dropped, Failed uint64
	Pending                           int // octets in the buffer
}

// OTLP is what became of the facts that are sent to a collector.
type OTLP struct {
	Sent    uint64
	Dropped map[string]uint64 // by reason: buffer_full, unavailable, refused, closed
	Pending int               // facts that wait
}

// Disk is the space of the volume that a directory is on.
type Disk struct {
	Volume     string // what it is for: tracking, log
	Free, Size int64
}

// Certificate is a TLS certificate in use.
type Certificate struct {
	Name     string
	NotAfter time.Time
}

// Store is the size of one Badger database.
type Store struct {
	Name            string // queue, tracking
	LSMBytes, Value int64
}

// The closed sets of levels.
var (
	queueStates  = []string{"accepted", "active", "deferred", "held"}
	allStates    = append(slices.Clone(queueStates), "unroutable", "poison")
	oldestStates = []string{"active", "deferred", "held"}
	olderThan    = []string{"1m", "5m", "15m", "1h", "4h", "1d"}
	hopStates    = []string{"ready", "active", "retry", "held", "unroutable"}
	dropReasons  = []string{"buffer_full", "store_failed", "closed", "panic"}
	sendReasons  = []string{"buffer_full", "unavailable", "refused", "closed"}
	quotas       = []string{"connections", "messages_per_minute", "messages_per_hour", "messages_per_day", "recipients_per_day"}
	turnStates   = []string{"held", "waiting"}
	lineResults  = []string{"written", "sampled", "dropped", "failed"}
)

// level is a gauge or counter that is read, not kept.
type level struct {
	desc *prometheus.Desc
	typ  prometheus.ValueType
}

func (d *definer) level(typ prometheus.ValueType, name, help string, labels ...Label) level {
	m := Metric{Name: namespace + "_" + name, Type: "gauge", Help: help, Labels: labels}
	if typ == prometheus.CounterValue {
		m.Type = "counter"
	}
	d.levels = append(d.levels, m)
	d.catalogue = append(d.catalogue, m)
	var names []string
	for _, l := range labels {
		names = append(names, l.Name)
	}
	return level{prometheus.NewDesc(m.Name, help, names, nil), typ}
}

func (l level) send(ch chan<- prometheus.Metric, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(l.desc, l.typ, v, labels...)
}

// levels is the collector of everything that is read at scrape time.
type levels struct {
	read   atomic.Pointer[func() Levels]
	reload *reload
	build  [3]string // version, revision, goversion
	top    top

	all []level

	backoffs level

	queueMessages, queueBytes, queueOldest, dueLag, older, destinations, accepting                          level
	outboxRecords, outboxAge, segmentBytes, segmentFiles, lifetime, pressure, stage                         level
	diskFree, diskSize, connections, connectionsLimit, turns, turnsLimit, turnsWaited                       level
	trackUp, trackDegraded, indexLag, oldestEvent, storeBytes, eventsDropped, writeErrors, lines, logBuffer level
	otlpSent, otlpDropped, otlpPending                                                                      level
	certificate, lsmBytes, valueBytes, reloadOK, reloadAt, buildInfo                                        level
	listed, listAnswered                                                                                    level

	tokenExpiry, quotaUsed, quotaLimit, quotaRatio, quotaForecast level

	keptMessages, keptBytes level
}

func (c *levels) define(d *definer, opts Options) {
	c.reload = d.reloadState()
	c.build = [3]string{opts.Version, opts.Revision, runtime.Version()}
	c.top = newTop(50, 75, time.Hour)

	g, n := prometheus.GaugeValue, prometheus.CounterValue
	def := func(l *level, typ prometheus.ValueType, name, help string, labels ...Label) {
		*l = d.level(typ, name, help, labels...)
		c.all = append(c.all, *l)
	}
	words := func(name string, values []string) Label { return Label{Name: name, Values: values} }
	queueLabel := Label{Name: "queue", Note: `name of the next hop: the 50 largest or oldest, and "other"`}

	def(&c.queueMessages, g, "queue_messages", "Messages in the queue; one with several next hops counts in each.", queueLabel, words("state", allStates))
	def(&c.queueBytes, g, "queue_bytes", "Octets of content in the queue.", queueLabel)
	def(&c.queueOldest, g, "queue_oldest_message_age_seconds", "Time since the oldest message in that state was accepted; 0 when there is none.",
		queueLabel, words("state", oldestStates))
	def(&c.dueLag, g, "queue_due_lag_seconds", "How long the most overdue message has waited for a worker.")
	def(&c.older, g, "queue_messages_older_than", "Messages in the queue that were accepted longer ago than this.", words("age", olderThan), words("state", oldestStates))
	def(&c.destinations, g, "queue_destinations", "Next hops with a queue, by what they do.", words("status", hopStates))
	def(&c.backoffs, g, "queue_destinations_backed_off", "Next hops that have asked for less mail, by how they are treated.", words("backoff", event.BackoffModes()))
	def(&c.accepting, g, "queue_accepting", "1 when the queue takes messages, 0 when it does not: the disk is full or storage has failed.")
	def(&c.keptMessages, g, "queue_kept_messages", "Messages that were relayed and are kept for a while, so that they can be sent again.")
	def(&c.keptBytes, g, "queue_kept_bytes", "Octets of content of the messages that are kept after they were relayed.")
	def(&c.outboxRecords, g, "queue_outbox_records", "Durable facts that the tracking store has not confirmed yet.")
	def(&c.outboxAge, g, "queue_outbox_oldest_age_seconds", "For how long a fact of the outbox has been late: a reader does not take it, or the tracking store fails; 0 when none is.")
	def(&c.segmentBytes, g, "queue_segment_bytes", "Octets of the files that hold contents.")
	def(&c.segmentFiles, g, "queue_segment_files", "Files that hold contents.")
	def(&c.lifetime, g, "config_message_lifetime_seconds", "How long a message may wait before it expires.")
	def(&c.pressure, g, "backpressure_level", "0 normal, 1 slowing down, 2 refusing.", words("resource", event.Resources()))
	def(&c.stage, g, "backpressure_stage", "What the relay does about it: 0 nothing, 1 slow, 2 refuses strangers, 3 refuses all, 4 turns connections away.")
	def(&c.diskFree, g, "spool_disk_free_bytes", "Free space of the volume.", Label{Name: "volume", Note: "queue, tracking, log"})
	def(&c.diskSize, g, "spool_disk_size_bytes", "Size of the volume.", Label{Name: "volume", Note: "queue, tracking, log"})

	direction, connector := words("direction", directionDim.words), Label{Name: "connector", Note: "receive or send connector"}
	def(&c.connections, g, "connections", "Open SMTP sessions.", direction, connector)
	def(&c.connectionsLimit, g, "connections_limit", "How many SMTP sessions may be open; absent where there is no limit.", direction, connector)
	def(&c.turns, g, "content_turns", "Contents that have their turn to be taken in, and that wait for it before the reply to DATA.", words("state", turnStates))
	def(&c.turnsLimit, g, "content_turns_limit", "How many contents are taken in at a time, or twice as many while next to nothing is delivered; absent where there is no limit.")
	def(&c.turnsWaited, n, "content_turns_waited_seconds_total", "How long contents have waited for their turn, all together; receive_duration_seconds has it too.")

	def(&c.trackUp, g, "tracking_up", "Whether the tracking store takes facts and answers: 0 when it could not be opened. Mail is relayed all the same.")
	def(&c.trackDegraded, g, "tracking_degraded", "Whether the tracking store lacks something: damaged days are left out, facts were lost, or its disk fails.")
	def(&c.indexLag, g, "tracking_index_lag_seconds", "How far search is behind the facts.")
	def(&c.oldestEvent, g, "tracking_oldest_event_timestamp_seconds", "Time of the oldest fact that is kept.")
	def(&c.storeBytes, g, "tracking_store_bytes", "Size of the tracking store.")
	def(&c.eventsDropped, n, "tracking_events_dropped_total", "Facts that the tracking store did not keep.", words("reason", append(slices.Clone(dropReasons), other)))
	def(&c.writeErrors, n, "tracking_write_errors_total", "Writes to the tracking store that failed.")
	def(&c.lines, n, "protocol_log_lines_total", "Lines of the log, by what became of them.", words("result", lineResults))
	def(&c.logBuffer, g, "protocol_log_buffer_bytes", "Octets that wait for the log's output.")
	def(&c.otlpSent, n, "otlp_records_sent_total", "Facts that were sent to the OpenTelemetry collector.")
	def(&c.otlpDropped, n, "otlp_records_dropped_total", "Facts that the OpenTelemetry collector did not get; the log has them.", words("reason", sendReasons))
	def(&c.otlpPending, g, "otlp_records_pending", "Facts that wait to be sent to the OpenTelemetry collector.")

	store := Label{Name: "store", Note: "queue, tracking"}
	def(&c.lsmBytes, g, "badger_lsm_bytes", "Size of the tables of a Badger database.", store)
	def(&c.valueBytes, g, "badger_vlog_bytes", "Size of the value log of a Badger database.", store)
	def(&c.certificate, g, "tls_certificate_not_after_timestamp_seconds", "When a certificate expires.", Label{Name: "certificate", Note: "its name in the configuration"})
	blocklist := Label{Name: "list", Note: "DNS blocklist, as configured: 10 at most"}
	def(&c.listed, g, "dnsbl_listed", "Whether a DNS blocklist has an address of ours, as it answered last.", blocklist, Label{Name: "address", Note: "an address of ours: 8 at most"})
	def(&c.listAnswered, g, "dnsbl_last_answer_timestamp_seconds", "When a DNS blocklist last answered as a list does; 0 when it has not yet.", blocklist)
	send := Label{Name: "connector", Note: "send connector"}
	quota := words("quota", quotas)
	def(&c.tokenExpiry, g, "oauth_token_expiry_timestamp_seconds", "When the OAuth token of a send connector expires; 0 when there is none.", send)
	def(&c.quotaUsed, g, "remote_quota_used", "How much of a limit that a next hop sets is used: now, or in the last minute, hour or day.", send, quota)
	def(&c.quotaLimit, g, "remote_quota_limit", "The limit.", send, quota)
	def(&c.quotaRatio, g, "remote_quota_used_ratio", "How much of the limit is used, from 0 to 1.", send, quota)
	def(&c.quotaForecast, g, "remote_quota_exhausted_in_seconds", "When the limit will be used up if mail goes on as in the last hour; absent where it will not.", send, quota)
	def(&c.reloadOK, g, "config_last_reload_successful", "1 when the latest configuration was taken into use, 0 when it was refused.")
	def(&c.reloadAt, g, "config_last_reload_success_timestamp_seconds", "When a configuration was last taken into use.")
	def(&c.buildInfo, g, "build_info", "1; the labels say what runs.", Label{Name: "version"}, Label{Name: "revision"}, Label{Name: "goversion"})
}

// Describe sends the descriptions of all levels.
func (c *levels) Describe(ch chan<- *prometheus.Desc) {
	for _, l := range c.all {
		ch <- l.desc
	}
}

// Collect reads the levels.
func (c *levels) Collect(ch chan<- prometheus.Metric) {
	ok, at := c.reload.state()
	c.reloadOK.send(ch, bit(ok))
	c.reloadAt.send(ch, float64(at.UnixMicro())/1e6)
	c.buildInfo.send(ch, 1, c.build[:]...)

	read := c.read.Load()
	if read == nil {
		return
	}
	l := (*read)()
	if l.Queue != nil {
		c.collectQueue(ch, l.Queue, l.Hops)
		c.stage.send(ch, float64(l.Stage))
		for _, mode := range event.BackoffModes() {
			c.backoffs.send(ch, float64(l.Backoffs[mode]), mode)
		}
	}
	if l.Lifetime > 0 {
		c.lifetime.send(ch, l.Lifetime.Seconds())
	}
	once := map[[2]string]bool{} // a series twice would spoil the whole scrape
	first := func(family, value string) bool {
		k := [2]string{family, value}
		defer func() { once[k] = true }()
		return !once[k]
	}
	for _, x := range l.Connections {
		if name := label(x.Connector); first(x.Direction, name) && slices.Contains(directionDim.words, x.Direction) {
			c.connections.send(ch, float64(x.Open), x.Direction, name)
			if x.Limit > 0 {
				c.connectionsLimit.send(ch, float64(x.Limit), x.Direction, name)
			}
		}
	}
	if l.Turns != nil {
		for i, n := range [...]int{l.Turns.Held, l.Turns.Waiting} {
			c.turns.send(ch, float64(n), turnStates[i])
		}
		if l.Turns.Limit > 0 {
			c.turnsLimit.send(ch, float64(l.Turns.Limit))
		}
		c.turnsWaited.send(ch, l.Turns.Waited.Seconds())
	}
	if l.Tracking != nil {
		c.collectTracking(ch, l.Tracking)
	}
	if l.Log != nil {
		for i, n := range [...]uint64{l.Log.Written, l.Log.Sampled, l.Log.Dropped, l.Log.Failed} {
			c.lines.send(ch, float64(n), lineResults[i])
		}
		c.logBuffer.send(ch, float64(l.Log.Pending))
	}
	if l.OTLP != nil {
		c.otlpSent.send(ch, float64(l.OTLP.Sent))
		for _, reason := range sendReasons {
			c.otlpDropped.send(ch, float64(l.OTLP.Dropped[reason]), reason)
		}
		c.otlpPending.send(ch, float64(l.OTLP.Pending))
	}
	for _, x := range l.Disks {
		if name := label(x.Volume); first("disk", name) && (l.Queue == nil || name != "queue") {
			c.diskFree.send(ch, float64(x.Free), name)
			c.diskSize.send(ch, float64(x.Size), name)
		}
	}
	for _, x := range l.Stores {
		if name := label(x.Name); first("store", name) {
			c.lsmBytes.send(ch, float64(x.LSMBytes), name)
			c.valueBytes.send(ch, float64(x.Value), name)
		}
	}
	c.collectSend(ch, &l, first)
	c.collectListings(ch, l.Listings, first)
	for _, x := range l.Certificates {
		if name := label(x.Name); first("certificate", name) && !x.NotAfter.IsZero() {
			c.certificate.send(ch, float64(x.NotAfter.Unix()), name)
		}
	}
}

// collectListings sends what blocklists say of our addresses.
func (c *levels) collectListings(ch chan<- prometheus.Metric, list []Listing, first func(family, value string) bool) {
	newest := map[string]time.Time{}
	for _, x := range list {
		name, address := label(x.List), label(x.Address)
		if x.Answered.After(newest[name]) || newest[name].IsZero() {
			newest[name] = x.Answered
		}
		if x.Known && first("listing "+name, address) {
			c.listed.send(ch, bit(x.Listed), name, address)
		}
	}
	for name, at := range newest {
		seconds := 0.0
		if !at.IsZero() {
			seconds = float64(at.Unix())
		}
		c.listAnswered.send(ch, seconds, name)
	}
}

// collectSend sends what send connectors have of their next hops.
func (c *levels) collectSend(ch chan<- prometheus.Metric, l *Levels, first func(family, value string) bool) {
	for _, x := range l.Tokens {
		if name := label(x.Connector); first("token", name) {
			at := 0.0
			if !x.Expires.IsZero() {
				at = float64(x.Expires.Unix())
			}
			c.tokenExpiry.send(ch, at, name)
		}
	}
	for _, x := range l.Quotas {
		name := label(x.Connector)
		if x.Limit <= 0 || !slices.Contains(quotas, x.Quota) || !first("quota "+x.Quota, name) {
			continue
		}
		c.quotaUsed.send(ch, float64(x.Used), name, x.Quota)
		c.quotaLimit.send(ch, float64(x.Limit), name, x.Quota)
		c.quotaRatio.send(ch, float64(x.Used)/float64(x.Limit), name, x.Quota)
		if x.Forecast >= 0 {
			c.quotaForecast.send(ch, x.Forecast.Seconds(), name, x.Quota)
		}
	}
}

func (c *levels) collectQueue(ch chan<- prometheus.Metric, q *queue.Levels, hops []queue.HopStatus) {
	now := time.Now()
	shown, rest := c.top.pick(foldHops(hops), now)
	status := map[string]int{}
	for i := range hops {
		if hops[i].Hop == route.Unroutable {
			continue
		}
		state := hops[i].State
		if !slices.Contains(hopStates, state) {
			state = "ready"
		}
		status[state]++
	}
	for _, h := range append(shown, rest) {
		for i, n := range [...]int{h.queued, h.active, h.deferred, h.held} {
			c.queueMessages.send(ch, float64(n), h.name, queueStates[i])
		}
		c.queueBytes.send(ch, float64(h.bytes), h.name)
		for i, state := range oldestStates {
			c.queueOldest.send(ch, age(h.oldestBy[i], now), h.name, state)
		}
	}
	// These belong to no next hop.
	c.queueMessages.send(ch, float64(q.ByState["unroutable"]), "none", "unroutable")
	c.queueMessages.send(ch, float64(q.ByState["poison"]), "none", "poison")
	for _, s := range hopStates {
		c.destinations.send(ch, float64(status[s]), s)
	}
	for _, a := range olderThan {
		for _, s := range oldestStates {
			c.older.send(ch, float64(q.OlderThan[a][s]), a, s)
		}
	}
	for _, r := range event.Resources() {
		c.pressure.send(ch, float64(q.Pressure[r]), r)
	}
	c.dueLag.send(ch, max(q.DueLag, 0).Seconds())
	c.accepting.send(ch, bit(q.Closed == ""))
	c.keptMessages.send(ch, float64(q.Kept))
	c.keptBytes.send(ch, float64(q.KeptBytes))
	c.outboxRecords.send(ch, float64(q.OutboxRows))
	c.outboxAge.send(ch, max(q.OutboxAge, 0).Seconds())
	c.segmentBytes.send(ch, float64(q.SegmentBytes))
	c.segmentFiles.send(ch, float64(q.SegmentFiles))
	c.diskFree.send(ch, float64(q.DiskFree), "queue")
	c.diskSize.send(ch, float64(q.DiskSize), "queue")
}

func (c *levels) collectTracking(ch chan<- prometheus.Metric, t *Tracking) {
	c.trackUp.send(ch, bit(!t.Broken))
	c.trackDegraded.send(ch, bit(t.Broken || t.Degraded))
	if t.Broken {
		return
	}
	c.indexLag.send(ch, max(t.IndexLag, 0).Seconds())
	if !t.Oldest.IsZero() {
		c.oldestEvent.send(ch, float64(t.Oldest.UnixMicro())/1e6)
	}
	c.storeBytes.send(ch, float64(t.Bytes))
	c.writeErrors.send(ch, float64(t.WriteErrors))
	var rest uint64
	for reason, n := range t.Dropped {
		if !slices.Contains(dropReasons, reason) {
			rest += n
		}
	}
	for _, reason := range dropReasons {
		c.eventsDropped.send(ch, float64(t.Dropped[reason]), reason)
	}
	c.eventsDropped.send(ch, float64(rest), other)
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func age(t, now time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return max(now.Sub(t), 0).Seconds()
}

// label makes s fit for a label value.
func label(s string) string {
	if len(s) > 255 {
		s = s[:255]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
