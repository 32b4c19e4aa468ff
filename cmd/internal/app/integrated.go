package app

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"waybill/cmd/internal/config"
	"waybill/relay/auth"
	"waybill/relay/auth/gssapi"
	"waybill/relay/auth/ntlm"
)

// integrated is how those log in whom others vouch for: a Kerberos realm or a
// Windows domain. The zero value lets nobody in.
type integrated struct {
	tickets *gssapi.Acceptor // nil without a keytab
	replays *gssapi.Replays  // of all acceptors that there were
	domain  *ntlm.Helper     // nil without a helper
	list    []auth.Mechanism
}

// newIntegrated makes what cfg asks for; was is what there was before.
func newIntegrated(cfg *config.Config, users *auth.Users, was integrated) (g integrated, err error) {
	g.replays = was.replays
	if k := cfg.Users.Kerberos; k.KeytabFile != "" {
		if g.replays == nil {
			g.replays = gssapi.NewReplays(0)
		}
		who := k.Proved()
		who.Users = users
		g.tickets, err = gssapi.New(gssapi.Options{
			KeytabFile: k.KeytabFile, Service: k.Service(cfg.Hostname), Realms: k.Realms, MaxSkew: time.Duration(k.MaxSkew),
			Replays: g.replays, Identify: who.Identity,
		})
		if err != nil {
			return g, fmt.Errorf("users.kerberos: %w", err)
		}
		g.list = append(g.list, g.tickets.Mechanism())
	}
	switch n := cfg.Users.NTLM; {
	case len(n.Helper) > 0:
		who := n.Proved()
		who.Users = users
		g.domain, err = ntlm.NewHelper(n.Helper, n.Processes, who)
		if err != nil {
			return g, fmt.Errorf("users.ntlm: %w", err)
		}
		g.list = append(g.list, ntlm.Mechanism(g.domain))
	case n.Users && users != nil:
		g.list = append(g.list, ntlm.Mechanism(ntlm.Local{Hostname: cfg.Hostname, Lookup: users.NTLM}))
	}
	return g, nil
}

// close gives back what g holds.
func (g integrated) close() {
	if g.domain != nil {
		_ = g.domain.Close() // never fails
	}
}

// watchKeytab reads the keytab when it has changed. What is wrong with it is said
// once; said is what has been said already.
func (a *App) watchKeytab(g integrated, said string) string {
	if g.tickets == nil {
		return ""
	}
	log := a.logger.Named("users")
	changed, err := g.tickets.Reload()
	switch {
	case err == nil:
		if changed {
			log.Info("keytab read again")
		}
		return ""
	case err.Error() != said:
		log.Warn("keytab cannot be read; the keys stay as they were", zap.Error(err))
	}
	return err.Error()
}
