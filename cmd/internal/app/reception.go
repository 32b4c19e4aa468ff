package app

import (
	"errors"
	"maps"
	"reflect"

	"waybill/cmd/internal/config"
	"waybill/relay/auth"
	"waybill/relay/auth/oauth"
	"waybill/relay/event"
	"waybill/relay/recipients"
	"waybill/relay/smtpin"
	"waybill/relay/tlsconf"
)

// reception is what the receive connectors of one configuration are made of. A
// reload makes another one and swaps; sessions that are open keep the one that
// they began with.
type reception struct {
	certs      *tlsconf.Certificates
	users      *auth.Users     // nil without a password file
	tokens     *oauth.Verifier // nil when nobody issues tokens
	others     integrated      // who logs in otherwise than with our passwords
	outside    *outside
	connectors []smtpin.Connector
	fresh      bool // the certificates are not those of before, and have not been announced
}

// newReception makes what cfg asks for. Certificates and users whose files have
// the same names are those of before, read again when the files have changed, as
// they are now and then anyway; so are the keys of token issuers. The first was
// is nil. What goes wrong later goes to emit.
func newReception(cfg *config.Config, was *reception, before *config.Config, emit event.Emitter, prober recipients.Prober) (*reception, error) {
	r := &reception{}
	var err error
	if r.outside, err = openOutside(cfg, emit, prober); err != nil {
		return nil, err
	}
	if was != nil && maps.Equal(cfg.Certificates, before.Certificates) {
		r.certs = was.certs
		_, err = r.certs.Reload()
	} else {
		r.fresh = true
		r.certs, err = tlsconf.Load(certificateSources(cfg), event.Emitter{})
	}
	switch {
	case cfg.Users.File == "":
	case was != nil && was.users != nil && cfg.Users.File == before.Users.File:
		r.users = was.users
		_, usersErr := r.users.Reload()
		err = errors.Join(err, usersErr)
	default:
		var usersErr error
		r.users, usersErr = auth.OpenUsers(cfg.Users.File)
		err = errors.Join(err, usersErr)
	}
	if err != nil {
		return nil, err
	}
	var others integrated
	if was != nil {
		others = was.others
	}
	if r.others, err = newIntegrated(cfg, r.users, others); err != nil {
		return nil, err
	}
	if was != nil && was.users == r.users && reflect.DeepEqual(cfg.Users.OAuth, before.Users.OAuth) {
		r.tokens = was.tokens
	} else if r.tokens, err = tokenVerifier(cfg, r.users, emit); err != nil {
		return nil, err
	}
	certificates, err := clientCertificates(cfg, r.users)
	if err != nil {
		return nil, err
	}
	logins, err := authenticator(cfg, r.users, r.tokens, certificates, r.outside, r.others)
	if err != nil {
		return nil, err
	}
	if r.connectors, err = receiveConnectors(cfg, r.certs, logins, certificates, r.outside); err != nil || r.users == nil {
		return r, err
	}
	for i := range r.connectors {
		r.connectors[i].Lookup = r.users.Lookup
	}
	return r, nil
}

// take is called when r comes into use.
func (r *reception) take(emit event.Emitter) *reception {
	if r.fresh {
		r.certs.Announce(emit)
		r.fresh = false
	}
	return r
}
