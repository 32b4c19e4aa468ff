package relaytest

import (
	"strconv"
	"strings"
	"testing"

	"waybill/relay/mail"
)

// Outcome makes the failure that a next hop's reply to verb is, such as
// "550 5.1.1 no such user"; "-" stands for what is missing. Replies of 500 and
// more bounce.
func Outcome(t testing.TB, verb, reply string) mail.Outcome {
	t.Helper()
	words := strings.SplitN(reply, " ", 3)
	if len(words) != 3 {
		t.Fatalf("reply %q: want a code, an enhanced code and a text", reply)
	}
	o := mail.Outcome{Disposition: mail.Deferred, Remote: true, Verb: verb}
	for i, to := range []*string{nil, &o.Reply.Enhanced, &o.Reply.Text} {
		switch w := words[i]; {
		case w == "-":
		case to != nil:
			*to = w
		default:
			code, err := strconv.Atoi(w)
			if err != nil {
				t.Fatalf("reply %q: %v", reply, err)
			}
			o.Reply.Code = code
		}
	}
	if o.Reply.Code >= 500 {
		o.Disposition = mail.Bounced
	}
	return o
}
