package transcript

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/reuse"
)

// MaxOctets bounds the memory of a Log: its beginning, and two halves of its end
// of which the older one is forgotten when the newer one is full. A usual
// session with one message takes less than 1 KiB.
const MaxOctets = headOctets + 2*tailOctets

// Bounds chosen by taste.
const (
	headOctets = 8 << 10
	tailOctets = 12 << 10
	lineOctets = 512 // kept of one line
	firstAlloc = 1 << 10
)

// The words of [event.Line.From].
const (
	FromClient = "client"
	FromServer = "server"
	FromNote   = "note" // not said by anybody: what the relay knows about the conversation
)

const (
	client byte = iota
	server
	note
)

var speakers = [...]string{client: FromClient, server: FromServer, note: FromNote}

var masked = []byte("***")

// Party is whose conversation a Log holds.
type Party struct {
	Session    string
	Direction  string // event.Inbound, event.Outbound
	Connector  string
	ClientIP   netip.Addr   // inbound
	RemoteName string       // outbound
	RemoteIP   netip.Addr   // outbound
	Message    mail.QueueID // outbound
}

// Log is the conversation of one session or of one attempt. A nil Log keeps
// nothing. One goroutine uses it.
type Log struct {
	start time.Time
	count int  // lines ever said
	auth  bool // an AUTH exchange is open

	keep         bool
	full         bool   // of the head
	head         []byte // entries; see put
	older, newer []byte
	nOlder       int // entries
	nNewer       int
	lost         int

	tap  *Tap
	who  Party
	gen  uint64 // of the tap when ears was made
	ears []*Watcher
}

// New returns a Log that begins now. Without keep its lines go to tap only; tap
// may be nil.
func New(now time.Time, keep bool, tap *Tap, who Party) *Log {
	if !keep && tap == nil {
		return nil
	}
	l := logs.Get().(*Log)
	l.start, l.keep, l.tap, l.who = now, keep, tap, who
	return l
}

// logs are those that were given back. Most conversations are forgotten a moment
// after they began, and their memory serves the next.
var logs = sync.Pool{New: func() any { return new(Log) }}

// Free gives the memory of l back. Nobody may use l after it; what Lines returned
// stays. Without it, the collector does the same.
func (l *Log) Free() {
	if l == nil {
		return
	}
	head := l.head
	if cap(head) > firstAlloc { // of a long one
		head = nil
	}
	reuse.Spoil(head)
	*l = Log{head: head[:0]}
	logs.Put(l)
}

// Identify says whose conversation it is from now on.
func (l *Log) Identify(who Party) {
	if l != nil {
		l.who, l.gen = who, 0
	}
}

// Began is when the Log began.
func (l *Log) Began() time.Time {
	if l == nil {
		return time.Time{}
	}
	return l.start
}

// Client takes a line that the client said, without its end.
func (l *Log) Client(now time.Time, text []byte) {
	if l == nil {
		return
	}
	n := int64(len(text))
	switch {
	case l.auth:
		if len(text) != 1 || text[0] != '*' { // which cancels (RFC 4954 section 4)
			text = masked
		}
	case isAuth(text):
		l.auth = true
		text = shownAuth(text)
	}
	l.say(now, client, text, n)
}

// Server takes a line that the server said, without its end.
func (l *Log) Server(now time.Time, text []byte) {
	if l == nil {
		return
	}
	n := int64(len(text))
	if bytes.HasPrefix(text, []byte("334")) { // a challenge (RFC 4954 section 4)
		text = []byte("334 ***")
	} else {
		l.auth = false
	}
	l.say(now, server, text, n)
}

// Content says that the client sent n octets of content.
func (l *Log) Content(now time.Time, n int64) {
	if l != nil {
		l.say(now, client, []byte("(content)"), n)
	}
}

// Note adds what nobody said, such as why the session ended.
func (l *Log) Note(now time.Time, text string) {
	if l != nil {
		l.say(now, note, []byte(text), 0)
	}
}

// isAuth reports whether a line is an AUTH command, or was meant to be one.
func isAuth(line []byte) bool {
	return len(line) >= 4 && bytes.EqualFold(line[:4], []byte("AUTH")) && (len(line) == 4 || !isWord(line[4]))
}

func isWord(b byte) bool {
	return b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z' || b >= '0' && b <= '9'
}

// shownAuth is what of an AUTH command may be kept: the name of a mechanism that
// is known.
func shownAuth(line []byte) []byte {
	words := bytes.Fields(line[4:])
	out := []byte("AUTH")
	if len(words) > 0 {
		out = append(append(out, ' '), Mechanism(string(words[0]))...)
	}
	if len(words) > 1 {
		out = append(append(out, ' '), masked...)
	}
	return out
}

