package app

import (
	"errors"
	"fmt"
	"reflect"

	"go.uber.org/zap"

	"waybill/cmd/internal/config"
	"waybill/relay/event"
	"waybill/relay/throttle"
)

// Reload reads the configuration again and takes it into use: receive and send
// connectors, routing, accepted domains and their recipients, throttles and marks
// of back-pressure, users, certificates and tokens. Sessions and attempts that are under way end as they began. When
// anything is wrong, or needs a restart (stores, the log, the HTTP listener), the
// error says what, and nothing is changed. The fact says how it went.
func (a *App) Reload() (err error) {
	a.reloadMu.Lock()
	defer a.reloadMu.Unlock()
	defer func() {
		ev := event.ConfigReloaded{Revision: a.config.Load().Revision()}
		if err != nil {
			ev.Error = err.Error()
		}
		a.emit.Source(event.SourceAdmin).Emit(ev)
	}()
	if a.opts.Load == nil {
		return errors.New("this relay has no configuration file to read again")
	}
	if err := a.log.Reopen(); err != nil { // what moved the file away expects a new one
		return fmt.Errorf("reopen the log: %w", err)
	}
	next, err := a.opts.Load()
	if err != nil {
		return err
	}
	if err := unchanged(a.config.Load(), next); err != nil {
		return err
	}
	tokens, err := readTokens(next)
	if err != nil {
		return err
	}
	routing, err := a.routes.build(next)
	if err != nil {
		return err
	}
	in, err := newReception(next, a.reception.Load(), a.config.Load(), a.emit.Source(event.SourceSMTPIn), prober{a})
	if err != nil {
		routing.close()
		return err
	}
	rules, err := throttleRules(next)
	if err == nil {
		_, err = throttle.NewSet(rules...) // what it takes, Replace takes
	}
	if err != nil {
		routing.close()
		return err
	}
	backoffRules, err := next.Backoff.Rules()
	if err != nil {
		routing.close()
		return err
	}
	failures, err := next.Replies.Rules()
	if err != nil {
		routing.close()
		return err
	}
	change, err := a.smtpin.Prepare(in.connectors)
	if err != nil {
		routing.close()
		return fmt.Errorf("receive_connectors: %w", err)
	}
	// From here nothing can fail.
	a.tokens.Store(tokens)
	receive, send := connectorNames(next)
	a.metrics.SetConnectors(receive, send)
	a.config.Store(next)
	was := a.reception.Swap(in.take(a.emit.Source(event.SourceAdmin)))
	a.lockout.Change(lockoutLimits(next))
	a.pressure.Configure(pressureSettings(next))
	a.turns.Limit(next.BackPressure.Contents)
	_ = a.limits.Replace(rules) // checked above
	a.routes.take(routing)
	change.Commit()
	was.others.close()
	_ = was.outside.close() // connections that nobody uses
	a.queue.Reroute()
	a.deliver.SetBackoff(backoffRules)
	a.deliver.SetFailures(failures)
	a.deliver.SetReports(a.reporting(next))
	a.deliver.ProbeNow()
	a.logger.Info("configuration reloaded", zap.String("config_rev", next.Revision()))
	return nil
}

// unchanged says what of the new configuration needs a restart.
func unchanged(was, now *config.Config) error {
	var errs []error
	for _, part := range []struct {
		key      string
		was, now any
	}{
		{"hostname", was.Hostname, now.Hostname},
		{"data_dir", was.DataDir, now.DataDir},
		{"pickup", was.Pickup, now.Pickup},
		{"dns", was.DNS, now.DNS},
		{"tls_reports", was.TLSReports, now.TLSReports},
		{"blocklists", was.Blocklists, now.Blocklists},
		{"source_addresses, which blocklists watch,", watched(was), watched(now)},
		{"queue", was.Queue, now.Queue},
		{"tracking", was.Tracking, now.Tracking},
		{"http.listen", was.HTTP.Listen, now.HTTP.Listen},
		{"http.tokens_file (set or not)", was.HTTP.TokensFile == "", now.HTTP.TokensFile == ""},
		{"log", was.Log, now.Log},
		{"telemetry", was.Telemetry, now.Telemetry},
	} {
		if !reflect.DeepEqual(part.was, part.now) {
			errs = append(errs, fmt.Errorf("%s has changed, and that needs a restart", part.key))
		}
	}
	return errors.Join(errs...)
}

// readTokens reads who may use the API; nil when the configuration names nobody.
func readTokens(c *config.Config) (*config.Tokens, error) {
	if c.HTTP.TokensFile == "" {
		return nil, nil //nolint:nilnil // no tokens is no error
	}
	return config.LoadTokens(c.HTTP.TokensFile)
}
