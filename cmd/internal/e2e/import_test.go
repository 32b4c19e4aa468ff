//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"waybill/cmd/internal/peers"
	"waybill/logtrack/trackapi"
)

// TestImportPostfix has a real Postfix relay, defer, bounce, report and refuse
// mail, imports the log that it wrote, and finds all of it: with short and with
// long queue IDs.
func TestImportPostfix(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		long string
	}{
		{"short queue IDs", "no"},
		{"long queue IDs", "yes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			nextDir := shared(t)
			next, err := peers.StartPostfix(nextDir, peers.PostfixOptions{
				Extra: map[string]string{"smtpd_recipient_restrictions": fmt.Sprintf("check_recipient_access regexp:%s/etc/access, permit", nextDir)},
				Files: map[string]string{"access": "/^later@/ 450 4.7.1 greylisted for the test\n/^nobody@/ 550 5.1.1 no such user here\n"},
			})
			if err != nil {
				t.Fatal(err)
			}
			stop(t, next)
			oldDir := shared(t)
			old, err := peers.StartPostfix(oldDir, peers.PostfixOptions{RelayPort: next.Port, Extra: map[string]string{
				"enable_long_queue_ids":        test.long,
				"smtpd_recipient_restrictions": fmt.Sprintf("check_recipient_access regexp:%s/etc/access, permit", oldDir),
			}, Files: map[string]string{"access": "/^refused@/ 554 5.7.1 Relay access denied\n"}})
			if err != nil {
				t.Fatal(err)
			}
			stop(t, old)
			send := func(to string) {
				t.Helper()
				run(t, "swaks", "--server", fmt.Sprintf("127.0.0.1:%d", old.Port), "--from", "sender@source.test", "--to", to, "--header", "Message-ID: <"+strings.ReplaceAll(to, ",", "+")+">")
			}
			send("ann@dest.test,bob@dest.test")
			send("nobody@dest.test")
			send("later@dest.test")
			if out, err := exec.Command("swaks", "--server", fmt.Sprintf("127.0.0.1:%d", old.Port), "--from", "sender@source.test", "--to", "refused@dest.test").CombinedOutput(); err == nil {
				t.Fatalf("the relay took everything: %s", out)
			}
			eventually(t, time.Minute, "Postfix to log everything", func() error {
				log := old.Log()
				for _, want := range []string{"to=<ann@dest.test>", "to=<bob@dest.test>", "status=bounced", "status=deferred", "sender non-delivery notification", "NOQUEUE: reject", "to=<sender@source.test>"} {
					if !strings.Contains(log, want) {
						return fmt.Errorf("no %s in %s", want, log)
					}
				}
				if strings.Count(log, ": removed") != 3 { // two messages and the report
					return errors.New(log)
				}
				return nil
			})

			d := start(t, relayConf(port(t), next.Port))
			file := filepath.Join(d.dir, "mail.log")
			write(t, file, old.Log()+"nonsense\n")
			imp := func(added bool) {
				t.Helper()
				out, err := d.waybill("track", "import", "--format", "postfix", file, "-o", "json")
				if err != nil || !strings.Contains(out, fmt.Sprintf("%s:%d: ", file, strings.Count(old.Log(), "\n")+1)) {
					t.Fatalf("%v: %s", err, out)
				}
				if strings.Contains(out, `"added": 0,`) == added {
					t.Fatalf("import: %s", out)
				}
			}
			imp(true)
			imp(false)

			ann := d.found("ann@dest.test", "relayed", 1)[0]
			if len(ann.Recipients) != 2 || ann.Sender != "sender@source.test" || ann.ClientIP != "127.0.0.1" || ann.Attempts != 2 {
				t.Errorf("message %+v", ann)
			}
			bounced := d.found("nobody@dest.test", "bounced", 1)[0]
			if r := bounced.Recipients[0]; r.Code != 550 || r.Enhanced != "5.1.1" || r.Class != "invalid_recipient" {
				t.Errorf("bounced %+v", r)
			}
			if r := d.found("later@dest.test", "deferred", 1)[0].Recipients[0]; r.Code != 450 || r.Class != "greylist" {
				t.Errorf("deferred %+v", r)
			}
			tl, err := d.api.Message(context.Background(), bounced.QueueID)
			if err != nil || len(tl.Related) != 1 || tl.Related[0].Kind != "dsn" {
				t.Fatalf("timeline %+v, %v", tl, err)
			}
			report, err := d.api.Message(context.Background(), tl.Related[0].QueueID)
			if err != nil || report.Message.Sender != "<>" || report.Message.Disposition != "relayed" {
				t.Errorf("report %+v, %v", report, err)
			}
			// By Postfix' own queue ID, as people have it from its log.
			id := old.Log()[:strings.Index(old.Log(), ": client=")]
			id = id[strings.LastIndex(id, " ")+1:]
			if test.long == "yes" && len(id) < 14 {
				t.Errorf("queue ID %q is not long", id)
			}
			list, err := d.api.Messages(context.Background(), trackapi.Query{ExternalID: id})
			if err != nil || len(list.Messages) != 1 || list.Messages[0].QueueID != ann.QueueID {
				t.Errorf("external_id %s: %+v, %v", id, list, err)
			}
			if byID, err := d.api.Message(context.Background(), id); err != nil || byID.Message.QueueID != ann.QueueID {
				t.Errorf("message %s: %+v, %v", id, byID, err)
			}
			facts, err := d.api.Events(context.Background(), trackapi.Query{Source: "import", Event: "recipient_refused"})
			if err != nil || len(facts.Events) != 1 || !strings.Contains(string(facts.Events[0]), `"reason":"relay_denied"`) {
				t.Errorf("refused %s, %v", facts.Events, err)
			}
		})
	}
}

func stop(t *testing.T, p *peers.Postfix) {
	t.Cleanup(func() {
		if err := p.Stop(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
	})
}
