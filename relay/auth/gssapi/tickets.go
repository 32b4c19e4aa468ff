package gssapi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/jcmturner/gokrb5/v8/client"
	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/credentials"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// TicketOptions are what [Tickets] needs: a keytab with a principal, or a cache
// of tickets that something else, such as kinit or k5start, keeps fresh.
type TicketOptions struct {
	Principal  string // ours, such as relay@EXAMPLE.COM; not needed with CacheFile
	KeytabFile string
	CacheFile  string // credential cache of the form FILE:
	ConfigFile string // krb5.conf; empty: what KRB5_CONFIG names, or /etc/krb5.conf
}

// Tickets gets tickets for services, and keeps them while they are good. It is
// safe for use by many goroutines. The files are read again for each ticket.
type Tickets struct {
	opts TicketOptions

	mu   sync.Mutex
	have map[string]Ticket
}

// Ticket is good for logging in at one service.
type Ticket struct {
	name    types.PrincipalName // whose it is
	realm   string
	ticket  messages.Ticket
	session types.EncryptionKey
	end     time.Time
}

// Bounds of what is kept.
const (
	ticketMargin = 2 * time.Minute // before its end a ticket is no longer used: clocks differ
	maxTickets   = 100
	maxCache     = 1 << 20
)

// NewTickets checks the options. It asks nobody.
func NewTickets(opts TicketOptions) (*Tickets, error) {
	user, realm := splitPrincipal(opts.Principal)
	switch {
	case (opts.KeytabFile == "") == (opts.CacheFile == ""):
		return nil, errors.New("want either a keytab or a credential cache")
	case opts.KeytabFile != "" && (user == "" || realm == ""):
		return nil, fmt.Errorf("%q is not a principal with a realm, such as relay@EXAMPLE.COM", opts.Principal)
	}
	return &Tickets{opts: opts, have: map[string]Ticket{}}, nil
}

func splitPrincipal(name string) (user, realm string) {
	i := strings.LastIndexByte(name, '@')
	if i < 0 {
		return name, ""
	}
	return name[:i], name[i+1:]
}

// Get returns a ticket for a service, such as smtp/mx1.example.com: the one that
// there is, or a fresh one of the realm's key distribution centre.
func (t *Tickets) Get(ctx context.Context, service string) (Ticket, error) {
	t.mu.Lock() // also while asking: who comes meanwhile wants the same
	defer t.mu.Unlock()
	if have, ok := t.have[service]; ok && time.Until(have.end) > ticketMargin {
		return have, nil
	}
	if err := ctx.Err(); err != nil {
		return Ticket{}, err
	}
	got, err := t.fetch(service)
	if err != nil {
		return Ticket{}, fmt.Errorf("ticket for %s: %w", service, err)
	}
	if len(t.have) >= maxTickets {
		clear(t.have)
	}
	t.have[service] = got
	return got, nil
}

// Forget makes the next Get ask for a fresh ticket, because the service does not
// take the one that there is: its key may have changed.
func (t *Tickets) Forget(service string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.have, service)
}

// fetch asks for a ticket. The library sets deadlines for its questions.
func (t *Tickets) fetch(service string) (got Ticket, err error) {
	defer func() {
		if recover() != nil { // the library, on files and answers that are not as they should be
			err = errors.New("a file or an answer is malformed")
		}
	}()
	conf, err := t.config()
	if err != nil {
		return Ticket{}, err
	}
	var c *client.Client
	var tgt messages.Ticket
	var key types.EncryptionKey
	var realm string
	if t.opts.CacheFile != "" {
		c, tgt, key, realm, err = t.fromCache(conf)
	} else {
		c, tgt, key, realm, err = t.fromKeytab(conf)
	}
	if err != nil {
		return Ticket{}, err
	}
	defer c.Destroy() // what it keeps by itself, and a goroutine for each foreign realm
	name := types.NewPrincipalName(nametype.KRB_NT_SRV_HST, service)
	_, rep, err := c.TGSREQGenerateAndExchange(name, realm, tgt, key, false)
	if err != nil {
		return Ticket{}, plainError(err)
	}
	part := rep.DecryptedEncPart
	if !usable(part.Key) {
		return Ticket{}, fmt.Errorf("the session key is of encryption type %d, which is not taken", part.Key.KeyType)
	}
	return Ticket{name: c.Credentials.CName(), realm: c.Credentials.Domain(), ticket: rep.Ticket, session: part.Key, end: part.EndTime}, nil
}

