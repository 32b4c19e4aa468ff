package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"waybill/relay/mail"
	"waybill/relay/policy"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
)

// User is one entry of a user file, without its credentials.
type User struct {
	Name      string   `json:"name"`
	Senders   []string `json:"senders,omitempty"`
	AnySender bool     `json:"any_sender,omitempty"`
	Disabled  bool     `json:"disabled,omitempty"`
	Stored    []string `json:"stored"` // which credentials there are: "argon2id", "scram-sha-256", "nt"

	Permissions []string `json:"permissions,omitempty"` // nil: those of the receive connector

	NTLM         bool `json:"-"` // keep the password in the form that NTLM needs, too: see [NTHash]
	Passwordless bool `json:"passwordless,omitempty"`
}

// Users is a [Store] in a YAML file:
//
//	users:
//	  - name: app1
//	    password: $argon2id$v=19$m=19456,t=2,p=1$…$…
//	    scram_sha_256: SCRAM-SHA-256$4096:…$…:…
//	    senders: [app1@example.com, "@app1.example.com"]
//	    any_sender: false
//	    permissions: [submit, relay]
//	    disabled: false
//
// It is safe for use by many goroutines.
type Users struct {
	path   string
	table  atomic.Pointer[userTable]
	cache  *cache
	work   *semaphore.Weighted // KiB of hashing memory in use
	memory int64
	queue  *semaphore.Weighted // how many checks wait for it
	once   singleflight.Group  // equal questions at the same time are asked once
	write  sync.Mutex          // one change of the file at a time
}

// Bounds of password hashing: a bounded crowd waits, while workMemory are busy.
const (
	maxWaiting  = 512
	maxFileSize = 16 << 20
)

// workMemory is the hashing memory in KiB: a default hash for each core. A hash
// that needs more is checked alone.
func workMemory() int64 { return int64(runtime.GOMAXPROCS(0)) * argonMemory }

// userTable is the file at one moment.
type userTable struct {
	users map[string]userEntry // by prepared name
	names []string             // in the file's order
	decoy hasher               // what the password of an unknown user is checked against
	shape scramShape           // of the keys that an unknown user seems to have
	info  fs.FileInfo
}

type userEntry struct {
	id       Identity
	disabled bool
	password hasher // the one that is checked; argon2id before SCRAM
	scram    *scramKeys
	nt       *NTHash
	stored   []string

	passwordless bool
}

// userFile is the file's form.
type userFile struct {
	Users []userLine `yaml:"users"`
}

type userLine struct {
	Name      string   `yaml:"name"`
	Password  string   `yaml:"password,omitempty"`
	Scram     string   `yaml:"scram_sha_256,omitempty"`
	NT        string   `yaml:"nt_hash,omitempty"`
	Senders   []string `yaml:"senders,omitempty,flow"`
	AnySender bool     `yaml:"any_sender,omitempty"`
	Disabled  bool     `yaml:"disabled,omitempty"`

	Permissions []string `yaml:"permissions,omitempty,flow"` // nil: those of the connector; empty: none

	// Passwordless users log in with a ticket, a token or a certificate only.
	Passwordless bool `yaml:"passwordless,omitempty"`
}

// OpenUsers reads the user file at path.
func OpenUsers(path string) (*Users, error) {
	u := newUsers(path)
	if _, err := u.Reload(); err != nil {
		return nil, err
	}
	return u, nil
}

// CreateUsers opens the user file at path, and makes an empty one when there is none.
func CreateUsers(path string) (*Users, error) {
	u, err := OpenUsers(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return u, err
	}
	u = newUsers(path)
	if err := u.edit(func([]byte) ([]byte, error) { return []byte("users: []\n"), nil }); err != nil {
		return nil, err
	}
	return u, nil
}

func newUsers(path string) *Users {
	memory := workMemory()
	return &Users{path: path, cache: newCache(), memory: memory, work: semaphore.NewWeighted(memory), queue: semaphore.NewWeighted(maxWaiting)}
}

