//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/relay/relaytest"
)

// readDSN reads a report with Python's email package, and says what it
// found, faults included.
const readDSN = `
import email, email.policy, json, quopri, sys
raw = sys.stdin.buffer.read()
m = email.message_from_bytes(raw, policy=email.policy.default)
faults = [str(d) for p in m.walk() for d in p.defects]
parts = m.get_payload()
status = parts[1].get_payload()
if parts[1].get_content_type() != "message/delivery-status":  # the package does not know the type: read it as it would
    body = raw.split(b"--" + m.get_boundary().encode())[2].partition(b"\r\n\r\n")[2]
    if parts[1]["Content-Transfer-Encoding"] == "quoted-printable":
        body = quopri.decodestring(body)
    body = body.replace(b"\r\n", b"\n").strip()
    status = [email.message_from_bytes(b + b"\n\n", policy=email.policy.default) for b in body.split(b"\n\n")]
blocks = [{k: str(v) for k, v in b.items()} for b in status]
json.dump({
    "type": m.get_content_type(), "report": m.get_param("report-type"), "faults": faults,
    "to": str(m["To"]), "from": str(m["From"]), "subject": str(m["Subject"]), "auto": str(m["Auto-Submitted"]), "reply_to": str(m["In-Reply-To"]),
    "parts": [p.get_content_type() for p in parts], "text": parts[0].get_content(),
    "message": blocks[0], "recipients": [b for b in blocks[1:] if b],
}, sys.stdout)
`

// parsedReport is what readDSN says.
type parsedReport struct {
	Type, Report, To, From, Subject, Auto string
	ReplyTo                               string `json:"reply_to"`
	Faults, Parts                         []string
	Text                                  string
	Message                               map[string]string
	Recipients                            []map[string]string
}

func python(t *testing.T, content []byte) (r parsedReport) {
	t.Helper()
	cmd := exec.Command("python3", "-c", readDSN)
	cmd.Stdin = strings.NewReader(string(content))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		t.Fatalf("%v: %s%s in:\n%s", err, out, &stderr, content)
	}
	if len(r.Faults) > 0 || r.Type != "multipart/report" || r.Report != "delivery-status" || r.Auto != "auto-replied" {
		t.Errorf("%+v in:\n%s", r, content)
	}
	return r
}

