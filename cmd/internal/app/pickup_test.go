package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"waybill/logtrack/trackapi"
	"waybill/relay/relaytest"
)

// TestPickup drops files into the directory of a whole relay: the good one
// reaches the next hop and is found by the tracking API, the bad one is put aside.
func TestPickup(t *testing.T) {
	host := relaytest.NewSmartHost(t)
	f := newFixture(t, host.Addr())
	drop := filepath.Join(f.dir, "drop")
	if err := os.Mkdir(drop, 0o700); err != nil {
		t.Fatal(err)
	}
	f.write(standard + "pickup: {dir: DIR/drop, settle: 100ms, senders: [source.test]}\n")
	r := f.start()
	for name, text := range map[string]string{
		"bad":  "From: a@elsewhere.test\nTo: b@example.org\n\nx\n",
		"good": "From: a@source.test\nTo: b@example.org\nBcc: c@example.org\nSubject: x\n\nhello\n",
	} {
		f.file("drop/"+name+".tmp", text)
		if err := os.Rename(filepath.Join(drop, name+".tmp"), filepath.Join(drop, name+".eml")); err != nil {
			t.Fatal(err)
		}
	}
	m := host.WaitFor(t, 1)[0]
	text := string(m.Content)
	if len(m.Envelope.Recipients) != 2 || !strings.HasSuffix(text, "From: a@source.test\r\nTo: b@example.org\r\nSubject: x\r\n\r\nhello\r\n") {
		t.Errorf("to %v: %q", m.Envelope.Recipients, text)
	}
	_, id, _ := strings.Cut(text, " with PICKUP id ")
	id, _, _ = strings.Cut(id, ";")
	tl := r.message(id, "relayed")
	if tl.Message.Connector != "pickup" {
		t.Errorf("tracked as %+v", tl.Message)
	}
	eventually(t, "the bad file to be put aside", func() error {
		if left, err := filepath.Glob(filepath.Join(drop, "*.eml")); err != nil || len(left) > 0 {
			return fmt.Errorf("left: %q, %w", left, err)
		}
		why, err := os.ReadFile(filepath.Join(drop, "bad", "bad.eml.reason.txt"))
		if err == nil && !strings.Contains(string(why), "may not send as a@elsewhere.test") {
			err = errors.New(string(why))
		}
		return err
	})
	eventually(t, "the refusal to be tracked", func() error {
		got, err := r.api.Events(context.Background(), trackapi.Query{Event: "sender_refused", Limit: 10})
		if err == nil && len(got.Events) != 1 {
			err = fmt.Errorf("%d events", len(got.Events))
		}
		return err
	})
	if _, body := r.get("/metrics"); !strings.Contains(body, `waybill_messages_received_total{connector="pickup",protocol="PICKUP"} 1`) {
		for line := range strings.SplitSeq(body, "\n") {
			if strings.HasPrefix(line, "waybill_messages_received_total") {
				t.Log(line)
			}
		}
		t.Error("the message was not counted as the pickup's")
	}
}

// TestPickupNeedsItsDirectory: a relay does not start without what it was told to watch.
func TestPickupNeedsItsDirectory(t *testing.T) {
	f := newFixture(t, "127.0.0.1:1")
	f.write(standard + "pickup: {dir: DIR/none}\n")
	if _, err := New(f.options()); err == nil || !strings.Contains(err.Error(), "pickup directory") {
		t.Errorf("New() = %v", err)
	}
}
