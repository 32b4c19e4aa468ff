package pickup

import (
	"errors"
	"fmt"
	"mime"
	netmail "net/mail"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"waybill/relay/mail"
	"waybill/relay/policy"
)

// parsed is what a header section says.
type parsed struct {
	env     mail.Envelope
	header  mail.Header
	section []byte // what goes on: without the fields for us and without Bcc; with its empty line
	names   []string
	eight   bool
}

// has reports whether there is a field.
func (p *parsed) has(name string) bool {
	return slices.ContainsFunc(p.names, func(n string) bool { return strings.EqualFold(n, name) })
}

// field is one header field: its lines as they came.
type field struct {
	name  string
	lines []string
}

// value is the unfolded value (RFC 5322 section 2.2.3).
func (f *field) value() string {
	_, v, _ := strings.Cut(strings.Join(f.lines, ""), ":")
	return strings.TrimSpace(v)
}

// parser collects what fields say of the envelope.
type parser struct {
	parsed
	rights     policy.Permissions
	sender     *mail.Envelope   // from X-Sender
	receivers  []mail.Recipient // from X-Receiver
	from       []mail.Address
	recipients []mail.Recipient // from To, Cc and Bcc
}

// control reads a field that is for us and not for recipients, as IIS SMTP and
// Exchange know them. It reports whether it was one.
func (p *parser) control(f *field) (bool, error) {
	switch strings.ToLower(f.name) {
	case "x-sender":
		if p.sender != nil {
			return true, errors.New("two X-Sender fields")
		}
		env, err := mail.ParseMail("FROM:" + bracketed(f.value()))
		if errors.Is(err, mail.ErrAddressUTF8) {
			env, err = mail.ParseMail("FROM:" + bracketed(f.value()) + " SMTPUTF8")
		}
		if err == nil && (env.RequireTLS || !env.Release.IsZero() || !env.DeliverBy.IsZero() || env.Body == mail.BodyBinaryMIME) {
			err = mail.ErrUnknownParameter
		}
		p.sender = &env
		return true, wrap("X-Sender", err)
	case "x-receiver":
		r, err := mail.ParseRcpt("TO:"+bracketed(f.value()), true)
		p.receivers = append(p.receivers, r)
		return true, wrap("X-Receiver", err)
	case "bcc", "resent-bcc":
		if f.value() == "" {
			return true, nil
		}
		list, err := addresses(f)
		p.add(list)
		return true, err
	case "x-createdby", "x-endofinjectedxheaders", "x-extendedmessageprops", "x-helodomain", "x-source", "x-sourceipaddress":
		return true, nil // what Exchange writes into its replay directory
	}
	return false, nil
}

func (p *parser) add(list []mail.Address) {
	for _, a := range list {
		p.recipients = append(p.recipients, mail.Recipient{Address: a})
	}
}

// parse reads a header section. Envelope addresses come from X-Sender and
// X-Receiver where they are there, and else from From and from To, Cc and Bcc.
func parse(section []string, rights policy.Permissions) (parsed, error) {
	p := parser{rights: rights}
	fields, err := split(section)
	if err != nil {
		return parsed{}, err
	}
	for i := range fields {
		if err := p.read(&fields[i]); err != nil {
			return parsed{}, refuse("syntax", "%w", err)
		}
	}
	p.section = append(p.section, '\n')
	p.header.Bytes = len(p.section)
	if p.header.Received > maxHops {
		return parsed{}, refuse("hops", "%d Received fields: mail loop", p.header.Received)
	}
	switch {
	case p.sender != nil:
		p.env = *p.sender
	case len(p.from) > 0:
		p.env.Sender = p.from[0]
	default:
		return parsed{}, refuse("syntax", "neither X-Sender nor From says whom the message is from")
	}
	recipients := p.receivers
	if len(recipients) == 0 {
		recipients = p.recipients
	}
	seen := map[string]bool{}
	for _, r := range recipients {
		if key := r.Address.Key(); !seen[key] {
			seen[key] = true
			p.env.Recipients = append(p.env.Recipients, r)
		}
		p.env.UTF8 = p.env.UTF8 || !r.Address.ASCII()
	}
	p.env.UTF8 = p.env.UTF8 || !p.env.Sender.ASCII()
	if len(p.env.Recipients) == 0 {
		return parsed{}, refuse("syntax", "neither X-Receiver nor To, Cc and Bcc say whom the message is for")
	}
	return p.parsed, nil
}

