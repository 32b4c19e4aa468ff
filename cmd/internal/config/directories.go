package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"waybill/relay/auth"
	"waybill/relay/directory"
)

// Directory is where an LDAP directory is, and whom it is asked as.
type Directory struct {
	Servers          []string    `yaml:"servers" required:"true" doc:"URLs such as \"ldaps://dc1.example.com\" or \"ldap://dc1.example.com:389\"; the next one is asked when one does not answer"`
	Schema           string      `yaml:"schema" enum:"generic,active_directory" doc:"what the directory calls things: the defaults of filters and attributes"`
	StartTLS         bool        `yaml:"starttls" doc:"upgrades ldap:// connections to TLS; without it passwords cross the network in clear"`
	CAFile           string      `yaml:"ca_file" file:"true" doc:"PEM file of the authorities to trust instead of the system's"`
	BindDN           string      `yaml:"bind_dn" doc:"the account that is searched with; empty is nobody" default:"anonymous"`
	BindPassword     auth.Secret `yaml:"bind_password" doc:"its password; better in bind_password_file or ${VARIABLE}"`
	BindPasswordFile string      `yaml:"bind_password_file" file:"true" doc:"file that holds its password; it is read at each bind"`
	BaseDN           string      `yaml:"base_dn" doc:"what is searched, such as dc=example,dc=com"`
	Timeout          Duration    `yaml:"timeout" doc:"wait for one server"`
	Connections      int         `yaml:"connections" min:"1" max:"1000" doc:"connections at once, to all servers together"`
}

func (d *Directory) preset(string) {
	*d = Directory{Schema: "generic", StartTLS: true, Timeout: 5 * second, Connections: 8}
}

// Secret is the password of the account that is searched with: from its file,
// read now, or from the configuration.
func (d Directory) Secret() (auth.Secret, error) {
	if d.BindPasswordFile == "" {
		return d.BindPassword, nil
	}
	return readSecret(d.BindPasswordFile)
}

// UsersLDAP says which users of a directory may log in.
type UsersLDAP struct {
	Directory        string   `yaml:"directory" doc:"name of a directory; empty is none" default:"\"default\", or the only one, when the ldap key is there"`
	BaseDN           string   `yaml:"base_dn" doc:"below it are the users" default:"the directory's"`
	Filter           string   `yaml:"filter" doc:"finds {user}, the name that was given (RFC 4515)" default:"the schema's"`
	BindName         string   `yaml:"bind_name" doc:"what {user} is bound as without a search before, such as \"uid={user},ou=people,dc=example,dc=com\" or \"{user}@corp.example.com\"" default:"what the filter finds"`
	UserAttribute    string   `yaml:"user_attribute" doc:"attribute with the user's name" default:"uid, or sAMAccountName"`
	SenderAttributes []string `yaml:"sender_attributes" doc:"attributes with the addresses that the user may send as" default:"mail, and mailAlternateAddress or proxyAddresses"`
	AnySender        bool     `yaml:"any_sender" doc:"all of them may send as anybody"`
	RequiredGroup    string   `yaml:"required_group" doc:"distinguished name of the group whose members may log in" default:"everybody"`
	Cache            Duration `yaml:"cache" doc:"how long a right password is remembered, also after it was changed; 0s is not at all"`
}

// setScalar reads the short form, a name.
func (u *UsersLDAP) setScalar(word string) { u.Directory = word }

// RecipientsLDAP says which addresses a directory has.
type RecipientsLDAP struct {
	Directory string `yaml:"directory" doc:"name of a directory to ask; empty is none" default:"\"default\", or the only one, when the ldap key is there"`
	BaseDN    string `yaml:"base_dn" doc:"below it are the recipients" default:"the directory's"`
	Filter    string `yaml:"filter" doc:"finds {address}, or {local} and {domain} (RFC 4515)" default:"the schema's"`
}

// setScalar reads the short form, a name.
func (r *RecipientsLDAP) setScalar(word string) { r.Directory = word }

// completeDirectories names the directory where only the key ldap was said.
func (c *Config) completeDirectories() {
	only := "default"
	if _, ok := c.Directories[only]; !ok && len(c.Directories) == 1 {
		for name := range c.Directories {
			only = name
		}
	}
	said := func(path string) bool {
		_, ok := c.positions[path]
		return ok
	}
	name := func(path string, which, base *string) {
		if said(path) && !said(path+".directory") && *which == "" {
			*which = only // if there is none, the check says so
		}
		if d, ok := c.Directories[*which]; ok && *base == "" {
			*base = d.BaseDN
		}
	}
	u := &c.Users.LDAP
	name("users.ldap", &u.Directory, &u.BaseDN)
	for i := range c.AcceptedDomains {
		r := &c.AcceptedDomains[i].Recipients
		name(fmt.Sprintf("accepted_domains[%d].recipients.ldap", i), &r.LDAP.Directory, &r.LDAP.BaseDN)
		if r.Unavailable == "" && r.Probe {
			r.Unavailable = "accept"
		}
		if r.Unavailable == "" {
			r.Unavailable = "defer"
		}
	}
}

