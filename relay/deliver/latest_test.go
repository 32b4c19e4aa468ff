package deliver

import (
	"testing"
	"time"

	"waybill/relay/mail"
	"waybill/relay/queue"
	"waybill/relay/route"
)

// TestLatest holds when recipients are claimed whose next hop cannot be reached:
// what happens to them then is for the lease that is given out.
func TestLatest(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	started := at.Add(-time.Hour)
	for _, test := range []struct {
		name   string
		retry  Retry
		change func(m *queue.Message, w *queue.Waiting)
		want   time.Duration // after acceptance
	}{
		{"the delay is told", Retry{}, nil, DefaultDelayDSN},
		{"the delay was told", Retry{}, func(_ *queue.Message, w *queue.Waiting) { w.Told = true }, 48 * time.Hour},
		{"no delay is told", Retry{DelayDSN: -1}, nil, 48 * time.Hour},
		{"the connector's lifetime", Retry{DelayDSN: -1, Lifetime: time.Hour}, nil, time.Hour},
		{"the domain's lifetime", Retry{DelayDSN: -1, Domains: map[string]Retry{"example.com": {DelayDSN: -1, Lifetime: 2 * time.Hour}}}, nil, 2 * time.Hour},
		{"DELIVERBY, to be returned", Retry{}, func(m *queue.Message, _ *queue.Waiting) {
			m.Envelope.DeliverBy = mail.DeliverBy{Deadline: at.Add(time.Minute), Return: true}
		}, time.Minute},
		{"DELIVERBY, to be told", Retry{}, func(m *queue.Message, _ *queue.Waiting) {
			m.Envelope.DeliverBy = mail.DeliverBy{Deadline: at.Add(time.Minute)}
		}, time.Minute},
		{"DELIVERBY, and told", Retry{}, func(m *queue.Message, w *queue.Waiting) {
			m.Envelope.DeliverBy, w.Told = mail.DeliverBy{Deadline: at.Add(time.Minute)}, true
		}, 48 * time.Hour},
		{"released later", Retry{}, func(m *queue.Message, _ *queue.Waiting) { m.Envelope.Release = at.Add(time.Hour) }, time.Hour + DefaultDelayDSN},
		{"it ended before the start", Retry{DelayDSN: -1}, func(m *queue.Message, _ *queue.Waiting) { m.ExpiresAt = started.Add(-time.Minute) }, lastChance - time.Hour},
		{"unroutable", Retry{Lifetime: time.Hour}, func(_ *queue.Message, w *queue.Waiting) { w.Hop = route.Unroutable }, 48 * time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := &queue.Message{AcceptedAt: at, ExpiresAt: at.Add(48 * time.Hour)}
			w := queue.Waiting{Hop: internet}
			if test.change != nil {
				test.change(m, &w)
			}
			latest := Latest(func(name string) (Connector, bool) { return Connector{Retry: test.retry}, name == internet.Connector }, started)
			if w.Hop.Connector == "" {
				latest = Latest(func(string) (Connector, bool) { return Connector{}, false }, started)
			}
			if got := latest(m, w).Sub(at); got != test.want {
				t.Errorf("Latest() = %s after acceptance, want %s", got, test.want)
			}
		})
	}
}

func TestEnds(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ends := Ends(func(name string) (Connector, bool) {
		if name != internet.Connector {
			return Connector{}, false
		}
		return Connector{Retry: Retry{Lifetime: time.Hour, Domains: map[string]Retry{"slow.example": {Lifetime: 3 * time.Hour}}}}, true
	}, at)
	hop := func(name string) route.Hop { return route.Hop{Connector: internet.Connector, Name: name} }
	for _, test := range []struct {
		name   string
		states []queue.State
		want   time.Duration // after acceptance
	}{
		{"the domain's", []queue.State{{Hop: hop("slow.example")}}, 3 * time.Hour},
		{"the first one's", []queue.State{{Hop: hop("slow.example")}, {Hop: hop("example.com"), Disposition: mail.Deferred}}, time.Hour},
		{"who has it does not count", []queue.State{{Hop: hop("slow.example")}, {Hop: hop("example.com"), Disposition: mail.Relayed}}, 3 * time.Hour},
		{"unroutable", []queue.State{{Hop: route.Unroutable}}, 48 * time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := &queue.Message{AcceptedAt: at, ExpiresAt: at.Add(48 * time.Hour), States: test.states}
			if got := ends(m).Sub(at); got != test.want {
				t.Errorf("Ends() = %s after acceptance, want %s", got, test.want)
			}
		})
	}
	if end := ends(&queue.Message{ExpiresAt: at, States: []queue.State{{Disposition: mail.Relayed}}}); !end.IsZero() {
		t.Errorf("Ends() = %s for what was relayed", end)
	}
}
