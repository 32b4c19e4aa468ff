package app

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"waybill/cmd/internal/config"
	"waybill/metrics"
	"waybill/relay/deliver"
	"waybill/relay/quota"
)

// quotaInterval is how often what is counted is written down: what a crash may
// forget of it.
const quotaInterval = 5 * time.Second

// openQuotas reads what was counted before.
func (a *App) openQuotas(cfg *config.Config) (err error) {
	if a.routes.quotas, err = quota.Open(filepath.Join(cfg.DataDir, "quota.json")); err != nil {
		return err
	}
	a.onStop(a.routes.quotas.Save)
	return nil
}

// watchQuotas writes down what is counted until ctx is done.
func (a *App) watchQuotas(ctx context.Context) error {
	tick := time.NewTicker(quotaInterval)
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := a.routes.quotas.Save()
		if err != nil && !failed {
			a.logger.Named("quota").Warn("what next hops took cannot be written down; a restart would count from less", zap.Error(err))
		}
		failed = err != nil
	}
}

// account is what a connector counts against; nil when nothing limits it.
// Connectors that log in as the same user share it.
func (r *routes) account(s config.SendConnector) *quota.Account {
	l := quota.Limits{
		MessagesPerMinute: s.Limits.MessagesPerMinute, MessagesPerHour: s.Limits.MessagesPerHour,
		MessagesPerDay: s.Limits.MessagesPerDay, RecipientsPerDay: s.Limits.RecipientsPerDay,
		RecipientsPerMessage: s.Limits.RecipientsPerMessage,
	}
	if !l.Any() {
		return nil
	}
	key := "connector " + s.Name
	if s.Auth.Username != "" {
		key = "user " + strings.ToLower(s.Auth.Username)
		if len(s.SmartHosts) > 0 {
			key += " at " + strings.ToLower(s.SmartHosts[0].Host)
		}
	}
	return r.quotas.Account(key, l)
}

// deliverQuota is what the scheduler asks. A nil account is no quota.
func deliverQuota(a *quota.Account) deliver.Quota {
	if a == nil {
		return nil
	}
	return a
}

// quotaLevels are how much of their limits the connectors have used.
func (r *routes) quotaLevels() (list []metrics.Quota) {
	now := time.Now()
	for name, c := range r.now.Load().connectors {
		if c.account == nil {
			continue
		}
		open, limit := c.out.Stats()
		list = append(list, metrics.Quota{Connector: name, Quota: "connections", Used: open, Limit: limit, Forecast: -1})
		for _, u := range c.account.Usage(now) {
			list = append(list, metrics.Quota{Connector: name, Quota: u.Quota, Used: u.Used, Limit: u.Limit, Forecast: u.Forecast})
		}
	}
	slices.SortFunc(list, func(a, b metrics.Quota) int { return strings.Compare(a.Connector+" "+a.Quota, b.Connector+" "+b.Quota) })
	return list
}
