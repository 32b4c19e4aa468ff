package config

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"waybill/relay/auth"
)

// Kerberos is how users log in with Kerberos tickets (SASL GSSAPI).
type Kerberos struct {
	KeytabFile       string   `yaml:"keytab_file" file:"true" doc:"keytab with the keys of our service principal. It is read again when it changes; without it there is no GSSAPI"`
	ServicePrincipal string   `yaml:"service_principal" doc:"our service principal; with @REALM, only that realm's keys count" default:"smtp/ and the hostname"`
	Realms           []string `yaml:"realms" doc:"realms whose users may log in" default:"those of the service's keys"`
	MaxSkew          Duration `yaml:"max_skew" doc:"how far the clients' clocks may be from ours"`
	UserFormat       string   `yaml:"user_format" doc:"our name for a user: text with {user}, and {domain} for their realm in lower case"`
	Senders          []string `yaml:"senders" doc:"what users may send as whom the user file does not have: addresses or @domain, with {user} and {domain}. Without it only users in the user file may log in"`
}

// NTLM is how users log in with NTLM, which is legacy.
type NTLM struct {
	Users      bool     `yaml:"users" doc:"our own users, for those with an NT hash (waybill user add --ntlm)"`
	Helper     []string `yaml:"helper" doc:"users of a Windows domain: a command that speaks squid-2.5-ntlmssp, such as Samba's [/usr/bin/ntlm_auth, --helper-protocol=squid-2.5-ntlmssp]"`
	Processes  int      `yaml:"processes" min:"1" max:"1000" doc:"processes of the helper at once; each login keeps one until it ends"`
	UserFormat string   `yaml:"user_format" doc:"our name for a user whom the helper knows: text with {user} and {domain}"`
	Senders    []string `yaml:"senders" doc:"what users may send as whom the helper knows and the user file does not have, as in kerberos.senders"`
}

// on reports whether NTLM is configured.
func (n NTLM) on() bool { return n.Users || len(n.Helper) > 0 }

func defaultKerberos() Kerberos {
	return Kerberos{MaxSkew: 5 * minute, UserFormat: "{user}@{domain}"}
}

func defaultNTLM() NTLM { return NTLM{Processes: 16, UserFormat: "{user}"} }

// Proved is who users are that a realm or a domain vouches for.
func (k Kerberos) Proved() auth.Proved { return auth.Proved{Format: k.UserFormat, Senders: k.Senders} }

// Proved is who users are that a realm or a domain vouches for.
func (n NTLM) Proved() auth.Proved { return auth.Proved{Format: n.UserFormat, Senders: n.Senders} }

// Service is the service principal.
func (k Kerberos) Service(hostname string) string {
	if k.ServicePrincipal != "" {
		return k.ServicePrincipal
	}
	return "smtp/" + hostname
}

func checkIntegrated(c *Config, p *collector) {
	k, n := c.Users.Kerberos, c.Users.NTLM
	if k.KeytabFile != "" {
		checkKerberos(c, k, p)
	}
	if n.Users && len(n.Helper) > 0 {
		p.errorf("users.ntlm", "leave one out", "a login is checked by our own users or by a helper, not by both")
	}
	if n.Users && c.Users.File == "" {
		p.errorf("users.ntlm.users", "set users.file", "there is no user file with NT hashes")
	}
	if len(n.Helper) > 0 {
		checkProved(c, n.Proved(), p, "users.ntlm")
	}
	for i, r := range c.Receive {
		for j, m := range r.Auth.Mechanisms {
			at := fmt.Sprintf("receive_connectors[%d].auth.mechanisms[%d]", i, j)
			switch {
			case m == "GSSAPI" && k.KeytabFile == "":
				p.errorf(at, "set users.kerberos.keytab_file", "GSSAPI needs the keys of a service principal")
			case m == "NTLM" && !n.on():
				p.errorf(at, "set users.ntlm", "NTLM needs users")
			case m == "NTLM" && r.TLS.Mode == "off":
				p.errorf(at, "name a certificate", "NTLM is offered under TLS only, and there is none")
			case m == "NTLM":
				p.warnf(at, "prefer SCRAM-SHA-256 or GSSAPI", "NTLM is legacy: whoever records a login can try out passwords at any speed")
			}
		}
	}
}

func checkKerberos(c *Config, k Kerberos, p *collector) {
	const path = "users.kerberos"
	if service, realm, ok := strings.Cut(k.Service(c.Hostname), "@"); !strings.Contains(service, "/") || ok && realm == "" {
		p.errorf(path+".service_principal", "such as smtp/mx1.example.com", "%q is no service principal", clip(k.ServicePrincipal))
	}
	if k.MaxSkew < second || k.MaxSkew > Day {
		p.errorf(path+".max_skew", "", "%v is not between 1s and 1d", k.MaxSkew)
	}
	for i, r := range k.Realms {
		if r == "" || strings.ContainsAny(r, "/@ ") || slices.Contains(k.Realms[:i], r) {
			p.errorf(fmt.Sprintf("%s.realms[%d]", path, i), "", "%q is no realm, or there twice", clip(r))
		} else if r != strings.ToUpper(r) {
			p.warnf(fmt.Sprintf("%s.realms[%d]", path, i), "", "realms are upper case by custom, and case counts: %s", clip(r))
		}
	}
	if len(k.Realms) > 1 && !strings.Contains(k.UserFormat, "{domain}") {
		p.errorf(path+".user_format", "such as {user}@{domain}", "users of several realms would have the same name")
	}
	checkProved(c, k.Proved(), p, path)
}

// checkProved checks the words that identities are made of.
func checkProved(c *Config, who auth.Proved, p *collector, path string) {
	if err := (auth.Proved{Format: who.Format}).Check(); err != nil || !strings.Contains(who.Format, "{user}") {
		p.errorf(path+".user_format", "such as {user}@{domain}", "%q is no text with {user}, or with another word than {user} and {domain}", clip(who.Format))
	}
	for i, s := range who.Senders {
		if err := (auth.Proved{Senders: []string{s}}).Check(); err != nil {
			p.errorf(fmt.Sprintf("%s.senders[%d]", path, i), `such as "{user}@example.com"`, "%v", err)
		}
	}
	if len(who.Senders) == 0 && c.Users.File == "" {
		p.errorf(path+".senders", `such as ["{user}@example.com"], or set users.file`, "nobody may send anything")
	}
}

// checkIntegratedFiles looks at the keytab and the helper.
func checkIntegratedFiles(c *Config, p *collector) {
	if name := c.Users.Kerberos.KeytabFile; name != "" {
		if what, hint := readable(name); what != "" {
			p.errorf("users.kerberos.keytab_file", hint, "%s", what)
		}
		checkPrivate(name, p, "users.kerberos.keytab_file")
	}
	if h := c.Users.NTLM.Helper; len(h) > 0 {
		if info, err := os.Stat(h[0]); err != nil || info.IsDir() || info.Mode().Perm()&0o111 == 0 {
			p.errorf("users.ntlm.helper[0]", "the whole path; Debian has it in the package winbind", "%s is no program", clip(h[0]))
		}
	}
}
