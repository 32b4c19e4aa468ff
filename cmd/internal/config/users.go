package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"waybill/relay/auth"
	"waybill/relay/auth/oauth"
)

// Users says where the users are.
type Users struct {
	File         string              `yaml:"file" file:"true" doc:"user file, as \"waybill user add\" makes it"`
	LDAP         UsersLDAP           `yaml:"ldap" doc:"users of a directory; those of the file come first"`
	Command      []string            `yaml:"command" doc:"users whom a program knows: its whole path, and arguments. It reads name and password as two lines, and ends with 0 for yes, 1 for a wrong password, 2 for an unknown user; with a yes it may write {\"user\": …, \"senders\": […], \"any_sender\": …}. It is asked after file and ldap"`
	CommandLimit CommandLimits       `yaml:"command_limits" doc:"what that program may use"`
	OAuth        OAuth               `yaml:"oauth" doc:"users who log in with OAuth tokens"`
	Certificates []ClientCertificate `yaml:"certificates" doc:"users who are known by their TLS client certificates; the first entry that fits counts"`
	Kerberos     Kerberos            `yaml:"kerberos" doc:"logins with Kerberos tickets"`
	NTLM         NTLM                `yaml:"ntlm" doc:"logins with NTLM"`
	Lockout      Lockout             `yaml:"lockout" doc:"what becomes of those who guess passwords"`
}

// any reports whether anybody can log in with a mechanism.
func (u Users) any() bool {
	return u.File != "" || u.LDAP.Directory != "" || len(u.Command) > 0 || len(u.OAuth.Issuers) > 0 || len(u.Certificates) > 0 || u.Kerberos.KeytabFile != "" || u.NTLM.on()
}

// OAuth is who issues tokens that users log in with.
type OAuth struct {
	Issuers []Issuer `yaml:"issuers" doc:"who issues tokens"`
}

// Issuer is one issuer of tokens.
type Issuer struct {
	Issuer       string            `yaml:"issuer" required:"true" doc:"its name in the claim iss, to the letter, such as \"https://login.example.com/realms/mail\""`
	Audiences    []string          `yaml:"audiences" required:"true" doc:"names that we have there: one of them must be in the claim aud"`
	UserClaim    string            `yaml:"user_claim" required:"true" doc:"claim that is the user's name, such as preferred_username, upn, email or sub: one that users cannot choose themselves"`
	JWKSURL      string            `yaml:"jwks_url" doc:"where its keys are: https, or http on this machine" default:"as its OpenID configuration says"`
	JWKSFile     string            `yaml:"jwks_file" file:"true" doc:"file with its keys, instead of a URL"`
	CAFile       string            `yaml:"ca_file" file:"true" doc:"PEM file of the authorities to trust there instead of the system's"`
	Scopes       []string          `yaml:"scopes" doc:"scopes that a token must have, all of them"`
	Claims       map[string]string `yaml:"claims" type:"names with values" doc:"other claims that a token must have: this value, or a list with it"`
	SendersClaim string            `yaml:"senders_claim" doc:"claim that lists the addresses, or \"@example.com\", that the user may send as, beside those of the user file"`
	Senders      []string          `yaml:"senders" doc:"addresses, or \"@example.com\", that each of its users may send as"`
	KnownUsers   bool              `yaml:"known_users" doc:"only users that are in the user file; one that is disabled there cannot log in in any case"`
	Algorithms   []string          `yaml:"algorithms" enum:"RS256,RS384,RS512,PS256,PS384,PS512,ES256,ES384,ES512,EdDSA" doc:"signatures that are taken" default:"all of them"`
	ClockSkew    Duration          `yaml:"clock_skew" doc:"by how much clocks may differ"`
}

func (i *Issuer) preset(string) { i.ClockSkew = minute }

// ClientCertificate is a user who is known by a certificate.
type ClientCertificate struct {
	User        string   `yaml:"user" required:"true" doc:"name of the user; one that is in the user file has what the file says"`
	Email       string   `yaml:"email" doc:"the certificate is for this address (subject alternative name)"`
	DNS         string   `yaml:"dns" doc:"the certificate is for this host (subject alternative name)"`
	URI         string   `yaml:"uri" doc:"the certificate is for this URI (subject alternative name)"`
	Subject     string   `yaml:"subject" doc:"the certificate has this subject, written as in RFC 4514, such as \"CN=app,O=Example\""`
	Fingerprint string   `yaml:"fingerprint" doc:"the certificate is this one, whoever has issued it: its SHA-256 hash in hexadecimal"`
	Senders     []string `yaml:"senders" doc:"addresses, or \"@example.com\", that the user may send as, beside those of the user file"`
}

