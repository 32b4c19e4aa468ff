package config

import "time"

// Usages lists the presets of receive connectors.
func Usages() []string {
	return []string{"internet", "client", "internal", "partner", "device", "custom"}
}

// anywhere and here are remote ranges of presets.
var (
	anywhere = []string{"0.0.0.0/0", "::/0"}
	here     = []string{"127.0.0.0/8", "::1/128"}
)

const (
	second = Duration(time.Second)
	minute = Duration(time.Minute)
)

// NewReceiveConnector is a receive connector with the defaults of a preset; an
// unknown one is custom. All of them listen on loopback only: who may connect
// from elsewhere is for the operator to say.
func NewReceiveConnector(usage string) ReceiveConnector {
	c := ReceiveConnector{
		Usage:         "custom",
		Listen:        []string{"127.0.0.1:25"},
		RemoteRanges:  here,
		ProxyProtocol: Proxy{Timeout: 5 * second},
		TLS:           ReceiveTLS{MinVersion: "1.2", ClientCertificate: "none"},
		Auth:          Auth{ChannelBinding: "allow"},
		BareNewline:   "reject",
		Protocol:      Protocol{VRFY: "noncommittal"},
		Headers:       Headers{EightBit: "accept", Malformed: "accept"},
		Priority:      ReceivePriority{Default: "normal"},
		Limits: Limits{
			Connections: 5000, ConnectionsPerSource: 20, RateBy: "source", Recipients: 200, MessageSize: 36 * MiB, HeaderSize: 256 * KiB, HeaderFields: 1000,
			Hops: 30, ProtocolErrors: 5, AuthFailures: 3, Tarpit: 5 * second, CommandTimeout: 5 * minute, SessionTimeout: 10 * minute,
		},
		Transcript: Transcript{Mode: "failures"},
	}
	switch usage {
	case "internet": // mail exchanger: from anybody, for our domains
		c.RemoteRanges = anywhere
		c.Permissions = []string{"submit"}
	case "client": // people and applications that log in
		c.Listen = []string{"127.0.0.1:587"}
		c.RemoteRanges = anywhere
		c.TLS.Required = true
		c.Auth.Required, c.Auth.Mechanisms = true, []string{"PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"}
		c.Permissions = []string{"submit", "relay"}
		c.Headers.Complete = true
		c.Limits.RateBy = "user"
	case "internal": // our own servers, by their addresses
		c.Permissions = []string{"submit", "relay", "bypass_filters", "keep_headers"}
		c.Limits.ConnectionsPerSource = 500
		c.Limits.Tarpit = 0
	case "partner": // known organisations, encrypted, for our domains
		c.RemoteRanges = nil
		c.TLS.Required = true
		c.Permissions = []string{"submit"}
		c.Limits.ConnectionsPerSource = 100
	case "device": // printers and old programs, by their addresses
		c.TLS.MinVersion = "1.0"
		c.BareNewline = "normalise"
		c.Protocol.LenientPaths = true
		c.Headers.Complete = true
		c.Permissions = []string{"submit", "relay"}
		c.Limits.Tarpit = 0
	default:
		return c
	}
	c.Priority.Headers = usage == "client" || usage == "internal" || usage == "device"
	c.Usage = usage
	return c
}

func (c *ReceiveConnector) preset(usage string) { *c = NewReceiveConnector(usage) }

// NewPickup is a pickup directory with its defaults, which are those of Exchange
// where it has them.
func NewPickup() Pickup {
	return Pickup{
		Name: "pickup", Permissions: []string{"submit", "relay"}, FilesPerMinute: 100, MessageSize: 36 * MiB, Recipients: 200, Settle: 2 * second,
	}
}

// NewSendConnector is a send connector with its defaults.
func NewSendConnector() SendConnector {
	return SendConnector{
		Auth:      SendAuth{Mechanism: "none"},
		TLS:       SendTLS{Level: "opportunistic", MinVersion: "1.2"},
		Downgrade: Downgrade{Content: "convert", Unconvertible: "bounce"},
		Limits: SendLimits{
			Connections: 1000, ConnectionsPerDestination: 40, StartPerDestination: 10, LeastPerDestination: 1, MessagesPerConnection: 100, MessageSize: 36 * MiB, IdleTimeout: 5 * second,
		},
		Retry: Retry{
			Schedule: []Duration{minute, minute, minute, minute, 5 * minute, 5 * minute, 5 * minute, 5 * minute, 5 * minute, 5 * minute, 10 * minute},
			Lifetime: 2 * Day, DelayDSN: 240 * minute,
		},
		Transcript: SendTranscript{Mode: "failures"},
	}
}

func (c *SendConnector) preset(string) { *c = NewSendConnector() }

// defaultCost is in the middle of what smart people leave room around.
const defaultCost = 10

func (s *Space) preset(string)     { s.Cost = defaultCost }
func (h *SmartHost) preset(string) { h.Cost = defaultCost }

func (d *AcceptedDomain) preset(string) {
	d.Type = "authoritative"
	d.Recipients = Recipients{Timeout: 10 * second, Cache: 60 * minute, CacheUnknown: 5 * minute, Questions: 20}
}

// setScalar reads the short form of a smart host.
func (h *SmartHost) setScalar(word string) { h.Host = word }
