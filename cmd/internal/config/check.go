package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"waybill/relay/auth"
	"waybill/relay/mail"
	"waybill/relay/policy"
)

// maxConnectors is how many connectors there may be: their names are labels of
// metrics.
const maxConnectors = 50

var nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)

// check looks for what each key alone cannot show.
func check(c *Config, p *collector) {
	checkHost(c, p)
	for name, cert := range c.Certificates {
		if !nameForm.MatchString(name) {
			p.errorf(join("certificates", name), "use letters, digits, and . _ -", "not a name")
		}
		_ = cert
	}
	checkReceive(c, p)
	checkBinds(c, p)
	checkPickup(c, p)
	checkDomains(c, p)
	checkDirectories(c, p)
	checkPresets(c, p)
	checkSend(c, p)
	checkHybrid(c, p)
	checkThrottles(c, p)
	checkBackPressure(c, p)
	checkHTTP(c, p)
	checkUsers(c, p)
	checkDNS(c, p)
	checkIntegrated(c, p)
	checkUsersCommand(c, p)
	checkTelemetry(c, p)
	checkTLSReports(c, p)
	checkBlocklists(c, p)
	checkKeep(&c.Queue, p)
	if n := len(c.Receive) + len(c.Send); n > maxConnectors {
		p.errorf("", "", "%d connectors are more than %d, the most that metrics can tell apart", n, maxConnectors)
	}
	if c.Tracking.Retention < Day/24 {
		p.errorf("tracking.retention", "", "shorter than an hour")
	}
	if t := &c.Tracking; t.TranscriptRetention < Day/24 && t.TranscriptRetention != t.Retention {
		p.errorf("tracking.transcript_retention", "", "shorter than an hour")
	} else if t.TranscriptRetention > t.Retention {
		p.errorf("tracking.transcript_retention", "", "%v is longer than tracking.retention, %v: a conversation is found by its message", t.TranscriptRetention, t.Retention)
	}
	checkTrackingKinds(&c.Tracking, p)
	for path, size := range map[string]Size{"tracking.max_size": c.Tracking.MaxSize, "queue.disk_free_min": c.Queue.DiskFreeMin} {
		if size < MiB {
			p.errorf(path, "", "%v is less than 1MiB", size)
		}
	}
	if c.DataDir == "" {
		p.errorf("data_dir", "", "empty")
	}
}

func checkHost(c *Config, p *collector) {
	switch host, err := mail.ParseDomain(c.Hostname); {
	case err != nil:
		p.errorf("hostname", "such as mx1.example.com", "%q is not a host name", clip(c.Hostname))
	case !strings.Contains(host, ".") && host != "localhost":
		p.warnf("hostname", "such as mx1.example.com", "%q is not a full name; other servers may refuse our EHLO", clip(c.Hostname))
	}
	if c.Postmaster != "" {
		if a, err := mail.ParseAddress(c.Postmaster); err != nil || a.Domain == "" {
			p.errorf("postmaster", "such as postmaster@example.com", "%q is not an address", clip(c.Postmaster))
		}
	}
}

// uniqueNames checks the names of connectors.
func uniqueNames(p *collector, list string, names []string) {
	seen := map[string]int{}
	for i, name := range names {
		path := fmt.Sprintf("%s[%d].name", list, i)
		first, dup := seen[strings.ToLower(name)]
		switch {
		case name == "": // said by the decoder
		case !nameForm.MatchString(name):
			p.errorf(path, "use letters, digits, and . _ -", "%q is not a name", clip(name))
		case dup:
			p.errorf(path, "", "%s[%d] has the name %q already", list, first, name)
		default:
			seen[strings.ToLower(name)] = i
		}
	}
}

