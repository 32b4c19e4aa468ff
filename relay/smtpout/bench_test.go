package smtpout

import (
	"strings"
	"testing"

	"waybill/relay/mail"
	"waybill/relay/relaytest"
)

// BenchmarkAttempt hands over messages of 10 KiB, one after the other, in one
// session that is kept.
func BenchmarkAttempt(b *testing.B) {
	for _, bench := range []struct {
		name string
		opts []relaytest.Option
		tls  TLSLevel
	}{
		{"pipelined", nil, TLSNone},
		{"one by one", []relaytest.Option{relaytest.WithoutExtension("PIPELINING")}, TLSNone},
		{"TLS", []relaytest.Option{relaytest.WithTLS("127.0.0.1")}, TLSEncrypt},
	} {
		b.Run(bench.name, func(b *testing.B) {
			h := relaytest.NewSmartHost(b, append(bench.opts, relaytest.WithKeep(10))...)
			c := smart(b, func(o *Options) { o.TLS, o.Limits.MessagesPerConnection = bench.tls, 1<<30 }, h)
			m := message(strings.Repeat("a line of content, of no particular interest\r\n", 222))
			b.SetBytes(m.Size)
			b.ReportAllocs()
			for b.Loop() {
				if r := c.Attempt(b.Context(), outHop, m); r.Outcomes[0].Disposition != mail.Relayed {
					b.Fatal(brief(r.Outcomes))
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}

// BenchmarkStuffer stuffs 64 KiB with a dot at the beginning of some lines.
func BenchmarkStuffer(b *testing.B) {
	p := []byte(strings.Repeat(strings.Repeat("a line. of content, of no particular interest\r\n", 40)+".dot\r\n", 35))
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		s := newStuffer(discard{})
		if _, err := s.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error)       { return len(p), nil }
func (discard) WriteString(s string) (int, error) { return len(s), nil }
