package app

import (
	"context"
	"time"

	"waybill/cmd/internal/config"
	"waybill/relay/pickup"
	"waybill/relay/policy"
)

// openPickup opens the pickup directory, where there is one.
func (a *App) openPickup(cfg *config.Config) error {
	c := cfg.Pickup
	if c.Dir == "" {
		return nil
	}
	rights, err := policy.ParsePermissions(c.Permissions)
	if err != nil {
		return err
	}
	subjects, err := newSubjects(cfg)
	if err != nil {
		return err
	}
	a.pickup, err = pickup.New(pickup.Options{
		Name: c.Name, Dir: c.Dir, Hostname: cfg.Hostname, Permissions: rights, Senders: c.Senders, Emitter: a.emit,
		Ready:    a.Ready,
		Policy:   func() *policy.Control { return a.reception.Load().connectors[0].Policy }, // all share one, and there is one at least
		Acceptor: pickupAcceptor{acceptor{a.queue, subjects}}, FilesPerMinute: orNone(c.FilesPerMinute), MessageSize: int64(c.MessageSize),
		Recipients: c.Recipients, Settle: time.Duration(c.Settle),
	})
	if err != nil {
		return err
	}
	a.onStop(a.pickup.Close)
	return nil
}

// runPickup takes files until ctx is done.
func (a *App) runPickup(ctx context.Context) error {
	if a.pickup == nil {
		return nil
	}
	return a.pickup.Run(ctx)
}

// pickupAcceptor lets the pickup use the queue without knowing it.
type pickupAcceptor struct{ acceptor }

// Begin prepares for one content.
func (q pickupAcceptor) Begin(ctx context.Context, sizeHint int64) (pickup.Incoming, error) {
	return q.acceptor.Begin(ctx, sizeHint)
}
