package main

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// Sizes of the mail flow that is made up.
const (
	people  = 100_000
	domains = 5_000
	senders = 8_000
	brands  = 250
)

// flow makes the facts of a mail flow as a relay states them, in the order of
// time: clients open sessions, write a few messages to recipients of whom a
// few get most of the mail (Zipf's law, as do domains and senders), next hops
// accept, defer, bounce. Each message's facts come among those of others.
type flow struct {
	rng     *rand.Rand
	to      *rand.Zipf
	from    *rand.Zipf
	at      time.Time
	step    time.Duration // between sessions
	waiting lives
	sample  []known
	every   int // one message of so many is kept as a sample
	made    int
}

// known is what a query may ask about a message.
type known struct {
	sender, recipient, messageID, queueID string
}

// step is a fact that is still to come.
type step struct {
	at      time.Time
	source  event.Source
	session string
	message mail.QueueID
	uid     string
	ev      event.Event
}

type lives []step

func (l lives) Len() int           { return len(l) }
func (l lives) Less(i, j int) bool { return l[i].at.Before(l[j].at) }
func (l lives) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }
func (l *lives) Push(x any)        { *l = append(*l, x.(step)) }
func (l *lives) Pop() any {
	old := *l
	x := old[len(old)-1]
	old[len(old)-1] = step{}
	*l = old[:len(old)-1]
	return x
}

// perSession is about how many facts a session brings.
const perSession = 14

func newFlow(seed uint64, events int, start time.Time, span time.Duration) *flow {
	rng := rand.New(rand.NewPCG(seed, 7)) //nolint:gosec // made-up mail
	return &flow{
		rng: rng, to: rand.NewZipf(rng, 1.15, 40, people-1), from: rand.NewZipf(rng, 1.1, 10, senders-1),
		at: start, step: max(time.Microsecond, span*perSession/time.Duration(events)), every: max(1, events/7/2000),
	}
}

// next is the next fact of the flow.
func (f *flow) next(r *event.Record) {
	for len(f.waiting) == 0 || f.at.Before(f.waiting[0].at) {
		f.at = f.at.Add(time.Duration(f.rng.ExpFloat64() * float64(f.step)))
		f.connect()
	}
	s := heap.Pop(&f.waiting).(step)
	*r = event.Record{
		Time: s.at.Truncate(time.Microsecond), Node: "mx1", Source: s.source, ConfigRev: "4f2ac019", Session: s.session, Message: s.message, UID: s.uid, Event: s.ev,
		Kept: event.Class(s.ev) == event.Durable,
	}
	r.ID = mail.NewSerialID(r.Time)
}

// names of people, as they are in addresses.
var names = []string{"anna", "bob", "carlos", "dmitri", "eva", "farid", "greta", "hiro", "ines", "jonas", "kim", "li", "maria", "noor", "olga", "pedro", "quentin", "rosa", "samir", "tomas"}

// person is the address of the n-th recipient, and the number of its domain.
func person(n uint64) (address string, domain uint64) {
	h := (n + 1) * 0x9e3779b97f4a7c15
	switch x := h >> 40 % 100; { // a few providers have most of the mailboxes
	case x < 28:
		domain = 0
	case x < 44:
		domain = 1
	case x < 52:
		domain = 2
	default:
		u := float64(h>>11&0xfffff) / (1 << 20)
		domain = 3 + uint64((domains-4)*u*u)
	}
	return fmt.Sprintf("%s.%s%d@%s", names[h>>32%20], names[h>>20%20], n%997, domainName(domain)), domain
}

func domainName(n uint64) string {
	switch n {
	case 0:
		return "gmail.example"
	case 1:
		return "outlook.example"
	case 2:
		return "yahoo.example"
	}
	return fmt.Sprintf("%s-%d.example", []string{"werke", "shop", "city", "uni", "kanzlei", "praxis", "bank"}[n%7], n)
}

func (f *flow) secs(median, spread float64) event.Seconds {
	return event.Secs(time.Duration(median * math.Exp(f.rng.NormFloat64()*spread) * float64(time.Second)))
}

func (f *flow) word(n int) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[f.rng.IntN(len(letters))]
	}
	return string(b)
}

