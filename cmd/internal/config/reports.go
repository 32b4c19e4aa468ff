package config

// Reports is whom reports on what became of mail go to.
type Reports struct {
	Strangers     string `yaml:"strangers" enum:"all,unless_forged,verified,none" doc:"which senders get reports on mail that came without a login from clients that may not relay: every sender (RFC 5321 to the letter); not those whose domain says by SPF that it does not send from that address; only those whose domain says that it does; or nobody. Mail of users and of clients that may relay is always reported on"`
	DoubleBounces string `yaml:"double_bounces" enum:"drop,postmaster" doc:"what becomes of a report, or other mail without a sender, that cannot be delivered: a fact in the record, or a report to postmaster as well"`
}

func defaultReports() Reports { return Reports{Strangers: "unless_forged", DoubleBounces: "drop"} }

// checkReports checks whom reports go to.
func checkReports(c *Config, p *collector) {
	if c.Reports.DoubleBounces == "postmaster" && c.Postmaster == "" {
		p.errorf("reports.double_bounces", "set postmaster, or an accepted domain", "there is no postmaster to report to")
	}
}
