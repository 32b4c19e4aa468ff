package smtpin

import (
	"testing"

	"waybill/relay/mail"
	"waybill/relay/policy"
)

func TestPriority(t *testing.T) {
	ours, err := policy.NewDomains([]policy.Domain{{Name: "example.org", Type: policy.Authoritative}})
	if err != nil {
		t.Fatal(err)
	}
	by := Priority{Headers: true}
	for _, test := range []struct {
		name     string
		rules    Priority
		stranger bool
		param    string
		header   string
		want     mail.Priority
	}{
		{"nothing said", Priority{}, false, "", "", mail.PriorityNormal},
		{"the connector's", Priority{Default: mail.PriorityHigh}, false, "", "", mail.PriorityHigh},
		{"the connector's, also for strangers", Priority{Default: mail.PriorityHigh}, true, "", "", mail.PriorityHigh},
		{"header fields do not count", Priority{}, false, "", "Importance: high\r\nX-Priority: 1\r\n", mail.PriorityNormal},
		{"importance", by, false, "", "Importance: High\r\n", mail.PriorityHigh},
		{"low importance", by, false, "", "importance:low\r\n", mail.PriorityLow},
		{"normal importance before the connector's", Priority{mail.PriorityHigh, true}, false, "", "Importance: normal\r\n", mail.PriorityNormal},
		{"urgent", by, false, "", "Priority: urgent\r\n", mail.PriorityHigh},
		{"not urgent", by, false, "", "Priority: Non-Urgent\r\n", mail.PriorityLow},
		{"by number", by, false, "", "X-Priority: 1\r\n", mail.PriorityHigh},
		{"by number and word", by, false, "", "X-Priority:\r\n 2 (High)\r\n", mail.PriorityHigh},
		{"by number with a comment", by, false, "", "X-Priority: 5(lowest)\r\n", mail.PriorityLow},
		{"importance before the others", by, false, "", "X-Priority: 1\r\nPriority: urgent\r\nImportance: low\r\n", mail.PriorityLow},
		{"what has no meaning does not count", by, false, "", "Importance: very\r\nPriority: 7\r\nX-Priority: 4\r\n", mail.PriorityLow},
		{"numbers that there are not", by, false, "", "X-Priority: 11\r\n", mail.PriorityNormal},
		{"the first of two", by, false, "", "Importance: high\r\nImportance: low\r\n", mail.PriorityHigh},
		{"strangers do not overtake", by, true, "", "Importance: high\r\n", mail.PriorityNormal},
		{"nor catch up", Priority{mail.PriorityLow, true}, true, "", "Importance: normal\r\n", mail.PriorityLow},
		{"strangers may wait", by, true, "", "Importance: low\r\n", mail.PriorityLow},
		{"MT-PRIORITY first", by, false, " MT-PRIORITY=-3", "Importance: high\r\n", mail.PriorityLow},
		{"MT-PRIORITY before the connector's", Priority{Default: mail.PriorityLow}, false, " MT-PRIORITY=3", "", mail.PriorityHigh},
		{"MT-PRIORITY 0 says nothing", Priority{Default: mail.PriorityLow}, false, " MT-PRIORITY=0", "", mail.PriorityLow},
		{"MT-PRIORITY of strangers says nothing", Priority{Default: mail.PriorityLow}, true, " MT-PRIORITY=9", "", mail.PriorityLow},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, Options{Connectors: []Connector{open(func(c *Connector) {
				c.Priority, c.Headers.NoMalformed = test.rules, true
				c.Policy = &policy.Control{Domains: ours}
				c.Permissions.Relay = !test.stranger
			})}})
			c := r.dial(t)
			c.begin()
			c.talk("MAIL FROM:<a@example.net>"+test.param+"=>250", "RCPT TO:<b@example.org>=>250", "DATA=>354")
			c.send(test.header + "Subject: x\r\n\r\nImportance: high\r\n.\r\n")
			c.expect("250")
			if got := r.messages()[0].Priority; got != test.want {
				t.Errorf("priority = %v, want %v", got, test.want)
			}
		})
	}
}
