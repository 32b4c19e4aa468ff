package config

import (
	"fmt"
	"slices"
	"strings"

	"waybill/relay/mail"
)

// checkPickup looks at the pickup directory.
func checkPickup(c *Config, p *collector) {
	k := &c.Pickup
	if k.Dir == "" {
		return
	}
	switch i := slices.IndexFunc(c.Receive, func(r ReceiveConnector) bool { return strings.EqualFold(r.Name, k.Name) }); {
	case !nameForm.MatchString(k.Name):
		p.errorf("pickup.name", "use letters, digits, and . _ -", "%q is not a name", clip(k.Name))
	case i >= 0:
		p.errorf("pickup.name", "", "receive_connectors[%d] has the name %q already", i, k.Name)
	}
	if !slices.Contains(k.Permissions, "submit") {
		p.errorf("pickup.permissions", "add submit", "nothing may be sent")
	}
	for i, s := range k.Senders {
		domain := s[strings.LastIndexByte(s, '@')+1:]
		if _, err := mail.ParseDomain(domain); err != nil && s != "*" {
			p.errorf(fmt.Sprintf("pickup.senders[%d]", i), "such as app@example.com, or example.com", "%q is neither an address nor a domain", clip(s))
		}
	}
	if k.MessageSize < KiB || k.MessageSize > 2*GiB {
		p.errorf("pickup.message_size", "", "%v is not between 1KiB and 2GiB", k.MessageSize)
	}
	if k.Settle < second/10 || k.Settle > 10*minute {
		p.errorf("pickup.settle", "", "%v is not between 100ms and 10m", k.Settle)
	}
}
