package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"waybill/relay/mail"
)

// Blocklists are the DNS blocklists that are watched for our own addresses.
type Blocklists struct {
	Lists     []string `yaml:"lists" doc:"zones of DNS blocklists (RFC 5782), such as zen.spamhaus.org; 10 at most. Look at the terms of each; many answer only resolvers of one's own. Without lists nothing is asked"`
	Addresses []string `yaml:"addresses" doc:"our addresses as others see them, 8 at most; behind NAT the public ones" default:"the public ones of source_addresses of all send connectors"`
	Interval  Duration `yaml:"interval" doc:"between two looks"`
	Timeout   Duration `yaml:"timeout" doc:"wait for a list"`
}

const (
	maxBlocklists = 10 // each is a value of a metric's label
	maxWatched    = 8
)

func defaultBlocklists() Blocklists { return Blocklists{Interval: 60 * minute, Timeout: 10 * second} }

// Watched are our addresses that blocklists are asked about.
func (c *Config) Watched() (list []netip.Addr) {
	words := c.Blocklists.Addresses
	if len(words) == 0 {
		for _, s := range c.Send {
			words = append(words, s.SourceAddresses...)
		}
	}
	for _, w := range words {
		ip, err := netip.ParseAddr(w)
		if ip = ip.Unmap(); err != nil || !public(ip) || slices.Contains(list, ip) {
			continue
		}
		if list = append(list, ip); len(list) == maxWatched {
			break
		}
	}
	return list
}

func public(ip netip.Addr) bool {
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && ip.Zone() == ""
}

func checkBlocklists(c *Config, p *collector) {
	b := &c.Blocklists
	if len(b.Lists) > maxBlocklists {
		p.errorf("blocklists.lists", "", "%d lists, and %d is the most", len(b.Lists), maxBlocklists)
	}
	for i, name := range b.Lists {
		path := fmt.Sprintf("blocklists.lists[%d]", i)
		domain, err := mail.ParseDomain(name)
		switch {
		case err != nil || strings.HasPrefix(domain, "[") || !strings.Contains(domain, ".") || domain != strings.ToLower(name):
			p.errorf(path, "such as zen.spamhaus.org", "%q is not the name of a list", clip(name))
		case slices.Contains(b.Lists[:i], name):
			p.errorf(path, "", "%q is there twice", clip(name))
		}
	}
	if len(b.Addresses) > maxWatched {
		p.errorf("blocklists.addresses", "", "%d addresses, and %d is the most", len(b.Addresses), maxWatched)
	}
	for i, a := range b.Addresses {
		path := fmt.Sprintf("blocklists.addresses[%d]", i)
		if ip, err := netip.ParseAddr(a); err != nil || !public(ip.Unmap()) {
			p.errorf(path, "such as the address that your mail comes from on the Internet", "%q is not a public address", clip(a))
		}
	}
	if b.Interval < 5*minute || b.Interval > 7*Day {
		p.errorf("blocklists.interval", "", "%v is not between 5m and 7d", b.Interval)
	}
	if b.Timeout < second || b.Timeout > minute {
		p.errorf("blocklists.timeout", "", "%v is not between 1s and 1m", b.Timeout)
	}
	if len(b.Lists) > 0 && len(c.Watched()) == 0 {
		p.errorf("blocklists.addresses", "name the public addresses that mail leaves from", "no public address of ours is known")
	}
}
