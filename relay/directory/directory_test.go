package directory

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"waybill/relay/auth"
	"waybill/relay/directory/ldaptest"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/relaytest"

	"github.com/go-ldap/ldap/v3"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	base    = "dc=example,dc=com"
	service = "cn=waybill,dc=example,dc=com"
	senders = "cn=senders,ou=groups,dc=example,dc=com"
)

// people are a small company. Everybody's password is "secret".
func people() []ldaptest.Entry {
	return []ldaptest.Entry{
		{DN: service, Password: "service"},
		{DN: "uid=ann,ou=people," + base, Password: "secret", Attributes: map[string][]string{
			"uid": {"Ann"}, "mail": {"ann@example.com"}, "mailAlternateAddress": {"a.smith@example.com", "*@example.com", "@example.com", "*"},
		}},
		{DN: "uid=bob,ou=people," + base, Password: "secret", Attributes: map[string][]string{"uid": {"bob"}, "mail": {"bob@example.com"}, "nsAccountLock": {"TRUE"}}},
		{DN: "uid=twin,ou=people," + base, Password: "secret", Attributes: map[string][]string{"uid": {"twin"}}},
		{DN: "uid=twin,ou=others," + base, Password: "secret", Attributes: map[string][]string{"uid": {"twin"}}},
		{DN: "uid=nameless,ou=people," + base, Password: "secret", Attributes: map[string][]string{"mail": {"nameless@example.com"}}},
		{DN: senders, Attributes: map[string][]string{"member": {"uid=ann,ou=people," + base}}},
		// As in Active Directory.
		{DN: "CN=Carl,CN=Users," + base, Password: "secret", Attributes: map[string][]string{
			"objectCategory": {"person"}, "objectClass": {"user"}, "sAMAccountName": {"carl"}, "userPrincipalName": {"carl@corp.example.com"}, "mail": {"carl@example.com"},
			"proxyAddresses": {"SMTP:carl@example.com", "smtp:C.Jones@Example.com", "sip:carl@example.com", "X500:/o=Example"}, "userAccountControl": {"512"}, "memberOf": {senders},
		}},
		{DN: "CN=Dora,CN=Users," + base, Password: "secret", Attributes: map[string][]string{
			"objectCategory": {"person"}, "objectClass": {"user"}, "sAMAccountName": {"dora"}, "userAccountControl": {"514"}, "proxyAddresses": {"smtp:shared@example.com"}, "memberOf": {senders},
		}},
		{DN: "carl@corp.example.com", Password: "secret"}, // Active Directory binds by this name too
	}
}

func schema(t testing.TB, name string) Schema {
	t.Helper()
	s, ok := FindSchema(name)
	if !ok {
		t.Fatalf("no schema %s", name)
	}
	return s
}