// TestReports has mail fail, be late and be relayed, and reads the reports with
// another MIME reader than ours; strangers get them only where they are not forged.
func TestReports(t *testing.T) {
	t.Parallel()
	hub := relaytest.NewSmartHost(t, relaytest.WithoutExtension("DSN"))
	hub.OnRcpt("gone@dest.test", 550, "5.1.1 No such user")
	hub.OnRcpt("jörg@dest.test", 550, "5.1.1 No such user")
	hub.OnRcpt("late@dest.test", 451, "4.7.1 Greylisted, please try again later")
	names := relaytest.NewNameServer(t, `strict.test. 60 IN TXT "v=spf1 -all"`, `open.test. 60 IN A 127.0.0.1`)
	in, world := port(t), port(t)
	conf := strings.NewReplacer(
		"send_connectors:", fmt.Sprintf("  - {name: world, usage: internet, listen: [\"127.0.0.1:%d\"], remote_ranges: [\"127.0.0.0/8\"]}\naccepted_domains: [{domain: dest.test}]\npostmaster: postmaster@home.test\nreports: {double_bounces: postmaster}\ndns: {servers: [%q]}\nsend_connectors:", world, names.Addr()),
		"delay_dsn: 0s", "delay_dsn: 1s",
	).Replace(relayConf(in, int(hub.Port())))
	d := start(t, conf)

	report := func(to string, about string) parsedReport {
		t.Helper()
		var found []byte
		eventually(t, time.Minute, "a report to "+to+" about "+about, func() error {
			for _, m := range hub.Messages() {
				if m.Envelope.Sender.IsNull() && m.Envelope.Recipients[0].Address.String() == to && strings.Contains(string(m.Content), about) {
					found = m.Content
					return nil
				}
			}
			return fmt.Errorf("%d messages", len(hub.Messages()))
		})
		return python(t, found)
	}
	const content = "From: ann@source.test\r\nTo: you@dest.test\r\nSubject: Lunch =?utf-8?q?caf=C3=A9?=\r\nMessage-ID: <m1@source.test>\r\n\r\nbody of the message\r\n"
	send := func(port int, from, to string) {
		s := dial(t, port)
		s.cmd(250, "MAIL FROM:%s", from)
		s.cmd(250, "RCPT TO:%s", to)
		s.cmd(354, "DATA")
		s.raw(content)
		s.cmd(250, ".")
		s.cmd(221, "QUIT")
	}

	// Failed, with everything that RFC 3461 has.
	send(in, "<ann@source.test> RET=FULL ENVID=QQ+2B314", "<gone@dest.test> NOTIFY=FAILURE ORCPT=rfc822;Bob+2Btag@dest.test")
	r := report("ann@source.test", "Action: failed")
	if r.Message["Original-Envelope-Id"] != "QQ+314" || !slices.Equal(r.Parts, []string{"text/plain", "message/delivery-status", "message/rfc822"}) || r.ReplyTo != "<m1@source.test>" || r.Subject != "Undelivered mail: Lunch café" {
		t.Errorf("failed: %+v", r)
	}
	for key, want := range map[string]string{
		"Final-Recipient": "rfc822; gone@dest.test", "Original-Recipient": "rfc822; Bob+tag@dest.test", "Action": "failed", "Status": "5.1.1",
		"Diagnostic-Code": "smtp; 550 5.1.1 No such user", "X-Waybill-Class": "invalid_recipient", "X-Waybill-Rule": "text-unknown", "X-Waybill-Permanence": "permanent",
	} {
		if got := r.Recipients[0][key]; got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	if !strings.Contains(r.Text, "Check the address for typing mistakes") || !strings.Contains(r.Text, "For administrators: there is no such address") {
		t.Errorf("text %s", r.Text)
	}

	// Internationalised.
	send(in, "<jürgen@source.test> SMTPUTF8 BODY=8BITMIME", "<jörg@dest.test> ORCPT=utf-8;j\\x{F6}rg@dest.test")
	r = report("jürgen@source.test", "global-delivery-status")
	if r.Recipients[0]["Final-Recipient"] != "utf-8; jörg@dest.test" || r.Recipients[0]["Original-Recipient"] != "utf-8; jörg@dest.test" {
		t.Errorf("internationalised: %+v", r)
	}

	// Late, with the header section only; relayed to a host that has no DSN.
	send(in, "<bea@source.test> RET=FULL", "<late@dest.test> NOTIFY=DELAY")
	r = report("bea@source.test", "Action: delayed")
	if r.Parts[2] != "text/rfc822-headers" || r.Recipients[0]["Will-Retry-Until"] == "" || r.Recipients[0]["Status"] != "4.7.1" || r.Recipients[0]["X-Waybill-Class"] != "greylist" {
		t.Errorf("delayed: %+v", r)
	}
	send(in, "<cyd@source.test> RET=FULL", "<ok@dest.test> NOTIFY=SUCCESS")
	r = report("cyd@source.test", "Action: relayed")
	if r.Parts[2] != "text/rfc822-headers" || !strings.HasPrefix(r.Recipients[0]["Status"], "2.") {
		t.Errorf("relayed: %+v", r)
	}

	// A report that fails: the postmaster is told, with the report.
	send(in, "<>", "<gone@dest.test>")
	if r = report("postmaster@home.test", "Undeliverable"); r.Parts[2] != "message/rfc822" {
		t.Errorf("double bounce: %+v", r)
	}

	// Strangers: one whose domain says nothing, and one whose domain says no.
	send(world, "<dan@open.test>", "<gone@dest.test>")
	report("dan@open.test", "Action: failed")
	send(world, "<eve@strict.test>", "<gone@dest.test>")
	eventually(t, time.Minute, "a report that is not made", func() error {
		log := run(t, "cat", filepath.Join(d.dir, "waybill.log"))
		if !strings.Contains(log, `"suppressed":"forged"`) {
			return fmt.Errorf("no such fact")
		}
		return nil
	})
	for _, m := range hub.Messages() {
		if m.Envelope.Recipients[0].Address.String() == "eve@strict.test" {
			t.Errorf("a forged sender got a report:\n%s", m.Content)
		}
	}
}
