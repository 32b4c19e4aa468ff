// Package trackimport reads the logs of other mail servers as facts, so that
// one search covers what happened before and after a migration.
//
// It promises that lines are read as a stream in bounded memory, that a line
// that cannot be read is reported with its file and number and passed over, and
// that the same lines give the same facts with the same event ids, so that the
// store takes a log that is imported twice once. Every fact has the source
// "import", and its message the queue ID that the other server gave it as
// external_id.
//
// A message gets a queue ID of ours, made from its server, its own ID and the
// time of the first line about it. Give rotated files together and oldest
// first: what an earlier file said of a message is known in the next.
//
// To read another format, write a parser (one method for a line, one for the
// end) and add its line to formats.
package trackimport

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// Bounds of what one log may make us keep.
const (
	maxLine       = 1 << 20
	maxText       = 512 // of a reply or a remark, as in all facts
	maxAddress    = 1000
	maxRecipients = 5000
	maxMessages   = 200_000 // that are remembered, twice
	maxSessions   = 20_000  // the same of sessions
	maxRepeats    = 8192
)

// Options configure an [Importer].
type Options struct {
	Zone     *time.Location                           // of times that name none; nil means the local one
	Host     string                                   // the server, where the log does not name it
	Explain  func(*mail.Outcome)                      // says in it why an attempt failed; nil: not told
	Bad      func(file string, line int, err error)   // a line that cannot be read; nil: only counted
	Each     func(r *event.Record) error              // takes the facts
	Progress func(file string, bytes int64, c Counts) // after some thousand lines; may be nil
}

// Counts say what was read.
type Counts struct {
	Files  int   `json:"files"`
	Lines  int   `json:"lines"`
	Bytes  int64 `json:"bytes"` // after decompression
	Facts  int   `json:"facts"`
	Passed int   `json:"passed"` // lines that say nothing about mail
	Bad    int   `json:"bad"`    // lines that cannot be read
}

// parser understands one format.
type parser interface {
	// begin is told of a new file, which ends about at the time end.
	begin(end time.Time)
	// line reads one line. errPassed says that it tells nothing.
	line(s string) error
	// end states what waits for more lines.
	end()
}

var errPassed = errors.New("nothing about mail")

var formats = []struct {
	name string
	make func(im *Importer) parser
}{
	{"exchange-tracking", func(im *Importer) parser { return &exchangeTracking{im: im} }},
	{"exchange-protocol", func(im *Importer) parser { return &exchangeProtocol{im: im} }},
	{"iis", func(im *Importer) parser { return &iis{im: im} }},
	{"postfix", func(im *Importer) parser { return &postfix{im: im} }},
}

// Formats are the names of the formats that New knows.
func Formats() []string {
	list := make([]string, len(formats))
	for i, f := range formats {
		list[i] = f.name
	}
	return list
}

// Importer reads logs of one format.
type Importer struct {
	opts   Options
	format string
	p      parser
	counts Counts
	err    error // of Each

	current string // the line at hand, or what else the next facts are made from
	seed    [32]byte
	seeded  bool
	made    uint64           // facts from it so far
	repeats *aging[[2]int64] // how often lines came
}

// New returns an importer for a format.
func New(format string, opts Options) (*Importer, error) {
	if opts.Zone == nil {
		opts.Zone = time.Local
	}
	if opts.Bad == nil {
		opts.Bad = func(string, int, error) {}
	}
	if opts.Explain == nil {
		opts.Explain = func(*mail.Outcome) {}
	}
	if opts.Progress == nil {
		opts.Progress = func(string, int64, Counts) {}
	}
	im := &Importer{opts: opts, format: format, repeats: newAging[[2]int64](maxRepeats, nil)}
	for _, f := range formats {
		if f.name == format {
			im.p = f.make(im)
			return im, nil
		}
	}
	return nil, fmt.Errorf("unknown format %q: one of %s", format, strings.Join(Formats(), ", "))
}

// Counts are those of everything read so far.
func (im *Importer) Counts() Counts { return im.counts }