func newClient(t testing.TB, opts Options) *Client {
	t.Helper()
	if opts.BindDN == "" {
		opts.BindDN, opts.Password = service, func() (string, error) { return "service", nil }
	}
	c, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func newUsers(t testing.TB, c *Client, opts UserOptions) *Users {
	t.Helper()
	if opts.BaseDN == "" && opts.Name == "" {
		opts.BaseDN = base
	}
	if opts.FailureTime == 0 {
		opts.FailureTime = time.Millisecond
	}
	u, err := NewUsers(c, opts)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestVerify(t *testing.T) {
	srv := ldaptest.New(t, ldaptest.Options{Entries: people()})
	c := newClient(t, Options{Name: "test", Servers: []string{srv.URL()}})
	generic, ad := UserOptions{Schema: schema(t, "generic")}, UserOptions{Schema: schema(t, "active_directory")}
	with := func(o UserOptions, f func(*UserOptions)) UserOptions { f(&o); return o }
	group := func(o *UserOptions) { o.RequiredGroup = senders }
	for _, test := range []struct {
		name           string
		opts           UserOptions
		user, password string
		want           auth.Identity
		err            error
	}{
		{"by name", generic, "ann", "secret", auth.Identity{User: "Ann", Senders: []string{"ann@example.com", "a.smith@example.com"}}, nil},
		{"by address", generic, "ann@example.com", "secret", auth.Identity{User: "Ann", Senders: []string{"ann@example.com", "a.smith@example.com"}}, nil},
		{"wrong password", generic, "ann", "wrong", auth.Identity{}, auth.ErrCredentials},
		{"empty password", generic, "ann", "", auth.Identity{}, auth.ErrMalformed},
		{"empty name", generic, "", "secret", auth.Identity{}, auth.ErrMalformed},
		{"unknown", generic, "nobody", "secret", auth.Identity{}, auth.ErrUnknownUser},
		{"anybody by a wildcard", generic, "*", "secret", auth.Identity{}, auth.ErrUnknownUser},
		{"filter injection", generic, "x)(|(uid=ann", "secret", auth.Identity{}, auth.ErrUnknownUser},
		{"filter injection with NUL", generic, "ann\x00", "secret", auth.Identity{}, auth.ErrUnknownUser},
		{"disabled", generic, "bob", "secret", auth.Identity{}, auth.ErrCredentials},
		{"two of that name", generic, "twin", "secret", auth.Identity{}, auth.ErrUnknownUser},
		{"entry without a name", generic, "nameless@example.com", "secret", auth.Identity{}, auth.ErrCredentials},
		{"in the group", with(generic, group), "ann", "secret", auth.Identity{User: "Ann", Senders: []string{"ann@example.com", "a.smith@example.com"}}, nil},
		{"not in the group", with(generic, func(o *UserOptions) { o.RequiredGroup = "cn=admins," + base }), "ann", "secret", auth.Identity{}, auth.ErrCredentials},
		{
			"any sender, other attributes", with(generic, func(o *UserOptions) { o.AnySender, o.SenderAttributes, o.UserAttribute = true, []string{}, "mail" }), "ann", "secret",
			auth.Identity{User: "ann@example.com", AnySender: true},
			nil,
		},
		{"active directory", ad, "carl", "secret", auth.Identity{User: "carl", Senders: []string{"carl@example.com", "C.Jones@example.com"}}, nil},
		{"active directory, principal name", ad, "carl@corp.example.com", "secret", auth.Identity{User: "carl", Senders: []string{"carl@example.com", "C.Jones@example.com"}}, nil},
		{"active directory, nested group", with(ad, group), "carl", "secret", auth.Identity{User: "carl", Senders: []string{"carl@example.com", "C.Jones@example.com"}}, nil},
		{"active directory, other group", with(ad, func(o *UserOptions) { o.RequiredGroup = "cn=admins," + base }), "carl", "secret", auth.Identity{}, auth.ErrCredentials},
		{"active directory, disabled", ad, "dora", "secret", auth.Identity{}, auth.ErrCredentials},
		{"bound by name", with(generic, func(o *UserOptions) { o.Name = "uid={user},ou=people," + base }), "ann", "secret", auth.Identity{User: "ann"}, nil},
		{"bound by name, wrong password", with(generic, func(o *UserOptions) { o.Name = "uid={user},ou=people," + base }), "ann", "wrong", auth.Identity{}, auth.ErrCredentials},
		{"bound by name, injection", with(generic, func(o *UserOptions) { o.Name = "uid={user},ou=people," + base }), "ann,ou=people," + base + ",dc=x", "secret", auth.Identity{}, auth.ErrCredentials},
		{
			"bound by name, then searched", with(generic, func(o *UserOptions) { o.Name, o.BaseDN = "uid={user},ou=people,"+base, base }), "ann", "secret",
			auth.Identity{User: "Ann", Senders: []string{"ann@example.com", "a.smith@example.com"}},
			nil,
		},
		{
			"bound by principal name", with(ad, func(o *UserOptions) { o.Name, o.BaseDN = "{user}@corp.example.com", base }), "carl", "secret",
			auth.Identity{User: "carl", Senders: []string{"carl@example.com", "C.Jones@example.com"}},
			nil,
		},
		{
			"bound by principal name of another domain", with(ad, func(o *UserOptions) { o.Name, o.BaseDN = "{user}@corp.example.com", base }), "carl@evil.example", "secret",
			auth.Identity{},
			auth.ErrUnknownUser,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			rec := &relaytest.Recorder{}
			test.opts.Emitter = rec.Emitter()
			got, err := newUsers(t, c, test.opts).Verify(t.Context(), test.user, test.password)
			if !errors.Is(err, test.err) {
				t.Fatalf("Verify(%q) = %v, want %v", test.user, err, test.err)
			}
			if got.User != test.want.User || got.AnySender != test.want.AnySender || !slices.Equal(got.Senders, test.want.Senders) {
				t.Errorf("Verify(%q) = %+v, want %+v", test.user, got, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error holds the password: %v", err)
			}
			if want := test.user != "" && test.password != ""; len(rec.Named("lookup_answered")) == 0 == want {
				t.Errorf("facts = %v", rec.Names())
			}
		})
	}
	for _, dn := range srv.Binds() {
		if dn == "" {
			t.Error("an anonymous bind was made")
		}
	}
}

// TestOwnRights holds that without a service account users are read by their own
// rights, each on a connection that is theirs at that moment.
func TestOwnRights(t *testing.T) {
	srv := ldaptest.New(t, ldaptest.Options{Entries: people()})
	c, err := New(Options{Servers: []string{srv.URL()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	u := newUsers(t, c, UserOptions{Schema: schema(t, "generic"), Name: "uid={user},ou=people," + base, BaseDN: base})
	for range 2 {
		if id, err := u.Verify(t.Context(), "ann", "secret"); err != nil || id.User != "Ann" {
			t.Errorf("Verify = %+v, %v", id, err)
		}
		if _, err := u.Verify(t.Context(), "ann", "wrong"); !errors.Is(err, auth.ErrCredentials) {
			t.Errorf("Verify = %v, want %v", err, auth.ErrCredentials)
		}
	}
}

// TestUnknownCosts holds that for an unknown user as many questions are asked as
// for a wrong password, and that both take their time.
func TestUnknownCosts(t *testing.T) {
	srv := ldaptest.New(t, ldaptest.Options{Entries: people()})
	c := newClient(t, Options{Servers: []string{srv.URL()}})
	const least = 80 * time.Millisecond
	u := newUsers(t, c, UserOptions{Schema: schema(t, "generic"), FailureTime: least})
	if _, err := u.Verify(t.Context(), "ann", "secret"); err != nil {
		t.Fatal(err)
	}
	cost := func(user string) (binds, searches int) {
		b, f := len(srv.Binds()), len(srv.Filters())
		start := time.Now()
		if _, err := u.Verify(t.Context(), user, "wrong"); err == nil {
			t.Errorf("%s could log in", user)
		}
		if took := time.Since(start); took < least {
			t.Errorf("%s: refused after %v, want %v at least", user, took, least)
		}
		return len(srv.Binds()) - b, len(srv.Filters()) - f
	}
	wrongBinds, wrongSearches := cost("ann")
	if b, f := cost("nobody"); b != wrongBinds || f != wrongSearches {
		t.Errorf("unknown user: %d binds and %d searches, wrong password: %d and %d", b, f, wrongBinds, wrongSearches)
	}
}

func TestTransport(t *testing.T) {
	cert, pool := relaytest.Certificate(t, "127.0.0.1")
	_, other := relaytest.Certificate(t, "127.0.0.1")
	server := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	trust := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	for _, test := range []struct {
		name   string
		server ldaptest.Options
		client Options
		want   error
	}{
		{"ldaps", ldaptest.Options{TLS: server, Implicit: true}, Options{TLS: trust}, nil},
		{"STARTTLS", ldaptest.Options{TLS: server}, Options{StartTLS: true, TLS: trust}, nil},
		{"clear", ldaptest.Options{}, Options{}, nil},
		{"ldaps, unknown authority", ldaptest.Options{TLS: server, Implicit: true}, Options{TLS: &tls.Config{RootCAs: other, MinVersion: tls.VersionTLS12}}, auth.ErrUnavailable},
		{"STARTTLS, unknown authority", ldaptest.Options{TLS: server}, Options{StartTLS: true, TLS: &tls.Config{RootCAs: other, MinVersion: tls.VersionTLS12}}, auth.ErrUnavailable},
		{"STARTTLS is not offered", ldaptest.Options{}, Options{StartTLS: true, TLS: trust}, auth.ErrUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.server.Entries = people()
			srv := ldaptest.New(t, test.server)
			test.client.Servers = []string{srv.URL()}
			u := newUsers(t, newClient(t, test.client), UserOptions{Schema: schema(t, "generic")})
			for range 3 {
				if _, err := u.Verify(t.Context(), "ann", "secret"); !errors.Is(err, test.want) {
					t.Fatalf("Verify = %v, want %v", err, test.want)
				}
			}
			if test.want != nil && len(srv.Binds()) > 0 {
				t.Errorf("binds %v were made over a connection that could not be trusted", srv.Binds())
			}
		})
	}
}

// silent listens, accepts, and says nothing.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return "ldap://" + l.Addr().String()
}

// closed is where nobody listens.
func closed(t *testing.T) string {
	t.Helper()
	return "ldap://127.0.0.1:" + relaytest.Port(t)
}

func TestFailover(t *testing.T) {
	refuse := func(code int, text string) func(string, string) (int, string) {
		return func(string, string) (int, string) { return code, text }
	}
	for _, test := range []struct {
		name  string
		first func(t *testing.T) string
	}{
		{"nobody listens", closed},
		{"nobody answers", silent},
		{"busy", func(t *testing.T) string {
			return ldaptest.New(t, ldaptest.Options{Entries: people(), Bind: refuse(ldap.LDAPResultBusy, "later")}).URL()
		}},
		{"cannot search", func(t *testing.T) string {
			return ldaptest.New(t, ldaptest.Options{Entries: people(), Search: refuse(ldap.LDAPResultUnavailable, "")}).URL()
		}},
		{"knows nothing of the base", func(t *testing.T) string {
			return ldaptest.New(t, ldaptest.Options{Entries: people(), Search: refuse(ldap.LDAPResultNoSuchObject, "")}).URL()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			good := ldaptest.New(t, ldaptest.Options{Entries: people()})
			c := newClient(t, Options{Servers: []string{test.first(t), good.URL()}, Timeout: 5 * time.Second}) // the second has it, too
			u := newUsers(t, c, UserOptions{Schema: schema(t, "generic")})
			if _, err := u.Verify(t.Context(), "ann", "secret"); err != nil {
				t.Fatalf("Verify = %v, want the second server's yes", err)
			}
			if _, err := u.Verify(t.Context(), "ann", "wrong"); !errors.Is(err, auth.ErrCredentials) {
				t.Errorf("Verify = %v, want the second server's no", err)
			}
			if got := c.order(); got[0] != 1 {
				t.Errorf("order = %v: the server that did not answer is still first", got)
			}
		})
	}
	t.Run("all are down", func(t *testing.T) {
		rec := &relaytest.Recorder{}
		c := newClient(t, Options{Servers: []string{closed(t), silent(t)}, Timeout: 100 * time.Millisecond})
		u := newUsers(t, c, UserOptions{Schema: schema(t, "generic"), Emitter: rec.Emitter()})
		if _, err := u.Verify(t.Context(), "ann", "secret"); !errors.Is(err, auth.ErrUnavailable) || errors.Is(err, auth.ErrUnknownUser) {
			t.Errorf("Verify = %v, want unavailable", err)
		}
		facts := rec.Named("lookup_answered")
		if ev, _ := facts[0].Event.(event.LookupAnswered); len(facts) != 1 || ev.Result != event.LookupUnavailable || ev.Error == "" {
			t.Errorf("facts = %+v", facts)
		}
	})
	t.Run("the caller gives up", func(t *testing.T) {
		u := newUsers(t, newClient(t, Options{Servers: []string{silent(t)}, Timeout: 300 * time.Millisecond}), UserOptions{Schema: schema(t, "generic")})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := u.Verify(ctx, "ann", "secret"); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("Verify = %v, want unavailable", err)
		}
		_, _ = u.Verify(t.Context(), "ann", "secret") // waits for what goes on behind
	})
}

// TestStaleConnections holds that connections which a server closed while they
// were idle cost nobody a login.
func TestStaleConnections(t *testing.T) {
	first := ldaptest.New(t, ldaptest.Options{Entries: people()})
	p := newProxy(t, first.Addr())
	c := newClient(t, Options{Servers: []string{"ldap://" + p.addr()}, Timeout: time.Minute})
	u := newUsers(t, c, UserOptions{Schema: schema(t, "generic")})
	for range 3 {
		if _, err := u.Verify(t.Context(), "ann", "secret"); err != nil {
			t.Fatal(err)
		}
		p.drop()
	}
}

func TestServiceAccount(t *testing.T) {
	for _, test := range []struct {
		name     string
		password func() (string, error)
	}{
		{"wrong", func() (string, error) { return "wrong", nil }},
		{"empty", func() (string, error) { return "", nil }},
		{"unreadable", func() (string, error) { return "", errors.New("permission denied") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			srv := ldaptest.New(t, ldaptest.Options{Entries: people(), Anonymous: true})
			c := newClient(t, Options{Servers: []string{srv.URL(), srv.URL()}, BindDN: service, Password: test.password})
			u := newUsers(t, c, UserOptions{Schema: schema(t, "generic")})
			for range 3 {
				if _, err := u.Verify(t.Context(), "ann", "secret"); !errors.Is(err, auth.ErrUnavailable) || !errors.Is(err, errService) {
					t.Errorf("Verify = %v, want a word about the service account", err)
				}
			}
			if n := len(srv.Binds()); n > 1 {
				t.Errorf("%d binds: the account may be locked by now", n)
			}
		})
	}
	t.Run("mended", func(t *testing.T) {
		srv := ldaptest.New(t, ldaptest.Options{Entries: people()})
		password := "wrong"
		c := newClient(t, Options{Servers: []string{srv.URL()}, BindDN: service, Password: func() (string, error) { return password, nil }})
		u := newUsers(t, c, UserOptions{Schema: schema(t, "generic")})
		if _, err := u.Verify(t.Context(), "ann", "secret"); !errors.Is(err, errService) {
			t.Fatalf("Verify = %v", err)
		}
		password = "service"
		if _, err := u.Verify(t.Context(), "ann", "secret"); err != nil {
			t.Errorf("Verify = %v once the password is right", err)
		}
	})
}

func TestActiveDirectoryReasons(t *testing.T) {
	for _, test := range []struct {
		name, code, says string
		want             error
	}{
		{"no user", "525", "no such user", auth.ErrUnknownUser},
		{"wrong password", "52e", "wrong password", auth.ErrCredentials},
		{"disabled", "533", "the account is disabled", auth.ErrCredentials},
		{"locked", "775", "the account is locked", auth.ErrCredentials},
		{"unknown code", "999", "AcceptSecurityContext", auth.ErrCredentials},
	} {
		t.Run(test.name, func(t *testing.T) {
			srv := ldaptest.New(t, ldaptest.Options{Entries: people(), Bind: func(dn, _ string) (int, string) {
				if dn == service {
					return 0, ""
				}
				return ldap.LDAPResultInvalidCredentials, "80090308: LdapErr: DSID-0C09042A, comment: AcceptSecurityContext error, data " + test.code + ", v3839"
			}})
			u := newUsers(t, newClient(t, Options{Servers: []string{srv.URL()}}), UserOptions{Schema: schema(t, "active_directory")})
			_, err := u.Verify(t.Context(), "carl", "secret")
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Verify = %v, want %v with %q", err, test.want, test.says)
			}
		})
	}
}

func TestCache(t *testing.T) {
	srv := ldaptest.New(t, ldaptest.Options{Entries: people()})
	c := newClient(t, Options{Servers: []string{srv.URL()}})
	u := newUsers(t, c, UserOptions{Schema: schema(t, "generic"), Cache: time.Minute})
	first, err := u.Verify(t.Context(), "ann", "secret")
	if err != nil {
		t.Fatal(err)
	}
	first.Senders[0] = "changed"
	n := len(srv.Binds())
	again, err := u.Verify(t.Context(), "ann", "secret")
	if err != nil || again.Senders[0] != "ann@example.com" {
		t.Errorf("Verify = %+v, %v", again, err)
	}
	if got := len(srv.Binds()); got != n {
		t.Errorf("%d binds, want none: the answer was there", got-n)
	}
	for range 2 {
		if _, err := u.Verify(t.Context(), "ann", "wrong"); !errors.Is(err, auth.ErrCredentials) {
			t.Errorf("Verify with a wrong password = %v", err)
		}
	}
	if got := len(srv.Binds()); got != n+2 {
		t.Errorf("%d binds for two wrong passwords, want 2: nothing wrong is remembered", got-n)
	}
}

func TestRecipients(t *testing.T) {
	srv := ldaptest.New(t, ldaptest.Options{Entries: people()})
	c := newClient(t, Options{Servers: []string{srv.URL()}})
	for _, test := range []struct {
		name, schema, address string
		want                  bool
	}{
		{"mail", "generic", "ann@example.com", true},
		{"another attribute, another case", "generic", "A.Smith@EXAMPLE.com", true},
		{"nobody", "generic", "nobody@example.com", false},
		{"a pattern", "generic", `a*@example.com`, false},
		{"all addresses", "generic", "a*", false},
		{"injection", "generic", `"x)(mail=*"@example.com`, false},
		{"proxy address", "active_directory", "c.jones@example.com", true},
		{"shared mailbox, which is disabled", "active_directory", "shared@example.com", true},
		{"no mail address", "active_directory", "carl@corp.example.com", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := NewRecipients(c, RecipientOptions{Schema: schema(t, test.schema), BaseDN: base})
			if err != nil {
				t.Fatal(err)
			}
			a, err := mail.ParseAddress(test.address)
			if err != nil {
				a = mail.Address{Local: test.address, Domain: "example.com"}
			}
			if got, err := r.Lookup(t.Context(), a); got != test.want || err != nil {
				t.Errorf("Lookup(%s) = %t, %v, want %t", a, got, err, test.want)
			}
		})
	}
	t.Run("down", func(t *testing.T) {
		r, err := NewRecipients(newClient(t, Options{Servers: []string{closed(t)}}), RecipientOptions{Schema: schema(t, ""), BaseDN: base})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Lookup(t.Context(), mail.Address{Local: "ann", Domain: "example.com"}); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("Lookup = %v, want unavailable", err)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	password := func() (string, error) { return "x", nil }
	for _, test := range []struct {
		name string
		opts Options
		want string
	}{
		{"no server", Options{}, "no servers"},
		{"not a URL", Options{Servers: []string{"dc1.example.com"}}, "not the URL of a server"},
		{"another protocol", Options{Servers: []string{"https://dc1.example.com"}}, "neither ldaps"},
		{"credentials in the URL", Options{Servers: []string{"ldaps://cn=x:y@dc1.example.com"}}, "not the URL of a server"},
		{"base in the URL", Options{Servers: []string{"ldaps://dc1.example.com/dc=example"}}, "not the URL of a server"},
		{"no password", Options{Servers: []string{"ldaps://dc1"}, BindDN: service}, "without a password"},
		{"good", Options{Servers: []string{"ldaps://dc1", "ldap://[::1]:3389"}, BindDN: service, Password: password}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := New(test.opts)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("New = %v, want %q", err, test.want)
			}
		})
	}
	c := newClient(t, Options{Servers: []string{"ldaps://dc1.example.com"}})
	s := schema(t, "")
	for _, test := range []struct {
		name string
		opts UserOptions
		want string
	}{
		{"nothing", UserOptions{Schema: s}, "need a base"},
		{"base", UserOptions{Schema: s, BaseDN: "example.com"}, "not a distinguished name"},
		{"everybody's filter", UserOptions{Schema: s, BaseDN: base, Filter: "(objectClass=person)"}, "the same for everybody"},
		{"broken filter", UserOptions{Schema: s, BaseDN: base, Filter: "(uid={user}"}, "not a filter"},
		{"placeholder", UserOptions{Schema: s, BaseDN: base, Filter: "(&(uid={user})(x={domain}))"}, "unknown placeholder {domain}"},
		{"everybody's name", UserOptions{Schema: s, Name: service}, "the same for everybody"},
		{"group without a base", UserOptions{Schema: s, Name: "{user}@corp", RequiredGroup: senders}, "needs a base"},
		{"group", UserOptions{Schema: s, BaseDN: base, RequiredGroup: "senders"}, "not a distinguished name"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := NewUsers(c, test.opts); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("NewUsers = %v, want %q", err, test.want)
			}
		})
	}
	if _, err := NewRecipients(c, RecipientOptions{Schema: s, BaseDN: base, Filter: "(objectClass=*)"}); err == nil {
		t.Error("NewRecipients took a filter that everybody matches")
	}
}