// Reload reads the file again when it has changed, and reports whether it has.
// After an error the users stay as they were. It costs one stat when nothing
// has changed, so that it can be asked often.
func (u *Users) Reload() (changed bool, err error) {
	f, err := os.Open(u.path)
	if err != nil {
		return false, fmt.Errorf("open user file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch old := u.table.Load(); {
	case err != nil:
		return false, fmt.Errorf("user file: %w", err)
	case info.Size() > maxFileSize:
		return false, fmt.Errorf("user file %s is larger than %d octets", u.path, maxFileSize)
	case old != nil && os.SameFile(old.info, info) && old.info.Size() == info.Size() && old.info.ModTime().Equal(info.ModTime()):
		return false, nil
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize))
	if err != nil {
		return false, fmt.Errorf("read user file: %w", err)
	}
	t, err := parseUsers(data)
	if err != nil {
		return false, fmt.Errorf("user file %s: %w", u.path, err)
	}
	t.info = info
	u.table.Store(t)
	return true, nil
}

// parseUsers reads a user file. It reports all that is wrong with it; no error
// holds a hash.
func parseUsers(data []byte) (*userTable, error) {
	var file userFile
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return nil, plainYAMLError(err)
	}
	t := &userTable{users: make(map[string]userEntry, len(file.Users)), decoy: decoy()}
	var errs []error
	for i, line := range file.Users {
		where := fmt.Sprintf("users[%d]", i)
		name, err := prepareName(line.Name)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s.name: %w", where, err))
			continue
		}
		where = fmt.Sprintf("user %q", line.Name)
		if _, dup := t.users[name]; dup {
			errs = append(errs, fmt.Errorf("%s is there twice", where))
			continue
		}
		entry, err := line.entry()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where, err))
			continue
		}
		t.users[name] = entry
		t.names = append(t.names, name)
		if entry.password != nil && entry.password.cost() > t.decoy.cost() {
			t.decoy = entry.password
		}
	}
	t.shape = commonShape(t.users)
	return t, errors.Join(errs...)
}

