package queue

import (
	"waybill/relay/mail"
)

// ident is a queue ID in the form that memory and segments use: the 128 bits of
// a ULID, in an order that is that of the text.
type ident [16]byte

const idAlphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

var idValues = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i := range len(idAlphabet) {
		t[idAlphabet[i]] = byte(i)
	}
	return t
}()

// parseIdent reads a queue ID and reports whether it is one.
func parseIdent(s mail.QueueID) (id ident, ok bool) {
	if len(s) != 26 || s[0] > '7' {
		return id, false
	}
	var hi, lo uint64
	for i := range 26 {
		v := idValues[s[i]]
		if v == 0xff {
			return id, false
		}
		hi = hi<<5 | lo>>59
		lo = lo<<5 | uint64(v)
	}
	for i := 7; i >= 0; i-- {
		id[i], id[i+8] = byte(hi), byte(lo)
		hi, lo = hi>>8, lo>>8
	}
	return id, true
}

// QueueID is id as text.
func (id ident) QueueID() mail.QueueID {
	var hi, lo uint64
	for i := range 8 {
		hi, lo = hi<<8|uint64(id[i]), lo<<8|uint64(id[i+8])
	}
	var out [26]byte
	for i := 25; i >= 0; i-- {
		out[i] = idAlphabet[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return mail.QueueID(out[:])
}