// Lockout says how many failed logins are too many.
type Lockout struct {
	SourceFailures  int      `yaml:"source_failures" min:"0" max:"100000" doc:"failed logins of one address (IPv6 /64) within the window, after which its next is held off; 0 is no limit"`
	AccountFailures int      `yaml:"account_failures" min:"0" max:"100000" doc:"failed logins of one account within the window, after which its next is held off. An address that the account has logged in from counts for itself, so that nobody elsewhere can lock its owner out; 0 is no limit"`
	Window          Duration `yaml:"window" doc:"how long a failed login counts"`
	Delay           Duration `yaml:"delay" doc:"how long the next login is held off, with reply 454; it doubles with each further failure"`
	MaxDelay        Duration `yaml:"max_delay" doc:"the longest that delay becomes"`
	Trust           Duration `yaml:"trust" doc:"how long an address is known for an account after a login; it is forgotten at a restart"`
}

func defaultUsers() Users {
	return Users{LDAP: UsersLDAP{Cache: minute}, CommandLimit: CommandLimits{Timeout: 10 * second, Processes: 16}, Kerberos: defaultKerberos(), NTLM: defaultNTLM(), Lockout: Lockout{
		SourceFailures: 30, AccountFailures: 10, Window: 15 * minute, Delay: 30 * second, MaxDelay: Duration(time.Hour), Trust: 30 * Day,
	}}
}

func checkLockout(l Lockout, p *collector) {
	for key, d := range map[string]Duration{"window": l.Window, "delay": l.Delay, "max_delay": l.MaxDelay, "trust": l.Trust} {
		if d < second {
			p.errorf("users.lockout."+key, "", "%v is less than 1s", d)
		}
	}
	if l.MaxDelay < l.Delay {
		p.errorf("users.lockout.max_delay", "", "%v is less than delay, %v", l.MaxDelay, l.Delay)
	}
}

// everybody are issuers with which everybody has an account, or can make one. Whom
// they vouch for is a stranger still.
var everybody = []string{
	"https://accounts.google.com", "accounts.google.com", "https://appleid.apple.com", "https://www.facebook.com", "https://gitlab.com",
	"https://token.actions.githubusercontent.com", "https://api.login.yahoo.com", "https://www.linkedin.com/oauth",
	"https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0", // personal accounts, of no organisation
}

func checkUsers(c *Config, p *collector) {
	checkLockout(c.Users.Lockout, p)
	seen := map[string]int{}
	for i, is := range c.Users.OAuth.Issuers {
		path := fmt.Sprintf("users.oauth.issuers[%d]", i)
		if first, dup := seen[is.Issuer]; dup {
			p.errorf(path+".issuer", "", "users.oauth.issuers[%d] is %s already", first, clip(is.Issuer))
		}
		seen[is.Issuer] = i
		if slices.Contains(is.Audiences, "") {
			p.errorf(path+".audiences", "", "an audience is empty")
		}
		checkOwnSenders(is.Senders, p, path+".senders")
		if is.ClockSkew < second || is.ClockSkew > 15*minute {
			p.errorf(path+".clock_skew", "", "%v is not between 1s and 15m", is.ClockSkew)
		}
		switch {
		case is.JWKSFile != "" && is.JWKSURL != "":
			p.errorf(path+".jwks_url", "take one of them out", "jwks_file is there too")
		case is.JWKSURL != "":
			if err := oauth.CheckURL(is.JWKSURL); err != nil {
				p.errorf(path+".jwks_url", "", "%v", err)
			}
		case is.JWKSFile == "" && is.Issuer != "":
			if err := oauth.CheckURL(is.Issuer); err != nil {
				p.errorf(path+".issuer", "set jwks_url or jwks_file", "its keys cannot be found there: %v", err)
			}
		}
		if slices.Contains(everybody, strings.TrimRight(strings.ToLower(is.Issuer), "/")) && !is.KnownUsers && len(is.Claims) == 0 {
			p.errorf(path+".issuer", "set known_users: true, or claims that only your users have, such as {hd: example.com}",
				"open relay: anybody can get a token from %s", clip(is.Issuer))
		}
		if is.KnownUsers && c.Users.File == "" {
			p.errorf(path+".known_users", "set users: {file: users.yaml}", "there is no user file")
		}
	}
	for i, cert := range c.Users.Certificates {
		path := fmt.Sprintf("users.certificates[%d]", i)
		checkOwnSenders(cert.Senders, p, path+".senders")
		rule := cert.Rule()
		rule.Senders = nil // said above
		if _, err := auth.NewCertificates([]auth.CertificateRule{rule}, nil); err != nil && cert.User != "" {
			p.errorf(path, "", "%s", strings.TrimPrefix(err.Error(), "certificate 0: "))
		}
	}
}

