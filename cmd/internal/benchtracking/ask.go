package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"waybill/logtrack/trackapi"
)

// question is something that people or dashboards ask.
type question struct {
	name   string
	times  int
	ask    func(ctx context.Context, i int) (rows int, err error)
	logsQL func(i int) []string // the same for VictoriaLogs; nil when it has no like
	after  time.Time            // only facts from then on
}

// questions is the list. Exact ones are asked for many different values, the
// others a few times.
func (b *bench) questions() []question {
	day := b.end.Add(-24 * time.Hour)
	month := b.end.Add(-30 * 24 * time.Hour)
	at := func(i int) known { return b.flow.sample[(i*7919)%len(b.flow.sample)] }
	heavy := b.heaviest()
	messages := func(name string, times int, from time.Time, query func(i int) trackapi.Query, logsQL func(i int) string) question {
		return question{name: name, times: times, after: from, ask: func(ctx context.Context, i int) (int, error) {
			q := query(i)
			q.From = from
			got, err := b.store.Messages(ctx, q)
			if err != nil {
				return 0, err
			}
			if got.Cut != "" {
				return 0, fmt.Errorf("cut: %s", got.Cut)
			}
			return len(got.Messages), nil
		}, logsQL: func(i int) []string { return []string{logsQL(i)} }}
	}
	aggregate := func(name string, from time.Time, logsQL []string, list ...trackapi.AggregateQuery) question {
		return question{name: name, times: 9, after: from, ask: func(ctx context.Context, _ int) (int, error) {
			rows := 0
			for _, q := range list {
				q.From, q.Top = from, 100
				got, err := b.store.Aggregate(ctx, q)
				if err != nil {
					return 0, err
				}
				if got.Cut != "" {
					return 0, fmt.Errorf("cut: %s", got.Cut)
				}
				rows += len(got.Series)
			}
			return rows, nil
		}, logsQL: func(int) []string { return logsQL }}
	}
	final := `_msg:in("recipient_relayed","recipient_bounced")`
	newest := ` | sort by (_time desc) limit 50`
	domain := `extract "@<domain>" from recipient`
	bounced := trackapi.Query{Disposition: "bounced"}
	const latencies = "latency_p50,latency_p95,latency_p99"
	panel := func(metric string, step time.Duration, q trackapi.Query, by ...string) trackapi.AggregateQuery {
		return trackapi.AggregateQuery{Query: q, Metric: metric, Step: step, By: by}
	}
	return []question{
		messages("recipient", 300, day, func(i int) trackapi.Query { return trackapi.Query{Recipient: at(i).recipient} },
			func(i int) string { return fmt.Sprintf("%s recipient:=%q", final, at(i).recipient) + newest }),
		messages("recipient with most mail", 30, day, func(int) trackapi.Query { return trackapi.Query{Recipient: heavy.recipient} },
			func(int) string { return fmt.Sprintf("%s recipient:=%q", final, heavy.recipient) + newest }),
		messages("sender", 300, day, func(i int) trackapi.Query { return trackapi.Query{Sender: at(i).sender} },
			func(i int) string { return fmt.Sprintf("_msg:=message_queued mail_from:=%q", at(i).sender) + newest }),
		messages("message-id", 300, day, func(i int) trackapi.Query { return trackapi.Query{MessageID: at(i).messageID} },
			func(i int) string {
				return fmt.Sprintf("_msg:=message_queued header_message_id:=%q", at(i).messageID) + newest
			}),
		messages("queue id", 300, day, func(i int) trackapi.Query { return trackapi.Query{QueueID: at(i).queueID} },
			func(i int) string { return fmt.Sprintf("_msg:=message_queued queue_id:=%q", at(i).queueID) + newest }),
		{name: "message with its timeline", times: 300, after: day, ask: func(ctx context.Context, i int) (int, error) {
			_, err := b.store.Message(ctx, at(i).queueID)
			return 1, err
		}, logsQL: func(i int) []string { return []string{fmt.Sprintf("queue_id:=%q | sort by (_time)", at(i).queueID)} }},
		messages("domain", 60, day, func(i int) trackapi.Query { return trackapi.Query{Domain: domainOf(at(i).recipient)} },
			func(i int) string {
				return fmt.Sprintf("%s recipient:~%q", final, "@"+domainOf(at(i).recipient)+"$") + newest
			}),
		messages("sender domain", 60, day, func(i int) trackapi.Query { return trackapi.Query{Sender: "@" + domainOf(at(i).sender)} },
			func(i int) string {
				return fmt.Sprintf("_msg:=message_queued mail_from:~%q", "@"+domainOf(at(i).sender)+"$") + newest
			}),
		messages("newest", 30, day, func(int) trackapi.Query { return trackapi.Query{} }, func(int) string { return "_msg:=message_queued" + newest }),
		messages("bounced", 30, day, func(int) trackapi.Query { return bounced }, func(int) string { return "_msg:=recipient_bounced" + newest }),
		messages("domain, bounced", 30, day, func(i int) trackapi.Query {
			return trackapi.Query{Domain: domainName(uint64(i)), Disposition: "bounced"} //nolint:gosec // small
		}, func(i int) string {
			return fmt.Sprintf("_msg:=recipient_bounced recipient:~%q", "@"+domainName(uint64(i))+"$") + newest //nolint:gosec // small
		}),
		messages("substring, 24 h", 9, day, func(i int) trackapi.Query {
			return trackapi.Query{Recipient: fmt.Sprintf("*quentin.*%d*@*7.example", 90+i)}
		},
			func(i int) string {
				return fmt.Sprintf("%s recipient:~%q", final, fmt.Sprintf(`quentin\..*%d.*@.*7\.example$`, 90+i)) + newest
			}),

		aggregate("bounced by domain, 5 min", day, []string{`_msg:=recipient_bounced | ` + domain + ` | stats by (_time:5m, domain) count()`}, panel("count", 5*time.Minute, bounced, "recipient_domain")),
		aggregate("latency p50, p95, p99 by domain", day, []string{final + ` | ` + domain + ` | stats by (domain) quantile(0.5, t_total), quantile(0.95, t_total), quantile(0.99, t_total)`}, trackapi.AggregateQuery{Metric: latencies, By: []string{"recipient_domain"}}),
		aggregate("latency p50, p95, p99, 5 min", day, []string{final + ` | stats by (_time:5m) quantile(0.5, t_total), quantile(0.95, t_total), quantile(0.99, t_total)`},
			panel(latencies, 5*time.Minute, trackapi.Query{})),
		aggregate("outcomes by disposition, 5 min", day, []string{`_msg:in("recipient_relayed","recipient_bounced","attempt_finished") | stats by (_time:5m, _msg, disposition) count()`},
			panel("count", 5*time.Minute, trackapi.Query{}, "disposition")),
		aggregate("failures by class and code", day, []string{`_msg:in("recipient_bounced","attempt_finished") !disposition:=relayed | stats by (class, code) count()`},
			panel("count", 0, trackapi.Query{Disposition: "bounced,deferred"}, "class", "code")),
		aggregate("failures by host and class, 30 min", day, []string{`_msg:in("recipient_bounced","attempt_finished") !disposition:=relayed | stats by (_time:30m, remote_name, class) count()`},
			panel("count", 30*time.Minute, trackapi.Query{Disposition: "bounced,deferred"}, "remote_host", "class")),
		aggregate("octets by sender domain, 5 min", day, []string{`_msg:=message_queued | extract "@<domain>" from mail_from | stats by (_time:5m, domain) sum(size)`}, panel("bytes", 5*time.Minute, trackapi.Query{}, "sender_domain")),
		aggregate("count by client, whole range", day, []string{final + ` | stats by (client_ip) count()`}, panel("count", 0, trackapi.Query{}, "client_ip")),

		aggregate("30 days: outcomes by disposition, 6 h", month, nil, panel("count", 6*time.Hour, trackapi.Query{}, "disposition")),
		aggregate("30 days: p95, 6 h", month, nil, panel("latency_p95", 6*time.Hour, trackapi.Query{})),
		aggregate("30 days: failures by domain and class, 6 h", month, nil, panel("count", 6*time.Hour, trackapi.Query{Disposition: "bounced,deferred"}, "recipient_domain", "class")),
		aggregate("30 days: p99 by domain", month, nil, trackapi.AggregateQuery{Metric: "latency_p99", By: []string{"recipient_domain"}}),
	}
}

