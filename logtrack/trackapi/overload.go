package trackapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Pressure is how hard the relay is pressed.
type Pressure struct {
	Stage     string            `json:"stage"`                   // open, slow, strangers, all, shut
	Delay     float64           `json:"delay_seconds,omitempty"` // of acknowledgements
	Resources []PressedResource `json:"resources,omitempty"`
}

// PressedResource is one resource that can run out.
type PressedResource struct {
	Resource string    `json:"resource"`
	Level    int       `json:"level"` // 0 normal, 1 medium, 2 high
	Stage    string    `json:"stage"`
	Detail   string    `json:"detail,omitempty"`
	Since    time.Time `json:"since,omitzero"` // of the level
}

// Throttles answers GET /api/v1/throttles.
type Throttles struct {
	Throttles []Throttle `json:"throttles"`
	Total     int        `json:"total"` // before the limit
	Rules     []string   `json:"rules"` // the names of all rules
}

// Throttle is what one key has used of one rule.
type Throttle struct {
	Rule    string    `json:"rule"`
	By      string    `json:"by"`
	What    string    `json:"what"`
	Key     string    `json:"key"`
	Used    int64     `json:"used"`
	Burst   int64     `json:"burst"`  // what may come at once; Used is of it
	Amount  int64     `json:"amount"` // of the rate, or at once
	Per     float64   `json:"per_seconds,omitempty"`
	Action  string    `json:"action"` // tarpit, defer, reject, close
	Engaged bool      `json:"engaged"`
	Until   time.Time `json:"until,omitzero"`
	Hits    int64     `json:"hits"`
	LastHit time.Time `json:"last_hit,omitzero"`
}

// ThrottleQuery says which throttles are asked for.
type ThrottleQuery struct {
	Rule  string
	Key   string // a part of it
	All   bool   // also keys that no rule has stopped lately
	Limit int
}

// ThrottleAction is the body of POST /api/v1/throttles/actions.
type ThrottleAction struct {
	Action string `json:"action"` // release
	Rule   string `json:"rule,omitempty"`
	Key    string `json:"key,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// ThrottleActed answers it.
type ThrottleActed struct {
	Released int `json:"released"`
}

// Throttles lists what clients have used of the limits.
func (c *Client) Throttles(ctx context.Context, q ThrottleQuery) (*Throttles, error) {
	v := url.Values{}
	for name, s := range map[string]string{"rule": q.Rule, "key": q.Key} {
		if s != "" {
			v.Set(name, s)
		}
	}
	if q.All {
		v.Set("all", "true")
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	return get[Throttles](ctx, c, "/api/v1/throttles", v)
}

// ActOnThrottles forgets what clients have used.
func (c *Client) ActOnThrottles(ctx context.Context, a ThrottleAction) (*ThrottleActed, error) {
	body, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	res, err := c.do(ctx, http.MethodPost, "/api/v1/throttles/actions", nil, body) //nolint:bodyclose // decode does
	if err != nil {
		return nil, err
	}
	return decode[ThrottleActed](res)
}
