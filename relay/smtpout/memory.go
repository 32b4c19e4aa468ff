package smtpout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Bounds of a TLSMemory, by taste.
const (
	maxRemembered = 20_000
	maxMemoryFile = 16 << 20
	rememberEvery = time.Minute // between two times that it is written
	rememberFor   = 90 * 24 * time.Hour
	sameMoment    = time.Hour // TLS again within it is no news for the file
)

// TLSMemory remembers which hosts had TLS, so that one that suddenly has none is
// noticed. The zero TLSMemory is ready to use, and forgets all at its end; nil
// remembers nothing. One may serve many connectors, and outlive them.
type TLSMemory struct {
	path string // empty: nowhere

	mu    sync.Mutex
	hosts map[string]time.Time
	dirty bool // the file is older
}

// OpenTLSMemory reads a TLSMemory from a file, which need not be there. What
// cannot be read is forgotten: that costs notices, and no mail.
func OpenTLSMemory(path string) *TLSMemory {
	m := &TLSMemory{path: path, hosts: map[string]time.Time{}}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxMemoryFile {
		return m
	}
	text, err := os.ReadFile(path) //nolint:gosec // below our own data folder
	var hosts map[string]time.Time
	if err != nil || json.Unmarshal(text, &hosts) != nil {
		return m
	}
	now := time.Now()
	for host, at := range hosts {
		if safe(host) && len(host) < 256 && now.Sub(at) < rememberFor && !at.After(now) && len(m.hosts) < maxRemembered {
			m.hosts[host] = at
		}
	}
	return m
}

// Run writes the memory to its file now and then, and when ctx is done. Failed is
// told when that does not work, once until it does.
func (m *TLSMemory) Run(ctx context.Context, failed func(error)) {
	t := time.NewTicker(rememberEvery)
	defer t.Stop()
	failing := false
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case <-t.C:
		}
		err := m.Save()
		if err != nil && !failing {
			failed(err)
		}
		failing = err != nil
	}
}

// Save writes the memory to its file, all of it or nothing, if it has changed.
func (m *TLSMemory) Save() error {
	m.mu.Lock()
	if m.path == "" || !m.dirty {
		m.mu.Unlock()
		return nil
	}
	m.dirty = false
	text, err := json.Marshal(m.hosts)
	m.mu.Unlock()
	if err == nil {
		err = replace(m.path, text)
	}
	if err != nil {
		m.mu.Lock()
		m.dirty = true
		m.mu.Unlock()
		return fmt.Errorf("remember which hosts had TLS: %w", err)
	}
	return nil
}

func replace(path string, text []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(text)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// had notes that host had TLS.
func (m *TLSMemory) had(host string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hosts == nil {
		m.hosts = map[string]time.Time{}
	}
	last, known := m.hosts[host]
	if !known && len(m.hosts) >= maxRemembered {
		for other := range m.hosts { // any: to forget costs a notice, and no more
			delete(m.hosts, other)
			break
		}
	}
	now := time.Now().UTC()
	m.hosts[host] = now
	m.dirty = m.dirty || now.Sub(last) > sameMoment
}

// lost is when host had TLS, and forgets it: it is news once. It is zero when the
// host never had any.
func (m *TLSMemory) lost(host string) time.Time {
	if m == nil {
		return time.Time{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	last, known := m.hosts[host]
	delete(m.hosts, host)
	m.dirty = m.dirty || known
	return last
}
