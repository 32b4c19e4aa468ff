package smtpout

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"waybill/relay/mail"
	"waybill/relay/sevenbit"
)

// EightBit is what becomes of a message for a host that does not take its content
// as it is.
type EightBit string

// What becomes of it.
const (
	EightBitConvert EightBit = "convert" // it is rewritten, part by part
	EightBitBounce  EightBit = "bounce"  // it goes back to its sender
	EightBitSend    EightBit = "send"    // it goes as it is, against RFC 6152 section 3; binary content bounces
)

// refuse decides against recipients at this next hop, for what it cannot take.
func (t *transaction) refuse(idx []int, code int, enhanced string, class mail.Class, format string, args ...any) {
	if len(idx) == 0 {
		return
	}
	f := ours("MAIL", code, enhanced, class, format, args...)
	t.a.log.note(f.reply.String())
	t.a.decideAll(idx, f)
}

// unread is the failure of content that cannot be read: no host can help.
func unread(err error) *failure {
	f := ours("", 451, "4.3.0", mail.ClassOther, "%v", err)
	f.hopeless = true
	return f
}

// prepare asks what this next hop can take, refuses for it what it cannot, and
// returns MAIL's argument. Without an argument, nothing is to be sent.
func (t *transaction) prepare() (string, *failure) {
	a, s, env := t.a, t.s, &t.a.m.Envelope
	a.body.plan = nil
	if env.RequireTLS {
		if f := s.guarded(a.hop.Name); f != nil {
			return "", f
		}
	}
	byParam, f := s.deliverBy(env.DeliverBy, time.Now())
	if f != nil {
		return "", f
	}
	if t.oversized(); len(a.pending) == 0 {
		return "", nil
	}
	if f := t.addresses(); f != nil || len(a.pending) == 0 {
		return "", f
	}
	if err := a.body.open(); err != nil {
		return "", unread(err)
	}
	bodyParam, f := t.fit()
	if f != nil || len(a.pending) == 0 {
		return "", f
	}
	return t.mailArg(bodyParam, byParam), nil
}

// oversized refuses what is larger than the host says that it takes (RFC 1870
// section 6.1).
func (t *transaction) oversized() {
	if limit := t.s.ext.maxSize; limit > 0 && t.size > limit {
		t.refuse(t.a.pending, 552, "5.3.4", mail.ClassSize, "message of %d octets is larger than %s takes (%d)", t.size, t.s.at.name, limit)
	}
}

// addresses refuses the recipients, or all of them, whose addresses this host
// cannot be told.
func (t *transaction) addresses() *failure {
	a, env := t.a, &t.a.m.Envelope
	if !safeAddress(env.Sender) {
		t.refuse(a.pending, 553, "5.1.7", mail.ClassOther, "sender address cannot be sent")
		return nil
	}
	t.utf8 = env.UTF8 || !env.Sender.ASCII()
	var strange, unsafe []int
	for _, i := range a.pending {
		switch addr := env.Recipients[i].Address; {
		case addr.IsNull() || !safeAddress(addr):
			unsafe = append(unsafe, i)
		case !addr.ASCII():
			strange = append(strange, i)
		}
	}
	t.refuse(unsafe, 553, "5.1.3", mail.ClassOther, "recipient address cannot be sent")
	if t.utf8 = t.utf8 || len(strange) > 0; !t.utf8 || t.s.ext.utf8 {
		return nil
	}
	t.utf8 = false // RFC 6531 section 3.2: never downgraded
	header := false
	if env.UTF8 {
		var err error
		if header, err = a.body.eightBitHeader(); err != nil {
			return unread(err)
		}
	}
	if header || !env.Sender.ASCII() {
		strange = a.pending
	}
	t.refuse(strange, 553, "5.6.7", mail.ClassContent, "%s does not take internationalised addresses or header fields", t.s.at.name)
	return nil
}

// fit finds out how the content can go to this host: as it is, or converted (RFC
// 6152 section 3, RFC 3030 section 3). It returns MAIL's parameter about it.
func (t *transaction) fit() (param string, f *failure) {
	a, env, ext := t.a, &t.a.m.Envelope, &t.s.ext
	binary := env.Body == mail.BodyBinaryMIME
	switch {
	case binary && ext.binary && ext.chunking:
		t.bdat = true
		return " BODY=BINARYMIME", nil
	case env.Body == mail.Body8BitMIME && ext.eightBit:
		return " BODY=8BITMIME", nil
	}
	eight, err := a.body.eightBit()
	if err != nil {
		return "", unread(err)
	}
	if eight && ext.eightBit {
		param = " BODY=8BITMIME"
	}
	if !binary && (!eight || ext.eightBit) {
		return param, nil
	}
	what := "8-bit"
	if binary {
		what = "binary"
	}
	do := a.c.opts.EightBit
	if do == EightBitConvert {
		err := a.body.convert(sevenbit.Options{Binary: binary, EightBit: ext.eightBit})
		e, ok := errors.AsType[*sevenbit.Error](err)
		switch {
		case ok && (binary || a.c.opts.Unconvertible != EightBitSend):
			t.refuse(a.pending, 554, "5.6.3", mail.ClassContent, "%s does not take %s content, and this cannot be converted: %s", t.s.at.name, what, e.Reason)
			return "", nil
		case ok:
			return param, nil
		case err != nil:
			return "", unread(err)
		}
		t.size = a.body.size()
		t.oversized()
		return param, nil
	}
	if do == EightBitSend && !binary {
		return param, nil
	}
	t.refuse(a.pending, 554, "5.6.3", mail.ClassContent, "%s does not take %s content", t.s.at.name, what)
	return "", nil
}

// mailArg is MAIL's argument.
func (t *transaction) mailArg(bodyParam, byParam string) string {
	env, ext := &t.a.m.Envelope, &t.s.ext
	var b strings.Builder
	b.Grow(128)
	b.WriteString("FROM:<")
	b.WriteString(env.Sender.String())
	b.WriteByte('>')
	if ext.size && t.size > 0 {
		b.WriteString(" SIZE=")
		b.WriteString(strconv.FormatInt(t.size, 10))
	}
	b.WriteString(bodyParam)
	if t.utf8 {
		b.WriteString(" SMTPUTF8")
	}
	if env.RequireTLS {
		b.WriteString(" REQUIRETLS")
	}
	if ext.priority && env.Priority != 0 { // RFC 6710 section 4.3
		b.WriteString(" MT-PRIORITY=" + strconv.Itoa(int(env.Priority)))
	}
	b.WriteString(byParam)
	if ext.dsn { // RFC 3461 section 4
		if env.Ret != "" && safe(env.Ret) {
			b.WriteString(" RET=" + env.Ret)
		}
		if env.EnvID != "" {
			b.WriteString(" ENVID=" + mail.EncodeXText(env.EnvID))
		}
	}
	return b.String()
}
