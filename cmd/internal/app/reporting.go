package app

import (
	"slices"

	"waybill/cmd/internal/config"
	"waybill/relay/backscatter"
	"waybill/relay/deliver"
	"waybill/relay/mail"
)

// reporting is whom reports go to.
func (a *App) reporting(c *config.Config) deliver.ReportPolicy {
	p := backscatter.Policy{Strangers: backscatter.Strangers(c.Reports.Strangers), Trusted: trusted(c), Resolver: a.routes.resolver}
	return deliver.ReportPolicy{Refuse: p.Refuse, Postmaster: doubleBounces(c)}
}

// doubleBounces is who is told of reports that cannot be delivered; null when
// nobody is.
func doubleBounces(c *config.Config) mail.Address {
	if c.Reports.DoubleBounces != "postmaster" {
		return mail.Address{}
	}
	address, _ := mail.ParseAddress(c.Postmaster) // checked with the configuration
	return address
}

// trusted tells of receive connectors whether their clients may relay without a
// login. What came through one that is gone is judged as a stranger's.
func trusted(c *config.Config) func(connector string) bool {
	may := map[string]bool{}
	for i := range c.Receive {
		r := &c.Receive[i]
		may[r.Name] = slices.Contains(r.Permissions, "relay")
	}
	return func(connector string) bool { return may[connector] }
}