func checkReceive(c *Config, p *collector) {
	if len(c.Receive) == 0 {
		p.errorf("receive_connectors", "waybill config example shows some", "there is none: nothing could come in")
	}
	var names []string
	for i := range c.Receive {
		r := &c.Receive[i]
		names = append(names, r.Name)
		path := fmt.Sprintf("receive_connectors[%d]", i)
		checkReceiveTLS(c, r, p, path+".tls")
		checkAuth(c, r, p, path+".auth")
		checkRelay(c, r, p, path)
		checkProxies(r, p, path)
		if len(r.Listen) == 0 {
			p.errorf(path+".listen", `such as ["127.0.0.1:25"]`, "no address to listen on")
		}
		if len(r.RemoteRanges) == 0 {
			p.errorf(path+".remote_ranges", `such as ["192.0.2.0/24"]`, "no remote ranges: the connector is for nobody")
		}
		checkLimits(r, p, path+".limits")
		checkTranscript(&r.Transcript, p, path+".transcript")
		if slices.ContainsFunc([]rune(r.Banner), func(c rune) bool { return c > '~' }) || len(r.Banner) > 200 {
			p.errorf(path+".banner", "", "want at most 200 printable ASCII characters")
		}
	}
	uniqueNames(p, "receive_connectors", names)
}

func checkReceiveTLS(c *Config, r *ReceiveConnector, p *collector, path string) {
	t := r.TLS
	_, known := c.Certificates[t.Certificate]
	switch {
	case t.Certificate != "" && !known:
		p.errorf(path+".certificate", "name it under certificates", "there is no certificate %q", clip(t.Certificate))
	case t.Certificate == "" && t.Mode != "off":
		p.errorf(path+".mode", "name one under certificates", "%s needs a certificate", t.Mode)
	case t.Mode == "off" && t.Required:
		hint := "name a certificate under certificates; on loopback alone, tls: {required: false} does"
		if t.Certificate != "" {
			hint = "set mode to starttls or implicit"
		}
		p.errorf(path+".required", hint, "TLS is required, and there is none")
	}
	if t.ClientCertificate != "none" && t.ClientCAFile == "" {
		p.errorf(path+".client_certificate", "set client_ca_file", "client certificates need the authorities that they are from")
	}
	if t.ClientCertificate != "none" && t.Mode == "off" {
		p.errorf(path+".client_certificate", "set mode to starttls or implicit", "there is no TLS to show one in")
	}
	checkLegacyTLS(r, p, path)
	checkClientNames(t, p, path)
}

func checkAuth(c *Config, r *ReceiveConnector, p *collector, path string) {
	a := &r.Auth
	for i, m := range a.Mechanisms {
		at := fmt.Sprintf("%s.mechanisms[%d]", path, i)
		switch {
		case slices.Contains(futureMechanisms, strings.ToUpper(m)):
			p.errorf(at, "remove it from the list", "not supported yet: %s", strings.ToUpper(m))
		case !slices.Contains(auth.Mechanisms(), strings.ToUpper(m)):
			p.errorf(at, "", "%q is none of %s", clip(m), strings.Join(known(), ", "))
		case slices.Contains(a.Mechanisms[:i], m):
			p.errorf(at, "", "%s is there twice", m)
		default:
			a.Mechanisms[i] = strings.ToUpper(m)
		}
	}
	checkCertificateLogin(c, r, p, path)
	checkTokenLogin(c, r, p, path)
	if a.Required && len(a.Mechanisms) == 0 && !a.Certificate {
		p.errorf(path+".mechanisms", "such as [PLAIN, LOGIN]", "a login is required, and there is no mechanism")
	}
	if len(a.Mechanisms) > 0 && !c.Users.any() {
		p.errorf(path, "set users: {file: users.yaml}, and make it with waybill user add; or users.oauth, or users.certificates", "logins need users")
	}
	if len(a.Mechanisms) > 0 && r.TLS.Mode == "off" && !a.BeforeTLS {
		p.errorf(path, "name a certificate, or set before_tls on loopback", "nobody can log in: passwords are taken under TLS only, and there is none")
	}
	if a.BeforeTLS && !local(r) {
		p.warnf(path+".before_tls", "", "passwords may cross the network in clear")
	}
}

// known are the mechanisms that can be configured.
func known() []string {
	return slices.DeleteFunc(auth.Mechanisms(), func(m string) bool { return slices.Contains(futureMechanisms, m) })
}

// local reports whether a connector can be reached from this machine alone.
func local(r *ReceiveConnector) bool {
	return !slices.ContainsFunc(r.Listen, func(s string) bool {
		at, err := netip.ParseAddrPort(s)
		return err != nil || !at.Addr().Unmap().IsLoopback()
	})
}

// Networks wider than these are nobody's own.
const (
	widestIPv4 = 16
	widestIPv6 = 32
)

