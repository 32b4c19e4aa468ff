package app

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"time"

	"waybill/cmd/internal/config"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/strangers"
	"waybill/relay/tlsrpt"
)

// openReports opens the reader that makes reports on TLS, where they are wanted.
func (a *App) openReports(cfg *config.Config) error {
	c := cfg.TLSReports
	if !c.Enabled {
		return nil
	}
	from, err := mail.ParseAddress(c.From)
	if err != nil {
		return err
	}
	a.reports, err = tlsrpt.Open(tlsrpt.Options{
		Dir: filepath.Join(cfg.DataDir, "tls-reports"), From: from, Organization: c.Organization, Contact: c.Contact, Delay: time.Duration(c.Delay),
	})
	if err == nil {
		a.onStop(a.reports.Close) // after the sessions of send connectors, which are opened later
	}
	return err
}

// runReports sends reports on TLS until ctx is done.
func (a *App) runReports(ctx context.Context) error {
	if a.reports == nil {
		return nil
	}
	return a.reports.Run(ctx, tlsrpt.Ways{
		Resolver: a.routes.resolver, Queue: submitter{a.queue}, Emitter: a.emit.Source(event.SourceSMTPOut),
		HTTP: strangers.Client(strangers.Options{Resolver: a.routes.resolver}),
	})
}

// submitter queues messages that the relay makes itself.
type submitter struct{ queue *queue.Queue }

// Submit puts a message into the queue.
func (s submitter) Submit(ctx context.Context, d mail.Draft, content []byte) error {
	in, err := s.queue.Begin(ctx, int64(len(content)))
	if err != nil {
		return err
	}
	if _, err := io.Copy(in, bytes.NewReader(content)); err != nil {
		in.Abort()
		return err
	}
	return in.Commit(ctx, d)
}