// Read reads one file, which may be compressed by gzip. modified is when it was
// written last: it tells the year of times that have none. An error is one of
// reading or of Each; a line that cannot be read is none.
func (im *Importer) Read(ctx context.Context, name string, modified time.Time, r io.Reader) error {
	in := bufio.NewReaderSize(r, 256<<10)
	if magic, err := in.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(in)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer z.Close()
		if !z.ModTime.IsZero() {
			modified = z.ModTime
		}
		in = bufio.NewReaderSize(z, 256<<10)
	}
	if bom, err := in.Peek(3); err == nil && bytes.Equal(bom, []byte("\xef\xbb\xbf")) {
		_, _ = in.Discard(3) // it was just seen
	}
	if bom, err := in.Peek(2); err == nil && (bom[0] == 0xff && bom[1] == 0xfe || bom[0] == 0xfe && bom[1] == 0xff) {
		return fmt.Errorf("%s: the file is UTF-16: convert it to UTF-8", name)
	}
	if modified.IsZero() {
		modified = time.Now()
	}
	im.counts.Files++
	im.p.begin(modified)
	size := int64(0)
	for n := 1; ; n++ {
		line, cut, err := readLine(in)
		if len(line) > 0 || err == nil {
			size += int64(len(line)) + 1
			im.take(name, n, line, cut)
		}
		switch {
		case im.err != nil:
			return im.err
		case errors.Is(err, io.EOF):
			im.opts.Progress(name, size, im.counts)
			return nil
		case err != nil:
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
		if n%4096 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			im.opts.Progress(name, size, im.counts)
		}
	}
}

// readLine reads a line without its end. Of one that is too long it gives the
// beginning, and says so.
func readLine(in *bufio.Reader) (line []byte, cut bool, err error) {
	for {
		part, err := in.ReadSlice('\n')
		if len(line) < maxLine {
			line = append(line, part...)
		} else {
			cut = true
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		return bytes.TrimRight(line, "\r\n"), cut || len(line) > maxLine, err
	}
}

func (im *Importer) take(name string, n int, b []byte, cut bool) {
	im.counts.Lines++
	im.counts.Bytes += int64(len(b)) + 1
	var err error
	switch {
	case cut:
		err = errors.New("the line is too long")
	case len(bytes.TrimSpace(b)) == 0:
		err = errPassed
	default:
		s := string(b)
		if !utf8.ValidString(s) {
			s = strings.ToValidUTF8(s, "\uFFFD")
		}
		im.from(s)
		err = im.p.line(s)
	}
	switch {
	case err == nil:
	case errors.Is(err, errPassed):
		im.counts.Passed++
	default:
		im.counts.Bad++
		im.opts.Bad(name, n, err)
	}
}

// Close states what waits for lines that never came. It does not close files.
func (im *Importer) Close() error {
	if im.err == nil {
		im.p.end()
	}
	return im.err
}

// from says what the next facts are made from.
func (im *Importer) from(s string) { im.current, im.seeded, im.made = s, false, 0 }

// state hands on a fact. Its id is made from what it is made from: the line,
// and how often the very same line came.
func (im *Importer) state(r *event.Record) {
	if im.err != nil {
		return
	}
	if !im.seeded {
		sum := sha256.Sum256([]byte(im.format + "\x00" + im.current))
		key := string(sum[:12])
		times := im.repeats.get(key)
		im.repeats.put(key, [2]int64{times[0] + 1})
		im.seed, im.seeded = sha256.Sum256(binary.BigEndian.AppendUint64(sum[:], uint64(times[0]))), true //nolint:gosec // a count
	}
	im.made++
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(slices.Clone(im.seed[:]), im.made))
	r.Time = r.Time.UTC().Truncate(time.Microsecond)
	r.ID = ulid(r.Time, sum[:])
	r.Source = event.SourceImport
	if r.Node == "" {
		r.Node = im.opts.Host
	}
	im.counts.Facts++
	im.err = im.opts.Each(r)
}

// messageID makes a queue ID of ours for a message of another server.
func (im *Importer) messageID(first time.Time, parts ...string) mail.QueueID {
	sum := sha256.Sum256([]byte("message\x00" + im.format + "\x00" + strings.Join(parts, "\x00")))
	return mail.QueueID(ulid(first, sum[:]))
}

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// ulid makes a ULID of a time and the first 80 bits of a hash.
func ulid(t time.Time, sum []byte) string {
	ms := uint64(max(t.UnixMilli(), 0))
	hi, lo := binary.BigEndian.Uint16(sum), binary.BigEndian.Uint64(sum[2:])
	var out [26]byte
	for i := 9; i >= 0; i-- {
		out[i] = crockford[ms&31]
		ms >>= 5
	}
	for i := 25; i >= 10; i-- {
		out[i] = crockford[lo&31]
		lo = lo>>5 | uint64(hi&31)<<59
		hi >>= 5
	}
	return string(out[:])
}

// aging is a map that forgets what was not used for long: when the young half
// is full, the old half goes.
type aging[V any] struct {
	limit      int
	young, old map[string]V
	gone       func(key string, v V) // of what is forgotten; may be nil
}

func newAging[V any](limit int, gone func(string, V)) *aging[V] {
	return &aging[V]{limit: limit, young: map[string]V{}, old: map[string]V{}, gone: gone}
}