// checkRelay refuses open relays: a connector that relays without a login must
// be for known machines only.
func checkRelay(c *Config, r *ReceiveConnector, p *collector, path string) {
	relay := slices.Contains(r.Permissions, "relay")
	var public []netip.Prefix
	for i, s := range r.RemoteRanges {
		at := fmt.Sprintf("%s.remote_ranges[%d]", path, i)
		network, err := policy.ParseRange(s)
		if err != nil {
			p.errorf(at, "", "%v", err)
			continue
		}
		if !relay || r.Auth.Required || policy.Private(network) {
			continue
		}
		switch {
		case wide(network):
			p.errorf(at, "set auth.required, or take relay out of permissions, or name only your own networks",
				"open relay: anyone in %s could send to anyone without a login", network)
		case !r.RelayPublicRanges:
			p.errorf(at, "set auth.required, or take relay out of permissions, or confirm with relay_public_ranges: true that the addresses are yours",
				"open relay: the public addresses %s could send to anyone without a login", network)
		default:
			public = append(public, network)
		}
	}
	checkSum(r, public, p, path)
	if _, err := policy.ParsePermissions(r.Permissions); err != nil {
		p.errorf(path+".permissions", "", "%v", err)
	}
	if !slices.Contains(r.Permissions, "submit") {
		p.warnf(path+".permissions", "add submit", "nobody may hand in mail")
	}
	if !relay && len(c.AcceptedDomains) == 0 {
		p.warnf(path+".permissions", "name accepted_domains, or add relay", "there are no accepted domains: all mail will be refused")
	}
}

func checkLimits(r *ReceiveConnector, p *collector, path string) {
	l := r.Limits
	for key, size := range map[string]Size{"message_size": l.MessageSize, "header_size": l.HeaderSize} {
		if size < KiB {
			p.errorf(path+"."+key, "", "%v is less than 1KiB", size)
		}
	}
	if l.MessageSize > 2*GiB {
		p.errorf(path+".message_size", "", "%v is more than 2GiB", l.MessageSize)
	}
	if l.HeaderSize > l.MessageSize {
		p.errorf(path+".header_size", "", "%v is more than message_size, %v", l.HeaderSize, l.MessageSize)
	}
	for key, d := range map[string]Duration{"command_timeout": l.CommandTimeout, "session_timeout": l.SessionTimeout} {
		if d < second || d > Day {
			p.errorf(path+"."+key, "", "%v is not between 1s and 1d", d)
		}
	}
	if l.Tarpit > minute {
		p.errorf(path+".tarpit", "", "%v is more than 1m", l.Tarpit)
	}
	if l.Recipients < 100 {
		p.warnf(path+".recipients", "RFC 5321 section 4.5.3.1.8", "%d is less than the 100 that every server must take", l.Recipients)
	}
	if l.Connections > 0 && l.ConnectionsPerSource > l.Connections {
		p.errorf(path+".connections_per_source", "", "%d is more than connections, %d", l.ConnectionsPerSource, l.Connections)
	}
}

// bind is one address that something listens on.
type bind struct {
	path string
	at   netip.AddrPort // the zero address stands for all
	who  int            // receive connector; -1 for HTTP
}

// checkBinds looks at all listeners together.
func checkBinds(c *Config, p *collector) {
	var binds []bind
	for i, r := range c.Receive {
		for j, s := range r.Listen {
			path := fmt.Sprintf("receive_connectors[%d].listen[%d]", i, j)
			if at, err := parseListen(s); err != nil {
				p.errorf(path, `such as "127.0.0.1:25", or ":25" for all addresses`, "%v", err)
			} else if at.Port() != 0 {
				binds = append(binds, bind{path, at, i})
			}
		}
	}
	if at, err := parseListen(c.HTTP.Listen); err == nil && at.Port() != 0 {
		binds = append(binds, bind{"http.listen", at, -1})
	}
	for i, b := range binds {
		for _, a := range binds[:i] {
			switch {
			case a.at.Port() != b.at.Port():
			case a.at != b.at && (all(a.at) || all(b.at)) && (a.who < 0 || b.who < 0): // receive connectors share one socket
				p.errorf(b.path, "", "%s and %s (%s) cannot both be listened on", b.at, a.at, a.path)
			case a.at != b.at:
			case a.who < 0 || b.who < 0:
				p.errorf(b.path, "", "%s is taken by %s", b.at, a.path)
			case a.who == b.who:
				p.errorf(b.path, "", "%s is there twice", b.at)
			default:
				checkShared(c, p, a, b)
			}
		}
	}
}