// fromKeytab logs in at the realm with our key.
func (t *Tickets) fromKeytab(conf *config.Config) (c *client.Client, tgt messages.Ticket, key types.EncryptionKey, realm string, err error) {
	user, realm := splitPrincipal(t.opts.Principal)
	data, err := readSmall(t.opts.KeytabFile, maxKeytab)
	if err != nil {
		return nil, tgt, key, "", err
	}
	keys := keytab.New()
	if err := keys.Unmarshal(data); err != nil { // its words may quote the file
		return nil, tgt, key, "", fmt.Errorf("keytab %s cannot be read", t.opts.KeytabFile)
	}
	c = client.NewWithKeytab(user, realm, keys, conf, client.DisablePAFXFAST(true))
	req, err := messages.NewASReqForTGT(realm, conf, c.Credentials.CName())
	if err != nil {
		return nil, tgt, key, "", plainError(err)
	}
	rep, err := c.ASExchange(realm, req, 0)
	if err != nil {
		return nil, tgt, key, "", plainError(err)
	}
	return c, rep.Ticket, rep.DecryptedEncPart.Key, realm, nil
}

// fromCache takes the ticket-granting ticket that somebody else got.
func (t *Tickets) fromCache(conf *config.Config) (c *client.Client, tgt messages.Ticket, key types.EncryptionKey, realm string, err error) {
	data, err := readSmall(t.opts.CacheFile, maxCache)
	if err != nil {
		return nil, tgt, key, "", err
	}
	var cache credentials.CCache
	if err := cache.Unmarshal(data); err != nil {
		return nil, tgt, key, "", fmt.Errorf("credential cache %s cannot be read", t.opts.CacheFile)
	}
	realm = cache.GetClientRealm()
	cred, ok := cache.GetEntry(types.PrincipalName{NameType: nametype.KRB_NT_SRV_INST, NameString: []string{"krbtgt", realm}})
	switch {
	case !ok:
		return nil, tgt, key, "", fmt.Errorf("credential cache %s has no ticket-granting ticket", t.opts.CacheFile)
	case time.Now().After(cred.EndTime):
		return nil, tgt, key, "", fmt.Errorf("the ticket-granting ticket of %s ended at %v", t.opts.CacheFile, cred.EndTime.UTC())
	case t.opts.Principal != "" && !samePrincipal(t.opts.Principal, cache.GetClientPrincipalName(), realm):
		return nil, tgt, key, "", fmt.Errorf("credential cache %s is of another principal than %s", t.opts.CacheFile, t.opts.Principal)
	}
	if err := tgt.Unmarshal(cred.Ticket); err != nil {
		return nil, tgt, key, "", fmt.Errorf("credential cache %s has a malformed ticket", t.opts.CacheFile)
	}
	if c, err = client.NewFromCCache(&cache, conf, client.DisablePAFXFAST(true)); err != nil {
		return nil, tgt, key, "", fmt.Errorf("credential cache %s cannot be used", t.opts.CacheFile)
	}
	return c, tgt, cred.Key, realm, nil
}

func samePrincipal(want string, name types.PrincipalName, realm string) bool {
	user, home := splitPrincipal(want)
	return user == name.PrincipalNameString() && (home == "" || home == realm)
}

// config reads krb5.conf. Directives that the library does not know are left out.
func (t *Tickets) config() (*config.Config, error) {
	name := t.opts.ConfigFile
	if name == "" {
		name = os.Getenv("KRB5_CONFIG")
	}
	if name == "" {
		name = "/etc/krb5.conf"
	}
	data, err := readSmall(name, maxCache)
	if err != nil {
		return nil, err
	}
	conf, err := config.NewFromString(string(data))
	var unsupported config.UnsupportedDirective
	if err != nil && !errors.As(err, &unsupported) || conf == nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	// The library's own choice has RC4 and triple DES, and none of RFC 8009.
	ours := []int32{etypeID.AES256_CTS_HMAC_SHA384_192, etypeID.AES128_CTS_HMAC_SHA256_128, etypeID.AES256_CTS_HMAC_SHA1_96, etypeID.AES128_CTS_HMAC_SHA1_96}
	conf.LibDefaults.DefaultTktEnctypeIDs, conf.LibDefaults.DefaultTGSEnctypeIDs, conf.LibDefaults.PermittedEnctypeIDs = ours, ours, ours
	return conf, nil
}

func readSmall(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name) //nolint:gosec // the operator names it
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s is larger than %d octets", name, limit)
	}
	return os.ReadFile(name) //nolint:gosec // the operator names it
}

// plainError is the end of what the library says, which tells most: its errors
// hold everything from the top.
func plainError(err error) error {
	text := err.Error()
	for _, mark := range []string{" < ", "KRB Error: "} {
		if i := strings.LastIndex(text, mark); i >= 0 {
			text = text[i+len(mark):]
		}
	}
	if len(text) > 300 {
		text = text[:300]
	}
	return errors.New(strings.ToValidUTF8(strings.TrimSpace(text), "?"))
}

// Client logs in with the ticket. The authorization identity may be empty: then
// it is the ticket's own. The binding is that of [auth.GSSBinding], or zero.
func (t Ticket) Client(authz string, binding [16]byte) sasl.Client {
	return &initiator{name: t.name, realm: t.realm, ticket: t.ticket, session: t.session, authz: authz, binding: binding}
}
