package directory

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"waybill/relay/auth"
	"waybill/relay/event"

	"github.com/go-ldap/ldap/v3"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
)

// UserOptions configure [Users].
type UserOptions struct {
	Schema           Schema
	BaseDN           string        // below it are the users; may be empty when Name is set
	Filter           string        // finds {user}; empty means the schema's
	Name             string        // what {user} is bound as, such as "uid={user},ou=people,dc=example,dc=com" or "{user}@corp.example.com"; empty: searched for first
	UserAttribute    string        // the name that a user has here; empty means the schema's
	SenderAttributes []string      // what a user may send as; nil means the schema's
	AnySender        bool          // users may send as anybody
	RequiredGroup    string        // distinguished name of the group whose members may log in; empty: everybody
	Cache            time.Duration // how long a right password is remembered; 0 is not at all
	FailureTime      time.Duration // how long a "no" takes at least; zero means 500ms
	Emitter          event.Emitter
}

// Users is an [auth.Store] of the users of a directory.
type Users struct {
	c      *Client
	opts   UserOptions
	flight singleflight.Group
	secret [32]byte
	cache  *lru.Cache[cacheKey, remembered]
}

type cacheKey [sha256.Size]byte

type remembered struct {
	id    auth.Identity
	until time.Time
}

const (
	cacheSize          = 4096
	defaultFailureTime = 500 * time.Millisecond
	verifyTimeout      = 15 * time.Second
)

// NewUsers makes a store of c's users.
func NewUsers(c *Client, opts UserOptions) (*Users, error) {
	s := opts.Schema
	opts.Filter = cmp.Or(opts.Filter, s.UserFilter)
	opts.UserAttribute = cmp.Or(opts.UserAttribute, s.UserAttribute)
	if opts.SenderAttributes == nil {
		opts.SenderAttributes = s.SenderAttributes
	}
	opts.FailureTime = cmp.Or(opts.FailureTime, defaultFailureTime)
	var errs []error
	switch {
	case opts.BaseDN != "":
		errs = append(errs, CheckDN(opts.BaseDN), CheckUserFilter(opts.Filter))
	case opts.Name == "":
		errs = append(errs, errors.New("users need a base to be searched below, or a name to be bound as"))
	case opts.RequiredGroup != "":
		errs = append(errs, errors.New("a required group needs a base to search below"))
	}
	if opts.Name != "" {
		errs = append(errs, CheckUserName(opts.Name))
	}
	if opts.RequiredGroup != "" {
		errs = append(errs, CheckDN(opts.RequiredGroup))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("users of directory %s: %w", c.opts.Name, err)
	}
	u := &Users{c: c, opts: opts}
	_, _ = rand.Read(u.secret[:]) // never fails (Go 1.24)
	u.cache, _ = lru.New[cacheKey, remembered](cacheSize)
	return u, nil
}

// Verify implements [auth.Store]. Unknown users, wrong passwords, disabled users
// and those outside the group cost the same time; which it was is in the error,
// for the operator.
func (u *Users) Verify(ctx context.Context, user, password string) (auth.Identity, error) {
	if user == "" || password == "" { // RFC 4513 section 5.1.2: an empty password is no proof, and servers say yes to it
		return auth.Identity{}, fmt.Errorf("%w: user name or password is empty", auth.ErrMalformed)
	}
	start := time.Now()
	key := u.key(user, password)
	if got, ok := u.cache.Get(key); ok && start.Before(got.until) {
		u.opts.Emitter.Emit(event.LookupAnswered{Lookup: event.LookupUsers, Result: event.LookupCached})
		return clone(got.id), nil
	}
	answer := u.flight.DoChan(string(key[:]), func() (any, error) {
		// The answer is shared, so that it must not end with one caller's ctx.
		shared, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyTimeout)
		defer cancel()
		id, err := u.verify(shared, user, password)
		u.state(start, err)
		if err == nil && u.opts.Cache > 0 {
			u.cache.Add(key, remembered{id, time.Now().Add(u.opts.Cache)})
		}
		return id, err
	})
	select {
	case r := <-answer:
		if r.Err != nil {
			u.slow(ctx, start, r.Err)
			return auth.Identity{}, r.Err
		}
		id, _ := r.Val.(auth.Identity)
		return clone(id), nil
	case <-ctx.Done():
		return auth.Identity{}, u.c.unavailable(ctx.Err())
	}
}