// heaviest is the message among the samples whose recipient has most of them.
func (b *bench) heaviest() known {
	count := map[string]int{}
	best := b.flow.sample[0]
	for _, k := range b.flow.sample {
		if count[k.recipient]++; count[k.recipient] > count[best.recipient] {
			best = k
		}
	}
	return best
}

func domainOf(address string) string {
	_, d, ok := strings.Cut(address, "@")
	if !ok { // the null reverse-path
		return "gmail.example"
	}
	return d
}

// figures of one question.
type figures struct {
	p50, p99, cpu float64 // milliseconds
	rows          float64
}

// measure asks one question its number of times.
func measure(q question, ask func(i int) (rows int, err error), cpu func() time.Duration) (figures, error) {
	took := make([]time.Duration, 0, q.times)
	rows := 0
	began := cpu()
	for i := range q.times {
		t := time.Now()
		n, err := ask(i)
		if err != nil {
			return figures{}, fmt.Errorf("%s: %w", q.name, err)
		}
		took = append(took, time.Since(t))
		rows += n
	}
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return figures{
		p50: ms(took[len(took)/2]), p99: ms(took[min(len(took)-1, len(took)*99/100)]), cpu: ms(cpu()-began) / float64(q.times), rows: float64(rows) / float64(q.times),
	}, nil
}

