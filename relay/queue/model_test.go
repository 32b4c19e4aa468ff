package queue

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"sort"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"

	"pgregory.net/rapid"
)

// modelRecipient is what the queue must know of one recipient.
type modelRecipient struct {
	n           int // in its address
	domain      string
	via         string // the hop that it is redirected to
	disposition mail.Disposition
	due         bool // at once, or not for an hour
}

func (r *modelRecipient) hop() string {
	if r.via != "" {
		return r.via
	}
	return r.domain
}

type modelMessage struct {
	id         mail.QueueID
	sender     string
	urgent     bool // at its latest at once
	held       bool
	poison     bool
	panics     int
	recipients []modelRecipient
	leased     map[string]*Lease // by hop
}

// vacate forgets the leases on hops that nobody waits for any more.
func (msg *modelMessage) vacate() {
	for hop := range msg.leased {
		if !slices.ContainsFunc(msg.recipients, func(r modelRecipient) bool { return !r.disposition.Final() && r.hop() == hop }) {
			delete(msg.leased, hop)
		}
	}
}

// machine drives a queue and a model of it.
type machine struct {
	t        testing.TB
	h        *harness
	router   *domains
	messages map[mail.QueueID]*modelMessage
	order    []mail.QueueID // also of those that are finished
	final    map[string]mail.Disposition
	leases   []*Lease
	heldHops map[string]bool
	standing map[string]bool // senders
	down     map[string]bool // hops that cannot be reached; whether a message is to see if that is over
	done     map[mail.QueueID]*modelMessage
	recs     []event.Record
}

