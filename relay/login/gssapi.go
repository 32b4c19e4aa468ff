package login

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"

	"waybill/relay/auth/gssapi"

	"github.com/emersion/go-sasl"
)

// GSSAPI logs in with Kerberos tickets (RFC 4752), and wants each host to prove
// who it is.
type GSSAPI struct {
	Tickets *gssapi.Tickets
	Service string // principal of the hosts, such as smtp/mx1.example.com; empty: smtp/ and the host's name
}

// Begin implements the Login of package smtpout.
func (g GSSAPI) Begin(ctx context.Context, host string, state *tls.ConnectionState) (sasl.Client, error) {
	service := g.Service
	if service == "" {
		if _, err := netip.ParseAddr(host); err == nil {
			return nil, errors.New("Kerberos knows no services by address: name the service") //nolint:staticcheck // a name begins with a capital letter
		}
		service = "smtp/" + host
	}
	ticket, err := g.Tickets.Get(ctx, service)
	if err != nil {
		return nil, err
	}
	return &kerberosClient{Client: ticket.Client("", binding(state)), g: g, service: service}, nil
}

// kerberosClient notes when a host does not take the ticket.
type kerberosClient struct {
	sasl.Client
	g       GSSAPI
	service string
}

// Next answers the host. When that fails, or the host proves nothing, the next
// login gets a fresh ticket: the host's key may have changed.
func (c *kerberosClient) Next(challenge []byte) ([]byte, error) {
	answer, err := c.Client.Next(challenge)
	if err != nil {
		c.g.Tickets.Forget(c.service)
	}
	return answer, err
}

// Proven reports whether the host has shown that it holds the service's key.
func (c *kerberosClient) Proven() error {
	if p, ok := c.Client.(interface{ Proven() error }); ok {
		return p.Proven()
	}
	return nil
}

// Explain is asked when the host refuses: the ticket may be of an old key.
func (c *kerberosClient) Explain() string {
	c.g.Tickets.Forget(c.service)
	return ""
}