// checkShared looks at two connectors with one address: the client's address
// must tell them apart, and TLS from the first octet begins before that counts.
func checkShared(c *Config, p *collector, a, b bind) {
	first, second := &c.Receive[a.who], &c.Receive[b.who]
	for i, s := range second.RemoteRanges {
		network, err := policy.ParseRange(s)
		for _, other := range first.RemoteRanges {
			if n, err2 := policy.ParseRange(other); err == nil && err2 == nil && n == network {
				p.errorf(fmt.Sprintf("receive_connectors[%d].remote_ranges[%d]", b.who, i), "give one of them other networks, or another address to listen on",
					"%s is in connector %q too, which listens on %s as well", network, first.Name, a.at)
			}
		}
	}
	if (first.TLS.Mode == "implicit") != (second.TLS.Mode == "implicit") {
		p.warnf(b.path, "", "connector %q listens on %s too, and only one of them speaks TLS from the first octet", first.Name, b.at)
	}
}

func all(at netip.AddrPort) bool { return at.Addr().IsUnspecified() }

// parseListen reads host:port with an IP address or none. Both wildcards are
// one: the system listens for both families on either.
func parseListen(s string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address with a port", clip(s))
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not a port number", clip(port))
	}
	if host == "" {
		host = "::"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an IP address", clip(host))
	}
	if ip = ip.Unmap(); ip.IsUnspecified() {
		ip = netip.IPv6Unspecified()
	}
	return netip.AddrPortFrom(ip, uint16(n)), nil
}

func checkDomains(c *Config, p *collector) {
	seen := map[string]int{}
	for i, d := range c.AcceptedDomains {
		path := fmt.Sprintf("accepted_domains[%d].domain", i)
		if d.Domain == "" {
			continue // said by the decoder
		}
		if _, err := policy.NewDomains([]policy.Domain{{Name: d.Domain, Type: policy.DomainType(d.Type), Subdomains: d.Subdomains}}); err != nil {
			p.errorf(path, "", "%s", strings.TrimPrefix(err.Error(), policy.ErrDomain.Error()+" "))
			continue
		}
		key, _ := mail.ParseDomain(d.Domain)
		if first, dup := seen[key]; dup {
			p.errorf(path, "", "accepted_domains[%d] is %s already", first, key)
		}
		if slices.Contains(crowds, key) {
			p.errorf(path, "name your own domains only; send_connectors say where mail for others goes",
				"open relay: anyone could send to anyone at %s without a login", key)
		}
		seen[key] = i
	}
}

func checkSend(c *Config, p *collector) {
	checkPriorities(c.Queue.Priorities, p)
	var names []string
	everything := false
	for i := range c.Send {
		s := &c.Send[i]
		names = append(names, s.Name)
		path := fmt.Sprintf("send_connectors[%d]", i)
		checkSpaces(c, i, p, path)
		checkOrigin(c, s, p, path)
		checkHosts(s, p, path)
		checkSendTLS(c, s, p, path)
		checkSendAuth(c, s, p, path+".auth")
		checkRetry(s.Retry, p, path+".retry")
		checkRetryDomains(s, p, path+".retry.domains")
		checkMode(s.Transcript.Mode, p, path+".transcript")
		checkSenders(s.Transcript.Also.Sender, p, path+".transcript")
		for j, a := range s.SourceAddresses {
			if ip, err := netip.ParseAddr(a); err != nil || ip.Zone() != "" {
				p.errorf(fmt.Sprintf("%s.source_addresses[%d]", path, j), "", "%q is not an IP address", clip(a))
			}
		}
		if s.Limits.ConnectionsPerDestination > s.Limits.Connections {
			p.errorf(path+".limits.connections_per_destination", "", "%d is more than connections, %d", s.Limits.ConnectionsPerDestination, s.Limits.Connections)
		}
		checkWindow(&s.Limits, p, path+".limits")
		if s.Limits.MessageSize < KiB {
			p.errorf(path+".limits.message_size", "", "%v is less than 1KiB", s.Limits.MessageSize)
		}
		if s.Limits.IdleTimeout > 5*minute {
			p.errorf(path+".limits.idle_timeout", "", "%v is more than 5m", s.Limits.IdleTimeout)
		}
		for _, space := range s.AddressSpaces {
			everything = everything || space.Space == "*" && !s.Disabled && !s.conditions()
		}
	}
	uniqueNames(p, "send_connectors", names)
	relays := slices.ContainsFunc(c.Receive, func(r ReceiveConnector) bool { return slices.Contains(r.Permissions, "relay") })
	if !everything && (relays || len(c.Send) == 0) {
		p.warnf("send_connectors", `add {name: internet, address_spaces: [{space: "*"}]}`, `no connector is for "*": mail for other domains will wait until it expires`)
	}
	checkSizes(c, p)
}

