package protolog

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"

	"waybill/relay/event"
)

// encoders make lines.
type encoders struct {
	heads   heads
	program zapcore.Encoder // the program's own log
}

// heads are how zap begins the lines of facts, up to the value of firstKey: by
// level, and by the number of the fact's name. What follows is the rest of the
// record as its JSON form has it, which package event can write at once, and has
// written already when the queue keeps the fact.
type heads map[zapcore.Level][][]byte

// firstKey begins the JSON form of every record.
const (
	firstKey  = "ts"
	jsonStart = `{"` + firstKey + `":`
)

func newHeads(enc zapcore.Encoder) (heads, error) {
	h := heads{}
	for level := zapcore.DebugLevel; level <= zapcore.ErrorLevel; level++ {
		for _, name := range event.Names() {
			line, err := enc.EncodeEntry(zapcore.Entry{Level: level, Message: name}, []zapcore.Field{{Key: firstKey, Type: zapcore.Int64Type}})
			if err != nil {
				return nil, err
			}
			head, ok := strings.CutSuffix(line.String(), "0}\n")
			if !ok || len(head) < len(jsonStart) {
				return nil, fmt.Errorf("zap writes lines of facts as %q", line.String())
			}
			h[level] = append(h[level], []byte(head))
			line.Free()
		}
	}
	return h, nil
}

// appendLine appends the line of r.
func (h heads) appendLine(dst []byte, level zapcore.Level, r *event.Record) ([]byte, error) {
	head := h[level][event.Number(r.Event)]
	at := len(dst) + len(head) - len(jsonStart) // where the JSON form begins, for its end to follow the head
	dst = append(dst, head[:len(head)-len(jsonStart)]...)
	dst, err := r.AppendJSON(dst)
	if err != nil {
		return dst, err
	}
	copy(dst[at:], head[len(head)-len(jsonStart):])
	return append(dst, '\n'), nil
}

func newEncoders(format string) (encoders, error) {
	cfg := zapcore.EncoderConfig{
		MessageKey: "msg", LevelKey: "level", NameKey: "logger", StacktraceKey: "stack", LineEnding: "\n",
		EncodeLevel: zapcore.LowercaseLevelEncoder, EncodeTime: encodeTime, EncodeDuration: zapcore.SecondsDurationEncoder,
	}
	build := zapcore.NewJSONEncoder
	switch format {
	case "", JSON:
	case Console:
		build = func(cfg zapcore.EncoderConfig) zapcore.Encoder {
			cfg.TimeKey = "ts"
			return consoleEncoder{zapcore.NewConsoleEncoder(cfg)}
		}
	default:
		return encoders{}, fmt.Errorf("log format %.20q: want json or console", format)
	}
	h, err := newHeads(build(cfg)) // the record has its own ts
	cfg.TimeKey = "ts"
	return encoders{h, build(cfg)}, err
}

func encodeTime(t time.Time, enc zapcore.PrimitiveArrayEncoder) {
	zapcore.RFC3339NanoTimeEncoder(t.UTC(), enc)
}

// consoleEncoder keeps control characters out of the message, which the
// console form writes as it is. The fields are JSON there too.
type consoleEncoder struct{ zapcore.Encoder }

// Clone copies the encoder.
func (c consoleEncoder) Clone() zapcore.Encoder { return consoleEncoder{c.Encoder.Clone()} }

// EncodeEntry makes a line.
func (c consoleEncoder) EncodeEntry(e zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	if strings.ContainsFunc(e.Message, unicode.IsControl) {
		e.Message = fmt.Sprintf("%q", e.Message)
	}
	return c.Encoder.EncodeEntry(e, fields)
}

// linePool has room for lines, so that one costs no allocation of its own.
var linePool = sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }}

// maxPooled is the largest room that is used again; a transcript may take more.
const maxPooled = 64 << 10

// escape returns line with every character that a terminal or a reader of lines
// may act upon as a JSON escape. C0 is escaped by zap already; here follow DEL,
// C1, line and paragraph separators, and the characters that reorder or hide
// text. Outside of strings JSON has none of them, so that the result means the
// same. A line without any is returned as it is.
func escape(line []byte) []byte {
	i := notPlain(line)
	if i < 0 {
		return line
	}
	dst := make([]byte, 0, len(line)+64)
	for ; i >= 0; i = notPlain(line) {
		r, size := utf8.DecodeRune(line[i:])
		dst = append(dst, line[:i]...)
		switch {
		case !hidden(r):
			dst = append(dst, line[i:i+size]...)
		case r > 0xffff: // as JSON writes it: a surrogate pair
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		default:
			dst = fmt.Appendf(dst, `\u%04x`, r)
		}
		line = line[i+size:]
	}
	return append(dst, line...)
}

// notPlain returns the index of the first octet of b from 0x7f up, or -1. It
// looks at eight octets at a time: adding one carries 0x7f into the high bit.
func notPlain(b []byte) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(b); i += 8 {
		if w := binary.LittleEndian.Uint64(b[i:]); (w|(w+ones))&highs != 0 {
			break
		}
	}
	for ; i < len(b); i++ {
		if b[i] >= 0x7f {
			return i
		}
	}
	return -1
}

// hidden reports whether r has no glyph of its own but an effect: controls
// (Cc), formats such as bidi and zero-width (Cf), line separators (Zl, Zp), and
// octets that are no UTF-8.
func hidden(r rune) bool {
	return r == utf8.RuneError || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}