func ownCPU() time.Duration { return cpuTime(syscall.RUSAGE_SELF) }

// answers asks all questions and prints a table.
func (b *bench) answers(title string, qs []question, profile string) error {
	stop, err := profileTo(profile)
	if err != nil {
		return err
	}
	defer stop()
	fmt.Printf("\n%-46s %9s %9s %9s %8s\n", title, "p50 ms", "p99 ms", "CPU ms", "rows")
	p50, p99 := map[string]float64{}, map[string]float64{}
	for _, q := range qs {
		f, err := measure(q, func(i int) (int, error) { return q.ask(context.Background(), i) }, ownCPU)
		if err != nil {
			return err
		}
		fmt.Printf("  %-44s %9.1f %9.1f %9.1f %8.1f\n", q.name, f.p50, f.p99, f.cpu, f.rows)
		p50[q.name], p99[q.name] = f.p50, f.p99
	}
	fmt.Println()
	if b.p50 == nil {
		b.p50, b.p99 = p50, p99
	}
	return nil
}

// whileWriting asks again while facts come in at a steady rate.
func (b *bench) whileWriting(qs []question) error {
	more := newFlow(2, max(1000, int(b.opts.span.Seconds())*b.opts.rate), b.end, b.opts.span)
	var stop atomic.Bool
	done := make(chan int)
	go func() {
		full, _, _ := stream(more, 1<<40)
		n, began := 0, time.Now()
		for chunk := range full {
			for i := range chunk {
				if n%200 == 0 {
					if stop.Load() {
						done <- n
						return
					}
					time.Sleep(time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(b.opts.rate))))
				}
				b.store.Write(&chunk[i])
				n++
			}
		}
	}()
	began := time.Now()
	err := b.answers(fmt.Sprintf("while %d facts a second come in", b.opts.rate), qs, "")
	stop.Store(true)
	n := <-done
	b.report("facts that came in meanwhile", fmt.Sprintf("%d, %.0f a second", n, float64(n)/time.Since(began).Seconds()))
	return err
}
