package config

import (
	"strings"
	"time"
	"unicode"

	"waybill/relay/mail"
)

// TLSReports are the reports that domains ask for.
type TLSReports struct {
	Enabled      bool     `yaml:"enabled" doc:"counts how TLS with each domain's mail exchangers went, where tls.level is mta_sts or dane, and sends the daily reports that domains ask for"`
	From         string   `yaml:"from" doc:"address that reports are from, and that bounces of them come to"`
	Contact      string   `yaml:"contact" doc:"how to reach us about a report" default:"from"`
	Organization string   `yaml:"organization" doc:"who we are, in reports" default:"the domain of from"`
	Delay        Duration `yaml:"delay" doc:"reports leave at a random time within so long after midnight UTC"`
}

func defaultTLSReports() TLSReports { return TLSReports{Delay: Day / 6} }

func checkTLSReports(c *Config, p *collector) {
	t := c.TLSReports
	if !t.Enabled {
		return
	}
	from, err := mail.ParseAddress(t.From)
	_, literal := from.Literal()
	switch {
	case t.From == "":
		p.errorf("tls_reports.from", "such as tls-reports@example.com", "reports need a sender")
	case err != nil || from.IsNull() || !from.ASCII() || literal:
		p.errorf("tls_reports.from", "such as tls-reports@example.com", "%q is not an address that every host takes", clip(t.From))
	}
	for key, text := range map[string]string{"contact": t.Contact, "organization": t.Organization} {
		if len(text) > 200 || strings.ContainsFunc(text, unicode.IsControl) {
			p.errorf("tls_reports."+key, "", "more than one line of 200 octets")
		}
	}
	if t.Delay < Duration(time.Second) || t.Delay > Day/2 {
		p.errorf("tls_reports.delay", "", "%v is not between 1s and 12h", t.Delay)
	}
	asks := false
	for _, s := range c.Send {
		asks = asks || !s.Disabled && (s.TLS.Level == "mta_sts" || s.TLS.Level == "dane")
	}
	if !asks {
		p.warnf("tls_reports.enabled", "set tls.level: mta_sts on a send connector", "no send connector asks what domains publish: there is nothing to report")
	}
}
