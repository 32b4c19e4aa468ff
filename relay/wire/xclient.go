package wire

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"waybill/relay/mail"
)

// xclientWords are the attributes of XCLIENT, as EHLO announces them (Postfix,
// XCLIENT_README).
var xclientWords = []string{"NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT"}

// XClient is what a trusted client says of the one for whom it speaks. A field
// that it did not name, and one that it does not know, is zero; [XClient.Has]
// tells them apart.
type XClient struct {
	Name     string // host name
	Addr     netip.Addr
	Port     uint16
	ESMTP    bool // PROTO
	Helo     string
	Login    string
	DestAddr netip.Addr
	DestPort uint16
	has      []string
}

// Has reports whether an attribute was named, such as "LOGIN".
func (x XClient) Has(word string) bool { return slices.Contains(x.has, word) }

var errXClient = errors.New("malformed attribute")

// parseXClient reads the arguments of XCLIENT: attributes with values in xtext.
func parseXClient(args string) (x XClient, err error) {
	for word := range strings.FieldsSeq(args) {
		key, val, ok := strings.Cut(word, "=")
		key = strings.ToUpper(key)
		if !ok || !slices.Contains(xclientWords, key) || x.Has(key) {
			return x, errXClient
		}
		x.has = append(x.has, key)
		val, err := mail.DecodeXText(val)
		if err != nil || val == "" {
			return x, errXClient
		}
		if strings.EqualFold(val, "[UNAVAILABLE]") || strings.EqualFold(val, "[TEMPUNAVAIL]") {
			continue
		}
		if err := x.set(key, val); err != nil {
			return x, err
		}
	}
	if len(x.has) == 0 {
		return x, errXClient
	}
	return x, nil
}

func (x *XClient) set(key, val string) (err error) {
	switch key {
	case "NAME":
		x.Name, err = mail.ParseDomain(val)
	case "ADDR":
		x.Addr, err = xclientAddr(val)
	case "PORT":
		x.Port, err = xclientPort(val)
	case "DESTADDR":
		x.DestAddr, err = xclientAddr(val)
	case "DESTPORT":
		x.DestPort, err = xclientPort(val)
	case "PROTO":
		x.ESMTP = strings.EqualFold(val, "ESMTP")
		if !x.ESMTP && !strings.EqualFold(val, "SMTP") {
			return errXClient
		}
	case "HELO":
		if x.Helo = val; len(val) > 255 {
			return errXClient
		}
	case "LOGIN":
		if x.Login = val; len(val) > 255 {
			return errXClient
		}
	}
	if err != nil {
		return errXClient
	}
	return nil
}

func xclientAddr(val string) (netip.Addr, error) {
	if len(val) > 5 && strings.EqualFold(val[:5], "IPV6:") {
		val = val[5:]
	}
	ip, err := netip.ParseAddr(val)
	if ip = ip.Unmap(); err != nil || ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() {
		return netip.Addr{}, errXClient
	}
	return ip, nil
}

func xclientPort(val string) (uint16, error) {
	n, err := strconv.ParseUint(val, 10, 16)
	return uint16(n), err
}

// xclient lets a trusted client say for whom it speaks. The session begins anew,
// as if the other had connected, but for TLS, which stays, and for HELO, when
// it is among the attributes.
func (c *Conn) xclient(args []byte) {
	switch {
	case c.opts.Hooks.XClient == nil:
		c.offend(550, "5.7.0", "not allowed to you")
		return
	case c.tx:
		c.offend(503, "5.5.1", "not within a transaction")
		return
	case c.sasl: // go-smtp takes one AUTH a connection
		c.offend(503, "5.5.1", "not after AUTH")
		return
	}
	x, err := parseXClient(string(args))
	if err != nil {
		c.offend(501, "5.5.4", "malformed attribute")
		return
	}
	opts, e := c.opts.Hooks.XClient(x)
	if e != nil {
		cause := CauseErrors
		if e.Reply.Code == 421 {
			cause = CauseLimit
		}
		c.bye(cause, e.Reply.Code, e.Reply.Enhanced, e.Reply.Text)
		return
	}
	said := c.greeted // go-smtp has had its HELO, and needs no other
	c.opts = opts.withDefaults()
	c.greeted, c.esmtp, c.helo, c.env = false, false, "", mail.Envelope{}
	if x.Helo != "" {
		c.greeted, c.helo, c.esmtp = said, Printable(x.Helo, 255), x.ESMTP
	}
	if x.Has("LOGIN") {
		c.authed = x.Login != ""
	}
	c.Pause(opts.Delay)
	c.answered(220, "")
	c.now = none
	c.put(c.greeting())
	c.started = time.Now() // of this client's session
}

func (c *Conn) greeting() string { return "220 " + c.opts.Hostname + " " + c.opts.Banner }
