package app

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"

	"waybill/cmd/internal/config"
	"waybill/logtrack"
	"waybill/relay/auth"
	"waybill/relay/auth/oauth"
	"waybill/relay/deliver"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"
	"waybill/relay/protolog"
	"waybill/relay/queue"
	"waybill/relay/route"
	"waybill/relay/smtpin"
	"waybill/relay/smtpout"
	"waybill/relay/throttle"
	"waybill/relay/tlsconf"
)

// This file turns the configuration's words into the options of the parts.
// Nothing here decides: a value that needs checking is checked in package config.

func logOptions(c *config.Config) protolog.Options {
	return protolog.Options{
		File: c.Log.File, MaxSize: int64(c.Log.MaxSize), MaxAge: time.Duration(c.Log.MaxAge), Backups: c.Log.Backups,
		Keep: time.Duration(c.Log.Keep), Compress: c.Log.Compress, Level: c.Log.Level, Format: c.Log.Format,
	}
}

func trackOptions(c *config.Config, log *zap.Logger, observe func(string, time.Duration)) logtrack.Options {
	return logtrack.Options{
		Dir: filepath.Join(c.DataDir, "track"), Retention: time.Duration(c.Tracking.Retention), MaxBytes: int64(c.Tracking.MaxSize),
		TranscriptRetention: time.Duration(c.Tracking.TranscriptRetention), Kinds: c.Tracking.KindRetention(),
		Logger: log, Observe: observe,
	}
}

func queueOptions(c *config.Config) queue.Options {
	return queue.Options{
		Dir: filepath.Join(c.DataDir, "queue"), Lifetime: lifetime(c), DiskFreeMin: int64(c.Queue.DiskFreeMin),
		KeepRelayed: time.Duration(c.Queue.KeepAfterRelay), KeepMaxBytes: int64(c.Queue.KeepMaxSize),
		Priorities: priorities(c), Workers: deliver.DefaultWorkers,
	}
}

// lifetime is the longest that any send connector tries.
func lifetime(c *config.Config) time.Duration {
	var longest config.Duration
	for _, s := range c.Send {
		longest = max(longest, s.Retry.Lifetime)
		for _, d := range s.Retry.Domains {
			longest = max(longest, d.Lifetime)
		}
	}
	if longest == 0 {
		longest = config.NewSendConnector().Retry.Lifetime
	}
	return time.Duration(longest)
}

func connectorNames(c *config.Config) (receive, send []string) {
	for _, r := range c.Receive {
		receive = append(receive, r.Name)
	}
	if c.Pickup.Dir != "" {
		receive = append(receive, c.Pickup.Name)
	}
	for _, s := range c.Send {
		send = append(send, s.Name)
	}
	return receive, send
}

// providers are the roll-ups of next hops, without "other", which metrics adds.
func providers() (names []string) {
	for _, p := range smtpout.Providers() {
		if p != "other" {
			names = append(names, p)
		}
	}
	return names
}

func certificateSources(c *config.Config) (list []tlsconf.Source) {
	for name, f := range c.Certificates {
		list = append(list, tlsconf.Source{Name: name, CertFile: f.CertFile, KeyFile: f.KeyFile})
	}
	return list
}

