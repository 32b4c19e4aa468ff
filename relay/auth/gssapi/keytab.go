package gssapi

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/types"
)

const maxKeytab = 1 << 20

// keys are those of our service in a keytab.
type keys struct {
	path    string
	service string // principal; empty for all of the file
	mu      sync.Mutex
	table   atomic.Pointer[keyTable]
}

// keyTable is a keytab at one moment.
type keyTable struct {
	info fs.FileInfo
	keys []serviceKey // the newest first
}

type serviceKey struct {
	realm   string
	version uint32
	key     types.EncryptionKey
}

// reload reads the file when it has changed. No error quotes it.
func (k *keys) reload() (changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f, err := os.Open(k.path)
	if err != nil {
		return false, fmt.Errorf("open keytab: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch old := k.table.Load(); {
	case err != nil:
		return false, fmt.Errorf("keytab: %w", err)
	case info.Size() > maxKeytab:
		return false, fmt.Errorf("keytab %s is larger than %d octets", k.path, maxKeytab)
	case old != nil && os.SameFile(old.info, info) && old.info.Size() == info.Size() && old.info.ModTime().Equal(info.ModTime()):
		return false, nil
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeytab))
	if err != nil {
		return false, fmt.Errorf("read keytab: %w", err)
	}
	list, err := parseKeytab(data, k.service)
	if err != nil {
		return false, fmt.Errorf("keytab %s: %w", k.path, err)
	}
	k.table.Store(&keyTable{info, list})
	return true, nil
}

// parseKeytab finds the keys of a service. The case of a principal does not
// count: Windows asks for tickets as people wrote the name.
func parseKeytab(data []byte, service string) (list []serviceKey, err error) {
	name, realm, _ := strings.Cut(service, "@")
	kt, err := readKeytab(data)
	if err != nil {
		return nil, err
	}
	weak := 0
	for _, e := range kt.Entries {
		if !strings.EqualFold(strings.Join(e.Principal.Components, "/"), name) || realm != "" && realm != e.Principal.Realm {
			continue
		}
		if et, ok := encryptionTypes[e.Key.KeyType]; !ok || len(e.Key.KeyValue) != et.key {
			weak++
			continue
		}
		list = append(list, serviceKey{e.Principal.Realm, e.KVNO, e.Key})
	}
	switch {
	case len(list) > 0:
	case weak > 0:
		return nil, fmt.Errorf("the keys of %s are of no AES encryption type", service)
	default:
		return nil, fmt.Errorf("there is no key of %s", service)
	}
	slices.SortStableFunc(list, func(a, b serviceKey) int { return cmp.Compare(b.version, a.version) })
	return list, nil
}

// readKeytab keeps what the library says of a broken file to itself: it quotes
// the file, and may panic.
func readKeytab(data []byte) (kt *keytab.Keytab, err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("not a keytab")
		}
	}()
	kt = keytab.New()
	if kt.Unmarshal(data) != nil {
		return nil, errors.New("not a keytab")
	}
	return kt, nil
}

// realms are those that our keys are of.
func (k *keys) realms() (list []string) {
	for _, s := range k.table.Load().keys {
		if !slices.Contains(list, s.realm) {
			list = append(list, s.realm)
		}
	}
	return list
}

// maxTries bounds how many keys are tried on one ticket.
const maxTries = 8

// candidates are keys that may open a ticket: those of its key version first,
// then the others, since versions are not kept right everywhere (RFC 4120
// section 3.2.3 leaves the choice to us, and the ticket's seal decides).
func (k *keys) candidates(etype int32, version int) (list []types.EncryptionKey) {
	table := k.table.Load().keys
	for _, exact := range []bool{true, false} {
		for _, s := range table {
			if s.key.KeyType == etype && (int64(s.version) == int64(version)) == exact && len(list) < maxTries {
				list = append(list, s.key)
			}
		}
	}
	return list
}