func (f *flow) messageID(s uint64, at time.Time) string {
	switch f.rng.IntN(4) {
	case 0:
		return fmt.Sprintf("<%s.%d.%d@app%d.brand%d.example>", at.Format("20060102150405"), f.rng.IntN(30000), f.rng.IntN(1000), s%4, s%brands)
	case 1:
		return fmt.Sprintf("<%08x-%04x-4%03x-a%03x-%012x@brand%d.example>", f.rng.Uint32(), f.rng.IntN(1<<16), f.rng.IntN(1<<12), f.rng.IntN(1<<12), f.rng.Uint64()>>16, s%brands)
	}
	return fmt.Sprintf("<%s@mail.brand%d.example>", f.word(18), s%brands)
}

func (f *flow) accepted(domain uint64, at time.Time) string {
	switch domain {
	case 0:
		return fmt.Sprintf("2.0.0 OK  %d %s-%s.%d - gsmtp", at.Unix(), f.word(13), f.word(10), f.rng.IntN(1000))
	case 1:
		return fmt.Sprintf("2.6.0 Queued mail for delivery %s [Hostname=%s.prod.outlook.example]", f.word(12), f.word(8))
	}
	return "2.0.0 Ok: queued as " + f.word(11)
}

var (
	greylists = []string{"4.7.1 greylisted, please try again in 300 seconds", "4.2.0 Recipient address rejected: Greylisted", "4.7.0 temporarily deferred due to unexpected volume"}
	busy      = []string{"4.2.2 mailbox over quota", "4.3.1 insufficient system storage", "4.4.1 connection timed out"}
	unknown   = []string{"5.1.1 no such user here", "5.1.1 User unknown in virtual mailbox table", "5.1.1 recipient rejected"}
	blocked   = []string{"5.7.1 message blocked by policy", "5.7.1 spam message rejected", "5.7.26 unauthenticated mail from this sender is not accepted"}
)

// connect is a session with one message or a few.
func (f *flow) connect() {
	s := f.from.Uint64()
	now := f.at
	ip := netip.AddrFrom4([4]byte{10, byte(s % 7), byte(s % 200), byte(s % 250)})
	session, user, connector := mail.NewID(now), fmt.Sprintf("app%d", s%60), "submission"
	if s%5 == 4 {
		user, connector = "", "internal"
	}
	add := func(after float64, ev event.Event) {
		now = now.Add(time.Duration(f.secs(after, 0.5)))
		heap.Push(&f.waiting, step{at: now, source: event.SourceSMTPIn, session: session, ev: ev})
	}
	port := uint16(20000 + f.rng.IntN(40000)) //nolint:gosec // small
	add(0.0005, event.SessionOpened{Direction: event.Inbound, Connector: connector, ClientIP: ip, ClientPort: port, LocalIP: netip.AddrFrom4([4]byte{10, 0, 0, 25}), LocalPort: 587})
	add(0.008, event.TLSNegotiated{Direction: event.Inbound, Connector: connector, ClientIP: ip, Version: "1.3", Cipher: "TLS_AES_128_GCM_SHA256", Took: f.secs(0.004, 0.4)})
	if user != "" {
		add(0.004, event.AuthSucceeded{Connector: connector, ClientIP: ip, Mechanism: "PLAIN", User: user, TLS: true})
	}
	messages := 1
	for messages < 20 && f.rng.IntN(3) == 0 {
		messages++
	}
	octets := int64(0)
	for range messages {
		now = now.Add(time.Duration(f.secs(0.03, 0.6)))
		octets += f.message(now, session, connector, user, ip, port, s)
	}
	if f.rng.IntN(40) == 0 {
		who, _ := person(f.rng.Uint64N(people))
		add(0.01, event.RecipientRefused{
			Refusal: event.Refusal{
				Connector: connector, ClientIP: ip, AuthUser: user, MailFrom: address(s), Code: 550, Enhanced: "5.7.1", Reply: "5.7.1 relaying denied", Reason: "relay_denied",
			}, Recipient: who,
		})
	}
	add(0.01, event.SessionClosed{
		Direction: event.Inbound, Connector: connector, ClientIP: ip, AuthUser: user, Cause: "quit", Commands: 4 + 3*messages, Messages: messages,
		BytesIn: octets + 200, BytesOut: int64(300 + 90*messages), Duration: event.Since(f.at, now),
	})
}

func address(s uint64) string { return fmt.Sprintf("noreply-%d@brand%d.example", s, s%brands) }