// mechanisms are the SASL mechanisms that records name.
var mechanisms = []string{
	"PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS",
	"XOAUTH2", "OAUTHBEARER", "GSSAPI", "GSS-SPNEGO", "NTLM", "EXTERNAL", "ANONYMOUS",
}

// Mechanism is word as records may hold it: the name of a SASL mechanism, or
// "other", since clients have been seen to send the credential in its place.
func Mechanism(word string) string {
	for _, m := range mechanisms {
		if strings.EqualFold(m, word) {
			return m
		}
	}
	return "other"
}

func (l *Log) say(now time.Time, from byte, text []byte, n int64) {
	l.count++
	at := now.Sub(l.start)
	if l.keep {
		l.put(at, from, text[:min(len(text), lineOctets)], n)
	}
	if l.tap != nil {
		if gen := l.tap.gen.Load(); gen != 0 {
			l.aloud(gen, now, from, text, n)
		}
	}
}

// put adds an entry: the time in microseconds, the speaker, the octets and the
// length as varints, and the text.
func (l *Log) put(at time.Duration, from byte, text []byte, n int64) {
	var fixed [3*binary.MaxVarintLen64 + 1]byte
	b := binary.AppendUvarint(fixed[:0], uint64(max(at.Microseconds(), 0)))
	b = append(b, from)
	b = binary.AppendUvarint(b, uint64(max(n, 0)))
	b = binary.AppendUvarint(b, uint64(len(text)))
	need := len(b) + len(text)
	if !l.full {
		if len(l.head)+need <= headOctets {
			if cap(l.head) == 0 {
				l.head = make([]byte, 0, firstAlloc)
			}
			l.head = append(append(l.head, b...), text...)
			return
		}
		l.full = true
	}
	if len(l.newer)+need > tailOctets {
		l.lost += l.nOlder
		l.older, l.newer = l.newer, l.older[:0]
		l.nOlder, l.nNewer = l.nNewer, 0
	}
	l.newer = append(append(l.newer, b...), text...)
	l.nNewer++
}

// Lines are the conversation as facts have it, the number of lines that were
// said, and how many of them are left out. A line in the place of those that are
// left out says so too.
func (l *Log) Lines() (lines []event.Line, said, cut int) {
	if l == nil || !l.keep || l.count == 0 {
		return nil, 0, 0
	}
	lines = make([]event.Line, 0, l.count-l.lost+1)
	lines = l.read(lines, l.head, 1)
	if l.lost > 0 {
		last := lines[len(lines)-1]
		lines = append(lines, event.Line{Seq: last.Seq + l.lost, At: last.At, From: FromNote, Text: fmt.Sprintf("(%d lines left out)", l.lost)})
	}
	first := l.count - l.nNewer - l.nOlder + 1
	lines = l.read(lines, l.older, first)
	lines = l.read(lines, l.newer, first+l.nOlder)
	return lines, l.count, l.lost
}

// read decodes entries; seq is the number of the first.
func (l *Log) read(lines []event.Line, b []byte, seq int) []event.Line {
	all := string(b) // which the lines share
	for i := 0; i < len(b); seq++ {
		at, n := binary.Uvarint(b[i:])
		i += n
		from := b[i]
		i++
		octets, n := binary.Uvarint(b[i:])
		i += n
		size, n := binary.Uvarint(b[i:])
		i += n
		end := i + int(size)                                                                                                                                   //nolint:gosec // put wrote it
		took := time.Duration(at) * time.Microsecond                                                                                                           //nolint:gosec // put wrote it
		lines = append(lines, event.Line{Seq: seq, At: event.Secs(took), From: speakers[from], Text: Printable(all[i:end], lineOctets), Bytes: int64(octets)}) //nolint:gosec // put wrote it
		i = end
	}
	return lines
}

// Printable is s as a record may hold it: at most limit octets, with control
// characters, invalid UTF-8 and invisible characters (such as those that turn
// the writing direction) escaped as in Go. A cut is marked by "…".
func Printable(s string, limit int) string {
	if len(s) <= limit && plain(s) {
		return s
	}
	return escaped(s, limit)
}

func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func escaped(s string, limit int) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		first := s[i]
		i += size
		mark := b.Len()
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, first)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		if b.Len() > limit {
			return b.String()[:mark] + "…"
		}
	}
	return b.String()
}
