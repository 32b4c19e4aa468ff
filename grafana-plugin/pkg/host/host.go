// Package host starts the backend of a Grafana plugin as Grafana does, without
// Grafana: handshake and gRPC protocol of go-plugin, requests in the SDK's form.
// It exists for tests and for looking at the plugin, so that what is tested is
// the executable that will be installed, and not only its packages.
//
// It promises that [Host.Close] ends the process, and that a request's context
// bounds the request. To ask for something else that Grafana asks (streams,
// metrics), dispense its client in Start and wrap it as QueryData does.
package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/backend/grpcplugin"
	"github.com/grafana/grafana-plugin-sdk-go/genproto/pluginv2"
	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
)

// Host is a running backend.
type Host struct {
	// Settings are those of the data source that requests are for.
	// Set them before the first request.
	Settings backend.DataSourceInstanceSettings

	client      *goplugin.Client
	diagnostics grpcplugin.DiagnosticsClient
	queries     grpcplugin.DataClient
	resources   grpcplugin.ResourceClient
}

// Start starts the executable and waits for its handshake. Its log goes to
// stderr from the level warning on. It ends with Close, or when ctx is done.
func Start(ctx context.Context, executable string) (*Host, error) {
	cmd := exec.CommandContext(ctx, executable)
	cmd.Env = append(os.Environ(), "GF_VERSION=13.2.2", "GF_EDITION=OpenSource")
	client := goplugin.NewClient(&goplugin.ClientConfig{
		Cmd: cmd,
		HandshakeConfig: goplugin.HandshakeConfig{
			ProtocolVersion: grpcplugin.ProtocolVersion,
			MagicCookieKey:  grpcplugin.MagicCookieKey, MagicCookieValue: grpcplugin.MagicCookieValue,
		},
		VersionedPlugins: map[int]goplugin.PluginSet{grpcplugin.ProtocolVersion: {
			"diagnostics": &grpcplugin.DiagnosticsGRPCPlugin{},
			"resource":    &grpcplugin.ResourceGRPCPlugin{},
			"data":        &grpcplugin.DataGRPCPlugin{},
		}},
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		Logger:           hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr}),
	})
	h := &Host{client: client, Settings: backend.DataSourceInstanceSettings{
		ID: 1, UID: "waybill", Name: "Waybill", Type: "waybill-mail-datasource", JSONData: []byte("{}"), Updated: time.Now(),
	}}
	if err := h.dispense(); err != nil {
		client.Kill()
		return nil, fmt.Errorf("start plugin %s: %w", executable, err)
	}
	return h, nil
}

func (h *Host) dispense() error {
	rpc, err := h.client.Client()
	if err != nil {
		return err
	}
	for _, name := range []string{"diagnostics", "resource", "data"} {
		raw, err := rpc.Dispense(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		switch c := raw.(type) {
		case grpcplugin.DiagnosticsClient:
			h.diagnostics = c
		case grpcplugin.ResourceClient:
			h.resources = c
		case grpcplugin.DataClient:
			h.queries = c
		default:
			return fmt.Errorf("%s: unexpected client %T", name, raw)
		}
	}
	return nil
}

// Configure points the data source at an API: its URL, its token (empty for
// none), and other settings as Grafana stores them (nil for none).
func (h *Host) Configure(url, token string, settings map[string]any) error {
	h.Settings.URL = url
	h.Settings.DecryptedSecureJSONData = map[string]string{}
	if token != "" {
		h.Settings.DecryptedSecureJSONData["token"] = token
	}
	if settings == nil {
		settings = map[string]any{}
	}
	var err error
	h.Settings.JSONData, err = json.Marshal(settings)
	h.Settings.Updated = time.Now() // the SDK makes a new instance when it changes
	return err
}

// Close ends the backend.
func (h *Host) Close() { h.client.Kill() }

func (h *Host) pluginContext() *pluginv2.PluginContext {
	return backend.ToProto().PluginContext(backend.PluginContext{
		OrgID:    1, //nolint:staticcheck // the SDK still keeps instances by it
		PluginID: h.Settings.Type, PluginVersion: "0.0.0",
		User:                       &backend.User{Login: "admin", Role: "Admin"},
		DataSourceInstanceSettings: &h.Settings,
	})
}

// CheckHealth does what "Save & test" does.
func (h *Host) CheckHealth(ctx context.Context) (*backend.CheckHealthResult, error) {
	res, err := h.diagnostics.CheckHealth(ctx, &pluginv2.CheckHealthRequest{PluginContext: h.pluginContext()})
	if err != nil {
		return nil, fmt.Errorf("check health: %w", err)
	}
	return &backend.CheckHealthResult{Status: backend.HealthStatus(res.Status), Message: res.Message, JSONDetails: res.JsonDetails}, nil
}

// QueryData does what a panel, or an alert rule, does.
func (h *Host) QueryData(ctx context.Context, queries ...backend.DataQuery) (*backend.QueryDataResponse, error) {
	req := backend.ToProto().QueryDataRequest(&backend.QueryDataRequest{Headers: map[string]string{}, Queries: queries})
	req.PluginContext = h.pluginContext()
	res, err := h.queries.QueryData(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("query data: %w", err)
	}
	return backend.FromProto().QueryDataResponse(res)
}

// CallResource does what a picker does; url is the path with its query string.
func (h *Host) CallResource(ctx context.Context, method, path, url string) (int, []byte, error) {
	stream, err := h.resources.CallResource(ctx, &pluginv2.CallResourceRequest{PluginContext: h.pluginContext(), Method: method, Path: path, Url: url})
	if err != nil {
		return 0, nil, fmt.Errorf("call resource: %w", err)
	}
	var status int
	var body []byte
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return status, body, nil
		}
		if err != nil {
			return 0, nil, fmt.Errorf("call resource: %w", err)
		}
		status = int(part.Code)
		body = append(body, part.Body...)
	}
}