// message is the life of one message from its acceptance at now on. It is long
// because it tells a whole life.
func (f *flow) message(now time.Time, session, connector, user string, ip netip.Addr, port uint16, s uint64) int64 {
	id, uid := mail.QueueID(mail.NewID(now)), mail.NewUID(now)
	who, d := person(f.to.Uint64())
	info := event.Info{
		MailFrom: address(s), HeaderMessageID: f.messageID(s, now), HeaderFrom: address(s), Size: int64(1500 + 9000*math.Exp(f.rng.NormFloat64())),
		ConnectorIn: connector, ClientIP: ip, AuthUser: user, Priority: "normal",
	}
	if s%3 == 0 { // bounces of newsletters come back to an address for each
		info.MailFrom = fmt.Sprintf("bounce+%d@brand%d.example", s, s%brands)
	}
	if f.rng.IntN(60) == 0 {
		info.MailFrom = event.NullSender
	}
	rcpts := []event.Recipient{{Address: who}}
	for f.rng.IntN(8) == 0 && len(rcpts) < 10 {
		rcpts = append(rcpts, event.Recipient{Address: fmt.Sprintf("%s%d@%s", names[f.rng.IntN(len(names))], f.rng.IntN(20), domainName(d))})
	}
	if f.made++; f.made%f.every == 0 {
		f.sample = append(f.sample, known{info.MailFrom, who, info.HeaderMessageID, string(id)})
	}
	accepted := now
	add := func(after float64, session string, ev event.Event) {
		now = now.Add(time.Duration(f.secs(after, 0.4)))
		heap.Push(&f.waiting, step{now, event.SourceQueue, session, id, uid, ev})
	}
	add(0.002, session, event.MessageQueued{
		Info: info, Recipients: rcpts, ClientPort: port, Helo: fmt.Sprintf("app%d.corp.example", s%60), AuthMechanism: mechanism(user), Protocol: "ESMTPS", TLSVersion: "1.3",
		TLSCipher: "TLS_AES_128_GCM_SHA256", TReceive: f.secs(0.015, 0.7), TAccept: f.secs(0.003, 0.4), Expires: accepted.Add(48 * time.Hour).Truncate(time.Microsecond),
	})
	queue, provider := domainName(d), "other"
	if d < 3 {
		provider = []string{"google", "m365", "yahoo"}[d]
	}
	out := "internet"
	if d%40 == 7 {
		out = "partner"
	}
	add(0.0003, "", event.MessageRouted{Info: info, Recipients: rcpts, ConnectorOut: out, Queue: queue, Space: "*", Why: "the cheapest connector for *"})
	fate, try := f.rng.IntN(1000), 0
	defers := 0
	for f.rng.IntN(9) == 0 && defers < 4 {
		defers++
	}
	mx := d % 3
	hop := event.Hop{
		ConnectorOut: out, Queue: queue, Provider: provider, RemoteName: fmt.Sprintf("mx%d.%s", mx, queue),
		RemoteIP: netip.AddrFrom4([4]byte{198, byte(51 + mx), byte(d >> 8), byte(d)}), RemotePort: 25, //nolint:gosec // octets
	}
	var backoff time.Duration
	for {
		try++
		ev := event.AttemptFinished{
			Info: info, Hop: hop, TLSVersion: "1.3", TLSCipher: "TLS_AES_256_GCM_SHA384", TLSVerify: "pkix_name", TLSPolicy: "opportunistic", Attempt: try,
			Recipients: make([]event.Recipient, len(rcpts)), OutSession: mail.NewID(accepted), LocalIP: netip.AddrFrom4([4]byte{203, 0, 113, 25}), TSched: f.secs(0.001, 0.8),
			Stages: event.Stages{TEnvelope: f.secs(0.05, 0.5), TData: f.secs(0.02, 0.7), TReply: f.secs(0.12, 0.6)},
		}
		if f.rng.IntN(3) == 0 {
			ev.TDNS, ev.TConnect, ev.TBanner, ev.TTLS = f.secs(0.002, 1), f.secs(0.02, 0.4), f.secs(0.04, 0.6), f.secs(0.03, 0.4)
			s := step{now.Add(time.Duration(ev.TDNS + ev.TConnect)), event.SourceSMTPOut, ev.OutSession, id, uid, event.SessionOpened{
				Direction: event.Outbound, Connector: out, RemoteName: hop.RemoteName, RemoteIP: hop.RemoteIP, RemotePort: 25,
			}}
			heap.Push(&f.waiting, s)
			s.at = s.at.Add(time.Duration(ev.TBanner + ev.TTLS))
			s.ev = event.TLSNegotiated{
				Direction: event.Outbound, Connector: out, RemoteName: hop.RemoteName, RemoteIP: hop.RemoteIP, Provider: provider, Version: "1.3", Cipher: ev.TLSCipher,
				Verify: ev.TLSVerify, Policy: ev.TLSPolicy, Peer: "CN=" + hop.RemoteName, Took: ev.TTLS,
			}
			heap.Push(&f.waiting, s)
		} else {
			ev.Reused = true
		}
		f.verdict(&ev, d, fate, try > defers, now)
		for i, r := range rcpts {
			r.Disposition, r.Code, r.Enhanced, r.Reply, r.Class = ev.Disposition, ev.Code, ev.Enhanced, ev.Reply, ev.Class
			ev.Recipients[i] = r
		}
		st := ev.Stages
		took := st.TDNS + st.TConnect + st.TBanner + st.TTLS + st.TEnvelope + st.TData + st.TReply
		if ev.Disposition == mail.Deferred {
			wait := time.Duration(min(try, 5)) * time.Minute
			ev.NextAttempt = now.Add(time.Duration(took) + wait).Truncate(time.Microsecond)
			add(took.Float(), "", ev)
			now, backoff = now.Add(wait), backoff+wait
			continue
		}
		add(took.Float(), "", ev)
		f.retire(add, &info, &hop, &ev, rcpts, accepted, &now, backoff)
		return info.Size
	}
}