func checkDirectories(c *Config, p *collector) {
	for name, d := range c.Directories {
		path := join("directories", name)
		if !nameForm.MatchString(name) {
			p.errorf(path, "use letters, digits, and . _ -", "not a name")
		}
		if len(d.Servers) == 0 {
			p.errorf(path+".servers", "such as [\"ldaps://dc1.example.com\"]", "there is none")
		}
		for i, s := range d.Servers {
			checkServer(s, d, p, fmt.Sprintf("%s.servers[%d]", path, i))
		}
		password := !d.BindPassword.IsZero() || d.BindPasswordFile != ""
		switch {
		case d.BindDN != "" && !password:
			p.errorf(path+".bind_password_file", "", "bind_dn has no password: the server would take it for nobody")
		case d.BindDN == "" && password:
			p.errorf(path+".bind_dn", "", "there is a password, and nobody whose it is")
		case !d.BindPassword.IsZero() && d.BindPasswordFile != "":
			p.errorf(path+".bind_password_file", "", "want one of bind_password and bind_password_file")
		}
		if d.BaseDN != "" {
			checkDN(d.BaseDN, p, path+".base_dn")
		}
		if d.Timeout < second/10 || d.Timeout > 15*second {
			p.errorf(path+".timeout", "", "%v is not between 100ms and 15s", d.Timeout)
		}
	}
	checkUsersLDAP(c, p)
	for i := range c.AcceptedDomains {
		checkRecipients(c, &c.AcceptedDomains[i], p, fmt.Sprintf("accepted_domains[%d].recipients", i))
	}
}

func checkServer(s string, d Directory, p *collector, path string) {
	err := directory.CheckServer(s)
	switch {
	case err != nil:
		p.errorf(path, "", "%v", err)
	case !directory.Encrypted(s) && !d.StartTLS && !loopbackURL(s):
		p.warnf(path, "write ldaps://, or set starttls", "passwords cross the network in clear")
	}
}

func loopbackURL(s string) bool {
	u, err := url.Parse(s)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
}

func checkDN(dn string, p *collector, path string) {
	if err := directory.CheckDN(dn); err != nil {
		p.errorf(path, "", "%v", err)
	}
}

func checkUsersLDAP(c *Config, p *collector) {
	u := c.Users.LDAP
	if u.Directory == "" {
		if u.Filter+u.BindName+u.RequiredGroup+u.UserAttribute != "" || u.AnySender {
			p.errorf("users.ldap.directory", "name it under directories", "there are keys for the users of a directory, and no directory")
		}
		return
	}
	d, ok := c.Directories[u.Directory]
	if !ok {
		p.errorf("users.ldap.directory", "name it under directories", "there is no directory %q", clip(u.Directory))
		return
	}
	switch {
	case u.BaseDN == "" && u.BindName == "":
		p.errorf("users.ldap.base_dn", "such as ou=people,dc=example,dc=com, here or in the directory", "there is nothing to search users below")
	case u.BaseDN == "" && (u.RequiredGroup != "" || u.Filter != ""):
		p.errorf("users.ldap.base_dn", "such as ou=people,dc=example,dc=com, here or in the directory", "filter and required_group need something to search below")
	case u.BaseDN != "":
		checkDN(u.BaseDN, p, "users.ldap.base_dn")
	}
	if u.Filter != "" {
		if err := directory.CheckUserFilter(u.Filter); err != nil {
			p.errorf("users.ldap.filter", "such as (uid={user})", "%v", err)
		}
	}
	if u.BindName != "" {
		if err := directory.CheckUserName(u.BindName); err != nil {
			p.errorf("users.ldap.bind_name", "such as uid={user},ou=people,dc=example,dc=com", "%v", err)
		}
	}
	if u.RequiredGroup != "" {
		checkDN(u.RequiredGroup, p, "users.ldap.required_group")
	}
	if u.Cache > Day {
		p.errorf("users.ldap.cache", "", "%v is more than 1d: so long somebody who has left could log in", u.Cache)
	}
	if d.BindDN == "" && u.BindName == "" {
		p.warnf("users.ldap", "set bind_dn in the directory", "users are searched anonymously, which most directories do not allow")
	}
	for i, r := range c.Receive {
		for j, m := range r.Auth.Mechanisms {
			if strings.HasPrefix(m, "SCRAM-") && c.Users.File != "" {
				p.warnf(fmt.Sprintf("receive_connectors[%d].auth.mechanisms[%d]", i, j), "take it out where users of the directory log in",
					"clients prefer %s, and users of a directory can log in with PLAIN and LOGIN only", m)
				break
			}
		}
	}
}

