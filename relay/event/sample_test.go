package event

import (
	"testing"
	"time"
)

// tally counts the records that were written to it.
type tally struct{ all, minor int }

func (t *tally) Write(r *Record) {
	t.all++
	if r.Minor {
		t.minor++
	}
}

func TestSample(t *testing.T) {
	const many = 3 * commandsKept
	for _, test := range []struct {
		name string
		ev   Event
		n    int
		per  time.Duration // from one to the next
		want int           // are minor
	}{
		{"commands, a few", CommandAnswered{Verb: "RCPT", Code: 250}, commandsKept, 0, 0},
		{"commands, very many", CommandAnswered{Verb: "RCPT", Code: 250}, many, 0, (many - commandsKept) * (commandsSample - 1) / commandsSample},
		{"commands, many in all", CommandAnswered{Verb: "RCPT", Code: 250}, many, time.Second / commandsKept, 0},
		{"refused", CommandAnswered{Verb: "RCPT", Code: 550}, many, 0, 0},
		{"slow", CommandAnswered{Verb: "DATA", Code: 250, Took: Secs(time.Second)}, many, 0, 0},
		{"other protocol facts", TLSNegotiated{Version: "1.3"}, many, 0, 0},
		{"durable facts", MessageQueued{}, many, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			var a, b tally
			sink := Sample(&a, &b)
			at := time.Unix(1_800_000_000, 0)
			for range test.n {
				sink.Write(&Record{Time: at, Event: test.ev})
				at = at.Add(test.per)
			}
			if a.all != test.n || a.minor != test.want {
				t.Errorf("%d of %d are minor, want %d of %d", a.minor, a.all, test.want, test.n)
			}
			if a != b {
				t.Errorf("the second sink has %+v, the first %+v", b, a)
			}
		})
	}
}
