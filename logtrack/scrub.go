package logtrack

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"reflect"
	"strings"
	"unicode/utf8"

	"waybill/relay/event"
)

// Privacy says how addresses are kept: with keys, as keyed hashes of their
// local parts. They are found by their exact value and by their domain. The
// first key makes hashes; facts that were hashed with the others are found too,
// so that a key can be replaced.
type Privacy struct {
	Keys [][]byte
	// Subjects gives the forms in which who states a fact may have written a
	// subject; nil: as it is.
	Subjects func(subject string) []string
	// NoSubjects says that who states a fact leaves its subject out.
	NoSubjects bool
}

// on reports whether addresses are hashed.
func (p *Privacy) on() bool { return p != nil && len(p.Keys) > 0 }

// hashMark begins a local part that is a hash.
const hashMark = "~"

// hash is the local part that stands for an address, with its domain as it was.
func (p *Privacy) hash(key []byte, address string) string {
	at := strings.LastIndexByte(address, '@')
	if at <= 0 || isHashed(address) {
		return address
	}
	mac := hmac.New(sha256.New, key)
	_, _ = mac.Write([]byte(addressKey(address))) // never fails
	return hashMark + hex.EncodeToString(mac.Sum(nil)[:10]) + address[at:]
}

// isHashed reports whether an address has been hashed already.
func isHashed(address string) bool {
	at := strings.LastIndexByte(address, '@')
	return at == 21 && address[0] == hashMark[0] && strings.Trim(address[1:at], "0123456789abcdef") == ""
}

// hashes are all forms that an address can have in the store: plain, from
// before hashing was turned on, and hashed with each key.
func (p *Privacy) hashes(address string) []string {
	list := []string{addressKey(address)}
	if p != nil {
		for _, key := range p.Keys {
			if h := addressKey(p.hash(key, address)); h != list[0] {
				list = append(list, h)
			}
		}
	}
	return list
}

// protect hashes the addresses in r, which is not changed.
func (p *Privacy) protect(r *event.Record) *event.Record {
	if !p.on() {
		return r
	}
	out, changed := mapTexts(r, func(_ *leaf, s string) string {
		return replaceAddresses(s, func(a string) string { return p.hash(p.Keys[0], a) })
	})
	if !changed {
		return r
	}
	return &out
}

// addressLeaves are the fields that hold one address each.
var addressLeaves = map[string]bool{
	"mail_from": true, "header_from": true, "recipient": true, "recipients.address": true, "orig_address": true,
	"recipients.orig_address": true, "auth_user": true,
}

// untouched are fields that have an "@" and no address of a person.
var untouched = map[string]bool{"header_message_id": true, "stack": true, "envid": true}

// mapTexts changes the texts of a fact. The original stays as it is.
func mapTexts(r *event.Record, change func(l *leaf, s string) string) (event.Record, bool) {
	p := planOf(r)
	if p == nil {
		return *r, false
	}
	old := reflect.ValueOf(r.Event)
	var now reflect.Value
	edit := func() reflect.Value {
		if !now.IsValid() {
			now = reflect.New(p.typ).Elem()
			now.Set(old)
		}
		return now
	}
	for i := range p.leaves {
		l := &p.leaves[i]
		f := old.FieldByIndex(l.index)
		switch {
		case l.kind == kindString && !untouched[l.name]:
			if s := f.String(); s != "" {
				if n := change(l, s); n != s {
					edit().FieldByIndex(l.index).SetString(n)
				}
			}
		case l.kind == kindList:
			var list reflect.Value
			for k := range f.Len() {
				for j := range l.sub {
					sub := &l.sub[j]
					if sub.kind != kindString {
						continue
					}
					s := f.Index(k).FieldByIndex(sub.index).String()
					if s == "" {
						continue
					}
					n := change(sub, s)
					if n == s {
						continue
					}
					if !list.IsValid() {
						list = reflect.MakeSlice(f.Type(), f.Len(), f.Len())
						reflect.Copy(list, f)
						edit().FieldByIndex(l.index).Set(list)
					}
					list.Index(k).FieldByIndex(sub.index).SetString(n)
				}
			}
		}
	}
	if !now.IsValid() {
		return *r, false
	}
	out := *r
	out.Event, _ = reflect.TypeAssert[event.Event](now)
	return out, true
}

// replaceAddresses changes what looks like an address in a text.
func replaceAddresses(s string, change func(string) string) string {
	if strings.IndexByte(s, '@') < 0 {
		return s
	}
	if strings.HasPrefix(s, `"`) && strings.Contains(s, `"@`) { // a quoted local part may have anything in it
		if at := strings.LastIndexByte(s, '@'); strings.Trim(s[at+1:], domainChars) == "" {
			return change(s)
		}
	}
	var b strings.Builder
	done, last := 0, 0 // what is written, and where the last address ended
	for i := 0; i < len(s); i++ {
		if s[i] != '@' {
			continue
		}
		start, end := i, i+1
		for start > last && isLocal(s[start-1]) {
			start--
		}
		for end < len(s) && isDomain(s[end]) {
			end++
		}
		for end > i+1 && (s[end-1] == '.' || s[end-1] == '-') {
			end--
		}
		if start == i || end == i+1 {
			continue
		}
		if n := change(s[start:end]); n != s[start:end] {
			b.WriteString(s[done:start])
			b.WriteString(n)
			done = end
		}
		last = end
		i = end - 1
	}
	if done == 0 {
		return s
	}
	b.WriteString(s[done:])
	return b.String()
}

const domainChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-."

func isDomain(c byte) bool { return c >= utf8.RuneSelf || strings.IndexByte(domainChars, c) >= 0 }

// isLocal reports whether c may stand in a local part without quotes (RFC 5322
// section 3.2.3, RFC 6531 section 3.3).
func isLocal(c byte) bool {
	return isDomain(c) || c > ' ' && strings.IndexByte("!#$%&'*+/?^_`{|}~=", c) >= 0
}

// Erased is what stands for an address that was erased.
const Erased = "erased@erased.invalid"

// personal are further fields that tell of the sender, or what was written.
var personal = map[string]bool{"subject": true, "client_name": true, "helo": true, "auth_user": true, "header_from": true, "envid": true}

// erase takes an address out of a fact: out of its fields and its texts. A fact
// of which it is the sender or a recipient loses the subject too, and one of
// which it is the sender, who and where the client was. A conversation in which
// it was said is not kept at all.
func erase(r *event.Record, match func(address string) bool) (out event.Record, changed, drop bool) {
	sender, party := false, false
	out, changed = mapTexts(r, func(l *leaf, s string) string {
		if addressLeaves[l.name] && match(s) {
			party = true
			sender = sender || l.name == "mail_from" || l.name == "header_from" || l.name == "auth_user"
			return Erased
		}
		return replaceAddresses(s, func(a string) string {
			if match(a) {
				return Erased
			}
			return a
		})
	})
	if !changed {
		return out, false, false
	}
	if _, ok := r.Event.(event.TranscriptKept); ok {
		return out, true, true
	}
	if !party {
		return out, true, false
	}
	p := planOf(r)
	v := reflect.New(p.typ).Elem()
	v.Set(reflect.ValueOf(out.Event))
	for i := range p.leaves {
		l := &p.leaves[i]
		if l.name == "subject" || sender && (personal[l.name] || l.name == "client_ip" || l.name == "header_message_id") {
			v.FieldByIndex(l.index).SetZero()
		}
	}
	out.Event, _ = reflect.TypeAssert[event.Event](v)
	return out, true, false
}
