package trackapi

import (
	"context"
	"io"
	"net/http"
)

// Imported says what became of facts of the past that were handed to the store.
type Imported struct {
	Lines   int    `json:"lines"`             // read
	Added   int    `json:"added"`             // facts taken into the store
	Known   int    `json:"known"`             // facts that it had already
	Old     int    `json:"old"`               // facts past the retention
	Other   int    `json:"other"`             // lines that are not records, or of facts that this version does not know
	Example string `json:"example,omitempty"` // the first error among Other
}

// Import hands facts of the past to the store: one JSON object a line, as the
// log and [Client.Events] have them. The daemon answers when it has read all.
// Admin role.
func (c *Client) Import(ctx context.Context, lines io.Reader) (*Imported, error) {
	res, err := c.send(ctx, http.MethodPost, "/api/v1/tracking/import", nil, lines, "application/x-ndjson") //nolint:bodyclose // decode does
	if err != nil {
		return nil, err
	}
	return decode[Imported](res)
}
