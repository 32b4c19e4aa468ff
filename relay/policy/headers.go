package policy

import "bytes"

// organisation are the beginnings, in lower case, of header fields by which servers of
// one Exchange organisation tell each other what to think of a message: that it
// comes from inside, is no spam, has been looked at. From anybody else they are a
// lie, and the server behind us, which trusts us, would believe it.
var organisation = [][]byte{[]byte("x-ms-exchange-organization-"), []byte("x-ms-exchange-forest-")}

// TrustedField reports whether a header field that begins with start is one that
// only peers with the right KeepHeaders may hand in. It is not known yet when
// start is too short to tell.
func TrustedField(start []byte) (is, known bool) {
	known = true
	for _, name := range organisation {
		n := min(len(name), len(start))
		if !bytes.EqualFold(start[:n], name[:n]) {
			continue
		}
		if n == len(name) {
			return true, true
		}
		known = false
	}
	return false, known
}
