package app

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"

	"waybill/relay/relaytest"
)

// TestBackPressure fills a queue whose next hop does not answer, above its mark:
// mail is refused, readiness, status and metrics say so; when the queue is empty
// again, mail is taken again.
func TestBackPressure(t *testing.T) {
	host := relaytest.NewSmartHost(t)
	host.Do(relaytest.PhaseRcpt, relaytest.Action{Reply: "451 4.7.1 later"})
	f := newFixture(t, host.Addr())
	f.write(strings.Replace(standard, "back_pressure: {", "back_pressure: {queue_length: {medium: 2, high: 3}, delay_step: 0s, ", 1))
	r := f.start()
	for i := range 3 {
		r.submit("app", fmt.Sprintf("u%d@dest.test", i))
	}
	eventually(t, "the relay to refuse", func() error {
		if code, body := r.get("/-/ready"); code != http.StatusServiceUnavailable || !strings.Contains(body, "queue_length is short: 3 messages") {
			return fmt.Errorf("ready answers %d %s", code, body)
		}
		return nil
	})
	c, err := r.login("app")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if e, ok := errors.AsType[*smtp.SMTPError](c.Mail("a@source.test", nil)); !ok || e.Code != 452 || e.EnhancedCode != (smtp.EnhancedCode{4, 3, 1}) {
		t.Errorf("MAIL = %v, want 452 4.3.1", e)
	}
	s, err := r.api.Status(t.Context())
	if err != nil || s.Ready || s.Pressure.Stage != "all" {
		t.Errorf("status %+v, %v", s, err)
	}
	for _, p := range s.Pressure.Resources {
		if (p.Level == 2) != (p.Resource == "queue_length") {
			t.Errorf("resource %+v", p)
		}
	}
	_, body := r.get("/metrics")
	for _, want := range []string{`waybill_backpressure_level{resource="queue_length"} 2`, "waybill_backpressure_stage 3", `reason="backpressure"} 1`} {
		if !strings.Contains(body, want) {
			t.Errorf("the metrics have no %s", want)
		}
	}

	host.Do(relaytest.PhaseRcpt)
	f.write(strings.Replace(standard, "back_pressure: {", "back_pressure: {queue_length: {medium: 100, high: 200}, ", 1))
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "mail to be taken again", func() error {
		if code, body := r.get("/-/ready"); code != http.StatusOK {
			return fmt.Errorf("ready answers %d %s", code, body)
		}
		return nil
	})
	if err := c.Mail("a@source.test", nil); err != nil {
		t.Errorf("MAIL after it was over: %v", err)
	}
}

// TestThrottlesSurviveReload: who has used up a limit has, also after a reload; a
// rule that does not fit changes nothing.
func TestThrottlesSurviveReload(t *testing.T) {
	f := newFixture(t, relaytest.NewSmartHost(t).Addr())
	with := func(rules string) string {
		return strings.Replace(standard, "queue: {", "throttles: ["+rules+"]\nqueue: {", 1)
	}
	f.write(with("{name: users, by: user, limit: 2 messages/1d}"))
	r := f.start()
	mail := func() error {
		c, err := r.login("app")
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Mail("a@source.test", nil)
	}
	if err := errors.Join(mail(), mail()); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name   string
		rules  string
		reload bool
		want   bool // mail is taken
	}{
		{"as it was", "{name: users, by: user, limit: 2 messages/1d}", true, false},
		{"another beside it", "{name: users, by: user, limit: 2 messages/1d}, {name: more, limit: 100 messages/1m}", true, false},
		{"a bad one", "{name: users, by: user, limit: 2 connections/1d}", false, false},
		{"another name", "{name: others, by: user, limit: 2 messages/1d}", true, true},
	} {
		f.write(with(step.rules))
		if err := r.Reload(); (err == nil) != step.reload {
			t.Errorf("%s: Reload = %v", step.name, err)
		}
		if err := mail(); (err == nil) != step.want {
			t.Errorf("%s: MAIL = %v", step.name, err)
		}
	}
}
