package logtrack

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// mailer makes the facts of messages as a relay would state them: a few
// senders write to many recipients of many domains, both by Zipf's law; some
// recipients defer, some bounce.
type mailer struct {
	rng        *rand.Rand
	domains    *rand.Zipf
	senders    *rand.Zipf
	people     *rand.Zipf
	start      time.Time
	at         time.Time
	step       time.Duration // between messages
	sessions   bool          // state sessions too
	recipients []string      // of the messages made so far, a few
	seq        int
}

func newMailer(seed uint64) *mailer {
	rng := rand.New(rand.NewPCG(seed, 42))
	start := time.Now().Add(-12 * time.Hour).UTC().Truncate(time.Microsecond)
	return &mailer{
		rng: rng, domains: rand.NewZipf(rng, 1.2, 8, 19999), senders: rand.NewZipf(rng, 1.1, 20, 49999), people: rand.NewZipf(rng, 1.05, 2000, 1999999),
		start: start, at: start, step: 10 * time.Millisecond, sessions: true,
	}
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
	return fmt.Sprintf("dom%d.test", n)
}

var (
	names         = []string{"anna", "bob", "carlos", "dmitri", "eva", "farid", "greta", "hiro", "ines", "jonas", "kim", "li", "maria", "noor", "olga", "pedro"}
	deferReplies  = []string{"greylisted, try again later", "mailbox busy", "rate limited by destination", "insufficient system storage"}
	bounceReplies = []string{"user unknown", "mailbox full", "blocked by policy", "spam message rejected"}
)

func (m *mailer) secs(mean float64) event.Seconds {
	return event.Secs(time.Duration(m.rng.ExpFloat64() * mean * float64(time.Second)))
}