// control is the relay control that all receive connectors share.
func control(c *config.Config) (*policy.Control, error) {
	var errs []error
	var list []policy.Domain
	for _, d := range c.AcceptedDomains {
		known, err := d.Load()
		if err != nil {
			errs = append(errs, fmt.Errorf("accepted domain %s: %w", d.Domain, err))
		}
		list = append(list, policy.Domain{Name: d.Domain, Type: policy.DomainType(d.Type), Subdomains: d.Subdomains, Recipients: known})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	domains, err := policy.NewDomains(list)
	if err != nil {
		return nil, err
	}
	postmaster, err := mail.ParseAddress(c.Postmaster)
	if err != nil {
		return nil, fmt.Errorf("postmaster: %w", err)
	}
	return &policy.Control{Domains: domains, Postmaster: postmaster}, nil
}

// authenticator is how clients can prove who they are; nil when they cannot.
func authenticator(c *config.Config, users *auth.Users, tokens *oauth.Verifier, certificates *auth.Certificates, o *outside, others integrated) (*auth.Authenticator, error) {
	list := slices.Clone(others.list)
	if tokens != nil {
		list = append(list, tokens.Mechanisms()...)
	}
	if certificates != nil {
		list = append(list, certificates.Mechanism())
	}
	if stores := o.stores(users); len(stores) > 0 {
		list = append(list, auth.Passwords(auth.Chain(stores...))...)
	}
	if users != nil {
		secret, err := persistentKey(c, "login.key")
		if err != nil {
			return nil, err
		}
		list = append(list, auth.SCRAM(users, secret)...)
	}
	if len(list) == 0 {
		return nil, nil //nolint:nilnil // nobody can log in, and that is no error
	}
	return auth.NewAuthenticator(list...), nil
}

// tokenVerifier checks OAuth tokens; nil when nobody issues any.
func tokenVerifier(c *config.Config, users *auth.Users, emit event.Emitter) (*oauth.Verifier, error) {
	if len(c.Users.OAuth.Issuers) == 0 {
		return nil, nil //nolint:nilnil // nobody has tokens, and that is no error
	}
	opts := oauth.Options{Emitter: emit}
	if users != nil {
		opts.Users = users
	}
	for _, i := range c.Users.OAuth.Issuers {
		opts.Issuers = append(opts.Issuers, i.Options())
	}
	return oauth.New(opts)
}

// clientCertificates knows users by their certificates; nil when there are none.
func clientCertificates(c *config.Config, users *auth.Users) (*auth.Certificates, error) {
	if len(c.Users.Certificates) == 0 {
		return nil, nil //nolint:nilnil // nobody has a certificate, and that is no error
	}
	var rules []auth.CertificateRule
	for _, r := range c.Users.Certificates {
		rules = append(rules, r.Rule())
	}
	if users == nil {
		return auth.NewCertificates(rules, nil)
	}
	return auth.NewCertificates(rules, users.Lookup)
}

func lockoutLimits(c *config.Config) throttle.LockoutLimits {
	l := c.Users.Lockout
	return throttle.LockoutLimits{
		Source: orNone(l.SourceFailures), Account: orNone(l.AccountFailures), Window: time.Duration(l.Window),
		Delay: time.Duration(l.Delay), MaxDelay: time.Duration(l.MaxDelay), Trust: time.Duration(l.Trust),
	}
}

func receiveConnectors(c *config.Config, certs *tlsconf.Certificates, logins *auth.Authenticator, certificates *auth.Certificates, o *outside) ([]smtpin.Connector, error) {
	relayControl, err := control(c)
	if err != nil {
		return nil, err
	}
	checker, err := o.checker(c, relayControl.Domains)
	if err != nil {
		return nil, err
	}
	var list []smtpin.Connector
	revision := c.Revision()
	for _, r := range c.Receive {
		ranges, err := prefixes(r.RemoteRanges)
		if err != nil {
			return nil, fmt.Errorf("receive connector %s: %w", r.Name, err)
		}
		rights, err := policy.ParsePermissions(r.Permissions)
		if err != nil {
			return nil, fmt.Errorf("receive connector %s: %w", r.Name, err)
		}
		talk, err := r.Transcript.Rule()
		if err != nil {
			return nil, fmt.Errorf("receive connector %s: %w", r.Name, err)
		}
		proxies, err := prefixes(r.ProxyProtocol.Trusted)
		if err != nil {
			return nil, fmt.Errorf("receive connector %s: %w", r.Name, err)
		}
		announcers, err := prefixes(r.XClient.Trusted)
		if err != nil {
			return nil, fmt.Errorf("receive connector %s: %w", r.Name, err)
		}
		l := r.Limits
		conn := smtpin.Connector{
			ProxyTrusted: proxies, ProxyTimeout: time.Duration(r.ProxyProtocol.Timeout), ClientTrusted: announcers,
			Name: r.Name, Hostname: r.Hostname, Revision: revision, Listen: r.Listen, RemoteRanges: ranges, Banner: r.Banner, TLSMode: r.TLS.Mode, TLSRequired: r.TLS.Required,
			AuthRequired: r.Auth.Required, Mechanisms: r.Auth.Mechanisms, AuthBeforeTLS: r.Auth.BeforeTLS,
			Binding:     auth.Binding(r.Auth.ChannelBinding),
			ClientNames: r.TLS.ClientNames,
			Policy:      relayControl, Permissions: rights, BareNewline: r.BareNewline, Transcript: talk,
			Headers:  smtpin.Headers{Complete: r.Headers.Complete, NoEightBit: r.Headers.EightBit == "reject", NoMalformed: r.Headers.Malformed == "reject"},
			Priority: receivePriority(r.Priority),
			With:     r.Protocol.Enable, Without: r.Protocol.Disable, Lenient: r.Protocol.LenientPaths, NoVerify: r.Protocol.VRFY == "refuse",
			Limits: smtpin.Limits{
				Connections: orNone(l.Connections), ConnectionsPerSource: orNone(l.ConnectionsPerSource), MessagesPerMinute: orNone(l.MessagesPerMinute),
				RateBy: l.RateBy, Recipients: l.Recipients, MessageSize: orNone(int64(l.MessageSize)), HeaderSize: orNone(int(l.HeaderSize)), HeaderFields: l.HeaderFields, Hops: l.Hops,
				ProtocolErrors: orNone(l.ProtocolErrors), AuthFailures: l.AuthFailures, Tarpit: orNone(time.Duration(l.Tarpit)),
				CommandTimeout: time.Duration(l.CommandTimeout), SessionTimeout: orNone(time.Duration(l.SessionTimeout)),
			},
		}
		if checker != nil {
			conn.Recipients = checker
		}
		if len(r.Auth.Mechanisms) > 0 {
			conn.Auth = logins // without it nothing is offered; no mechanisms would mean all
		}
		if r.Auth.Certificate {
			conn.Certificates = certificates
		}
		if r.TLS.Mode != "off" {
			conn.TLS, err = certs.Server(tlsconf.ServerOptions{
				Certificate: r.TLS.Certificate, MinVersion: r.TLS.MinVersion, ClientCertificate: r.TLS.ClientCertificate, ClientCAFile: r.TLS.ClientCAFile,
				ClientNames: r.TLS.ClientNames,
			})
			if err != nil {
				return nil, fmt.Errorf("receive connector %s: %w", r.Name, err)
			}
		}
		list = append(list, conn)
	}
	return list, nil
}

// orNone turns the configuration's zero, no limit, into that of package smtpin.
func orNone[T int | int64 | time.Duration](n T) T {
	if n == 0 {
		return -1
	}
	return n
}

func prefixes(words []string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, w := range words {
		p, err := policy.ParseRange(w)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// build makes the routing table and the send connectors.
func (r *routes) build(c *config.Config) (*routing, error) {
	g := &routing{connectors: map[string]sendConnector{}, logins: map[string]*sendLogin{}, revision: c.Revision()}
	table, err := Table(c)
	if err != nil {
		return nil, err
	}
	g.table = table
	own := listeners(c)
	for _, s := range c.Send {
		out, err := r.sendConnector(c, s, g, own)
		if err != nil {
			return nil, fmt.Errorf("send connector %s: %w", s.Name, err)
		}
		account := r.account(s)
		g.connectors[s.Name] = sendConnector{out: out, account: account, deliver: deliver.Connector{
			Attempter: out, Retry: Retry(s.Retry), Quota: deliverQuota(account),
			Limits: deliver.Limits{Connections: s.Limits.Connections, ConnectionsPerDestination: s.Limits.ConnectionsPerDestination, MessagesPerMinute: s.Limits.MessagesPerMinute, StartPerDestination: s.Limits.StartPerDestination, LeastPerDestination: s.Limits.LeastPerDestination, RecipientsPerMessage: s.Limits.RecipientsPerMessage},
		}}
	}
	return g, nil
}

// Table is the routing table of c.
func Table(c *config.Config) (*route.Table, error) {
	var list []route.Connector
	for _, s := range c.Send {
		rc := route.Connector{Name: s.Name, MaxSize: int64(s.Limits.MessageSize), Disabled: s.Disabled, Receive: s.Linked, Senders: s.Senders, Users: s.Users}
		for _, sp := range s.AddressSpaces {
			rc.Spaces = append(rc.Spaces, route.Space{Pattern: sp.Space, Cost: sp.Cost})
		}
		hosts, err := smartHosts(s)
		if err != nil {
			return nil, err
		}
		rc.SmartHosts = hosts
		list = append(list, rc)
	}
	return route.New(list)
}

func smartHosts(s config.SendConnector) ([]route.SmartHost, error) {
	if s.Route != "smart_hosts" {
		return nil, nil
	}
	var list []route.SmartHost
	for _, h := range s.SmartHosts {
		host, port, err := h.Split()
		if err != nil {
			return nil, err
		}
		list = append(list, route.SmartHost{Host: host, Port: port, Cost: h.Cost})
	}
	return list, nil
}

func (r *routes) sendConnector(c *config.Config, s config.SendConnector, g *routing, own []netip.AddrPort) (*outlet, error) {
	hosts, err := smartHosts(s)
	if err != nil {
		return nil, err
	}
	resolver, err := r.resolverOf(c, &s)
	if err != nil {
		return nil, err
	}
	clientTLS := tlsconf.ClientOptions{Level: s.TLS.Level, MinVersion: s.TLS.MinVersion, CAFile: s.TLS.CAFile}
	if name := s.TLS.ClientCertificate; name != "" {
		clientTLS.Certificate = func() *tls.Certificate { return r.certificate(name) } // as it is then
	}
	tlsConfig, err := tlsconf.Client(clientTLS)
	if err != nil {
		return nil, err
	}
	opts := smtpout.Options{
		Name: s.Name, Hostname: c.Hostname, SmartHosts: hosts, Resolver: resolver, TLS: smtpout.TLSLevel(s.TLS.Level), TLSConfig: tlsConfig,
		EightBit: smtpout.EightBit(s.Downgrade.Content), Unconvertible: smtpout.EightBit(s.Downgrade.Unconvertible),
		TLSDomain: s.TLS.Domain, DANE: resolver, Policies: r.policies, Memory: r.memory,
		ImplicitTLS: s.TLS.Implicit, Emitter: r.emit.Source(event.SourceSMTPOut), Self: own,
		Transcript: s.Transcript.Rule(), Tap: r.tap,
		Limits: smtpout.Limits{
			Connections: s.Limits.Connections, ConnectionsPerDestination: s.Limits.ConnectionsPerDestination,
			MessagesPerConnection: s.Limits.MessagesPerConnection, RecipientsPerMessage: s.Limits.RecipientsPerMessage, IdleTimeout: time.Duration(s.Limits.IdleTimeout),
		},
	}
	for _, w := range s.SourceAddresses {
		ip, err := netip.ParseAddr(w)
		if err != nil {
			return nil, err
		}
		opts.SourceAddrs = append(opts.SourceAddrs, ip)
	}
	if opts.Auth, err = r.sendAuth(s, g); err != nil {
		return nil, err
	}
	return newOutlet(opts)
}

// listeners are our own SMTP addresses, to know a route that leads back to us.
func listeners(c *config.Config) (list []netip.AddrPort) {
	for _, r := range c.Receive {
		for _, l := range r.Listen {
			if ap, err := netip.ParseAddrPort(l); err == nil && ap.Port() != 0 {
				list = append(list, ap)
			}
		}
	}
	return list
}

// subjects is what the record keeps of subjects.
type subjects struct {
	mode string // off, hash, plain
	key  []byte
}

// newSubjects reads the key for hashed subjects, or makes one: without it,
// nobody can try out subjects against a stolen store.
func newSubjects(c *config.Config) (subjects, error) {
	s := subjects{mode: c.Tracking.Subject}
	if s.mode != "hash" {
		return s, nil
	}
	keys, err := hashKeys(c)
	if err == nil {
		s.key = keys[0]
	}
	return s, err
}

// persistentKey reads a key of our own from the data folder, or makes one.
func persistentKey(c *config.Config, name string) ([]byte, error) {
	path := filepath.Join(c.DataDir, name)
	key, err := os.ReadFile(path) //nolint:gosec // below our own data folder
	if errors.Is(err, os.ErrNotExist) {
		key = make([]byte, 32)
		_, _ = rand.Read(key) // never fails (Go 1.24)
		if err = os.MkdirAll(c.DataDir, 0o700); err == nil {
			err = os.WriteFile(path, key, 0o600)
		}
	}
	return key, err
}

func (s subjects) keep(subject string) string {
	switch {
	case s.mode == "plain" || subject == "" && s.mode == "hash":
		return subject
	case s.mode == "hash":
		mac := hmac.New(sha256.New, s.key)
		_, _ = mac.Write([]byte(subject)) // never fails
		return "hash:" + hex.EncodeToString(mac.Sum(nil)[:16])
	}
	return ""
}
