package app

import (
	"errors"
	"fmt"
	"reflect"

	"go.uber.org/zap"

	"waybill/cmd/internal/config"
	"waybill/relay/event"
)

// Reload reads the configuration again and takes it into use: send connectors
// and routing, users, certificates and tokens. What cannot change while the
// relay runs (receive connectors, domains, stores, listeners) is an error that
// names it, and nothing is changed. The fact says how it went.
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
	if err := a.reloadFiles(); err != nil {
		routing.close()
		return err
	}
	a.tokens.Store(tokens)
	receive, send := connectorNames(next)
	a.metrics.SetConnectors(receive, send)
	a.routes.take(routing)
	a.config.Store(next)
	a.queue.Reroute()
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
		{"postmaster", was.Postmaster, now.Postmaster},
		{"certificates", was.Certificates, now.Certificates},
		{"users", was.Users, now.Users},
		{"receive_connectors", was.Receive, now.Receive},
		{"accepted_domains", was.AcceptedDomains, now.AcceptedDomains},
		{"queue", was.Queue, now.Queue},
		{"tracking", was.Tracking, now.Tracking},
		{"http.listen", was.HTTP.Listen, now.HTTP.Listen},
		{"http.tokens_file (set or not)", was.HTTP.TokensFile == "", now.HTTP.TokensFile == ""},
		{"log", was.Log, now.Log},
	} {
		if !reflect.DeepEqual(part.was, part.now) {
			errs = append(errs, fmt.Errorf("%s has changed, and that needs a restart", part.key))
		}
	}
	return errors.Join(errs...)
}

// reloadFiles takes changed users and certificates into use. They are read again
// now and then anyway, so that it matters little that each is taken for itself.
func (a *App) reloadFiles() error {
	_, err := a.certs.Reload()
	if a.users != nil {
		_, usersErr := a.users.Reload()
		err = errors.Join(err, usersErr)
	}
	return err
}

// readTokens reads who may use the API; nil when the configuration names nobody.
func readTokens(c *config.Config) (*config.Tokens, error) {
	if c.HTTP.TokensFile == "" {
		return nil, nil //nolint:nilnil // no tokens is no error
	}
	return config.LoadTokens(c.HTTP.TokensFile)
}
