package dns

import (
	"bufio"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// hostsCheck is how often the hosts file is looked at for a change.
const hostsCheck = 5 * time.Second

// maxHostsLines bounds what is read of a hosts file.
const maxHostsLines = 100_000

// hostsFile is /etc/hosts.
type hostsFile struct {
	path string

	mu      sync.Mutex
	checked time.Time
	changed time.Time
	size    int64
	names   map[string][]netip.Addr
}

// lookup returns the addresses that the file gives name. "localhost" and its
// sub-domains are loopback whatever the DNS says (RFC 6761 section 6.3).
func (h *hostsFile) lookup(name string) []netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); h.checked.IsZero() || now.Sub(h.checked) > hostsCheck {
		h.checked = now
		h.read()
	}
	if ips := h.names[name]; len(ips) > 0 {
		return append([]netip.Addr(nil), ips...)
	}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return []netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return nil
}

func (h *hostsFile) read() {
	info, err := os.Stat(h.path)
	if err != nil {
		h.names, h.changed, h.size = nil, time.Time{}, 0
		return
	}
	if info.ModTime().Equal(h.changed) && info.Size() == h.size && h.names != nil {
		return
	}
	f, err := os.Open(h.path)
	if err != nil {
		return
	}
	defer f.Close()
	names := map[string][]netip.Addr{}
	lines := bufio.NewScanner(f)
	for n := 0; n < maxHostsLines && lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		ip, err := netip.ParseAddr(words[0])
		if err != nil {
			continue
		}
		for _, w := range words[1:] {
			w = strings.ToLower(strings.TrimSuffix(w, "."))
			names[w] = append(names[w], ip.Unmap())
		}
	}
	h.names, h.changed, h.size = names, info.ModTime(), info.Size()
}
