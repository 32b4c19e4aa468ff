package tlsrpt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/sync/errgroup"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// work closes the days that are over, and sends the reports that are due.
func (r *Reporter) work(ctx context.Context, ways Ways) {
	now := time.Now().UTC()
	type job struct {
		d *day
		p *pledge
	}
	var due []job
	r.mu.Lock()
	for date, d := range r.days {
		if date < dateOf(now) && !d.Closed {
			d.close(now, r.opts.Delay, r.submitter())
		}
		for _, p := range d.Reports {
			if !p.Done && !now.Before(p.Due) {
				due = append(due, job{d, p})
			}
		}
	}
	r.mu.Unlock()
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, j := range due {
		group.Go(func() error {
			r.deliver(ctx, ways, j.d, j.p)
			return nil
		})
	}
	_ = group.Wait() // its errors are facts
}

// close ends the counting of d, and says when which domain gets its report: not
// all at midnight, when everybody sends theirs (RFC 8460 section 4.1).
func (d *day) close(now time.Time, delay time.Duration, submitter string) {
	begin, _ := time.Parse(time.DateOnly, d.Date) // it is a date
	base := begin.AddDate(0, 0, 1)
	if now.Sub(base) > delay { // we were not there at midnight
		base = now
	}
	d.Closed, d.dirty = true, true
	for _, domain := range d.domains() {
		due := base.Add(rand.N(delay)) //nolint:gosec // shares the load
		d.Reports = append(d.Reports, &pledge{
			Domain: domain, ID: mail.NewID(now) + "@" + submitter, Due: due, Until: due.Add(keepTrying),
		})
	}
}

// deliver asks where a report goes, and hands it over. Nobody else touches p
// meanwhile, but to save it.
func (r *Reporter) deliver(ctx context.Context, ways Ways, d *day, p *pledge) {
	if ctx.Err() != nil {
		return
	}
	if !p.Asked {
		texts, err := ways.Resolver.TXT(ctx, "_smtp._tls."+p.Domain)
		if ctx.Err() != nil {
			return
		}
		r.change(d, func() {
			var t interface{ Temporary() bool }
			if err != nil && errors.As(err, &t) && t.Temporary() {
				p.Tries++
				p.later(p.Tries)
				return
			}
			p.Asked = true
			for _, to := range ParseRecord(texts) {
				p.To = append(p.To, &handover{Destination: to})
			}
			p.Done = len(p.To) == 0 // it wants none
		})
		if !p.Asked || p.Done {
			return
		}
	}
	r.mu.Lock() // d is closed: its tallies do not change
	rep, total := r.report(d, p.Domain, p.ID)
	r.mu.Unlock()
	packed, err := pack(rep)
	if err != nil {
		r.change(d, func() { p.Done = true }) // numbers and words can always be written
		return
	}
	open, tries := 0, 0
	for _, to := range p.To {
		if to.Done {
			continue
		}
		emit := ways.Emitter
		var err error
		if to.Method == byMail {
			content, draft := r.compose(rep, total, p.Domain, to.Address, packed)
			emit = emit.Message(draft.ID, draft.UID)
			err = ways.Queue.Submit(ctx, draft, content)
		} else {
			err = post(ctx, ways.HTTP, to.URL, packed)
		}
		if ctx.Err() != nil {
			return // it is tried again by whoever comes after us
		}
		attempts := to.Tries + 1
		final := err != nil && wait(attempts) > time.Until(p.Until)
		r.change(d, func() { to.Tries, to.Done = attempts, err == nil || final })
		if err != nil {
			ways.Emitter.Emit(event.TLSReportFailed{
				Domain: p.Domain, ReportID: p.ID, Day: d.Date, Method: to.Method, Destination: to.String(), Error: printable(err.Error()), Attempts: attempts, Final: final,
			})
		} else {
			emit.Emit(event.TLSReportSent{
				Domain: p.Domain, ReportID: p.ID, Day: d.Date, Method: to.Method, Destination: to.String(),
				Successful: total.Successful, Failed: total.Failed, Attempts: attempts,
			})
		}
		if !to.Done {
			open, tries = open+1, max(tries, attempts)
		}
	}
	r.change(d, func() {
		if p.Done = open == 0; !p.Done {
			p.later(tries)
		}
	})
}

// later puts p off, or gives it up.
func (p *pledge) later(tries int) {
	p.Due = time.Now().UTC().Add(wait(tries))
	p.Done = p.Due.After(p.Until)
}

// wait is the time after so many tries: it doubles, up to a bound.
func wait(tries int) time.Duration {
	return min(firstRetry<<min(max(tries-1, 0), 10), lastRetry)
}

func (r *Reporter) change(d *day, f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	d.dirty = true
}

// post hands a report to an HTTPS server (RFC 8460 section 5.4).
func post(ctx context.Context, client *http.Client, to string, packed []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(packed))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/tlsrpt+gzip")
	req.Header.Set("User-Agent", "Waybill")
	resp, err := client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // which does not repeat the URL
		}
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10)) // what it says does not matter
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("the server answers %d", resp.StatusCode)
	}
	return nil
}