// checkSizes warns when mail comes in that cannot go out.
func checkSizes(c *Config, p *collector) {
	var largest Size
	for _, s := range c.Send {
		if !s.Disabled {
			largest = max(largest, s.Limits.MessageSize)
		}
	}
	for i, r := range c.Receive {
		if largest > 0 && r.Limits.MessageSize > largest {
			p.warnf(fmt.Sprintf("receive_connectors[%d].limits.message_size", i), "",
				"%v is more than any send connector takes, %v", r.Limits.MessageSize, largest)
		}
	}
}

func checkSpaces(c *Config, i int, p *collector, path string) {
	own := map[string]bool{}
	for j, space := range c.Send[i].AddressSpaces {
		at := fmt.Sprintf("%s.address_spaces[%d].space", path, j)
		key, err := parseSpace(space.Space)
		switch {
		case space.Space == "": // said by the decoder
		case err != nil:
			p.errorf(at, `"*", "example.com" or "*.example.com"`, "%q is not an address space", clip(space.Space))
		case own[key]:
			p.errorf(at, "", "%q is there twice", key)
		default:
			own[key] = true
			for _, other := range c.Send[:i] {
				for _, o := range other.AddressSpaces {
					if k, err := parseSpace(o.Space); err == nil && k == key && o.Cost == space.Cost && !other.Disabled && !c.Send[i].Disabled && !other.conditions() && !c.Send[i].conditions() {
						p.warnf(at, "give them different costs", "connector %q has %q at cost %d too: the name decides", other.Name, key, o.Cost)
					}
				}
			}
		}
	}
}

func parseSpace(s string) (string, error) {
	if s == "*" {
		return s, nil
	}
	domain, sub := strings.CutPrefix(s, "*.")
	key, err := mail.ParseDomain(domain)
	if err != nil || strings.HasPrefix(key, "[") && sub {
		return "", errors.New("not an address space")
	}
	if sub {
		key = "*." + key
	}
	return key, nil
}

// Split gives the smart host's name or address and its port.
func (h SmartHost) Split() (host string, port uint16, err error) {
	host, word, err := net.SplitHostPort(h.Host)
	if err != nil {
		host, word = strings.TrimSuffix(strings.TrimPrefix(h.Host, "["), "]"), "25"
	}
	n, err := strconv.ParseUint(word, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q has no port number after its colon", clip(h.Host))
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.String(), uint16(n), nil
	}
	name, err := mail.ParseDomain(host)
	if err != nil || strings.HasPrefix(name, "[") {
		return "", 0, fmt.Errorf("%q is neither a name nor an address", clip(host))
	}
	return name, uint16(n), nil
}

func checkHosts(s *SendConnector, p *collector, path string) {
	seen := map[string]bool{}
	for i, h := range s.SmartHosts {
		at := fmt.Sprintf("%s.smart_hosts[%d]", path, i)
		if h.Host == "" {
			if len(s.SmartHosts) > 0 {
				p.errorf(at, "", "empty")
			}
			continue
		}
		host, port, err := h.Split()
		key := fmt.Sprintf("%s %d", host, port)
		switch {
		case err != nil:
			p.errorf(at, `such as "smtp.example.net:587"`, "%v", err)
		case seen[key]:
			p.errorf(at, "", "%s is there twice", clip(h.Host))
		}
		seen[key] = true
	}
	if s.Route == "mx" && len(s.SmartHosts) > 0 {
		p.errorf(path+".route", "remove smart_hosts, or set route: smart_hosts", "mx uses no smart hosts, and there are some")
	}
	if s.Route == "smart_hosts" && len(s.SmartHosts) == 0 {
		p.errorf(path+".smart_hosts", `such as ["smtp.example.net:587"]`, "route is smart_hosts, and there are none")
	}
}

