package logtrack

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// relayed makes the facts that the relay states of n messages which all went well.
func relayed(n int) (recs []event.Record) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	client := netip.MustParseAddr("192.0.2.7")
	for i := range n {
		now := at.Add(time.Duration(i) * 200 * time.Microsecond)
		id := mail.QueueID(mail.NewID(now))
		session := fmt.Sprintf("01M81KN9MR3YCYFDXV7Q4FN%03d", i%20)
		rcpt := fmt.Sprintf("user%d@example%d.test", i%500, i%40)
		info := event.Info{
			MailFrom: "bench@sender.test", HeaderMessageID: fmt.Sprintf("<9708d2ac-%08d@loadbench.test>", i), HeaderFrom: "bench@sender.test",
			Size: 10240, ConnectorIn: "in", ClientIP: client, Priority: "normal",
		}
		hop := event.Hop{ConnectorOut: "sink", Queue: "sink", Provider: "other", RemoteName: "mx.example.test", RemoteIP: client, RemotePort: 25}
		reply := event.Answer{Code: 250, Enhanced: "2.0.0", Reply: "got it", Verb: "."}
		add := func(after time.Duration, by event.Source, ev event.Event) {
			t := now.Add(after)
			recs = append(recs, event.Record{
				ID: mail.NewID(t), Time: t, Node: "relay.test", Source: by, ConfigRev: "057e2eba3c32", Session: session, Message: id, UID: "01a2033d-82f6-742e-be6c-70dd058b45b1", Event: ev, Kept: true,
			})
			session = ""
		}
		add(0, event.SourceSMTPIn, event.MessageQueued{Info: info, Recipients: []event.Recipient{{Address: rcpt}}, ClientPort: uint16(40000 + i%20), Helo: "bench.test", Protocol: "ESMTP", TReceive: event.Secs(time.Duration(i%777) * time.Microsecond), TAccept: event.Secs(time.Millisecond), Expires: now.Add(48 * time.Hour)})
		add(time.Millisecond, event.SourceRouting, event.MessageRouted{Info: info, ConnectorOut: "sink", Queue: "sink", Space: "*", Why: "address space * of send connector sink, cost 10", Recipients: []event.Recipient{{Address: rcpt}}})
		add(3*time.Millisecond, event.SourceQueue, event.AttemptFinished{
			Info: info, Hop: hop, Answer: reply, Disposition: mail.Relayed,
			Recipients: []event.Recipient{{Address: rcpt, Disposition: mail.Relayed, Code: 250, Enhanced: "2.0.0", Reply: "got it"}},
			OutSession: fmt.Sprintf("01M81KVXJXFV4YP2WAZCN8X%03d", i%40), LocalIP: client, Reused: true, TLSVerify: "none", TLSPolicy: "none", Attempt: 1,
			TSched: event.Secs(time.Duration(i%900) * time.Microsecond), Stages: event.Stages{TEnvelope: event.Secs(time.Duration(i%300) * time.Microsecond), TReply: event.Secs(time.Duration(i%2000) * time.Microsecond)},
		})
		add(3*time.Millisecond, event.SourceQueue, event.RecipientRelayed{Final: event.Final{Info: info, Hop: hop, Answer: reply, Recipient: rcpt, Attempts: 1, TTotal: event.Secs(3 * time.Millisecond)}})
		add(3*time.Millisecond, event.SourceQueue, event.MessageRetired{Info: info, Recipients: 1, Relayed: 1, Attempts: 1, TTotal: event.Secs(3 * time.Millisecond)})
	}
	return recs
}

// relaying is relayed in the order in which the relay states it, with what the
// sessions state besides, which no outbox keeps.
func relaying(n int) []event.Record {
	recs := relayed(n)
	for i := range n {
		first := recs[5*i]
		for k, verb := range []string{"MAIL", "RCPT", "DATA"} {
			t := first.Time.Add(time.Duration(k-3) * 100 * time.Microsecond)
			recs = append(recs, event.Record{
				ID: mail.NewID(t), Time: t, Node: first.Node, Source: event.SourceSMTPIn, ConfigRev: first.ConfigRev, Session: first.Session,
				Event: event.CommandAnswered{Connector: "in", Verb: verb, Code: 250 + 104*(k/2), Enhanced: []string{"2.1.0", "2.1.5", ""}[k], Took: event.Secs(time.Duration(i%99+k) * time.Microsecond)},
			})
		}
	}
	order := func(later time.Duration) { // the outbox has its facts for a while
		at := func(r *event.Record) time.Time {
			if r.Kept {
				return r.Time.Add(later)
			}
			return r.Time
		}
		slices.SortStableFunc(recs, func(a, b event.Record) int { return at(&a).Compare(at(&b)) })
	}
	order(0)
	for i := range recs {
		recs[i].ID = mail.NewSerialID(recs[i].Time)
	}
	order(5 * time.Millisecond)
	return recs
}

// BenchmarkRelaying writes what the relay states of messages which all went
// well, and waits until it is sealed. One iteration is a message.
func BenchmarkRelaying(b *testing.B) {
	s := openStore(b, b.TempDir())
	var cpu time.Duration
	var before, after runtime.MemStats
	total := uint64(0)
	for done := 0; done < b.N; {
		n := min(b.N-done, 20000)
		recs := relaying(n)
		runtime.GC()
		runtime.ReadMemStats(&before)
		cpu -= cpuTime()
		b.StartTimer()
		for i := range recs {
			s.Write(&recs[i])
		}
		seal(s)
		b.StopTimer()
		cpu += cpuTime()
		runtime.ReadMemStats(&after)
		total += after.TotalAlloc - before.TotalAlloc
		done += n
	}
	b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N)/1000, "cpu-µs/op")
	b.ReportMetric(float64(total)/float64(b.N), "octets/op")
}

// BenchmarkSeal makes blocks of the facts that relaying states: of so many that
// no cache of a processor has them, as when a relay works between two blocks.
func BenchmarkSeal(b *testing.B) {
	const blocks = 48
	recs := relayed(blocks*blockRows/5 + 1)
	size, k := 0, 0
	cpu := cpuTime()
	for b.Loop() {
		size = len(encodeBlock(1, recs[k*blockRows:][:blockRows]).body)
		k = (k + 1) % blocks
	}
	b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N*blockRows), "cpu-ns/fact")
	b.ReportMetric(float64(size)/float64(blockRows), "octets/fact")
}
