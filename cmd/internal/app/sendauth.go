package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"waybill/cmd/internal/config"
	"waybill/metrics"
	"waybill/relay/auth"
	"waybill/relay/auth/gssapi"
	"waybill/relay/event"
	"waybill/relay/login"
	"waybill/relay/smtpout"
)

// sendLogin is how a send connector logs in, where that takes more than a
// password. It outlives a reload that does not change it, so that a token and a
// ticket do too.
type sendLogin struct {
	conf   config.SendAuth
	login  smtpout.Login
	tokens *login.Tokens // of XOAUTH2
}

// sendAuth turns the login of a send connector into options.
func (r *routes) sendAuth(s config.SendConnector, g *routing) (smtpout.Auth, error) {
	a := s.Auth
	if a.Mechanism == "" || a.Mechanism == "none" {
		return smtpout.Auth{}, nil
	}
	out := smtpout.Auth{Mechanism: a.Mechanism, Username: a.Username, Insecure: a.BeforeTLS}
	if slices.Contains(smtpout.Mechanisms(), a.Mechanism) {
		out.Password = exposed(a.Secret)
		return out, nil
	}
	l, err := r.sendLogin(s.Name, a)
	if err != nil {
		return out, fmt.Errorf("auth: %w", err)
	}
	g.logins[s.Name] = l
	out.Login = l.login
	return out, nil
}

// sendLogin is the one in use when it is the same, or a new one.
func (r *routes) sendLogin(name string, a config.SendAuth) (*sendLogin, error) {
	if now := r.now.Load(); now != nil {
		if was := now.logins[name]; was != nil && reflect.DeepEqual(was.conf, a) {
			return was, nil
		}
	}
	l := &sendLogin{conf: a}
	switch a.Mechanism {
	case "XOAUTH2":
		opts := login.TokenOptions{
			Connector: name, URL: a.TokenURL, ClientID: a.ClientID, Scopes: a.Scopes, CAFile: a.TokenCAFile, Emitter: r.emit.Source(event.SourceSMTPOut),
		}
		if a.ClientCertificate != "" {
			opts.Certificate = func() (*tls.Certificate, error) {
				if c := r.certificate(a.ClientCertificate); c != nil {
					return c, nil
				}
				return nil, fmt.Errorf("there is no certificate %q", a.ClientCertificate)
			}
		} else {
			opts.Secret = exposed(a.ClientSecretNow)
		}
		tokens, err := login.NewTokens(opts)
		if err != nil {
			return nil, err
		}
		l.tokens, l.login = tokens, login.XOAUTH2{Username: a.Username, Tokens: tokens}
	case "NTLM":
		l.login = login.NTLM{Username: a.Username, Password: exposed(a.Secret)}
	case "GSSAPI":
		tickets, err := gssapi.NewTickets(gssapi.TicketOptions{Principal: a.Username, KeytabFile: a.KeytabFile, CacheFile: a.CacheFile, ConfigFile: a.KrbFile})
		if err != nil {
			return nil, err
		}
		l.login = login.GSSAPI{Tickets: tickets, Service: a.Service}
	default:
		return nil, errors.New("unknown mechanism " + a.Mechanism)
	}
	return l, nil
}

// exposed reads a secret when it is needed.
func exposed(read func() (auth.Secret, error)) func() (string, error) {
	return func() (string, error) {
		secret, err := read()
		if err != nil {
			return "", err
		}
		return secret.Expose(), nil
	}
}

// watchSendTokens keeps the tokens of send connectors fresh until ctx is done.
func (a *App) watchSendTokens(ctx context.Context) error {
	tick := time.NewTicker(a.every)
	defer tick.Stop()
	for {
		var asked sync.WaitGroup // one endpoint that does not answer keeps no other from being asked
		for _, l := range a.routes.now.Load().logins {
			if l.tokens != nil {
				asked.Go(func() { l.tokens.Refresh(ctx) })
			}
		}
		asked.Wait()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// tokenLevels are the ends of the tokens in use.
func (r *routes) tokenLevels() (list []metrics.Token) {
	for name, l := range r.now.Load().logins {
		if l.tokens != nil {
			list = append(list, metrics.Token{Connector: name, Expires: l.tokens.Expires()})
		}
	}
	slices.SortFunc(list, func(a, b metrics.Token) int { return strings.Compare(a.Connector, b.Connector) })
	return list
}
