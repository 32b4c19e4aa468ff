// Package plugin is the backend of the Waybill data source: it turns Grafana's
// queries into calls of the tracking and queue API, and the answers into data
// frames. It exists so that alert rules, which have no browser, see what panels
// see, and so that the API token never leaves the server.
//
// It promises that every frame says its type, also when it is empty; that every
// failure says whose it is (the relay's side, the query's, or a fault in this
// plugin), has the status that fits, and tells what to do; and that no answer,
// however large or slow, takes more than the limits in settings.go.
//
// To add a query type, add its file to testdata/queries, a line to the table in
// query.go, and a file named for it with the query's struct and its frames. The
// editor's side has the same table in src/queries.ts.
package plugin

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/backend/instancemgmt"
	"github.com/grafana/grafana-plugin-sdk-go/backend/log"
	"github.com/grafana/grafana-plugin-sdk-go/backend/resource/httpadapter"
	"golang.org/x/sync/errgroup"
)

// ID is the plugin's identifier. It must never change: saved panels name it.
const ID = "waybill-mail-datasource"

// Datasource answers for one configured data source. Grafana's SDK makes a new
// one when its settings change.
type Datasource struct {
	backend.CallResourceHandler
	uid    string // of the configured data source, for links
	name   string
	base   string // of the API, for messages
	api    api
	broken error // why the settings cannot be used, or nil
	client *http.Client
}

var (
	_ backend.QueryDataHandler      = (*Datasource)(nil)
	_ backend.CheckHealthHandler    = (*Datasource)(nil)
	_ backend.CallResourceHandler   = (*Datasource)(nil)
	_ instancemgmt.InstanceDisposer = (*Datasource)(nil)
)

// New makes a Datasource from its settings. It is what Grafana's SDK calls.
//
// Settings that cannot be used are no error here: Grafana would show none of
// its text. The Datasource answers every request with it instead.
func New(ctx context.Context, settings backend.DataSourceInstanceSettings) (instancemgmt.Instance, error) {
	d := &Datasource{uid: settings.UID, name: settings.Name, base: settings.URL, client: http.DefaultClient}
	if client, err := newClient(ctx, settings); err != nil {
		d.broken = badQuery("%v", err)
	} else {
		d.base, d.api, d.client = client.BaseURL, client, client.HTTP
	}
	d.CallResourceHandler = httpadapter.New(d.resources())
	return d, nil
}

// Dispose lets go of the connections to the API.
func (d *Datasource) Dispose() { d.client.CloseIdleConnections() }

// QueryData answers the queries of a panel or an alert rule, a few at a time.
func (d *Datasource) QueryData(ctx context.Context, req *backend.QueryDataRequest) (*backend.QueryDataResponse, error) {
	res := backend.NewQueryDataResponse()
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(maxConcurrent)
	for _, q := range req.Queries {
		group.Go(func() error {
			answer := d.query(ctx, q)
			mu.Lock()
			defer mu.Unlock()
			res.Responses[q.RefID] = answer
			return nil
		})
	}
	return res, group.Wait()
}

// query answers one query. A panic costs that query its answer, and no more.
func (d *Datasource) query(ctx context.Context, q backend.DataQuery) (res backend.DataResponse) {
	defer func() {
		if v := recover(); v != nil {
			log.DefaultLogger.FromContext(ctx).Error("query panicked", "queryType", q.QueryType, "panic", v, "stack", string(debug.Stack()))
			res = backend.ErrDataResponseWithSource(backend.StatusInternal, backend.ErrorSourcePlugin,
				fmt.Sprintf("a fault in the plugin while answering a query of type %q; its log has the details", q.QueryType))
		}
	}()
	handle, ok := queryTypes[q.QueryType]
	if !ok {
		return d.failure(badQuery("there is no query type %q; this version knows %s", q.QueryType, queryTypeNames()))
	}
	if d.broken != nil {
		return d.failure(d.broken)
	}
	frames, err := handle(ctx, d, q)
	if err != nil {
		return d.failure(err)
	}
	for _, f := range frames {
		f.RefID = q.RefID
	}
	return backend.DataResponse{Frames: frames, Status: backend.StatusOK}
}