// Rule is the entry as package auth has it.
func (c ClientCertificate) Rule() auth.CertificateRule {
	return auth.CertificateRule{Email: c.Email, DNS: c.DNS, URI: c.URI, Subject: c.Subject, Fingerprint: c.Fingerprint, User: c.User, Senders: c.Senders}
}

// Options are the entry as package oauth has it.
func (i Issuer) Options() oauth.Issuer {
	return oauth.Issuer{
		Issuer: i.Issuer, Audiences: i.Audiences, JWKSFile: i.JWKSFile, JWKSURL: i.JWKSURL, CAFile: i.CAFile, UserClaim: i.UserClaim,
		SendersClaim: i.SendersClaim, Senders: i.Senders, Scopes: i.Scopes, Claims: i.Claims, KnownUsers: i.KnownUsers,
		Algorithms: i.Algorithms, Skew: time.Duration(i.ClockSkew),
	}
}

func checkOwnSenders(list []string, p *collector, path string) {
	for i, s := range list {
		if err := auth.CheckSender(s); err != nil {
			p.errorf(fmt.Sprintf("%s[%d]", path, i), "", "%v", err)
		}
	}
}

// checkTokenLogin looks at a connector whose clients may log in with tokens.
func checkTokenLogin(c *Config, r *ReceiveConnector, p *collector, path string) {
	for i, m := range r.Auth.Mechanisms {
		if (m == "XOAUTH2" || m == "OAUTHBEARER") && len(c.Users.OAuth.Issuers) == 0 {
			p.errorf(fmt.Sprintf("%s.mechanisms[%d]", path, i), "set users.oauth.issuers", "nobody issues tokens for %s", m)
		}
	}
}

// checkCertificateLogin looks at a connector whose clients may log in by their
// certificates.
func checkCertificateLogin(c *Config, r *ReceiveConnector, p *collector, path string) {
	external := slices.IndexFunc(r.Auth.Mechanisms, func(m string) bool { return strings.EqualFold(m, "EXTERNAL") })
	if external >= 0 {
		path = fmt.Sprintf("%s.mechanisms[%d]", path, external)
	} else if r.Auth.Certificate {
		path += ".certificate"
	} else {
		return
	}
	if r.TLS.ClientCertificate == "none" {
		p.errorf(path, "set tls.client_certificate to request or require", "nobody is asked for a certificate")
	}
	if len(c.Users.Certificates) == 0 {
		p.errorf(path, "set users.certificates", "nobody is known by a certificate")
	}
}

// checkUserFiles looks at the files that users are checked with.
func checkUserFiles(c *Config, p *collector) {
	for i, is := range c.Users.OAuth.Issuers {
		path := fmt.Sprintf("users.oauth.issuers[%d]", i)
		checkAuthorities(is.CAFile, p, path+".ca_file")
		if is.JWKSFile == "" {
			continue
		}
		if what, hint := readable(is.JWKSFile); what != "" {
			p.errorf(path+".jwks_file", hint, "%s", what)
			continue
		}
		if _, err := oauth.New(oauth.Options{Issuers: []oauth.Issuer{is.Options()}}); err != nil && !errors.Is(err, os.ErrNotExist) {
			p.errorf(path+".jwks_file", "", "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
}
