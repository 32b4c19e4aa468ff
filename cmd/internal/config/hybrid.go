package config

import (
	"fmt"
	"slices"
	"strings"
)

// checkHybrid warns against standing between Exchange servers and Exchange Online
// in the path of a hybrid organisation's secure mail. Microsoft allows nothing
// there that speaks SMTP but an Exchange Edge server: what both sides say about a
// message in X-headers and over the TLS connection does not survive another hop,
// and mail of colleagues becomes mail of strangers, or spam.
func checkHybrid(c *Config, p *collector) {
	const hint = "let Exchange and Exchange Online speak to each other directly; this relay is for devices, applications and the internet"
	var cloud, premises []int // send connectors to each side
	for i, s := range c.Send {
		if s.Disabled {
			continue
		}
		if toExchangeOnline(s) {
			cloud = append(cloud, i)
		} else if s.Preset == "exchange" {
			premises = append(premises, i)
		}
		for j, space := range s.AddressSpaces {
			if domain := strings.ToLower(strings.TrimPrefix(space.Space, "*.")); strings.HasSuffix(domain, ".mail.onmicrosoft.com") {
				p.warnf(fmt.Sprintf("send_connectors[%d].address_spaces[%d].space", i, j), hint,
					"%s is the domain by which Exchange servers of a hybrid organisation reach Exchange Online: nothing may stand between them", clip(space.Space))
			}
		}
	}
	for i, r := range c.Receive {
		path := fmt.Sprintf("receive_connectors[%d]", i)
		if len(cloud) > 0 && slices.Contains(r.Permissions, "keep_headers") && slices.Contains(r.Permissions, "relay") && r.Usage != "internal" {
			p.warnf(path+".permissions", hint,
				"header fields of an Exchange organisation are kept, and send connector %q goes to Exchange Online: that looks like a hybrid organisation's secure mail", c.Send[cloud[0]].Name)
		}
		if len(premises) == 0 {
			continue
		}
		for j, name := range r.TLS.ClientNames {
			if isExchangeOnline(strings.TrimPrefix(strings.ToLower(name), "*.")) {
				p.warnf(fmt.Sprintf("%s.tls.client_names[%d]", path, j), hint,
					"mail comes in from Exchange Online, and send connector %q goes to Exchange servers: that looks like a hybrid organisation's secure mail", c.Send[premises[0]].Name)
			}
		}
	}
	for i, d := range c.AcceptedDomains {
		if name := strings.ToLower(d.Domain); strings.HasSuffix(name, ".mail.onmicrosoft.com") {
			p.warnf(fmt.Sprintf("accepted_domains[%d].domain", i), hint,
				"%s is the domain by which Exchange servers of a hybrid organisation reach Exchange Online: its mail does not go through others", clip(d.Domain))
		}
	}
}

func toExchangeOnline(s SendConnector) bool {
	return s.Preset == "microsoft365-connector" || slices.ContainsFunc(s.SmartHosts, func(h SmartHost) bool {
		host, _, err := h.Split()
		return err == nil && isExchangeOnline(host)
	})
}

// isExchangeOnline reports whether a host takes mail for tenants of Exchange Online.
func isExchangeOnline(host string) bool {
	return host == "mail.protection.outlook.com" || strings.HasSuffix(host, ".mail.protection.outlook.com") || strings.HasSuffix(host, ".mx.microsoft")
}
