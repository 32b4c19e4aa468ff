package config

import (
	"fmt"
	"net/netip"
	"slices"

	"waybill/relay/mail"
	"waybill/relay/policy"
)

// checkProxies looks at whom a connector believes what they say of clients. They
// can pass for any client, and with XCLIENT for any user: what the connector
// allows is theirs, whoever they are.
func checkProxies(r *ReceiveConnector, p *collector, path string) {
	relay := slices.Contains(r.Permissions, "relay")
	for i, s := range r.ProxyProtocol.Trusted {
		checkTrusted(r, p, fmt.Sprintf("%s.proxy_protocol.trusted[%d]", path, i), s, relay && !r.Auth.Required)
	}
	for i, s := range r.XClient.Trusted {
		checkTrusted(r, p, fmt.Sprintf("%s.xclient.trusted[%d]", path, i), s, relay)
	}
	if d := r.ProxyProtocol.Timeout; d < second || d > minute {
		p.errorf(path+".proxy_protocol.timeout", "", "%v is not between 1s and 1m", d)
	}
	if r.Hostname != "" {
		if _, err := mail.ParseDomain(r.Hostname); err != nil {
			p.errorf(path+".hostname", "such as mx1.example.com", "%q is not a host name", clip(r.Hostname))
		}
	}
}

func checkTrusted(r *ReceiveConnector, p *collector, path, s string, relay bool) {
	network, err := policy.ParseRange(s)
	switch {
	case err != nil:
		p.errorf(path, "", "%v", err)
	case policy.Private(network):
	case wide(network):
		p.errorf(path, "name only your own machines", "anyone in %s could pass for any client", network)
	case relay && !r.RelayPublicRanges:
		p.errorf(path, "confirm with relay_public_ranges: true that the addresses are yours",
			"open relay: the public addresses %s could pass for clients that may send to anyone", network)
	}
}

// wide reports whether a network is larger than anybody's own.
func wide(network netip.Prefix) bool {
	if network.Addr().Is4() {
		return network.Bits() < widestIPv4
	}
	if network.Bits() < widestIPv6 {
		return true
	}
	// Of a network that stands for IPv4 addresses, what is left of their bits
	// counts as theirs.
	return slices.ContainsFunc(translated, func(t netip.Prefix) bool {
		return t.Contains(network.Addr()) && network.Bits() < t.Bits()+widestIPv4
	})
}