// plainYAMLError is a decoder's error without the values that it quotes, which
// may be hashes.
func plainYAMLError(err error) error {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		return errors.New("not valid YAML: " + strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var errs []error
	for _, e := range te.Errors {
		if strings.Contains(e, "cannot unmarshal") { // quotes the value
			e, _, _ = strings.Cut(e, "cannot unmarshal")
			e += "a value of the wrong type"
		}
		errs = append(errs, errors.New(e))
	}
	return errors.Join(errs...)
}

func (l userLine) entry() (userEntry, error) {
	e := userEntry{id: Identity{User: l.Name, Senders: slices.Clone(l.Senders), AnySender: l.AnySender}, disabled: l.Disabled}
	var errs []error
	if l.Scram != "" {
		k, err := parseScram(l.Scram)
		if err != nil {
			errs = append(errs, fmt.Errorf("scram_sha_256: %w", err))
		}
		e.password, e.scram = k, &k
		e.stored = append(e.stored, "scram-sha-256")
	}
	if l.Password != "" {
		a, err := parseArgon(l.Password)
		if err != nil {
			errs = append(errs, fmt.Errorf("password: %w", err))
		}
		e.password = a
		e.stored = append(e.stored, "argon2id")
	}
	if l.NT != "" {
		h, err := parseNTHash(l.NT)
		if err != nil {
			errs = append(errs, fmt.Errorf("nt_hash: %w", err))
		}
		e.nt = h
		e.stored = append(e.stored, "nt")
	}
	switch e.passwordless = l.Passwordless; {
	case l.Passwordless && l.Password+l.Scram+l.NT != "":
		errs = append(errs, errors.New("the user is passwordless, and has a password"))
	case l.Password == "" && l.Scram == "" && !l.Passwordless && !l.Disabled:
		errs = append(errs, errors.New("no password: set one, disable the user, or make them passwordless"))
	}
	if l.Permissions != nil {
		rights, err := policy.ParsePermissions(l.Permissions)
		if err != nil {
			errs = append(errs, err)
		}
		e.id.Permissions = &rights
	}
	for _, s := range l.Senders {
		if err := CheckSender(s); err != nil {
			errs = append(errs, err)
		}
	}
	return e, errors.Join(errs...)
}

// CheckSender reports what is wrong with a sender entry: it is an address,
// "@example.com" for all of a domain, or "*" for all.
func CheckSender(s string) error {
	if s == "*" {
		return nil
	}
	domain, ok := strings.CutPrefix(s, "*@")
	if !ok {
		domain, ok = strings.CutPrefix(s, "@")
	}
	if ok {
		if _, err := mail.ParseDomain(domain); err != nil {
			return fmt.Errorf("sender %q: %w", s, err)
		}
		return nil
	}
	if a, err := mail.ParseAddress(s); err != nil || a.Domain == "" {
		return fmt.Errorf("sender %q is neither an address nor @domain", s)
	}
	return nil
}

// decoy is a hash that no password matches, at the cost of a real one.
var decoy = sync.OnceValue(func() hasher {
	return argon{
		memoryKiB: argonMemory, time: argonTime, threads: argonThreads,
		salt: make([]byte, saltBytes), key: make([]byte, keyBytes),
	}
})

// Verify implements [Store]. Unknown, disabled and password-less users cost as
// much time as a wrong password.
func (u *Users) Verify(ctx context.Context, user, password string) (Identity, error) {
	name, err := prepareName(user)
	if err != nil {
		return Identity{}, err
	}
	password, err = preparePassword(password)
	if err != nil {
		return Identity{}, err
	}
	t := u.table.Load()
	entry, known := t.users[name]
	check := entry.password
	if !known || check == nil {
		check = t.decoy
	}
	ok, err := u.check(ctx, u.cache.key(name, password, check.String()), check, password)
	switch {
	case err != nil:
		return Identity{}, err
	case !known:
		return Identity{}, ErrUnknownUser
	case !ok || entry.password == nil:
		return Identity{}, ErrCredentials
	case entry.disabled:
		return Identity{}, fmt.Errorf("%w: the user is disabled", ErrCredentials)
	}
	id := entry.id
	id.Senders = slices.Clone(id.Senders)
	return id, nil
}

// Lookup is what the file says of a user who proves in another way than by a
// password who they are: ErrUnknownUser when nothing, and ErrCredentials when
// that they are disabled.
func (u *Users) Lookup(user string) (Identity, error) {
	name, err := prepareName(user)
	if err != nil {
		return Identity{}, err
	}
	entry, known := u.table.Load().users[name]
	switch {
	case !known:
		return Identity{}, ErrUnknownUser
	case entry.disabled:
		return Identity{}, fmt.Errorf("%w: the user is disabled", ErrCredentials)
	}
	id := entry.id
	id.Senders = slices.Clone(id.Senders)
	return id, nil
}

// check compares a password with a hash, in bounded memory. Many equal
// questions at once cost one hash.
func (u *Users) check(ctx context.Context, key cacheKey, h hasher, password string) (bool, error) {
	if u.cache.has(key) {
		return true, nil
	}
	if !u.queue.TryAcquire(1) {
		return false, fmt.Errorf("%w: too many logins at once", ErrUnavailable)
	}
	answer := u.once.DoChan(string(key[:]), func() (any, error) {
		// The work is shared, so that it must not end with one caller's ctx.
		shared, cancel := context.WithTimeout(context.WithoutCancel(ctx), verifyTimeout)
		defer cancel()
		need := min(max(int64(h.memory()), argonMemory), u.memory)
		if err := u.work.Acquire(shared, need); err != nil {
			return false, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		defer u.work.Release(need)
		ok := h.check(password)
		if ok {
			u.cache.add(key)
		}
		return ok, nil
	})
	defer u.queue.Release(1)
	select {
	case r := <-answer:
		ok, _ := r.Val.(bool)
		return ok, r.Err
	case <-ctx.Done():
		return false, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
}

// List gives the users in the file's order, without their credentials.
func (u *Users) List() []User {
	t := u.table.Load()
	list := make([]User, 0, len(t.names))
	for _, name := range t.names {
		e := t.users[name]
		var rights []string
		if e.id.Permissions != nil {
			rights = append([]string{}, e.id.Permissions.Words()...)
		}
		list = append(list, User{
			Name: e.id.User, Senders: slices.Clone(e.id.Senders), AnySender: e.id.AnySender, Permissions: rights,
			Disabled: e.disabled, Stored: slices.Clone(e.stored), NTLM: e.nt != nil, Passwordless: e.passwordless,
		})
	}
	return list
}
