package admin

import (
	"encoding/json"
	"errors"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/logtrack/trackhttp"
	"waybill/relay/event"
	"waybill/relay/throttle"
)

// throttles lists what clients have used of the limits.
func (h *Handler) throttles(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	for key := range q {
		if !slices.Contains([]string{"rule", "key", "all", "limit"}, key) {
			trackhttp.WriteProblem(w, trackapi.BadParameter(key, "unknown parameter", "rule, key, all, limit"))
			return
		}
	}
	sel := throttle.Select{Rule: q.Get("rule"), Key: q.Get("key"), All: q.Get("all") == "true", Limit: 1000}
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > 10000 {
			trackhttp.WriteProblem(w, trackapi.BadParameter("limit", "limit must be a number from 1 to 10000", ""))
			return
		}
		sel.Limit = n
	}
	if p := h.knownRule(sel.Rule); p != nil {
		trackhttp.WriteProblem(w, p)
		return
	}
	rows, total := h.opts.Throttles.List(time.Now(), sel)
	answer := trackapi.Throttles{Throttles: []trackapi.Throttle{}, Total: total, Rules: []string{}}
	answer.Rules = append(answer.Rules, h.opts.Throttles.Rules()...)
	for _, t := range rows {
		answer.Throttles = append(answer.Throttles, trackapi.Throttle{
			Rule: t.Rule, By: t.By, What: t.What, Key: t.Key, Used: t.Used, Burst: t.Burst, Amount: t.Amount, Per: t.Per.Seconds(),
			Action: t.Action, Engaged: t.Engaged, Until: t.Until.UTC().Truncate(time.Millisecond), Hits: t.Hits, LastHit: t.Hit.UTC().Truncate(time.Millisecond),
		})
	}
	trackhttp.WriteJSON(w, http.StatusOK, answer)
}

func (h *Handler) knownRule(name string) *trackapi.Problem {
	if rules := h.opts.Throttles.Rules(); name != "" && !slices.Contains(rules, name) {
		return trackapi.BadParameter("rule", "there is no such rule", strings.Join(rules, ", "))
	}
	return nil
}

// actOnThrottles forgets what clients have used, and states who said so.
func (h *Handler) actOnThrottles(w http.ResponseWriter, r *http.Request) {
	if ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || ct != "application/json" {
		problem(w, http.StatusUnsupportedMediaType, "Want JSON", "", "", "send Content-Type: application/json")
		return
	}
	var in trackapi.ThrottleAction
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	dec.DisallowUnknownFields()
	err := dec.Decode(&in)
	if err == nil && dec.More() {
		err = errors.New("there is more than one object")
	}
	if err != nil {
		problem(w, http.StatusBadRequest, "Bad JSON", err.Error(), "", "")
		return
	}
	switch p := h.knownRule(in.Rule); {
	case in.Action != "release":
		problem(w, http.StatusBadRequest, "Unknown action", in.Action, "action", "release")
		return
	case in.Rule == "" && in.Key == "":
		trackhttp.WriteProblem(w, trackapi.BadParameter("key", "nothing is named", "name a rule, a key, or both"))
		return
	case p != nil:
		trackhttp.WriteProblem(w, p)
		return
	}
	n := h.opts.Throttles.Release(in.Rule, in.Key)
	var filter []string
	for _, f := range [][2]string{{"rule", in.Rule}, {"key", in.Key}} {
		if f[1] != "" {
			filter = append(filter, f[0]+"="+f[1])
		}
	}
	h.opts.Emitter.Source(event.SourceAdmin).Emit(event.AdminActed{
		Actor: actor(r), Action: "release_throttle", Reason: in.Reason, Filter: strings.Join(filter, " "), Affected: n, Result: "ok", ClientIP: clientIP(r),
	})
	trackhttp.WriteJSON(w, http.StatusOK, trackapi.ThrottleActed{Released: n})
}
