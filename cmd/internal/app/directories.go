package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"waybill/cmd/internal/config"
	"waybill/relay/auth"
	"waybill/relay/auth/command"
	"waybill/relay/directory"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"
	"waybill/relay/recipients"
	"waybill/relay/route"
	"waybill/relay/tlsconf"
)

// outside is what reception asks about users and recipients beyond its files.
type outside struct {
	emit    event.Emitter
	prober  recipients.Prober
	clients map[string]*directory.Client
	users   *directory.Users // nil without users of a directory
	command *command.Store   // nil without a program that knows users
}

// openOutside makes what cfg names. Nothing is connected to yet.
func openOutside(cfg *config.Config, emit event.Emitter, prober recipients.Prober) (*outside, error) {
	o := &outside{emit: emit, prober: prober, clients: map[string]*directory.Client{}}
	var errs []error
	for name, d := range cfg.Directories {
		tlsConfig, err := tlsconf.Client(tlsconf.ClientOptions{CAFile: d.CAFile})
		if err != nil {
			errs = append(errs, fmt.Errorf("directory %s: %w", name, err))
			continue
		}
		opts := directory.Options{
			Name: name, Servers: d.Servers, StartTLS: d.StartTLS, TLS: tlsConfig, BindDN: d.BindDN,
			Timeout: time.Duration(d.Timeout), Connections: d.Connections,
		}
		if d.BindDN != "" {
			opts.Password = func() (string, error) {
				secret, err := d.Secret()
				return secret.Expose(), err
			}
		}
		o.clients[name], err = directory.New(opts)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := o.openCommand(cfg); err != nil {
		return nil, err
	}
	return o, o.openUsers(cfg)
}

func (o *outside) openCommand(cfg *config.Config) (err error) {
	u := cfg.Users
	if len(u.Command) == 0 {
		return nil
	}
	o.command, err = command.New(command.Options{
		Command: u.Command, Timeout: time.Duration(u.CommandLimit.Timeout), Processes: u.CommandLimit.Processes, Emitter: o.emit,
	})
	return err
}

func (o *outside) openUsers(cfg *config.Config) (err error) {
	u := cfg.Users.LDAP
	if u.Directory == "" {
		return nil
	}
	schema, _ := directory.FindSchema(cfg.Directories[u.Directory].Schema)
	opts := directory.UserOptions{
		Schema: schema, BaseDN: u.BaseDN, Filter: u.Filter, Name: u.BindName, UserAttribute: u.UserAttribute, AnySender: u.AnySender,
		RequiredGroup: u.RequiredGroup, Cache: time.Duration(u.Cache), Emitter: o.emit,
	}
	if len(u.SenderAttributes) > 0 {
		opts.SenderAttributes = u.SenderAttributes
	}
	client, ok := o.clients[u.Directory]
	if !ok {
		return fmt.Errorf("users.ldap: no directory %q", u.Directory)
	}
	o.users, err = directory.NewUsers(client, opts)
	return err
}

// stores are the stores of passwords: the file first.
func (o *outside) stores(file *auth.Users) (list []auth.Store) {
	if file != nil {
		list = append(list, file)
	}
	if o.users != nil {
		list = append(list, o.users)
	}
	if o.command != nil {
		list = append(list, o.command)
	}
	return list
}

// checker finds out about the recipients of domains; nil when no domain asks.
func (o *outside) checker(cfg *config.Config, domains *policy.Domains) (*recipients.Checker, error) {
	rules := map[string]recipients.Rule{}
	for _, d := range cfg.AcceptedDomains {
		r := d.Recipients
		rule := recipients.Rule{
			Accept: r.Unavailable == "accept", Timeout: time.Duration(r.Timeout), Known: orNone(time.Duration(r.Cache)),
			Unknown: orNone(time.Duration(r.CacheUnknown)), Concurrency: r.Questions,
		}
		switch {
		case r.LDAP.Directory != "":
			client, ok := o.clients[r.LDAP.Directory]
			if !ok {
				return nil, fmt.Errorf("recipients of %s: no directory %q", d.Domain, r.LDAP.Directory)
			}
			schema, _ := directory.FindSchema(cfg.Directories[r.LDAP.Directory].Schema)
			source, err := directory.NewRecipients(client, directory.RecipientOptions{Schema: schema, BaseDN: r.LDAP.BaseDN, Filter: r.LDAP.Filter})
			if err != nil {
				return nil, fmt.Errorf("recipients of %s: %w", d.Domain, err)
			}
			rule.Source, rule.Kind = source, event.LookupLDAP
		case r.Probe:
			rule.Source, rule.Kind = recipients.Probe{Prober: o.prober}, event.LookupProbe
		default:
			continue
		}
		rules[d.Domain] = rule
	}
	if len(rules) == 0 {
		return nil, nil //nolint:nilnil // nobody is to be asked
	}
	return recipients.New(recipients.Options{Domains: domains, Rules: rules, Emitter: o.emit})
}

// close ends the connections that wait for questions. Sessions that began with
// o may ask all the same.
func (o *outside) close() error {
	var errs []error
	for _, c := range o.clients {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// prober probes the way that routing gives now. The routes come to be after
// reception does.
type prober struct{ a *App }

// Probe implements recipients.Prober.
func (p prober) Probe(ctx context.Context, to mail.Address) mail.Outcome {
	return p.a.routes.probe(ctx, to)
}

// probe asks the next hop of a recipient about it.
func (r *routes) probe(ctx context.Context, to mail.Address) mail.Outcome {
	now := r.now.Load()
	decision := now.table.Route(route.Query{Recipient: to})
	c, ok := now.connectors[decision.Hop.Connector]
	if !ok {
		return mail.Outcome{Recipient: to, Disposition: mail.Deferred, Reply: mail.Reply{Code: 451, Enhanced: "4.4.4", Text: "no send connector is for it"}}
	}
	return c.out.Probe(ctx, decision.Hop, to)
}