func checkRecipients(c *Config, d *AcceptedDomain, p *collector, path string) {
	r := d.Recipients
	var ways []string
	if r.File != "" {
		ways = append(ways, "file")
	}
	if r.LDAP.Directory != "" {
		ways = append(ways, "ldap")
	}
	if r.Probe {
		ways = append(ways, "probe")
	}
	if len(ways) > 1 {
		p.errorf(path, "", "want one of %s", strings.Join(ways, ", "))
	}
	for _, b := range []struct {
		key       string
		d         Duration
		low, high Duration
	}{{"timeout", r.Timeout, second / 10, minute}, {"cache", r.Cache, 0, Week}, {"cache_unknown", r.CacheUnknown, 0, Day}} {
		if b.d < b.low || b.d > b.high {
			p.errorf(path+"."+b.key, "", "%v is not between %v and %v", b.d, b.low, b.high)
		}
	}
	if r.LDAP.Directory == "" {
		if r.LDAP.Filter != "" {
			p.errorf(path+".ldap.directory", "name it under directories", "there is a filter, and no directory")
		}
		return
	}
	if _, ok := c.Directories[r.LDAP.Directory]; !ok {
		p.errorf(path+".ldap.directory", "name it under directories", "there is no directory %q", clip(r.LDAP.Directory))
		return
	}
	if r.LDAP.BaseDN == "" {
		p.errorf(path+".ldap.base_dn", "such as dc=example,dc=com, here or in the directory", "there is nothing to search recipients below")
	} else {
		checkDN(r.LDAP.BaseDN, p, path+".ldap.base_dn")
	}
	if r.LDAP.Filter != "" {
		if err := directory.CheckRecipientFilter(r.LDAP.Filter); err != nil {
			p.errorf(path+".ldap.filter", "such as (mail={address})", "%v", err)
		}
	}
}

// checkDirectoryFiles looks at the files that directories name.
func checkDirectoryFiles(c *Config, p *collector) {
	for name, d := range c.Directories {
		path := join("directories", name)
		checkAuthorities(d.CAFile, p, path+".ca_file")
		if d.BindPasswordFile == "" {
			continue
		}
		if _, err := d.Secret(); err != nil {
			what, hint := readable(d.BindPasswordFile)
			if what == "" {
				what = plain(err)
			}
			p.errorf(path+".bind_password_file", hint, "%s", what)
		}
		checkPrivate(d.BindPasswordFile, p, path+".bind_password_file")
	}
}

// crowds are domains with which everybody has a mailbox. To accept mail for one
// of them is to relay to everybody there.
var crowds = []string{
	"gmail.com", "googlemail.com", "outlook.com", "hotmail.com", "live.com", "msn.com", "yahoo.com", "ymail.com", "icloud.com", "me.com", "aol.com",
	"gmx.com", "gmx.de", "gmx.net", "web.de", "proton.me", "protonmail.com", "mail.ru", "yandex.ru", "qq.com", "163.com",
}

// translated are networks of IPv6 that stand for all of IPv4: NAT64 (RFC 6052),
// its local form (RFC 8215), Teredo (RFC 4380) and 6to4 (RFC 3056).
var translated = []netip.Prefix{
	netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("2001::/32"), netip.MustParsePrefix("2002::/16"),
}

// checkSum refuses many networks that are together what none may be alone.
func checkSum(r *ReceiveConnector, networks []netip.Prefix, p *collector, path string) {
	const most = 16 // times the widest
	var v4, v6 float64
	for _, n := range networks {
		if n.Addr().Is4() {
			v4 += 1 / float64(uint64(1)<<max(0, min(n.Bits()-widestIPv4, 62)))
		} else {
			v6 += 1 / float64(uint64(1)<<max(0, min(n.Bits()-widestIPv6, 62)))
		}
	}
	if v4 > most || v6 > most {
		p.errorf(path+".remote_ranges", "set auth.required, or take relay out of permissions, or name only your own networks",
			"open relay: the public networks of connector %q are too many to be one owner's", r.Name)
	}
}
