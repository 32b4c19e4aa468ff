package auth

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/xdg-go/stringprep"
	"golang.org/x/crypto/argon2"
)

// Parameters of new argon2id hashes: the second recommendation of OWASP's
// password storage cheat sheet, about 20 ms and 19 MiB.
const (
	argonMemory  = 19 * 1024 // KiB
	argonTime    = 2
	argonThreads = 1
	saltBytes    = 16
	keyBytes     = 32
)

// Parameters that a file may ask for. A file is trusted, but a slip in it must
// not take the machine down.
const (
	maxArgonMemory = 256 * 1024 // KiB
	maxArgonTime   = 32
	maxScramIter   = 1_000_000
)

// scramIterations is for new keys; RFC 7677 section 4 asks for 4096 at least.
const scramIterations = 4096

// hasher is a stored password: it can check one, and knows what that costs.
type hasher interface {
	check(password string) bool
	memory() int // KiB needed by check
	cost() int   // a measure of its time, to choose the costliest
	String() string
}

var errHash = errors.New("malformed password hash")

// argon is an argon2id hash in PHC string format.
type argon struct {
	memoryKiB, time uint32
	threads         uint8
	salt, key       []byte
}

func newArgon(password string) argon {
	a := argon{memoryKiB: argonMemory, time: argonTime, threads: argonThreads, salt: make([]byte, saltBytes)}
	_, _ = rand.Read(a.salt) // never fails (Go 1.24)
	a.key = argon2.IDKey([]byte(password), a.salt, a.time, a.memoryKiB, a.threads, keyBytes)
	return a
}

// parseArgon reads "$argon2id$v=19$m=19456,t=2,p=1$salt$key".
func parseArgon(s string) (argon, error) {
	var a argon
	part := strings.Split(s, "$")
	if len(part) != 6 || part[0] != "" || part[1] != "argon2id" || part[2] != "v=19" {
		return a, fmt.Errorf("%w: want $argon2id$v=19$m=…,t=…,p=…$salt$key", errHash)
	}
	for word := range strings.SplitSeq(part[3], ",") {
		key, val, _ := strings.Cut(word, "=")
		n, err := strconv.ParseUint(val, 10, 32)
		switch {
		case err != nil:
			return a, fmt.Errorf("%w: parameter %.10q", errHash, word)
		case key == "m" && n >= 8 && n <= maxArgonMemory:
			a.memoryKiB = uint32(n)
		case key == "t" && n >= 1 && n <= maxArgonTime:
			a.time = uint32(n)
		case key == "p" && n >= 1 && n <= 16:
			a.threads = uint8(n)
		default:
			return a, fmt.Errorf("%w: parameter %.10q is unknown or out of bounds", errHash, word)
		}
	}
	var err1, err2 error
	a.salt, err1 = base64.RawStdEncoding.DecodeString(part[4])
	a.key, err2 = base64.RawStdEncoding.DecodeString(part[5])
	if err1 != nil || err2 != nil || len(a.salt) < 8 || len(a.salt) > 64 || len(a.key) < 16 || len(a.key) > 64 || a.memoryKiB == 0 || a.time == 0 || a.threads == 0 {
		return a, fmt.Errorf("%w: salt, key or a parameter is missing or out of bounds", errHash)
	}
	return a, nil
}

func (a argon) check(password string) bool {
	key := argon2.IDKey([]byte(password), a.salt, a.time, a.memoryKiB, a.threads, uint32(len(a.key))) //nolint:gosec // at most 64
	return subtle.ConstantTimeCompare(key, a.key) == 1
}

func (a argon) memory() int { return int(a.memoryKiB) }
func (a argon) cost() int   { return int(a.memoryKiB) * int(a.time) }

func (a argon) String() string {
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", a.memoryKiB, a.time, a.threads, b64(a.salt), b64(a.key))
}

// scramKeys are the stored keys of SCRAM-SHA-256 (RFC 5802 section 3, RFC 7677)
// in the format of RFC 5803 section 2.
type scramKeys struct {
	iterations        int
	salt              []byte
	stored, serverKey []byte
}

func newScram(password string) (scramKeys, error) {
	salt := make([]byte, saltBytes)
	_, _ = rand.Read(salt) // never fails (Go 1.24)
	return scramFrom(password, salt, scramIterations)
}

// scramFrom derives keys from a password in the form that clients derive them
// from (RFC 5802 section 2.2): SASLprep's, where that allows all characters.
func scramFrom(password string, salt []byte, iterations int) (scramKeys, error) {
	if prepared, err := stringprep.SASLprep.Prepare(password); err == nil {
		password = prepared
	}
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return scramKeys{}, fmt.Errorf("derive SCRAM keys: %w", err)
	}
	mac := func(key []byte, text string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	return scramKeys{iterations: iterations, salt: salt, stored: stored[:], serverKey: mac(salted, "Server Key")}, nil
}

// parseScram reads "SCRAM-SHA-256$4096:salt$StoredKey:ServerKey".
func parseScram(s string) (scramKeys, error) {
	var k scramKeys
	part := strings.Split(s, "$")
	if len(part) != 3 || part[0] != "SCRAM-SHA-256" {
		return k, fmt.Errorf("%w: want SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey", errHash)
	}
	iterations, salt, ok1 := strings.Cut(part[1], ":")
	stored, server, ok2 := strings.Cut(part[2], ":")
	var err1, err2, err3, err4 error
	k.iterations, err1 = strconv.Atoi(iterations)
	k.salt, err2 = base64.StdEncoding.DecodeString(salt)
	k.stored, err3 = base64.StdEncoding.DecodeString(stored)
	k.serverKey, err4 = base64.StdEncoding.DecodeString(server)
	err := errors.Join(err1, err2, err3, err4)
	if !ok1 || !ok2 || err != nil || k.iterations < 4096 || k.iterations > maxScramIter || len(k.salt) < 8 || len(k.salt) > 64 ||
		len(k.stored) != sha256.Size || len(k.serverKey) != sha256.Size {
		return k, fmt.Errorf("%w: SCRAM iterations, salt or keys are out of bounds", errHash)
	}
	return k, nil
}

func (k scramKeys) check(password string) bool {
	got, err := scramFrom(password, k.salt, k.iterations)
	return err == nil && subtle.ConstantTimeCompare(got.stored, k.stored) == 1
}

func (scramKeys) memory() int { return 1 }

// cost is scaled so that it compares with argon2's: 4096 rounds take about 2 ms.
func (k scramKeys) cost() int { return k.iterations }

func (k scramKeys) String() string {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", k.iterations, b64(k.salt), b64(k.stored), b64(k.serverKey))
}
