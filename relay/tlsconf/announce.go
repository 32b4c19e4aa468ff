package tlsconf

import "waybill/relay/event"

// Announce states the certificates that are in use, and has all later facts go to
// emit. It is for certificates that were loaded without an Emitter, since it was
// not known whether they would be taken into use, and comes before that.
func (c *Certificates) Announce(emit event.Emitter) {
	c.emit = emit
	for _, e := range c.entries {
		c.emit.Emit(event.CertificateReloaded{Certificate: e.Name, NotAfter: e.cert.Leaf.NotAfter})
	}
}
