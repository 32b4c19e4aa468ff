package wire

import (
	"time"

	"waybill/relay/event"
)

// Bounds of a transcript. A session that said more keeps its first and its last
// lines, which is where sessions fail.
const (
	headLines = 40
	tailLines = 80
	lineBytes = 400
)

const (
	fromClient = "client"
	fromServer = "server"
)

// A transcript keeps what both sides said, in a ring whose entries are used
// again, so that a long session allocates nothing for it.
type transcript struct {
	off   bool
	start time.Time
	lines []said
	count int // all lines ever said
}

type said struct {
	at     time.Duration
	client bool
	text   []byte
	bytes  int64
}

// slot returns the place for the next line.
func (t *transcript) slot() *said {
	i := t.count
	t.count++
	if i >= headLines+tailLines {
		i = headLines + (i-headLines)%tailLines
	}
	if i == len(t.lines) {
		t.lines = append(t.lines, said{})
	}
	return &t.lines[i]
}

func (t *transcript) add(now time.Time, client bool, text []byte) {
	if t.off {
		return
	}
	s := t.slot()
	s.at, s.client, s.bytes = now.Sub(t.start), client, int64(len(text))
	s.text = append(s.text[:0], text[:min(len(text), lineBytes)]...)
}

// content records that n octets of content came.
func (t *transcript) content(now time.Time, n int64) {
	if t.off {
		return
	}
	s := t.slot()
	s.at, s.client, s.bytes = now.Sub(t.start), true, n
	s.text = append(s.text[:0], "(content)"...)
}

// snapshot is the transcript as facts have it.
func (t *transcript) snapshot() []event.Line {
	if t.off || t.count == 0 {
		return nil
	}
	out := make([]event.Line, 0, len(t.lines)+1)
	put := func(s *said) {
		line := event.Line{At: event.Secs(s.at), From: fromServer, Text: Printable(string(s.text), lineBytes), Bytes: s.bytes}
		if s.client {
			line.From = fromClient
		}
		out = append(out, line)
	}
	dropped := t.count - headLines - tailLines
	if dropped <= 0 {
		for i := range t.lines {
			put(&t.lines[i])
		}
		return out
	}
	for i := range headLines {
		put(&t.lines[i])
	}
	out = append(out, event.Line{At: out[len(out)-1].At, From: fromServer, Text: "(lines left out)", Bytes: int64(dropped)})
	for i := range tailLines {
		put(&t.lines[headLines+(t.count-headLines+i)%tailLines])
	}
	return out
}
