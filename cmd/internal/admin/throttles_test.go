package admin

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/throttle"
)

// throttled is a fixture with one address at its limit, and one below.
func throttled(t *testing.T) *fixture {
	t.Helper()
	set, err := throttle.NewSet(throttle.Rule{Name: "few", Amount: 2, Per: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range []int{3, 1} {
		for range n {
			set.Take(time.Now(), throttle.Messages, 1, throttle.Client{IP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}, event.Emitter{})
		}
	}
	return newFixture(t, func(o *Options) { o.Throttles = set })
}

func TestThrottles(t *testing.T) {
	f := throttled(t)
	for _, test := range []struct {
		name  string
		query string
		total int
		want  string // keys
	}{
		{"stopped", "", 1, "192.0.2.0"},
		{"all", "?all=true", 2, "192.0.2.0 192.0.2.1"},
		{"a page", "?all=true&limit=1", 2, "192.0.2.0"},
		{"a key", "?all=true&key=.1&rule=few", 1, "192.0.2.1"},
		{"nothing", "?key=198.51.100", 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got trackapi.Throttles
			f.ask(request("GET", "/api/v1/throttles"+test.query, ""), 200, &got)
			var keys []string
			for _, r := range got.Throttles {
				keys = append(keys, r.Key)
				if r.Rule != "few" || r.Per != 3600 || r.Engaged != (r.Key == "192.0.2.0") || r.Engaged == r.Until.IsZero() {
					t.Errorf("row %+v", r)
				}
			}
			if strings.Join(keys, " ") != test.want || got.Total != test.total || len(got.Rules) != 1 {
				t.Errorf("= %+v, want %q of %d", got, test.want, test.total)
			}
		})
	}
}

func TestReleaseThrottle(t *testing.T) {
	f := throttled(t)
	var did trackapi.ThrottleActed
	f.ask(request("POST", "/api/v1/throttles/actions", `{"action":"release","rule":"few","key":"192.0.2.0","reason":"known"}`), 200, &did)
	if did.Released != 1 {
		t.Errorf("released %d, want 1", did.Released)
	}
	f.wait("the release", func(e event.AdminActed) bool {
		return e.Action == "release_throttle" && e.Filter == "rule=few key=192.0.2.0" && e.Affected == 1 && e.Actor == "local" && e.Reason == "known"
	})
	var got trackapi.Throttles
	f.ask(request("GET", "/api/v1/throttles", ""), 200, &got)
	if got.Total != 0 {
		t.Errorf("still stopped: %+v", got)
	}
}

func TestBadThrottleRequests(t *testing.T) {
	f := throttled(t)
	for _, test := range []struct {
		name         string
		method, path string
		body         string
		field        string
		want         int
	}{
		{"unknown parameter", "GET", "?address=1", "", "address", 400},
		{"limit", "GET", "?limit=0", "", "limit", 400},
		{"unknown rule", "GET", "?rule=x", "", "rule", 400},
		{"nothing named", "POST", "/actions", `{"action":"release"}`, "key", 400},
		{"unknown action", "POST", "/actions", `{"action":"forget","key":"192.0.2.0"}`, "action", 400},
		{"rule that is not", "POST", "/actions", `{"action":"release","rule":"x"}`, "rule", 400},
		{"misspelt key", "POST", "/actions", `{"action":"release","keys":"192.0.2.0"}`, "", 400},
		{"two objects", "POST", "/actions", `{"action":"release","key":"a"} {}`, "", 400},
		{"no JSON", "POST", "/actions", `release`, "", 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := f.do(request(test.method, "/api/v1/throttles"+test.path, test.body))
			if p := isProblem(t, w); w.Code != test.want || p.Field != test.field {
				t.Errorf("= %d %+v, want %d about %q", w.Code, p, test.want, test.field)
			}
		})
	}
	if n := len(f.facts.Named("admin_acted")); n != 0 {
		t.Errorf("%d facts about refused requests", n)
	}
}

// TestNoThrottles: a relay without limits has none to show.
func TestNoThrottles(t *testing.T) {
	var got trackapi.Throttles
	newFixture(t).ask(request("GET", "/api/v1/throttles?all=true", ""), 200, &got)
	if got.Total != 0 || got.Throttles == nil || got.Rules == nil {
		t.Errorf("= %+v, want empty lists", got)
	}
}
