package smtpin

import (
	"bytes"
	"io"

	"waybill/relay/policy"
)

// firewall keeps header fields out that the client has no right to
// ([policy.TrustedField]), from a content that passes in whatever pieces it
// comes. It goes on to the first empty line, also past what is no field: who
// reads the message later may do so too. Its zero value is ready.
type firewall struct {
	done    bool
	inLine  bool   // not at the start of a line
	drop    bool   // the field of this line is kept out
	start   []byte // of a line, too short to tell what it is
	fields  int    // that were kept out
	removed int    // octets of them
}

// pass writes what may pass of the next octets of the content.
func (f *firewall) pass(p []byte, to io.Writer) error {
	if f.done {
		_, err := to.Write(p)
		return err
	}
	if len(f.start) > 0 {
		p, f.start = append(f.start, p...), nil
	}
	write := func(p []byte) error {
		if len(p) == 0 {
			return nil
		}
		_, err := to.Write(p)
		return err
	}
	kept := 0 // p[kept:i] may pass, and is not written yet
	for i := 0; i < len(p); {
		if !f.inLine {
			known := f.look(p[i:])
			if !known {
				f.start = bytes.Clone(p[i:])
				return write(p[kept:i])
			}
			if f.done {
				break
			}
			f.inLine = true
			if f.drop {
				if err := write(p[kept:i]); err != nil {
					return err
				}
			}
		}
		n := len(p) - i
		if end := bytes.IndexByte(p[i:], '\n'); end >= 0 {
			n, f.inLine = end+1, false
		}
		i += n
		if f.drop {
			f.removed += n
			kept = i
		}
	}
	return write(p[kept:])
}

// look decides about the line that begins with p, unless that is too short.
func (f *firewall) look(p []byte) (known bool) {
	switch {
	case p[0] == '\n', bytes.HasPrefix(p, []byte("\r\n")):
		f.done, f.drop = true, false
	case len(p) == 1 && p[0] == '\r':
		return false
	case p[0] == ' ', p[0] == '\t': // goes on as it began
	default:
		f.drop, known = policy.TrustedField(p)
		if f.drop {
			f.fields++
		}
		return known
	}
	return true
}

// end writes what is left when the content has ended.
func (f *firewall) end(to io.Writer) error {
	if len(f.start) == 0 {
		return nil
	}
	_, err := to.Write(f.start)
	f.start = nil
	return err
}