func checkSendTLS(c *Config, s *SendConnector, p *collector, path string) {
	if name := s.TLS.ClientCertificate; name != "" {
		if _, ok := c.Certificates[name]; !ok {
			p.errorf(path+".tls.client_certificate", "name it under certificates", "there is no certificate %q", clip(name))
		}
	}
	checkPublished(c, s, p, path+".tls")
	if s.TLS.Implicit && s.Route == "mx" {
		p.errorf(path+".tls.implicit", "", "mail exchangers do not speak TLS from the first octet")
	}
	if s.TLS.Implicit && s.TLS.Level == "none" {
		p.errorf(path+".tls.implicit", "", "the level is none")
	}
	if s.Route == "mx" && (s.TLS.Level == "verify" || s.TLS.Level == "verify_name") && slices.ContainsFunc(s.AddressSpaces, func(a Space) bool { return a.Space == "*" }) {
		p.warnf(path+".tls.level", "opportunistic is the custom between strangers", "many domains of the internet cannot be reached with %s", s.TLS.Level)
	}
}

func checkSendAuth(c *Config, s *SendConnector, p *collector, path string) {
	a := &s.Auth
	mechanism := strings.ToUpper(a.Mechanism)
	switch {
	case a.Mechanism == "none":
		if a.any() {
			p.errorf(path+".mechanism", "such as PLAIN", "there are credentials, and no mechanism to use them")
		}
		return
	case !slices.Contains(sendMechanisms, mechanism):
		p.errorf(path+".mechanism", "", "%q is none of none, %s", clip(a.Mechanism), strings.Join(sendMechanisms, ", "))
		return
	}
	a.Mechanism = mechanism
	if s.Route == "mx" {
		p.errorf(path, "", "there is nobody to log in at: route is mx")
	}
	checkCredentials(c, a, p, path)
	if mechanism == "XOAUTH2" && s.TLS.Level != "verify" && s.TLS.Level != "verify_name" && s.TLS.Level != "none" {
		p.warnf(path, "set tls.level to verify_name", "tokens are given to a host that proves nothing: tls.level is %s", s.TLS.Level)
	}
	if s.TLS.Level == "none" && !a.BeforeTLS {
		p.errorf(path, "raise tls.level, or set before_tls", "credentials are sent under TLS only, and tls.level is none")
	}
	if a.BeforeTLS {
		p.warnf(path+".before_tls", "", "credentials may cross the network in clear")
	}
}

func checkRetry(r Retry, p *collector, path string) {
	if len(r.Schedule) == 0 {
		p.errorf(path+".schedule", "such as [1m, 5m, 10m]", "empty")
	}
	var sum Duration
	for i, d := range r.Schedule {
		if d < second || d > Week {
			p.errorf(fmt.Sprintf("%s.schedule[%d]", path, i), "", "%v is not between 1s and 7d", d)
		}
		sum += d
	}
	switch {
	case r.Lifetime < minute:
		p.errorf(path+".lifetime", "", "%v is less than 1m", r.Lifetime)
	case len(r.Schedule) > 0 && r.Lifetime <= r.Schedule[0]:
		p.errorf(path+".lifetime", "", "%v ends before the first retry, after %v", r.Lifetime, r.Schedule[0])
	case r.Lifetime < sum:
		p.warnf(path+".lifetime", "", "%v ends before the schedule does, after %v", r.Lifetime, sum)
	}
	if r.DelayDSN > 0 && r.DelayDSN >= r.Lifetime {
		p.errorf(path+".delay_dsn", "0s for never", "%v is not before the end of the lifetime, %v", r.DelayDSN, r.Lifetime)
	}
}

func checkHTTP(c *Config, p *collector) {
	at, err := parseListen(c.HTTP.Listen)
	switch {
	case err != nil:
		p.errorf("http.listen", `such as "127.0.0.1:8025"`, "%v", err)
	case !at.Addr().IsLoopback() && c.HTTP.TokensFile == "":
		p.errorf("http.listen", "set http.tokens_file, or listen on 127.0.0.1", "%s can be reached from elsewhere, and anyone could read and change the queue", c.HTTP.Listen)
	}
}