func mechanism(user string) string {
	if user == "" {
		return ""
	}
	return "PLAIN"
}

// verdict is what the next hop says to an attempt.
func (f *flow) verdict(ev *event.AttemptFinished, domain uint64, fate int, last bool, now time.Time) {
	switch {
	case !last && fate%3 > 0:
		ev.Disposition = mail.Deferred
		ev.Answer = event.Answer{Code: 451, Enhanced: "4.7.1", Reply: greylists[f.rng.IntN(3)], Verb: "RCPT", Class: mail.ClassGreylist, ClassRule: "greylist"}
	case !last:
		ev.Disposition = mail.Deferred
		ev.Answer = event.Answer{Code: 452, Enhanced: "4.2.2", Reply: busy[f.rng.IntN(3)], Verb: "RCPT", Class: mail.ClassMailboxFull, ClassRule: "quota"}
	case fate < 22:
		ev.Disposition = mail.Bounced
		ev.Answer = event.Answer{Code: 550, Enhanced: "5.1.1", Reply: unknown[f.rng.IntN(3)], Verb: "RCPT", Class: mail.ClassInvalidRecipient, ClassRule: "unknown_user"}
	case fate < 32:
		ev.Disposition = mail.Bounced
		ev.Answer = event.Answer{Code: 554, Enhanced: "5.7.1", Reply: blocked[f.rng.IntN(3)], Verb: ".", Class: mail.ClassContent, ClassRule: "spam"}
	default:
		ev.Disposition = mail.Relayed
		ev.Answer = event.Answer{Code: 250, Enhanced: "2.0.0", Reply: f.accepted(domain, now), Verb: "."}
	}
}

// retire is a message's last words.
func (f *flow) retire(add func(float64, string, event.Event), info *event.Info, hop *event.Hop, ev *event.AttemptFinished, rcpts []event.Recipient, accepted time.Time, now *time.Time, backoff time.Duration) {
	gone := event.MessageRetired{Info: *info, Recipients: len(rcpts), Attempts: ev.Attempt}
	for _, r := range rcpts {
		fin := event.Final{
			Info: *info, Hop: *hop, Answer: ev.Answer, Recipient: r.Address, Attempts: ev.Attempt, TTotal: event.Since(accepted, *now), TBackoff: event.Secs(backoff),
			TQueue: event.Secs(backoff) + ev.TSched,
		}
		if ev.Disposition == mail.Bounced {
			gone.Bounced++
			add(0.00002, "", event.RecipientBounced{Final: fin})
		} else {
			gone.Relayed++
			add(0.00002, "", event.RecipientRelayed{Final: fin})
		}
	}
	if gone.Bounced > 0 {
		report := event.DSNQueued{Info: *info, Kind: "failed", DSN: mail.QueueID(mail.NewID(accepted)), Recipients: ev.Recipients}
		if info.MailFrom == event.NullSender {
			report.DSN, report.Suppressed = "", "null_sender"
		}
		add(0.001, "", report)
	}
	gone.TTotal = event.Since(accepted, *now)
	add(0.00005, "", gone)
}