func (a *aging[V]) get(key string) V {
	v, ok := a.young[key]
	if !ok {
		if v, ok = a.old[key]; ok {
			delete(a.old, key)
			a.put(key, v)
		}
	}
	return v
}

func (a *aging[V]) put(key string, v V) {
	key = strings.Clone(key) // not the line that it is a part of
	if len(a.young) >= a.limit {
		if _, there := a.young[key]; !there {
			a.drain(a.old)
			a.young, a.old = make(map[string]V, len(a.young)), a.young
		}
	}
	delete(a.old, key)
	a.young[key] = v
}

func (a *aging[V]) delete(key string) {
	delete(a.young, key)
	delete(a.old, key)
}

// drain forgets what m has, in the order of the keys, so that the same log gives the same facts.
func (a *aging[V]) drain(m map[string]V) {
	if a.gone == nil {
		return
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		a.gone(k, m[k])
	}
}

func (a *aging[V]) end() {
	a.drain(a.old)
	a.drain(a.young)
	clear(a.old)
	clear(a.young)
}

// clip bounds a text without cutting a character in two.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return strings.Clone(s)
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return strings.Clone(s[:limit])
}

// address is an address as facts have it; the null sender is "<>".
func sender(s string) string {
	if s = address(s); s == "" {
		return event.NullSender
	}
	return s
}

func address(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 1 && s[0] == '<' && s[len(s)-1] == '>' {
		s = s[1 : len(s)-1]
	}
	return clip(s, maxAddress)
}

func ip(s string) netip.Addr {
	a, err := netip.ParseAddr(strings.Trim(strings.TrimSpace(s), "[]"))
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap().WithZone("")
}

// endpoint reads "192.0.2.1:25" and "[2001:db8::1]:25".
func endpoint(s string) (netip.Addr, uint16) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), ap.Port()
	}
	return ip(s), 0
}

// reply reads "550 5.1.1 no such user" and "550-5.1.1 no such user".
func reply(s string) (code int, enhanced, text string) {
	s = strings.TrimSpace(s)
	if len(s) < 3 || !digits(s[:3]) || s[0] < '2' || s[0] > '5' || len(s) > 3 && s[3] != ' ' && s[3] != '-' {
		return 0, "", clip(s, maxText)
	}
	code = int(s[0]-'0')*100 + int(s[1]-'0')*10 + int(s[2]-'0')
	rest := strings.TrimSpace(strings.TrimLeft(s[3:], " -"))
	if word, after, _ := strings.Cut(rest, " "); isEnhanced(word) {
		enhanced, rest = strings.Clone(word), strings.TrimSpace(after)
	}
	return code, enhanced, clip(rest, maxText)
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// isEnhanced reports whether s is a status code of RFC 3463.
func isEnhanced(s string) bool {
	p := strings.Split(s, ".")
	return len(p) == 3 && len(s) <= 9 && (p[0] == "2" || p[0] == "4" || p[0] == "5") && digits(p[1]) && digits(p[2])
}

// answer is what an attempt was answered, classified.
func (im *Importer) answer(d mail.Disposition, a event.Answer, remote bool) event.Answer {
	if d == mail.Relayed {
		return a
	}
	o := mail.Outcome{Disposition: d, Reply: mail.Reply{Code: a.Code, Enhanced: a.Enhanced, Text: a.Reply}, Remote: remote, Verb: a.Verb}
	im.opts.Explain(&o)
	a.Class, a.ClassRule, a.Permanence, a.Explanation = o.Class, o.ClassRule, o.Permanence, o.Explanation
	return a
}

// refusal is the word of [event.Refusals] that fits a reply best.
func refusal(code int, enhanced, text string) string {
	low := strings.ToLower(text)
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(low, w) })
	}
	switch {
	case has("relay access denied", "unable to relay", "relaying denied", "relay not permitted"):
		return "relay_denied"
	case has("greylist", "postgrey", "rate limit", "too many", "throttl"):
		return "throttle"
	case code == 530 || has("authentication required", "not authenticated", "must authenticate"):
		return "auth_required"
	case has("user unknown", "no such user", "unknown in", "does not exist", "recipientnotfound", "mailbox unavailable") || enhanced == "5.1.1" || enhanced == "5.1.10":
		return "unknown_recipient"
	case code == 552 || has("message size exceeds", "too large", "size limit"):
		return "size"
	case code == 452 || has("insufficient system", "insufficient storage"):
		return "storage"
	case code >= 500 && code <= 504:
		return "syntax"
	case has("sender address rejected", "not permitted to send", "sender denied"):
		return "sender_denied"
	case has("timeout", "timed out"):
		return "timeout"
	}
	return "protocol"
}