// FuzzFill holds that no value changes what a filter or a name asks for.
func FuzzFill(f *testing.F) {
	for _, s := range []string{"ann", "*", "a)(uid=*", "x,dc=y", "\x00", `\`, `\2a`, " a ", "#1", "é", "\xff", "{user}", "a+b=c", `"x"`} {
		f.Add(s)
	}
	for _, schema := range Schemas() {
		if err := errors.Join(CheckUserFilter(schema.UserFilter), CheckRecipientFilter(schema.RecipientFilter)); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, value string) {
		filter := template("(&(class=user)(uid={user}))").fill(ldap.EscapeFilter, map[string]string{"{user}": value})
		p, err := ldap.CompileFilter(filter)
		if err != nil {
			t.Fatalf("%q made the filter %q, which is none: %v", value, filter, err)
		}
		if len(p.Children) != 2 || p.Children[1].Tag != ldap.FilterEqualityMatch || p.Children[1].Children[1].Data.String() != value {
			t.Errorf("%q made the filter %q", value, filter)
		}
		name, err := bindName("uid={user},ou=people,dc=example", value)
		if err != nil {
			t.Fatal(err)
		}
		dn, err := ldap.ParseDN(name)
		if err != nil {
			return // no server takes it for anybody
		}
		if len(dn.RDNs) != 3 || len(dn.RDNs[0].Attributes) != 1 {
			t.Errorf("%q made the name %q", value, name)
		}
		for _, a := range addresses([]string{value, "smtp:" + value}) {
			if parsed, err := mail.ParseAddress(a); err != nil || parsed.Domain == "" || parsed.Local == "*" || auth.CheckSender(a) != nil || a[0] == '@' {
				t.Errorf("%q made the sender %q", value, a)
			}
		}
	})
}