// next is the facts of the next message, in the order of their times. It is
// long because it tells a message's whole life.
func (m *mailer) next() []event.Record {
	m.seq++
	m.at = m.at.Add(time.Duration(m.rng.Int64N(int64(2 * m.step)))).Truncate(time.Microsecond)
	now := m.at
	d, s, u := m.domains.Uint64(), m.senders.Uint64(), m.people.Uint64()
	rcpt := fmt.Sprintf("%s%d@%s", names[u%uint64(len(names))], u, domainName(d))
	if len(m.recipients) < 200 {
		m.recipients = append(m.recipients, rcpt)
	}
	info := event.Info{
		MailFrom:        fmt.Sprintf("noreply-%d@brand%d.example", s, s%200),
		HeaderMessageID: fmt.Sprintf("<%016x@app%d.corp.example>", m.rng.Uint64(), s%40),
		HeaderFrom:      fmt.Sprintf("noreply-%d@brand%d.example", s, s%200),
		Size:            int64(2000 + m.rng.ExpFloat64()*20000),
		ConnectorIn:     "submission",
		ClientIP:        netip.AddrFrom4([4]byte{10, byte(s % 5), byte(s % 200), byte(s % 250)}),
		AuthUser:        fmt.Sprintf("app%d", s%40),
		Priority:        "normal",
	}
	if m.rng.IntN(50) == 0 {
		info.MailFrom = event.NullSender
	}
	id, uid, session := mail.QueueID(mail.NewID(now)), mail.NewUID(now), mail.NewID(now)
	var recs []event.Record
	add := func(src event.Source, session string, msg mail.QueueID, uid string, ev event.Event) {
		now = now.Add(time.Duration(1+m.rng.IntN(2000)) * time.Microsecond)
		recs = append(recs, event.Record{ID: mail.NewID(now), Time: now, Node: "mx1", Source: src, ConfigRev: "4f2a", Session: session, Message: msg, UID: uid, Event: ev})
	}
	rcpts := []event.Recipient{{Address: rcpt}}
	if m.rng.IntN(10) == 0 {
		rcpts = append(rcpts, event.Recipient{Address: fmt.Sprintf("copy%d@%s", u%50, domainName(d))})
	}
	if m.sessions {
		add(event.SourceSMTPIn, session, "", "", event.SessionOpened{Direction: event.Inbound, Connector: "submission", ClientIP: info.ClientIP, ClientPort: uint16(30000 + m.rng.IntN(30000))})
	}
	add(event.SourceQueue, session, id, uid, event.MessageQueued{
		Info: info, Recipients: rcpts, ClientPort: 40000, Helo: "app.corp.example", AuthMechanism: "PLAIN", Protocol: "ESMTPSA",
		TLSVersion: "1.3", TLSCipher: "TLS_AES_128_GCM_SHA256", TReceive: m.secs(0.02), TAccept: m.secs(0.003), Expires: now.Add(48 * time.Hour),
	})
	accepted := now
	queue := domainName(d)
	provider := "other"
	if d < 3 {
		provider = []string{"google", "m365", "yahoo"}[d]
	}
	add(event.SourceRouting, "", id, uid, event.MessageRouted{Info: info, Recipients: slices.Clone(rcpts), ConnectorOut: "internet", Queue: queue, Space: "*", Why: "the only connector for *"})
	x := m.rng.IntN(100)
	tries := 1
	if x < 12 {
		tries += 1 + m.rng.IntN(2)
	}
	mx := fmt.Sprintf("mx%d.%s", d%3, queue)
	for k := range tries {
		st := event.Stages{TDNS: m.secs(0.004), TConnect: m.secs(0.02), TBanner: m.secs(0.03), TTLS: m.secs(0.03), TEnvelope: m.secs(0.04), TData: m.secs(0.02), TReply: m.secs(0.1)}
		now = now.Add(time.Duration(30*math.Exp(m.rng.NormFloat64()*0.9)) * time.Millisecond)
		hop := event.Hop{ConnectorOut: "internet", Queue: queue, Provider: provider, RemoteName: mx, RemoteIP: netip.AddrFrom4([4]byte{198, 51, byte(d >> 8), byte(d)}), RemotePort: 25}
		ev := event.AttemptFinished{
			Info: info, Hop: hop, OutSession: mail.NewID(now), TLSVersion: "1.3", TLSCipher: "TLS_AES_128_GCM_SHA256", TLSVerify: "pkix_name", Attempt: k + 1,
			TSched: m.secs(0.002), Stages: st, Recipients: slices.Clone(rcpts),
		}
		var fin event.Final
		switch {
		case k < tries-1:
			ev.Disposition = mail.Deferred
			ev.Answer = event.Answer{Code: 451, Enhanced: "4.7.1", Reply: deferReplies[m.rng.IntN(len(deferReplies))], Verb: "RCPT", Class: mail.ClassGreylist, ClassRule: "greylist"}
			ev.NextAttempt = now.Add(5 * time.Minute)
		case x >= 96 || x == 0:
			ev.Disposition = mail.Bounced
			ev.Answer = event.Answer{Code: 550, Enhanced: "5.1.1", Reply: bounceReplies[m.rng.IntN(len(bounceReplies))], Verb: "RCPT", Class: mail.ClassInvalidRecipient, ClassRule: "unknown_user"}
		default:
			ev.Disposition = mail.Relayed
			ev.Answer = event.Answer{Code: 250, Enhanced: "2.0.0", Reply: fmt.Sprintf("ok queued as %08x", m.rng.Uint32()), Verb: "."}
		}
		for i := range ev.Recipients {
			r := &ev.Recipients[i]
			r.Disposition, r.Code, r.Enhanced, r.Reply, r.Class = ev.Disposition, ev.Code, ev.Enhanced, ev.Reply, ev.Class
		}
		add(event.SourceQueue, "", id, uid, ev)
		if ev.Disposition == mail.Deferred {
			now = now.Add(5 * time.Minute)
			continue
		}
		for _, r := range rcpts {
			fin = event.Final{Info: info, Hop: hop, Answer: ev.Answer, Recipient: r.Address, Attempts: k + 1, TTotal: event.Since(accepted, now), TBackoff: event.Secs(time.Duration(k) * 5 * time.Minute)}
			if ev.Disposition == mail.Bounced {
				add(event.SourceQueue, "", id, uid, event.RecipientBounced{Final: fin})
			} else {
				add(event.SourceQueue, "", id, uid, event.RecipientRelayed{Final: fin})
			}
		}
		ret := event.MessageRetired{Info: info, Recipients: len(rcpts), Attempts: k + 1, TTotal: fin.TTotal, Relayed: len(rcpts)}
		if ev.Disposition == mail.Bounced {
			ret.Relayed, ret.Bounced = 0, len(rcpts)
		}
		add(event.SourceQueue, "", id, uid, ret)
	}
	if m.sessions {
		add(event.SourceSMTPIn, session, "", "", event.SessionClosed{Direction: event.Inbound, Connector: "submission", ClientIP: info.ClientIP, AuthUser: info.AuthUser, Cause: "quit", Commands: 6, Messages: 1, BytesIn: info.Size + 200, BytesOut: 400, Duration: m.secs(0.2)})
	}
	return recs
}