const maxHops = 30 // Received fields (RFC 5321 section 6.3)

// split makes fields of lines.
func split(section []string) ([]field, error) {
	var fields []field
	for i, l := range section {
		if l[0] == ' ' || l[0] == '\t' {
			if len(fields) == 0 {
				return nil, refuse("syntax", "the first line is not a header field")
			}
			f := &fields[len(fields)-1]
			f.lines = append(f.lines, l)
			continue
		}
		name, _, ok := strings.Cut(l, ":")
		name = strings.TrimRight(name, " \t")
		if !ok || name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, refuse("syntax", "line %d is not a header field; an empty line must come before the text", i+1)
		}
		fields = append(fields, field{name, []string{l}})
	}
	if len(fields) == 0 {
		return nil, refuse("syntax", "there is no header section")
	}
	return fields, nil
}

// read takes one field.
func (p *parser) read(f *field) error {
	if ours, err := p.control(f); ours || err != nil {
		return err
	}
	if trusted, _ := policy.TrustedField([]byte(f.name)); trusted && !p.rights.KeepHeaders {
		return nil
	}
	p.names = append(p.names, f.name)
	for _, l := range f.lines {
		p.section = append(append(p.section, l...), '\n')
	}
	switch strings.ToLower(f.name) {
	case "from", "sender":
		list, err := addresses(f)
		if err != nil {
			return err
		}
		if strings.EqualFold(f.name, "Sender") { // RFC 5322 section 3.6.2: the one that sent it
			p.from = append(list, p.from...)
		} else {
			p.from = append(p.from, list...)
			if len(list) > 0 { // an empty group is nobody
				p.header.From = printable(list[0].String())
			}
		}
	case "to", "cc", "resent-to", "resent-cc":
		if f.value() == "" {
			return nil
		}
		list, err := addresses(f)
		p.add(list)
		return err
	case "message-id":
		p.header.MessageID = printable(f.value())
	case "subject":
		p.header.Subject = f.value()
		if s, err := new(mime.WordDecoder).DecodeHeader(p.header.Subject); err == nil {
			p.header.Subject = s
		}
		p.header.Subject = printable(p.header.Subject)
	case "received":
		p.header.Received++
	}
	return nil
}

// bracketed puts a bare mailbox into angle brackets.
func bracketed(v string) string {
	if v == "" || v[0] == '<' {
		return v
	}
	mailbox, params, _ := strings.Cut(v, " ")
	return strings.TrimSpace("<" + mailbox + "> " + params)
}

// addresses reads a list of addresses.
func addresses(f *field) ([]mail.Address, error) {
	list, err := netmail.ParseAddressList(f.value())
	if err != nil { // such as "undisclosed-recipients:;"
		if strings.HasSuffix(f.value(), ":;") && strings.Count(f.value(), ":") == 1 {
			return nil, nil
		}
		return nil, wrap(f.name, err)
	}
	var out []mail.Address
	for _, a := range list {
		at := strings.LastIndexByte(a.Address, '@')
		addr, err := mail.ParseAddress(mail.Address{Local: a.Address[:max(at, 0)], Domain: a.Address[at+1:]}.String())
		if err != nil || at <= 0 {
			return nil, wrap(f.name, fmt.Errorf("%q is not an address", a.Address))
		}
		out = append(out, addr)
	}
	return out, nil
}

func wrap(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}

// printable is s as a record may hold it.
func printable(s string) string {
	const limit = 500
	var b strings.Builder
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			r = '?'
		}
		if b.Len() > limit {
			return b.String() + "…"
		}
		b.WriteRune(r)
	}
	return b.String()
}
