package auth

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/argon2"
)

// cheap is a hash at the least cost, for tests that do not measure.
func cheap(password string) string {
	a := argon{memoryKiB: 8, time: 1, threads: 1, salt: []byte("saltsaltsalt")}
	a.key = argon2.IDKey([]byte(password), a.salt, a.time, a.memoryKiB, a.threads, keyBytes)
	return a.String()
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, text string) *Users {
	t.Helper()
	u, err := OpenUsers(write(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestVerify(t *testing.T) {
	keys, err := scramFrom("scram pass", []byte("saltsaltsalt"), 4096)
	if err != nil {
		t.Fatal(err)
	}
	u := open(t, `
users:
  - {name: App1, password: "`+cheap("right")+`", senders: [app1@example.com, "@app.example.com"], any_sender: true}
  - {name: old, password: "`+cheap("right")+`", disabled: true}
  - {name: gone, disabled: true}
  - {name: scram, scram_sha_256: "`+keys.String()+`"}
`)
	for _, test := range []struct {
		name           string
		user, password string
		want           error
	}{
		{"right", "app1", "right", nil},
		{"right again, from the cache", "app1", "right", nil},
		{"name in another case", "APP1", "right", nil},
		{"only SCRAM keys", "scram", "scram pass", nil},
		{"wrong against SCRAM keys", "scram", "right", ErrCredentials},
		{"wrong", "app1", "wrong", ErrCredentials},
		{"unknown", "app2", "right", ErrUnknownUser},
		{"disabled", "old", "right", ErrCredentials},
		{"disabled, again", "old", "right", ErrCredentials},
		{"disabled, without a password", "gone", "right", ErrCredentials},
		{"unusable name", "a b", "right", ErrMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			id, err := u.Verify(t.Context(), test.user, test.password)
			if !errors.Is(err, test.want) {
				t.Errorf("Verify(%q, %q) = %v, want %v", test.user, test.password, err, test.want)
			}
			if err != nil && id.User != "" {
				t.Errorf("Verify(%q, %q) failed and gave the identity %q", test.user, test.password, id.User)
			}
		})
	}
	id, err := u.Verify(t.Context(), "app1", "right")
	if err != nil || id.User != "App1" || !id.AnySender || !slices.Equal(id.Senders, []string{"app1@example.com", "@app.example.com"}) {
		t.Errorf("Verify(app1) = %+v, %v", id, err)
	}
}

// An unknown or disabled user must cost a hash, as a wrong password does.
func TestUnknownUserCostsAHash(t *testing.T) {
	u := open(t, `
users:
  - {name: app1, password: "`+cheap("right")+`"}
  - {name: gone, disabled: true}
`)
	counter := &countingHash{hasher: argon{memoryKiB: 8, time: 1, threads: 1, salt: make([]byte, 8), key: make([]byte, 32)}}
	table := *u.table.Load()
	table.decoy = counter
	u.table.Store(&table)
	for i, name := range []string{"nobody", "gone"} {
		if _, err := u.Verify(t.Context(), name, "x"); err == nil {
			t.Errorf("Verify(%s) accepted", name)
		}
		if counter.n != i+1 {
			t.Errorf("Verify(%s): %d hashes so far, want %d", name, counter.n, i+1)
		}
	}
}

type countingHash struct {
	hasher
	n    int
	ok   bool
	gate chan struct{}
	mu   sync.Mutex
}

func (c *countingHash) check(password string) bool {
	if c.gate != nil {
		<-c.gate
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.ok
}

func with(u *Users, name string, h hasher) {
	table := *u.table.Load()
	table.users = map[string]userEntry{name: {id: Identity{User: name}, password: h}}
	u.table.Store(&table)
}

func TestCacheSparesHashes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := open(t, "users: []")
		h := &countingHash{hasher: newArgonFor(t), ok: true, gate: make(chan struct{})}
		with(u, "app", h)
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				if _, err := u.Verify(context.Background(), "app", "pw"); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		close(h.gate)
		wg.Wait()
		if h.n != 1 {
			t.Errorf("200 logins at once took %d hashes, want 1", h.n)
		}
		if _, err := u.Verify(t.Context(), "app", "pw"); err != nil || h.n != 1 {
			t.Errorf("a later login took a hash (%d), or failed: %v", h.n, err)
		}
		if _, err := u.Verify(t.Context(), "app", "other"); err != nil || h.n != 2 {
			t.Errorf("another password took %d hashes, want 2", h.n)
		}
		time.Sleep(cacheTTL + time.Second)
		if _, err := u.Verify(t.Context(), "app", "pw"); err != nil || h.n != 3 {
			t.Errorf("after the cache's time: %d hashes, want 3: %v", h.n, err)
		}
	})
}

func TestHashingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := open(t, "users: []")
		h := &countingHash{hasher: newArgonFor(t), gate: make(chan struct{})}
		with(u, "app", h)
		var mu sync.Mutex
		busy := 0
		var wg sync.WaitGroup
		for i := range maxWaiting + 50 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err := u.Verify(ctx, "app", strings.Repeat("x", i+1))
				if errors.Is(err, ErrUnavailable) {
					mu.Lock()
					busy++
					mu.Unlock()
				} else if !errors.Is(err, ErrCredentials) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		mu.Lock()
		turnedAway := busy
		mu.Unlock()
		if turnedAway != 50 {
			t.Errorf("%d logins were turned away at once, want 50", turnedAway)
		}
		close(h.gate)
		wg.Wait()
	})
}

func TestVerifyEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := open(t, "users: []")
		h := &countingHash{hasher: newArgonFor(t), gate: make(chan struct{})}
		with(u, "app", h)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := u.Verify(ctx, "app", "pw"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Verify = %v, want ErrUnavailable", err)
		}
		close(h.gate)
	})
}

func newArgonFor(t *testing.T) hasher {
	t.Helper()
	a, err := parseArgon(cheap("x"))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestEditUsers(t *testing.T) {
	path := write(t, "# our machines\nusers:\n  # the shop\n  - name: shop\n    password: "+cheap("a")+"\n")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	u, err := OpenUsers(path)
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := OpenUsers(path)
	if err != nil {
		t.Fatal(err)
	}
	step := func(name string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	step("add", u.Add(User{Name: "Printer", Senders: []string{"@print.example.com"}}, NewSecret("b")))
	if err := u.Add(User{Name: "PRINTER"}, NewSecret("c")); !errors.Is(err, ErrUserExists) {
		t.Errorf("second Add = %v, want ErrUserExists", err)
	}
	if err := u.Add(User{Name: "x", Senders: []string{"nonsense"}}, NewSecret("c")); err == nil {
		t.Error("Add took a bad sender")
	}
	if err := u.Add(User{Name: "x"}, NewSecret("")); !errors.Is(err, ErrMalformed) {
		t.Errorf("Add without password = %v, want ErrMalformed", err)
	}
	changed, err := daemon.Reload()
	if err != nil || !changed {
		t.Errorf("Reload = %t, %v, want a change", changed, err)
	}
	if changed, err := daemon.Reload(); err != nil || changed {
		t.Errorf("second Reload = %t, %v, want no change", changed, err)
	}
	if id, err := daemon.Verify(t.Context(), "printer", "b"); err != nil || id.User != "Printer" {
		t.Errorf("Verify(printer) = %v, %v", id, err)
	}
	step("passwd", u.SetPassword("printer", NewSecret("d")))
	step("passwd", u.SetPassword("shop", NewSecret("e")))
	_, err = daemon.Reload()
	step("reload", err)
	if _, err := daemon.Verify(t.Context(), "printer", "b"); !errors.Is(err, ErrCredentials) {
		t.Errorf("the old password still works: %v", err)
	}
	if _, err := daemon.Verify(t.Context(), "printer", "d"); err != nil {
		t.Errorf("the new password does not work: %v", err)
	}
	data, err := os.ReadFile(path)
	step("read", err)
	if text := string(data); !strings.Contains(text, "# our machines") || !strings.Contains(text, "# the shop") {
		t.Errorf("comments are gone:\n%s", text)
	}
	info, err := os.Stat(path)
	step("stat", err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %o, want 600", info.Mode().Perm())
	}
	step("remove", u.Remove("SHOP"))
	if err := u.Remove("shop"); !errors.Is(err, ErrUnknownUser) {
		t.Errorf("second Remove = %v, want ErrUnknownUser", err)
	}
	if err := u.SetPassword("shop", NewSecret("x")); !errors.Is(err, ErrUnknownUser) {
		t.Errorf("SetPassword = %v, want ErrUnknownUser", err)
	}
	if list := u.List(); len(list) != 1 || list[0].Name != "Printer" || len(list[0].Stored) != 2 {
		t.Errorf("List = %+v", list)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); err != nil || len(left) > 0 {
		t.Errorf("files left behind: %v %v", left, err)
	}
}

func TestCreateUsersAndAddAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.yaml")
	if _, err := OpenUsers(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("OpenUsers = %v, want ErrNotExist", err)
	}
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d"} {
		wg.Go(func() {
			u, err := CreateUsers(path)
			if err != nil {
				t.Error(err)
				return
			}
			if err := u.Add(User{Name: name}, NewSecret("pw")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	u, err := CreateUsers(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(u.List()); got != 4 {
		t.Errorf("%d users after 4 additions at once", got)
	}
}

func TestReloadKeepsUsersAfterAnError(t *testing.T) {
	u := open(t, `users: [{name: a, password: "`+cheap("x")+`"}]`)
	if err := os.WriteFile(u.path, []byte("users: [{name: a, pasword: x}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Reload(); err == nil {
		t.Error("Reload took an unknown key")
	}
	if _, err := u.Verify(t.Context(), "a", "x"); err != nil {
		t.Errorf("Verify after a bad reload = %v", err)
	}
}

func TestBadUserFiles(t *testing.T) {
	for _, test := range []struct {
		name string
		text string
		want string
	}{
		{"unknown key", "users: [{name: a, pass: b}]", "pass"},
		{"not YAML", "users: [", "not valid YAML"},
		{"clear password", "users: [{name: a, password: letmein}]", "malformed password hash"},
		{"wrong type", "users: [{name: a, senders: letmein}]", "wrong type"},
		{"no password", "users: [{name: a}]", "no password"},
		{"twice", `users: [{name: a, disabled: true}, {name: A, disabled: true}]`, "twice"},
		{"name", "users: [{name: \"a b\", disabled: true}]", "users[0].name"},
		{"sender", "users: [{name: a, disabled: true, senders: [bob]}]", "neither an address"},
		{"huge memory", "users: [{name: a, password: \"$argon2id$v=19$m=4194304,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc\"}]", "out of bounds"},
		{"argon2i", "users: [{name: a, password: \"$argon2i$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc\"}]", "argon2id"},
		{"few SCRAM rounds", "users: [{name: a, scram_sha_256: \"SCRAM-SHA-256$1:c29tZXNhbHQ==$x:y\"}]", "scram_sha_256"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := OpenUsers(write(t, test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("OpenUsers = %v, want an error with %q", err, test.want)
			}
			if err != nil && (strings.Contains(err.Error(), "letmein") || strings.Contains(err.Error(), "CTFhF")) {
				t.Errorf("the error quotes a credential: %v", err)
			}
		})
	}
}

func TestHashVectors(t *testing.T) {
	// From the test program of the reference implementation of argon2.
	a, err := parseArgon("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc")
	if err != nil || !a.check("password") || a.check("passwore") {
		t.Errorf("argon2id vector does not verify: %v", err)
	}
	// RFC 7677 section 3: the server's signature proves ServerKey, the client's proof StoredKey.
	b64 := func(s string) []byte {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	k, err := scramFrom("pencil", b64("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
	if err != nil {
		t.Fatal(err)
	}
	message := "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0," +
		"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
	mac := func(key []byte) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(message))
		return m.Sum(nil)
	}
	if got, want := mac(k.serverKey), b64("6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="); !hmac.Equal(got, want) {
		t.Errorf("server signature = %x, want %x", got, want)
	}
	clientKey := b64("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
	for i, c := range mac(k.stored) {
		clientKey[i] ^= c
	}
	if got := sha256.Sum256(clientKey); !hmac.Equal(got[:], k.stored) {
		t.Errorf("StoredKey = %x, want %x", k.stored, got)
	}
	again, err := parseScram(k.String())
	if err != nil || !again.check("pencil") || again.check("pen") {
		t.Errorf("SCRAM keys do not survive writing: %v", err)
	}
}

func FuzzParseUsers(f *testing.F) {
	f.Add([]byte(`users: [{name: a, password: "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", senders: [a@b.c, "@d.e", "*"]}]`))
	f.Add([]byte(`users: [{name: a, scram_sha_256: "SCRAM-SHA-256$4096:c29tc2FsdHNhbHQ=$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}]`))
	f.Add([]byte("users: [{name: &a x, senders: [*a]}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		table, err := parseUsers(data)
		if err != nil {
			return
		}
		for name, e := range table.users {
			if got, err := prepareName(name); err != nil || got != name {
				t.Errorf("name %q is not stable: %q, %v", name, got, err)
			}
			if e.password != nil && e.password.memory() > maxArgonMemory {
				t.Errorf("%q needs %d KiB", name, e.password.memory())
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	path := filepath.Join(b.TempDir(), "users.yaml")
	u, err := CreateUsers(path)
	if err != nil {
		b.Fatal(err)
	}
	if err := u.Add(User{Name: "app"}, NewSecret("right")); err != nil {
		b.Fatal(err)
	}
	b.Run("cached", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := u.Verify(b.Context(), "app", "right"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("wrong", func(b *testing.B) {
		for b.Loop() {
			if _, err := u.Verify(b.Context(), "app", "wrong"); err == nil {
				b.Fatal("accepted")
			}
		}
	})
	b.Run("unknown", func(b *testing.B) {
		for b.Loop() {
			if _, err := u.Verify(b.Context(), "nobody", "wrong"); err == nil {
				b.Fatal("accepted")
			}
		}
	})
}
