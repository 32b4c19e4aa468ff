package app

import (
	"fmt"

	"go.uber.org/zap"

	"waybill/cmd/internal/config"
	"waybill/metrics"
	"waybill/relay/otlplog"
	"waybill/relay/tlsconf"
)

// openTelemetry starts sending facts to a collector. When it cannot be reached,
// the relay works as well without it, and the log says so.
func (a *App) openTelemetry(cfg *config.Config) (err error) {
	t := cfg.Telemetry
	opts := otlplog.Options{
		Endpoint: t.Endpoint, Header: t.Headers, Compress: t.Compression == "gzip", Level: t.Level, Host: cfg.Hostname, Version: Version,
	}
	if opts.TLS, err = tlsconf.Client(tlsconf.ClientOptions{Level: "verify_name", CAFile: t.CAFile}); err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	log := a.logger.Named("telemetry")
	opts.Trouble = func(err error) {
		if err != nil {
			log.Warn("facts cannot be sent", zap.Error(err))
			return
		}
		log.Info("facts are sent again", zap.Any("dropped", a.otlp.Stats().Dropped))
	}
	if a.otlp, err = otlplog.New(opts); err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	a.onStop(func() error {
		err := a.otlp.Close()
		if n := a.otlp.Stats().Dropped[otlplog.Closed]; n > 0 {
			log.Warn("the collector did not get the last facts", zap.Uint64("dropped", n))
		}
		return err
	})
	return nil
}

// telemetryLevels is what became of the facts for the collector.
func (a *App) telemetryLevels() *metrics.OTLP {
	if a.otlp == nil {
		return nil
	}
	s := a.otlp.Stats()
	return &metrics.OTLP{Sent: s.Sent, Dropped: s.Dropped, Pending: s.Pending}
}
