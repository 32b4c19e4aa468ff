package config

import (
	"net/url"
	"slices"
	"strings"

	"waybill/relay/auth"
)

// entra is Microsoft's token endpoint of a tenant.
const entra = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token"

// complete fills in what follows from other keys.
func (a *SendAuth) complete() {
	if a.TokenURL == "" && a.Tenant != "" {
		a.TokenURL = strings.Replace(entra, "{tenant}", url.PathEscape(a.Tenant), 1)
	}
}

// any reports whether there is a credential.
func (a *SendAuth) any() bool {
	return a.Username != "" || !a.Password.IsZero() || a.PasswordFile != "" || a.ClientID != "" || !a.ClientSecret.IsZero() || a.ClientSecretFile != "" ||
		a.ClientCertificate != "" || a.KeytabFile != "" || a.CacheFile != ""
}

// ClientSecretNow is the secret for the token endpoint: from its file, read now,
// or from the configuration.
func (a SendAuth) ClientSecretNow() (auth.Secret, error) {
	if a.ClientSecretFile == "" {
		return a.ClientSecret, nil
	}
	return readSecret(a.ClientSecretFile)
}

// given are the keys that are there of each kind of credential.
func (a *SendAuth) given() map[string][]string {
	list := func(keys map[string]bool) (names []string) {
		for key, there := range keys {
			if there {
				names = append(names, key)
			}
		}
		slices.Sort(names)
		return names
	}
	return map[string][]string{
		"password": list(map[string]bool{"password": !a.Password.IsZero(), "password_file": a.PasswordFile != ""}),
		"token": list(map[string]bool{
			"tenant": a.Tenant != "", "token_url": a.TokenURL != "" && a.Tenant == "", "token_ca_file": a.TokenCAFile != "", "client_id": a.ClientID != "",
			"client_secret": !a.ClientSecret.IsZero(), "client_secret_file": a.ClientSecretFile != "", "client_certificate": a.ClientCertificate != "",
		}),
		"ticket": list(map[string]bool{"keytab_file": a.KeytabFile != "", "ccache_file": a.CacheFile != "", "krb5_file": a.KrbFile != "", "service": a.Service != ""}),
	}
}

// checkCredentials checks that a mechanism has what it needs, and nothing that it
// does not use.
func checkCredentials(c *Config, a *SendAuth, p *collector, path string) {
	kind := map[string]string{"XOAUTH2": "token", "GSSAPI": "ticket"}[a.Mechanism]
	if kind == "" {
		kind = "password"
	}
	for other, keys := range a.given() {
		for _, key := range keys {
			if other != kind {
				p.errorf(path+"."+key, "remove the key", "%s does not use it", a.Mechanism)
			}
		}
	}
	if a.Username == "" && (kind != "ticket" || a.CacheFile == "") {
		hint := ""
		switch kind {
		case "token":
			hint = "the mailbox that the token may send as"
		case "ticket":
			hint = "our principal, such as relay@EXAMPLE.COM"
		}
		p.errorf(path+".username", hint, "a login needs a user name")
	}
	switch kind {
	case "token":
		checkToken(c, a, p, path)
	case "ticket":
		if (a.KeytabFile == "") == (a.CacheFile == "") {
			p.errorf(path+".keytab_file", "", "want one of keytab_file and ccache_file")
		}
		if a.KeytabFile != "" && a.Username != "" && !strings.Contains(a.Username, "@") {
			p.errorf(path+".username", "such as relay@EXAMPLE.COM", "%q is a principal without a realm", clip(a.Username))
		}
	default:
		if a.Password.IsZero() == (a.PasswordFile == "") {
			p.errorf(path+".password_file", "", "want one of password and password_file")
		}
	}
}

func checkToken(c *Config, a *SendAuth, p *collector, path string) {
	switch u, err := url.Parse(a.TokenURL); {
	case a.TokenURL == "":
		p.errorf(path+".token_url", "or set tenant, with Microsoft", "tokens need an endpoint")
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		p.errorf(path+".token_url", "", "%q is not a URL", clip(a.TokenURL))
	case u.Scheme != "https":
		p.errorf(path+".token_url", "use https", "the secret would cross the network in clear")
	case u.User != nil:
		p.errorf(path+".token_url", "use client_id and client_secret_file", "no credentials in the URL, please: it is shown")
	}
	if a.ClientID == "" {
		p.errorf(path+".client_id", "", "tokens need a client id")
	}
	n := 0
	for _, there := range []bool{!a.ClientSecret.IsZero(), a.ClientSecretFile != "", a.ClientCertificate != ""} {
		if there {
			n++
		}
	}
	if n != 1 {
		p.errorf(path+".client_secret_file", "", "want one of client_secret, client_secret_file and client_certificate")
	}
	if name := a.ClientCertificate; name != "" {
		if _, ok := c.Certificates[name]; !ok {
			p.errorf(path+".client_certificate", "name it under certificates", "there is no certificate %q", clip(name))
		}
	}
}

// checkSendAuthFiles looks at the files of a login.
func checkSendAuthFiles(a SendAuth, p *collector, path string) {
	secret := func(key, name string, read func() (auth.Secret, error)) {
		if name == "" {
			return
		}
		if _, err := read(); err != nil {
			what, hint := readable(name)
			if what == "" {
				what = plain(err)
			}
			p.errorf(path+"."+key, hint, "%s", what)
		}
		checkPrivate(name, p, path+"."+key)
	}
	secret("password_file", a.PasswordFile, a.Secret)
	secret("client_secret_file", a.ClientSecretFile, a.ClientSecretNow)
	checkAuthorities(a.TokenCAFile, p, path+".token_ca_file")
	for key, name := range map[string]string{"keytab_file": a.KeytabFile, "ccache_file": a.CacheFile, "krb5_file": a.KrbFile} {
		if name == "" {
			continue
		}
		if what, hint := readable(name); what != "" {
			p.errorf(path+"."+key, hint, "%s", what)
		} else if key != "krb5_file" {
			checkPrivate(name, p, path+"."+key)
		}
	}
}