// slow waits until a refusal has taken its time.
func (u *Users) slow(ctx context.Context, start time.Time, err error) {
	if errors.Is(err, auth.ErrUnavailable) {
		return // says nothing about the user
	}
	t := time.NewTimer(u.opts.FailureTime - time.Since(start))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (u *Users) state(start time.Time, err error) {
	ev := event.LookupAnswered{Lookup: event.LookupUsers, Result: event.LookupKnown, Took: event.Since(start, time.Now())}
	switch {
	case err == nil:
	case errors.Is(err, auth.ErrUnknownUser), errors.Is(err, auth.ErrCredentials), errors.Is(err, auth.ErrMalformed):
		ev.Result = event.LookupUnknown
	default:
		ev.Result, ev.Error = event.LookupUnavailable, printable(err)
	}
	u.opts.Emitter.Emit(ev)
}

func (u *Users) verify(ctx context.Context, user, password string) (auth.Identity, error) {
	if u.opts.Name != "" {
		return u.bindFirst(ctx, user, password)
	}
	var entry *ldap.Entry
	err := u.c.ask(ctx, searching, func(conn *conn) (err error) {
		entry, err = u.find(conn, user)
		return err
	})
	if errors.Is(err, auth.ErrUnknownUser) {
		// What comes next for those who exist: the password of nobody.
		_ = u.c.ask(ctx, login, func(conn *conn) error { return conn.Bind("cn="+rand.Text()+","+u.opts.BaseDN, rand.Text()) })
		return auth.Identity{}, err
	}
	if err != nil {
		return auth.Identity{}, err
	}
	if err := u.c.ask(ctx, login, func(conn *conn) error { return bind(conn, entry.DN, password) }); err != nil {
		return auth.Identity{}, err
	}
	return u.identity(user, entry)
}

// bindFirst logs in without a search before. The entry is read afterwards: as the
// service account, or without one by the user's own rights.
func (u *Users) bindFirst(ctx context.Context, user, password string) (auth.Identity, error) {
	name, err := bindName(template(u.opts.Name), user)
	if err != nil {
		return auth.Identity{}, fmt.Errorf("%w: %w", auth.ErrUnknownUser, err)
	}
	var entry *ldap.Entry
	find := func(conn *conn) (err error) {
		entry, err = u.find(conn, user)
		return err
	}
	own := u.opts.BaseDN != "" && u.c.opts.BindDN == ""
	err = u.c.ask(ctx, login, func(conn *conn) error {
		if err := bind(conn, name, password); err != nil || !own {
			return err
		}
		return find(conn)
	})
	if err == nil && !own && u.opts.BaseDN != "" {
		err = u.c.ask(ctx, searching, find)
	}
	if err != nil {
		return auth.Identity{}, err
	}
	if entry == nil {
		return auth.Identity{User: user, AnySender: u.opts.AnySender}, nil
	}
	return u.identity(user, entry)
}

// bind proves a password. The connection is the user's afterwards.
func bind(conn *conn, name, password string) error {
	err := conn.Bind(name, password)
	switch {
	case err == nil || broken(err):
		return err
	case refused(err):
		if code := activeDirectoryCode(err); code == "525" || code == "" && ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
			return fmt.Errorf("%w: %s", auth.ErrUnknownUser, reason(err))
		}
		return fmt.Errorf("%w: %s", auth.ErrCredentials, reason(err))
	}
	return &lostError{err} // neither a yes nor a no
}

// find finds the entry of a user who may log in.
func (u *Users) find(conn *conn, user string) (*ldap.Entry, error) {
	filter := template(u.opts.Filter).fill(ldap.EscapeFilter, map[string]string{"{user}": user})
	attributes := append([]string{u.opts.UserAttribute, "userAccountControl", "nsAccountLock"}, u.opts.SenderAttributes...)
	found, err := search(conn, u.opts.BaseDN, ldap.ScopeWholeSubtree, filter, attributes)
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, fmt.Errorf("%w: no entry matches", auth.ErrUnknownUser)
	case len(found) > 1:
		return nil, fmt.Errorf("%w: more than one entry matches", auth.ErrUnknownUser)
	}
	entry := found[0]
	if entry.DN == "" { // a bind with it would be anonymous
		return nil, fmt.Errorf("%w: the entry has no name", auth.ErrUnknownUser)
	}
	if disabled(entry) {
		return entry, fmt.Errorf("%w: the user is disabled", auth.ErrCredentials)
	}
	if u.opts.RequiredGroup == "" {
		return entry, nil
	}
	member, err := u.member(conn, entry)
	if err != nil || member {
		return entry, err
	}
	return entry, fmt.Errorf("%w: the user is not in the required group", auth.ErrCredentials)
}

// disabled reports whether an entry says that it may not be used. The server
// refuses such users as well, as a rule.
func disabled(entry *ldap.Entry) bool {
	const accountDisable = 0x2 // MS-ADTS section 2.2.16
	flags, err := strconv.ParseInt(entry.GetEqualFoldAttributeValue("userAccountControl"), 10, 64)
	return err == nil && flags&accountDisable != 0 || strings.EqualFold(entry.GetEqualFoldAttributeValue("nsAccountLock"), "true")
}

// member reports whether entry is in the required group: by the entry's own word
// where the server follows nested groups, and else by the group's.
func (u *Users) member(conn *conn, entry *ldap.Entry) (bool, error) {
	base, filter := u.opts.RequiredGroup, fmt.Sprintf("(|(member=%[1]s)(uniqueMember=%[1]s)(memberUid=%[2]s))",
		ldap.EscapeFilter(entry.DN), ldap.EscapeFilter(entry.GetEqualFoldAttributeValue(u.opts.UserAttribute)))
	if u.opts.Schema.nested {
		base, filter = entry.DN, "(memberOf:1.2.840.113556.1.4.1941:="+ldap.EscapeFilter(u.opts.RequiredGroup)+")"
	}
	found, err := search(conn, base, ldap.ScopeBaseObject, filter, []string{"1.1"})
	return len(found) > 0, err
}

// identity is who an entry is.
func (u *Users) identity(user string, entry *ldap.Entry) (auth.Identity, error) {
	id := auth.Identity{User: entry.GetEqualFoldAttributeValue(u.opts.UserAttribute), AnySender: u.opts.AnySender}
	if id.User == "" {
		return auth.Identity{}, fmt.Errorf("%w: the entry of %q has no %s", auth.ErrCredentials, user, u.opts.UserAttribute)
	}
	var values []string
	for _, a := range u.opts.SenderAttributes {
		values = append(values, entry.GetEqualFoldAttributeValues(a)...)
	}
	id.Senders = addresses(values)
	return id, nil
}

func clone(id auth.Identity) auth.Identity {
	id.Senders = slices.Clone(id.Senders)
	return id
}

// key is the cache's name for "this user has this password". It tells nothing to
// somebody who reads the memory, and is worth nothing after the process.
func (u *Users) key(user, password string) cacheKey {
	m := hmac.New(sha256.New, u.secret[:])
	fmt.Fprintf(m, "%d:%s%s", len(user), user, password)
	return cacheKey(m.Sum(nil))
}