// checkFiles looks at the files that the configuration names.
func checkFiles(c *Config, p *collector) {
	for name, cert := range c.Certificates {
		checkCertificate(cert, p, join("certificates", name))
	}
	if c.Users.File != "" {
		switch users, err := auth.OpenUsers(c.Users.File); {
		case errors.Is(err, os.ErrNotExist):
			p.errorf("users.file", "make it with waybill user add", "%s does not exist", c.Users.File)
		case err != nil:
			p.errorf("users.file", "", "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
		case len(users.List()) == 0:
			p.warnf("users.file", "waybill user add", "there are no users: nobody can log in")
		}
		checkPrivate(c.Users.File, p, "users.file")
	}
	checkUserFiles(c, p)
	checkIntegratedFiles(c, p)
	checkUsersCommandFile(c, p)
	checkTelemetryFiles(c, p)
	checkBackoffFile(c, p)
	checkReplies(c, p)
	checkReports(c, p)
	checkDirectoryFiles(c, p)
	if c.HTTP.TokensFile != "" {
		if _, err := LoadTokens(c.HTTP.TokensFile); err != nil {
			p.errorf("http.tokens_file", "", "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
	for i, r := range c.Receive {
		checkAuthorities(r.TLS.ClientCAFile, p, fmt.Sprintf("receive_connectors[%d].tls.client_ca_file", i))
	}
	for i, s := range c.Send {
		checkAuthorities(s.TLS.CAFile, p, fmt.Sprintf("send_connectors[%d].tls.ca_file", i))
		checkSendAuthFiles(s.Auth, p, fmt.Sprintf("send_connectors[%d].auth", i))
	}
	for i, d := range c.AcceptedDomains {
		if d.Recipients.File != "" {
			if _, err := d.Load(); err != nil {
				p.errorf(fmt.Sprintf("accepted_domains[%d].recipients.file", i), "", "%s", strings.ReplaceAll(plain(err), "\n", "; "))
			}
		}
	}
	if info, err := os.Stat(c.DataDir); err == nil && !info.IsDir() {
		p.errorf("data_dir", "", "%s is not a directory", c.DataDir)
	}
	if c.Log.File != "" {
		if info, err := os.Stat(filepath.Dir(c.Log.File)); err != nil || !info.IsDir() {
			p.errorf("log.file", "make it", "there is no directory %s", filepath.Dir(c.Log.File))
		}
	}
}

// checkPrivate warns when everybody on the machine can read a secret.
func checkPrivate(name string, p *collector, path string) {
	if info, err := os.Stat(name); err == nil && info.Mode().Perm()&0o004 != 0 {
		p.warnf(path, "chmod 600 "+name, "everybody on this machine can read %s", name)
	}
}

func checkAuthorities(name string, p *collector, path string) {
	if name == "" {
		return
	}
	if what, hint := readable(name); what != "" {
		p.errorf(path, hint, "%s", what)
		return
	}
	pem, err := os.ReadFile(name) //nolint:gosec // a file that the configuration names
	if err != nil || !x509.NewCertPool().AppendCertsFromPEM(pem) {
		p.errorf(path, "want a PEM file", "no certificate in %s", name)
	}
}

// soon is how long before its end a certificate gets a warning.
const soon = 14 * 24 * time.Hour

func checkCertificate(c Certificate, p *collector, path string) {
	ok := true
	for key, name := range map[string]string{"cert_file": c.CertFile, "key_file": c.KeyFile} {
		if name == "" {
			ok = false // said by the decoder
			continue
		}
		if what, hint := readable(name); what != "" {
			p.errorf(path+"."+key, hint, "%s", what)
			ok = false
		}
	}
	if !ok {
		return
	}
	checkPrivate(c.KeyFile, p, path+".key_file")
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		p.errorf(path, "", "%s", strings.TrimPrefix(err.Error(), "tls: "))
		return
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		p.errorf(path+".cert_file", "", "%v", err)
		return
	}
	switch left := time.Until(leaf.NotAfter); {
	case left < 0:
		p.warnf(path+".cert_file", "renew it", "the certificate ended on %s", leaf.NotAfter.Format(time.DateOnly))
	case left < soon:
		p.warnf(path+".cert_file", "renew it", "the certificate ends on %s", leaf.NotAfter.Format(time.DateOnly))
	}
}
