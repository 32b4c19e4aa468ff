package trackapi

import (
	"context"
	"encoding/json"
	"net/http"
)

// BackupRequest is the body of POST /api/v1/backup.
type BackupRequest struct {
	Dir string `json:"dir"` // new or empty, on the daemon's host; an absolute path
}

// BackupDone answers it.
type BackupDone struct {
	Dir      string   `json:"dir"`
	Messages int      `json:"messages"`          // queued ones
	Bytes    int64    `json:"bytes"`             // of their contents
	Damaged  []string `json:"damaged,omitempty"` // queue IDs whose contents are damaged and not in the backup
	Facts    int64    `json:"facts"`             // of the tracking store
	Seconds  float64  `json:"seconds"`           // that it took
}

// Backup has the daemon write a backup of its queue and its tracking store.
func (c *Client) Backup(ctx context.Context, r BackupRequest) (*BackupDone, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	res, err := c.do(ctx, http.MethodPost, "/api/v1/backup", nil, body) //nolint:bodyclose // decode does
	if err != nil {
		return nil, err
	}
	return decode[BackupDone](res)
}
