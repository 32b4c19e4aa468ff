package deliver

import (
	"context"

	"waybill/relay/queue"
)

// FromQueue makes a Queue of the real one.
func FromQueue(q *queue.Queue) Queue { return durable{q} }

type durable struct{ q *queue.Queue }

type durableLease struct {
	*queue.Lease
	q *queue.Queue
}

// Claim claims from the queue.
func (d durable) Claim(ctx context.Context) (Lease, error) {
	l, err := d.q.Claim(ctx)
	if err != nil {
		return nil, err
	}
	return durableLease{l, d.q}, nil
}

// Probe lets every next hop that cannot be reached be tried.
func (d durable) Probe() { d.q.Probe() }

// View is the lease itself.
func (l durableLease) View() *queue.Lease { return l.Lease }

// Settle settles the lease.
func (l durableLease) Settle(ctx context.Context, s queue.Settlement) error {
	return l.q.Settle(ctx, l.Lease, s)
}
