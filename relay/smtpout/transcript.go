package smtpout

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"waybill/relay/event"
)

// Bounds of a transcript. Failures are near its end, so it keeps a head and
// lets the rest go round.
const (
	maxLines     = 160
	headLines    = 40
	maxLineBytes = 512
)

type speaker uint8

const (
	fromClient speaker = iota
	fromServer
)

func (f speaker) String() string { return [...]string{"client", "server"}[f] }

// transcript is the conversation of one attempt. It costs no allocation until
// somebody wants to read it.
type transcript struct {
	start time.Time
	lines []line
	next  int // where the next line goes when full: from headLines to maxLines
	lost  int
}

type line struct {
	at    time.Duration
	from  speaker
	bytes int64
	text  []byte
}

var transcripts = sync.Pool{New: func() any { return new(transcript) }}

func newTranscript() *transcript {
	t := transcripts.Get().(*transcript)
	t.start, t.lines, t.next, t.lost = time.Now(), t.lines[:0], headLines, 0
	return t
}

func (t *transcript) free() { transcripts.Put(t) }

// add keeps one line. Secrets must not come here. A nil transcript keeps none.
func (t *transcript) add(from speaker, text []byte, bytes int64) {
	if t == nil {
		return
	}
	var l *line
	switch {
	case len(t.lines) < min(cap(t.lines), maxLines):
		t.lines = t.lines[:len(t.lines)+1]
		l = &t.lines[len(t.lines)-1]
	case len(t.lines) < maxLines:
		t.lines = append(t.lines, line{})
		l = &t.lines[len(t.lines)-1]
	default:
		l = &t.lines[t.next]
		t.lost++
		if t.next++; t.next == maxLines {
			t.next = headLines
		}
	}
	l.at, l.from, l.bytes = time.Since(t.start), from, bytes
	l.text = append(l.text[:0], text[:min(len(text), maxLineBytes)]...)
}

func (t *transcript) note(text string) { t.add(fromClient, []byte("("+text+")"), 0) }

// export gives the lines in order, fit for records.
func (t *transcript) export() []event.Line {
	out := make([]event.Line, 0, len(t.lines)+1)
	put := func(lines []line) {
		for _, l := range lines {
			out = append(out, event.Line{At: event.Secs(l.at), From: l.from.String(), Text: escape(l.text), Bytes: l.bytes})
		}
	}
	if t.lost == 0 {
		put(t.lines)
		return out
	}
	put(t.lines[:headLines])
	out = append(out, event.Line{At: out[len(out)-1].At, From: fromClient.String(), Text: "(" + strconv.Itoa(t.lost) + " lines left out)"})
	put(t.lines[t.next:])
	put(t.lines[headLines:t.next])
	return out
}

// escape writes control characters as Go does, so that a reader sees them.
func escape(b []byte) string {
	s := strings.ToValidUTF8(string(b), "\uFFFD")
	if strings.IndexFunc(s, isControl) < 0 {
		return s
	}
	var out strings.Builder
	for _, r := range s {
		if isControl(r) {
			out.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		} else {
			out.WriteRune(r)
		}
	}
	return out.String()
}
