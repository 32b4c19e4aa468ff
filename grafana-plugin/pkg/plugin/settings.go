package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/backend/httpclient"

	"waybill/logtrack/trackapi"
)

// Limits of one data source. The numbers are chosen by taste: large enough for
// every panel that a person can read, small enough that one query cannot hurt
// Grafana.
const (
	maxConcurrent = 4        // queries of one request
	maxResponse   = 32 << 20 // bytes of one answer of the API
	maxRows       = 5000     // messages or facts of one query
	defaultRows   = 100
	maxPoints     = 2000 // of one series
)

// api is what the query types need of [trackapi.Client].
type api interface {
	Status(ctx context.Context) (*trackapi.Status, error)
	Messages(ctx context.Context, q trackapi.Query) (*trackapi.Messages, error)
	Message(ctx context.Context, queueID string) (*trackapi.Timeline, error)
	Transcript(ctx context.Context, queueID string) (*trackapi.Transcript, error)
	Events(ctx context.Context, q trackapi.Query) (*trackapi.Events, error)
	Aggregate(ctx context.Context, q trackapi.AggregateQuery) (*trackapi.Aggregate, error)
	Values(ctx context.Context, q trackapi.ValuesQuery) (*trackapi.Values, error)
	Queues(ctx context.Context) (*trackapi.Queues, error)
}

// newClient makes the API's client from the settings: the URL, the token (a
// secret), and Grafana's usual settings for TLS, proxies and timeouts (30 s when
// none is set). It follows no redirect, so that the token goes nowhere else.
func newClient(ctx context.Context, settings backend.DataSourceInstanceSettings) (*trackapi.Client, error) {
	base, err := baseURL(settings.URL)
	if err != nil {
		return nil, err
	}
	opts, err := settings.HTTPClientOptions(ctx)
	if err != nil {
		return nil, fmt.Errorf("settings of the connection: %w", err)
	}
	opts.Middlewares = append(slices.DeleteFunc(httpclient.DefaultMiddlewares(), isResponseLimit), httpclient.ResponseLimitMiddleware(maxResponse))
	client, err := httpclient.New(opts)
	if err != nil {
		return nil, fmt.Errorf("settings of the connection: %w", err)
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &trackapi.Client{BaseURL: base, Token: settings.DecryptedSecureJSONData["token"], HTTP: client}, nil
}

// isResponseLimit tells the SDK's default limit, which is none, from the other middlewares.
func isResponseLimit(m httpclient.Middleware) bool {
	named, ok := m.(httpclient.MiddlewareName)
	return ok && named.MiddlewareName() == httpclient.ResponseLimitMiddlewareName
}

// baseURL checks what was entered as the URL of the relay's HTTP side, and
// forgives a trailing slash or the path of the API.
func baseURL(entered string) (string, error) {
	entered = strings.TrimSpace(entered)
	if entered == "" {
		return "", errors.New("no URL is set: enter the address of Waybill's HTTP side, such as http://127.0.0.1:8025, in the settings of the data source")
	}
	u, err := url.Parse(entered)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("the URL %q is not usable: enter scheme, host and port of Waybill's HTTP side, such as http://127.0.0.1:8025", entered)
	}
	u.RawQuery, u.Fragment = "", ""
	u.Path = strings.TrimSuffix(strings.TrimRight(u.Path, "/"), "/api/v1")
	return u.String(), nil
}