func (m *machine) live() []mail.QueueID {
	var ids []mail.QueueID
	for _, id := range m.order {
		if m.messages[id] != nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// finish gives a recipient its end in the model.
func (m *machine) finish(msg *modelMessage, i int, d mail.Disposition) {
	msg.recipients[i].disposition = d
	msg.vacate()
	m.final[fmt.Sprint(msg.id, "/", msg.recipients[i].n)] = d
	for _, r := range msg.recipients {
		if !r.disposition.Final() {
			return
		}
	}
	delete(m.messages, msg.id)
	m.done[msg.id] = msg
}

// claimable lists "id domain" of what must be claimable now, and of what may be
// besides: times at which messages of a hop that is down must be claimed are exact
// to a second only.
func (m *machine) claimable() (list, may []string) {
	for _, msg := range m.messages {
		due := map[string]bool{}
		for _, r := range msg.recipients {
			if !r.disposition.Final() {
				due[r.hop()] = due[r.hop()] || r.due
			}
		}
		for d := range due {
			if due[d] && msg.leased[d] == nil && !msg.held && !msg.poison && !m.heldHops[d] && !m.router.refused[d] {
				if probe, down := m.down[d]; !down || probe {
					list = append(list, fmt.Sprint(msg.id, " ", d))
				} else if msg.urgent {
					may = append(may, fmt.Sprint(msg.id, " ", d))
				}
			}
		}
	}
	sort.Strings(list)
	return list, may
}

func (m *machine) accept(t *rapid.T) {
	n := rapid.IntRange(1, 4).Draw(t, "recipients")
	msg := &modelMessage{leased: map[string]*Lease{}}
	var addrs []string
	for i := range n {
		d := rapid.SampledFrom([]string{"a.example", "b.example", "c.example"}).Draw(t, "domain")
		msg.recipients = append(msg.recipients, modelRecipient{n: i, domain: d, disposition: mail.Queued, due: true})
		addrs = append(addrs, fmt.Sprintf("u%d@%s", i, d))
	}
	d := draft(m.t, addrs...)
	d.Envelope.Sender.Local = rapid.SampledFrom([]string{"x", "y"}).Draw(t, "sender")
	msg.sender = d.Envelope.Sender.String()
	msg.held = m.standing[msg.sender]
	d.Priority = mail.Priority(rapid.IntRange(-1, 1).Draw(t, "priority"))
	msg.urgent = d.Priority == mail.PriorityHigh
	size := rapid.SampledFrom([]int{0, 10, 30_000, smallContent + 5}).Draw(t, "size")
	if err := m.h.Put(m.t.Context(), d, make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	msg.id = d.ID
	m.messages[d.ID] = msg
	m.order = append(m.order, d.ID)
}

func (m *machine) claim(t *rapid.T) {
	want, may := m.claimable()
	l, err := m.h.tryClaim()
	if err != nil {
		t.Fatal(err)
	}
	if l == nil {
		if len(want) > 0 {
			t.Fatalf("nothing claimed, want one of %v", want)
		}
		return
	}
	if !slices.Contains(slices.Concat(want, may), fmt.Sprint(l.Message.ID, " ", l.Hop.Name)) {
		t.Fatalf("claimed %s for %s, want one of %v or %v", l.Message.ID, l.Hop.Name, want, may)
	}
	if probe, down := m.down[l.Hop.Name]; l.probe != probe {
		t.Fatalf("claimed %s for %s as a probe: %t, want %t", l.Message.ID, l.Hop.Name, l.probe, probe)
	} else if down {
		m.down[l.Hop.Name] = false
	}
	msg := m.messages[l.Message.ID]
	var index []int
	for i := range msg.recipients {
		if r := &msg.recipients[i]; r.hop() == l.Hop.Name && !r.disposition.Final() {
			index = append(index, i)
		}
	}
	msg.leased[l.Hop.Name] = l
	if !slices.Equal(index, l.Index) {
		t.Fatalf("claimed recipients %v, want %v", l.Index, index)
	}
	m.leases = append(m.leases, l)
}

// end ends the lease.
func (msg *modelMessage) end(l *Lease) {
	for hop, have := range msg.leased {
		if have == l {
			delete(msg.leased, hop)
		}
	}
}

// take removes one of the leases.
func (m *machine) take(t *rapid.T) (*Lease, *modelMessage) {
	if len(m.leases) == 0 {
		t.Skip()
	}
	k := rapid.IntRange(0, len(m.leases)-1).Draw(t, "lease")
	l := m.leases[k]
	m.leases = slices.Delete(m.leases, k, k+1)
	return l, m.messages[l.Message.ID]
}

func (m *machine) settle(t *rapid.T) {
	l, msg := m.take(t)
	s := Settlement{Outcomes: outcomes(l, mail.Deferred), Next: time.Now().Add(time.Hour)}
	now := rapid.Bool().Draw(t, "at once")
	if now {
		s.Next = time.Now()
	}
	switch rapid.IntRange(0, 3).Draw(t, "the hop") {
	case 0:
		s.Reached = true
	case 1:
		s.DownUntil = time.Now().Add(time.Hour)
	case 2:
		s.DownUntil = time.Now()
	}
	for k := range s.Outcomes {
		s.Outcomes[k].Disposition = rapid.SampledFrom([]mail.Disposition{mail.Relayed, mail.Deferred, mail.Deferred, mail.Bounced, mail.Expired}).Draw(t, "outcome")
	}
	if err := m.h.Settle(m.t.Context(), l, s); err != nil {
		t.Fatal(err)
	}
	if msg == nil {
		return
	}
	switch {
	case s.Reached:
		delete(m.down, l.Hop.Name)
	case !s.DownUntil.IsZero():
		m.down[l.Hop.Name] = !s.DownUntil.After(time.Now())
	}
	msg.end(l)
	for k, i := range l.Index {
		r := &msg.recipients[i]
		if r.disposition.Final() {
			continue
		}
		if s.Outcomes[k].Disposition == mail.Deferred {
			r.disposition, r.due = mail.Deferred, now
			continue
		}
		m.finish(msg, i, s.Outcomes[k].Disposition)
	}
}

func (m *machine) giveBack(t *rapid.T) {
	l, msg := m.take(t)
	how := rapid.IntRange(0, 4).Draw(t, "how")
	poison := how == 0
	switch {
	case poison:
		if err := l.Poison(errors.New("boom")); err != nil {
			t.Fatal(err)
		}
	case how < 3:
		wait := time.Duration(how-1) * time.Hour
		l.Park(time.Now().Add(wait), time.Now().Add(time.Hour))
		m.down[l.Hop.Name] = wait == 0
	default:
		l.Release()
		if _, down := m.down[l.Hop.Name]; down && l.probe {
			m.down[l.Hop.Name] = true
		}
	}
	if msg == nil {
		return
	}
	msg.end(l)
	if poison && !msg.poison {
		if msg.panics++; msg.panics == poisonAfter {
			msg.poison = true
		} else {
			for i := range msg.recipients {
				msg.recipients[i].due = false
			}
		}
	}
}

func (m *machine) act(t *rapid.T, a Action) int {
	aff, err := m.h.Act(m.t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return aff.Messages
}

func (m *machine) message(t *rapid.T) *modelMessage {
	ids := m.live()
	if len(ids) == 0 {
		t.Skip()
	}
	return m.messages[rapid.SampledFrom(ids).Draw(t, "message")]
}

func (m *machine) holdMessage(t *rapid.T) {
	msg := m.message(t)
	m.act(t, Action{Action: "hold", Filter: Filter{ID: msg.id}, Actor: "op"})
	msg.held = true
}

func (m *machine) releaseMessage(t *rapid.T) {
	msg := m.message(t)
	was := msg.held || msg.poison
	n := m.act(t, Action{Action: "release", Filter: Filter{ID: msg.id}, Actor: "op"})
	if (n == 1) != was {
		t.Fatalf("released %d messages, held = %t", n, was)
	}
	if was {
		msg.held, msg.poison, msg.panics = false, false, 0
	}
}

func (m *machine) holdHop(t *rapid.T) {
	d := rapid.SampledFrom([]string{"a.example", "b.example"}).Draw(t, "hop")
	m.act(t, Action{Action: "hold", Filter: Filter{Hop: d}, Actor: "op"})
	m.heldHops[d] = true
}

func (m *machine) releaseHop(t *rapid.T) {
	if len(m.heldHops) == 0 {
		t.Skip()
	}
	d := rapid.SampledFrom([]string{"a.example", "b.example"}).Draw(t, "hop")
	if !m.heldHops[d] {
		t.Skip()
	}
	m.act(t, Action{Action: "release", Filter: Filter{Hop: d}, Actor: "op"})
	delete(m.heldHops, d)
}

func (m *machine) retry(t *rapid.T) {
	d := rapid.SampledFrom([]string{"a.example", "b.example", "c.example"}).Draw(t, "domain")
	m.act(t, Action{Action: "retry", Filter: Filter{Domain: d}, Actor: "op"})
	m.h.Probe() // as whoever retries does
	for hop := range m.down {
		m.down[hop] = true
	}
	for _, msg := range m.messages {
		for i := range msg.recipients {
			if r := &msg.recipients[i]; r.domain == d && !msg.poison {
				r.due = true
			}
		}
	}
}

func (m *machine) remove(t *rapid.T) {
	msg := m.message(t)
	d := rapid.SampledFrom([]string{"a.example", "b.example", ""}).Draw(t, "domain")
	m.act(t, Action{Action: rapid.SampledFrom([]string{"remove", "bounce"}).Draw(t, "how"), Filter: Filter{ID: msg.id, Domain: d}, Actor: "op"})
	// What it was is told by the facts; the model learns from them at the end.
	for i := range msg.recipients {
		if r := &msg.recipients[i]; !r.disposition.Final() && (d == "" || r.domain == d) {
			m.finish(msg, i, mail.Dropped)
		}
	}
}

func (m *machine) reroute(t *rapid.T) {
	d := rapid.SampledFrom([]string{"a.example", "c.example"}).Draw(t, "domain")
	m.router.mu.Lock()
	was := m.router.refused[d]
	m.router.refused[d] = !was
	m.router.mu.Unlock()
	if len(m.leases) > 0 { // what is leased moves when it is settled; the model waits for that
		m.router.mu.Lock()
		m.router.refused[d] = was
		m.router.mu.Unlock()
		t.Skip()
	}
	m.h.Reroute()
	for _, msg := range m.messages {
		for i := range msg.recipients {
			if r := &msg.recipients[i]; r.hop() == d {
				r.due = true
			}
		}
	}
}

// redirect sends a message to one host, or back to where the router has it.
func (m *machine) redirect(t *rapid.T) {
	msg := m.message(t)
	back := rapid.Bool().Draw(t, "back")
	a := Action{Action: "redirect", Filter: Filter{ID: msg.id}, Actor: "op", To: "h.example:25", Via: "out"}
	if back {
		a.Action = "reroute"
	}
	want := 0
	busy := map[string]bool{}
	for hop := range msg.leased {
		busy[hop] = true
	}
	for i := range msg.recipients {
		r := &msg.recipients[i]
		if r.disposition.Final() || busy[r.hop()] || back == (r.via == "") {
			continue
		}
		want = 1
		if r.due, r.via = true, ""; !back {
			r.via = "@h.example:25"
		}
	}
	if n := m.act(t, a); !back && n != want {
		t.Fatalf("redirected %d messages, want %d", n, want)
	}
}

// holdSender begins or ends a standing hold.
func (m *machine) holdSender(t *rapid.T) {
	s := rapid.SampledFrom([]string{"x@example.org", "y@example.org"}).Draw(t, "sender")
	if m.standing[s] {
		m.act(t, Action{Action: "release", Filter: Filter{Sender: s}, Actor: "op"})
		delete(m.standing, s)
	} else {
		m.act(t, Action{Action: "hold", Filter: Filter{Sender: s}, Actor: "op"})
		m.standing[s] = true
	}
	for _, msg := range m.messages {
		if msg.sender == s && !msg.poison {
			msg.held = m.standing[s]
		}
	}
}

// resend queues again what was relayed of a message.
func (m *machine) resend(t *rapid.T) {
	if len(m.order) == 0 {
		t.Skip()
	}
	id := rapid.SampledFrom(m.order).Draw(t, "message")
	old := m.messages[id]
	if old == nil {
		old = m.done[id]
	}
	again := &modelMessage{sender: old.sender, urgent: old.urgent, held: m.standing[old.sender], leased: map[string]*Lease{}}
	for _, r := range old.recipients {
		if m.final[fmt.Sprint(id, "/", r.n)] == mail.Relayed {
			again.recipients = append(again.recipients, modelRecipient{n: r.n, domain: r.domain, disposition: mail.Queued, due: true})
		}
	}
	aff, err := m.h.Resend(m.t.Context(), Action{Filter: Filter{ID: id}, Actor: "op"})
	if err != nil {
		t.Fatal(err)
	}
	if want := min(1, len(again.recipients)); aff.Messages != want {
		t.Fatalf("resent %d messages, want %d", aff.Messages, want)
	}
	if len(again.recipients) == 0 {
		return
	}
	list, err := m.h.List(m.t.Context(), Filter{}, "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range list {
		if got.Parent == id && m.messages[got.ID] == nil {
			again.id = got.ID
			m.messages[got.ID] = again
			m.order = append(m.order, got.ID)
			return
		}
	}
	t.Fatalf("%s was resent, and is not there", id)
}

func (m *machine) restart(*rapid.T) {
	old := m.h
	m.h = old.reopen(m.t, nil)
	m.recs = append(m.recs, old.rec.all()...)
	m.leases = nil
	clear(m.down)
	for _, msg := range m.messages {
		msg.leased = map[string]*Lease{}
	}
}

// kill goes on with what a killed process leaves.
func (m *machine) kill(*rapid.T) {
	for _, l := range m.leases {
		l.Release() // or else the third kill would isolate its message
	}
	old, dir := m.h, m.h.killed(m.t)
	m.h = old.openCopy(m.t, dir)
	if err := old.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.recs = append(m.recs, old.rec.all()...)
	m.leases = nil
	clear(m.down)
	for _, msg := range m.messages {
		msg.leased = map[string]*Lease{}
	}
}

// save has the database learn of the older changes, or of all.
func (m *machine) save(t *rapid.T) {
	if err := m.h.saveOnce(rapid.Bool().Draw(t, "both")); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) check(t *rapid.T) {
	l := m.h.Levels()
	if l.Messages != len(m.messages) {
		t.Fatalf("%d messages, want %d", l.Messages, len(m.messages))
	}
	active := 0
	for _, st := range m.h.Hops() {
		active += st.Active
	}
	busy := 0
	for _, msg := range m.messages {
		busy += len(msg.leased)
	}
	if active != busy {
		t.Fatalf("%d groups are active, want %d", active, busy)
	}
	list, err := m.h.List(m.t.Context(), Filter{}, "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != len(m.messages) {
		t.Fatalf("List() has %d messages, want %d", len(list), len(m.messages))
	}
	for _, got := range list {
		msg := m.messages[got.ID]
		for i, s := range got.States {
			want := msg.recipients[i].disposition
			hop := msg.recipients[i].hop()
			if m.router.refused[hop] {
				hop = ""
			}
			if !want.Final() && (msg.held || m.heldHops[hop]) {
				want = mail.Held
			}
			if want == mail.Dropped && s.Disposition == mail.Bounced {
				want = mail.Bounced
			}
			if s.Disposition != want {
				t.Fatalf("%s recipient %d is %s, want %s", got.ID, i, s.Disposition, want)
			}
		}
	}
}

// urgentAtOnce has high priority claimed even if its hop cannot be reached.
func urgentAtOnce(m *Message, _ Waiting) time.Time {
	if m.Priority == mail.PriorityHigh {
		return m.AcceptedAt
	}
	return m.ExpiresAt
}

func TestModel(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue { // 100 take too long for every day
		if err := flag.Set("rapid.checks", "30"); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		m := &machine{
			t: t, router: &domains{refused: map[string]bool{}}, messages: map[mail.QueueID]*modelMessage{},
			final: map[string]mail.Disposition{}, heldHops: map[string]bool{}, standing: map[string]bool{}, down: map[string]bool{},
			done: map[mail.QueueID]*modelMessage{},
		}
		m.h = open(t, func(o *Options) {
			o.Router = m.router
			o.NoSync, o.KeepRelayed, o.Latest, o.tune.save = true, time.Hour, urgentAtOnce, time.Hour
		})
		rt.Repeat(map[string]func(*rapid.T){
			"accept": m.accept, "accept2": m.accept, "claim": m.claim, "claim2": m.claim, "claim3": m.claim, "settle": m.settle, "settle2": m.settle,
			"give back": m.giveBack, "hold message": m.holdMessage, "release message": m.releaseMessage, "hold hop": m.holdHop, "release hop": m.releaseHop,
			"retry": m.retry, "remove": m.remove, "reroute": m.reroute, "redirect": m.redirect, "hold sender": m.holdSender, "resend": m.resend, "restart": m.restart,
			"kill": m.kill, "save": m.save, "save2": m.save,
			"reclaim": func(t *rapid.T) {
				if err := m.h.reclaim(m.t.Context()); err != nil {
					t.Fatal(err)
				}
			},
			"": m.check,
		})
		m.restart(rt)
		m.check(rt)
		if err := m.h.Close(); err != nil {
			rt.Fatal(err)
		}
		m.recs = append(m.recs, m.h.rec.all()...)
		m.facts(rt)
	})
}

// facts compares the finals with those that were stated: each once, none lost.
func (m *machine) facts(t *rapid.T) {
	seen := map[string]bool{}
	queued, retired := map[mail.QueueID]int{}, map[mail.QueueID]int{}
	finals := map[string]mail.Disposition{}
	for _, r := range m.recs {
		if seen[r.ID] {
			continue // stated again after a restart
		}
		seen[r.ID] = true
		switch event.Name(r.Event) {
		case "message_queued":
			queued[r.Message]++
		case "message_retired":
			retired[r.Message]++
		}
		f, d := finalIn(&r)
		if f == nil {
			continue
		}
		key := fmt.Sprint(r.Message, "/", f.Recipient[1:2])
		if _, twice := finals[key]; twice {
			t.Fatalf("%s has two finals", key)
		}
		finals[key] = d
	}
	for key, want := range m.final {
		if got := finals[key]; got != want && (want != mail.Dropped || got != mail.Bounced) {
			t.Fatalf("%s is %s, want %s", key, got, want)
		}
	}
	if len(finals) != len(m.final) {
		t.Fatalf("%d finals, want %d", len(finals), len(m.final))
	}
	for _, id := range m.order {
		done := 0
		if m.messages[id] == nil {
			done = 1
		}
		if queued[id] != 1 || retired[id] != done {
			t.Fatalf("%s was queued %d times and retired %d times, want 1 and %d", id, queued[id], retired[id], done)
		}
	}
}
