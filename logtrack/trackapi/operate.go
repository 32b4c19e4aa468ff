package trackapi

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"
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

// Erased says what the erasure of an address came to.
type Erased struct {
	Facts      int `json:"facts"`      // that were changed, or dropped
	Partitions int `json:"partitions"` // that were written anew
}

// EraseInput asks for an erasure.
type EraseInput struct {
	Address string `json:"address"`
}

// Erase takes an address out of all facts of the store. Admin role.
func (c *Client) Erase(ctx context.Context, address string) (*Erased, error) {
	return post[Erased](ctx, c, "/api/v1/tracking/erase", EraseInput{Address: address})
}

// DamagedBlock is a block that cannot be read.
type DamagedBlock struct {
	Partition string `json:"partition"`
	Block     uint32 `json:"block"`
	Facts     int    `json:"facts"`
	Error     string `json:"error"`
}

// Verified says what a check of the store found.
type Verified struct {
	OK         bool           `json:"ok"`
	Partitions int            `json:"partitions"`
	Blocks     int            `json:"blocks"`
	Facts      int64          `json:"facts"`
	Damaged    []DamagedBlock `json:"damaged,omitempty"`
	LeftOut    []string       `json:"left_out,omitempty"`  // partitions that cannot be opened
	Unindexed  int            `json:"unindexed"`           // values that the index does not lead to
	Duplicates int            `json:"duplicates"`          // facts that are there twice
	Queued     int            `json:"queued"`              // messages in the queue
	Missing    []string       `json:"missing,omitempty"`   // in the queue, and the store does not know them
	Lingering  []string       `json:"lingering,omitempty"` // not in the queue, and the store does not know that they left
	Differs    int            `json:"differs"`             // how many messages are missing or linger; the lists have 100 of each at most
	TookMS     float64        `json:"took_ms"`
	Note       string         `json:"note,omitempty"`
}

// Verify checks the store against itself and the queue. Operator role.
func (c *Client) Verify(ctx context.Context) (*Verified, error) {
	return post[Verified](ctx, c, "/api/v1/tracking/verify", struct{}{})
}

// Repaired says what a repair came to.
type Repaired struct {
	Blocks     int `json:"blocks"`     // damaged, and gone
	Partitions int `json:"partitions"` // written anew, or put aside
}

// Repair takes damaged blocks and partitions out of the store, so that
// [Client.Import] can bring their facts back from the log. Admin role.
func (c *Client) Repair(ctx context.Context) (*Repaired, error) {
	return post[Repaired](ctx, c, "/api/v1/tracking/repair", struct{}{})
}

// TrackPartition is one day of the store, or a part of one.
type TrackPartition struct {
	Name   string    `json:"name"`
	Facts  int64     `json:"facts"`
	Blocks int       `json:"blocks"`
	Bytes  int64     `json:"bytes"`
	Oldest time.Time `json:"oldest,omitzero"`
	Newest time.Time `json:"newest,omitzero"`
	Open   bool      `json:"open"`
}

// TrackIndex is the size of one index, in the partitions that are open.
type TrackIndex struct {
	Index   string `json:"index"`
	Entries int64  `json:"entries"`
	Bytes   int64  `json:"bytes"`
}

// TrackStats are the levels and totals of the store.
type TrackStats struct {
	Facts        int64            `json:"facts"`
	Blocks       int              `json:"blocks"`
	Bytes        int64            `json:"bytes"` // on disk
	Oldest       time.Time        `json:"oldest,omitzero"`
	IndexLag     float64          `json:"index_lag"` // seconds
	Waiting      int              `json:"waiting"`   // full blocks that wait to be stored
	Duplicates   int64            `json:"duplicates"`
	Dropped      map[string]int64 `json:"dropped"`      // by reason
	WriteErrors  map[string]int64 `json:"write_errors"` // by reason
	Tails        int              `json:"tails"`        // live readers
	TailsDropped int64            `json:"tails_dropped"`
	CacheBytes   int64            `json:"cache_bytes"`
	Degraded     string           `json:"degraded,omitempty"`
	Partitions   []TrackPartition `json:"partitions"`
	Transcripts  []TrackPartition `json:"transcripts"`
	Indexes      []TrackIndex     `json:"indexes"`
}

// TrackStats are the levels and totals of the tracking store.
func (c *Client) TrackStats(ctx context.Context) (*TrackStats, error) {
	return get[TrackStats](ctx, c, "/api/v1/tracking/stats", nil)
}

func post[T any](ctx context.Context, c *Client, path string, in any) (*T, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	res, err := c.do(ctx, http.MethodPost, path, nil, body) //nolint:bodyclose // decode does
	if err != nil {
		return nil, err
	}
	return decode[T](res)
}
