// Package tlsrpt tells domains how TLS with their mail exchangers went: the
// daily reports of SMTP TLS Reporting (RFC 8460).
//
// It exists because the owner of a domain cannot see that we failed to deliver
// for an expired certificate or a forgotten TLSA record: nothing reaches them. A
// [Reporter] is a reader of facts. It counts what session_closed and
// tls_policy_failed tell, for each domain and UTC day; when the day is over, it
// asks the domain's _smtp._tls record where the report goes, and hands it over
// by mail, through our own queue, or by HTTPS.
//
// It promises that reading a fact never waits for disk or network; that counts
// survive a restart, but for at most the last minute before a crash; that memory
// is bounded whatever strangers publish; that a domain gets each day's report
// once, or, after a crash at the wrong moment, twice under the same report ID;
// that reports leave at a random time within the four hours after midnight; and
// that what cannot be handed over for a day is given up, and stated.
//
// A report to a domain goes whatever the domain's TLS policies say (section 3),
// and its session is not reported on, so that reports do not beget reports.
//
// To report another kind of failure, add its word to resultTypes; a test compares
// them with the words of package event.
package tlsrpt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// Bounds and times, by taste where no section is named.
const (
	tickEvery    = time.Minute
	defaultDelay = 4 * time.Hour  // RFC 8460 section 4.1: within the four hours after midnight
	keepTrying   = 24 * time.Hour // section 5.5 asks for no more
	firstRetry   = 15 * time.Minute
	lastRetry    = 4 * time.Hour
	maxTallies   = 20_000 // of a day
	maxFailures  = 50     // kinds of failures of one tally, in detail
	atOnce       = 8      // reports on their way
	maxDays      = 4      // that are kept on disk
)

// Options configure a Reporter.
type Options struct {
	Dir          string       // where counts are kept; made if it is not there
	From         mail.Address // who reports are from
	Organization string       // who we are, for people; empty: the domain of From
	Contact      string       // how to reach us; empty: From
	Delay        time.Duration
}

// Resolver is what is asked of the DNS; package dns has one. Errors that say
// Temporary() are asked again.
type Resolver interface {
	TXT(ctx context.Context, name string) ([]string, error)
}

// Queue takes responsibility for a report that goes by mail.
type Queue interface {
	Submit(ctx context.Context, d mail.Draft, content []byte) error
}

// Ways are how reports leave.
type Ways struct {
	Resolver Resolver
	Queue    Queue
	HTTP     *http.Client // for hosts that strangers name
	Emitter  event.Emitter
}

// Reporter counts and reports. It is an [event.Sink].
type Reporter struct {
	opts Options

	mu   sync.Mutex
	days map[string]*day
}

var _ event.Sink = (*Reporter)(nil)

// Open reads the counts that are on disk.
func Open(opts Options) (*Reporter, error) {
	switch {
	case opts.Dir == "":
		return nil, errors.New("tls reports: no directory")
	case opts.From.IsNull() || !opts.From.ASCII():
		return nil, errors.New("tls reports: the sender must be an ASCII address")
	}
	opts.Organization = cmp.Or(opts.Organization, opts.From.Domain)
	opts.Contact = cmp.Or(opts.Contact, opts.From.String())
	opts.Delay = cmp.Or(opts.Delay, defaultDelay)
	r := &Reporter{opts: opts, days: map[string]*day{}}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("tls reports: %w", err)
	}
	if err := r.load(); err != nil {
		return nil, fmt.Errorf("tls reports: %w", err)
	}
	return r, nil
}

// Run sends reports and keeps the counts on disk, until ctx is done.
func (r *Reporter) Run(ctx context.Context, ways Ways) error {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	failing := false
	for done := false; !done; {
		r.work(ctx, ways)
		select {
		case <-ctx.Done():
			done = true
		case <-t.C:
		}
		err := r.save()
		if err != nil && !failing { // once, not each minute
			ways.Emitter.Emit(event.Remarked{Remark: "the counts of TLS reports cannot be kept on disk", Detail: printable(err.Error())})
		}
		failing = err != nil
	}
	return nil
}

// Close keeps the counts on disk that came after Run: those of sessions that ended
// with the relay.
func (r *Reporter) Close() error {
	if err := r.save(); err != nil {
		return fmt.Errorf("tls reports: %w", err)
	}
	return nil
}
