package config

import (
	"errors"
	"net/http"
	"net/url"
	"os"
	"strings"

	"waybill/relay/otlplog"
)

// Telemetry is where the protocol log goes as OpenTelemetry logs.
type Telemetry struct {
	Endpoint    string `yaml:"otlp_endpoint" doc:"URL of a collector that takes OTLP over HTTP, such as \"https://collector.example.com:4318\"; /v1/logs is added. Without it nothing is sent"`
	Level       string `yaml:"level" enum:"debug,info,warn,error" doc:"facts below it are not sent; debug is all of them, also each command and DNS answer"`
	Compression string `yaml:"compression" enum:"gzip,none" doc:"of requests"`
	HeadersFile string `yaml:"headers_file" file:"true" doc:"file with header fields of requests, \"Authorization: Bearer …\", one a line. It is read for each request"`
	CAFile      string `yaml:"ca_file" file:"true" doc:"PEM file of the authorities to trust there instead of the system's"`
}

func defaultTelemetry() Telemetry { return Telemetry{Level: "debug", Compression: "gzip"} }

// Headers are the header fields of requests, read now.
func (t Telemetry) Headers() (http.Header, error) {
	if t.HeadersFile == "" {
		return http.Header{}, nil
	}
	data, err := os.ReadFile(t.HeadersFile)
	if err != nil {
		return nil, errors.New(plain(err))
	}
	header, err := otlplog.ParseHeader(string(data))
	if err != nil {
		return nil, errors.New(t.HeadersFile + ": " + err.Error())
	}
	return header, nil
}

func checkTelemetry(c *Config, p *collector) {
	t := c.Telemetry
	if t.Endpoint == "" {
		if t.HeadersFile != "" {
			p.errorf("telemetry.headers_file", "set otlp_endpoint", "there is nobody to send to")
		}
		return
	}
	if err := otlplog.CheckEndpoint(t.Endpoint); err != nil {
		p.errorf("telemetry.otlp_endpoint", "", "%v", err)
		return
	}
	if t.CAFile != "" && strings.HasPrefix(t.Endpoint, "http:") {
		p.errorf("telemetry.ca_file", "write https://", "the endpoint does not speak TLS")
	}
	switch u, err := url.Parse(t.Endpoint); {
	case err != nil: // said above
	case u.Port() == "4317":
		p.warnf("telemetry.otlp_endpoint", "OTLP over HTTP is at 4318 as a rule", "port 4317 is for OTLP over gRPC")
	case u.Scheme == "http" && !loopbackURL(t.Endpoint):
		p.warnf("telemetry.otlp_endpoint", "write https://", "who mails whom, and what is in headers_file, crosses the network in clear")
	}
}

func checkTelemetryFiles(c *Config, p *collector) {
	t := c.Telemetry
	checkAuthorities(t.CAFile, p, "telemetry.ca_file")
	if t.HeadersFile == "" {
		return
	}
	if _, err := t.Headers(); err != nil {
		_, hint := readable(t.HeadersFile)
		p.errorf("telemetry.headers_file", hint, "%s", err)
	}
	checkPrivate(t.HeadersFile, p, "telemetry.headers_file")
}
