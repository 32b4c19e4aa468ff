package wire

import (
	"crypto/tls"
	"errors"
	"os"
	"time"

	"waybill/relay/event"
	"waybill/relay/tlsconf"
)

// handshake makes cur a TLS connection, and states how that went.
func (c *Conn) handshake() error {
	began := time.Now()
	_ = c.raw.SetDeadline(began.Add(min(handshakeTime, c.opts.CommandTimeout)))
	t := tls.Server(c.raw, c.opts.TLS)
	ctx, certificate := noting()
	err := t.HandshakeContext(ctx)
	fact := event.TLSNegotiated{
		Direction: event.Inbound, Connector: c.opts.Connector, ClientIP: c.opts.Client, Verify: tlsconf.VerifiedNone, Took: event.Secs(time.Since(began)),
	}
	_ = c.raw.SetDeadline(time.Time{})
	if err != nil {
		fact.Failure, fact.Reason = Printable(err.Error(), 300), tlsconf.Reason(err)
		if peer := t.ConnectionState().PeerCertificates; len(peer) > 0 { // whose certificate was refused
			fact.Peer = Printable(peer[0].Subject.String(), 300)
		}
		cause := CauseProtocol
		switch {
		case c.isKilled():
			cause = CauseShutdown
		case errors.Is(err, os.ErrDeadlineExceeded):
			cause = CauseTimeout
		}
		c.setCause(cause)
		c.failed = true
		c.script.Note(time.Now(), "(TLS failed: "+fact.Failure+")")
		c.opts.Emitter.Emit(fact)
		return err
	}
	st := t.ConnectionState()
	c.cur, c.tls, c.own = t, &st, leaf(*certificate)
	fact.Version, fact.Cipher = tlsconf.VersionName(st.Version), tls.CipherSuiteName(st.CipherSuite)
	if len(st.PeerCertificates) > 0 {
		fact.Peer = Printable(st.PeerCertificates[0].Subject.String(), 300)
		// Whoever asks the state later finds chains there only when they were verified.
		st.VerifiedChains, fact.Verify, err = tlsconf.VerifyClient(st, c.opts.TLS.ClientCAs, c.opts.ClientNames)
		fact.Reason = tlsconf.Reason(err)
	}
	c.script.Note(time.Now(), "(TLS "+fact.Version+" "+fact.Cipher+")")
	if c.opts.Implicit && c.opts.Hooks.Secured != nil {
		c.opts.Hooks.Secured()
	}
	c.opts.Emitter.Emit(fact)
	return nil
}

// closeNotify tells a TLS client that what it got is all (RFC 8446 section 6.1).
// It is a record of a few octets: when it does not fit into the send buffer, the
// client takes nothing any more.
func (c *Conn) closeNotify() {
	t, ok := c.cur.(*tls.Conn)
	if !ok || c.notified || c.isKilled() {
		return
	}
	c.notified = true
	_ = c.raw.SetWriteDeadline(time.Now().Add(lingerTime)) // fails only on a closed connection, as CloseWrite does
	_ = t.CloseWrite()
}
