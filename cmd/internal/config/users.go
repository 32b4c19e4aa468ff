package config

import "time"

// Users says where the users are.
type Users struct {
	File     string    `yaml:"file" file:"true" doc:"user file, as \"waybill user add\" makes it"`
	LDAP     UsersLDAP `yaml:"ldap" doc:"users of a directory; those of the file come first"`
	Kerberos Kerberos  `yaml:"kerberos" doc:"logins with Kerberos tickets"`
	NTLM     NTLM      `yaml:"ntlm" doc:"logins with NTLM"`
	Lockout  Lockout   `yaml:"lockout" doc:"what becomes of those who guess passwords"`
}

// any reports whether anybody can log in.
func (u Users) any() bool {
	return u.File != "" || u.LDAP.Directory != "" || u.Kerberos.KeytabFile != "" || u.NTLM.on()
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
	return Users{LDAP: UsersLDAP{Cache: minute}, Kerberos: defaultKerberos(), NTLM: defaultNTLM(), Lockout: Lockout{
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
