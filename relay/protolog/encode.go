package protolog

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
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
	facts   zapcore.Encoder
	program zapcore.Encoder // the program's own log
}

func newEncoders(format string) (encoders, error) {
	cfg := zapcore.EncoderConfig{
		MessageKey: "msg", LevelKey: "level", NameKey: "logger", StacktraceKey: "stack", LineEnding: "\n",
		EncodeLevel: zapcore.LowercaseLevelEncoder, EncodeTime: encodeTime, EncodeDuration: zapcore.SecondsDurationEncoder,
		NewReflectedEncoder: newReflected,
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
	e := encoders{facts: build(cfg)} // the record has its own ts
	cfg.TimeKey = "ts"
	e.program = build(cfg)
	return e, nil
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

// written is a record on its way through zap: one field, whose value is the rest
// of the record as its JSON form has it. Zap would write field by field what
// package event can write at once, and has written already when the queue keeps
// the fact. Pooled, so that a line costs no allocation of its own.
type written struct {
	json []byte
	zap  [1]zapcore.Field
}

var writtenPool = sync.Pool{New: func() any { return &written{json: make([]byte, 0, 2048)} }}

// firstKey begins the JSON form of every record.
const firstKey = "ts"

var jsonStart = []byte(`{"` + firstKey + `":`)

// fact makes the line of r. The caller frees it.
func (e *encoders) fact(level zapcore.Level, r *event.Record) (*buffer.Buffer, error) {
	w := writtenPool.Get().(*written)
	defer writtenPool.Put(w)
	var err error
	if w.json, err = r.AppendJSON(w.json[:0]); err != nil {
		return nil, err
	}
	w.zap[0] = zapcore.Field{Type: zapcore.InlineMarshalerType, Interface: w}
	return e.facts.EncodeEntry(zapcore.Entry{Level: level, Message: event.Name(r.Event), Time: r.Time}, w.zap[:])
}

// MarshalLogObject writes the fields of the record.
func (w *written) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	return enc.AddReflected(firstKey, w)
}

// reflected writes what zap has no method for.
type reflected struct{ out io.Writer }

func newReflected(out io.Writer) zapcore.ReflectedEncoder { return reflected{out} }

// Encode writes v as JSON.
func (r reflected) Encode(v any) error {
	if w, ok := v.(*written); ok {
		_, err := r.out.Write(w.json[len(jsonStart) : len(w.json)-1])
		return err
	}
	enc := json.NewEncoder(r.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

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
