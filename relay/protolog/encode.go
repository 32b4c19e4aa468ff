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
	"waybill/relay/mail"
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

// fields is a record on its way through zap; pooled, so that a line costs no
// allocation of its own.
type fields struct {
	list []event.Field
	zap  [1]zapcore.Field
}

var fieldPool = sync.Pool{New: func() any { return &fields{list: make([]event.Field, 0, 64)} }}

// fact makes the line of r. The caller frees it.
func (e *encoders) fact(level zapcore.Level, r *event.Record) *buffer.Buffer {
	f := fieldPool.Get().(*fields)
	f.list = r.AppendFields(f.list[:0])
	f.zap[0] = zapcore.Field{Type: zapcore.InlineMarshalerType, Interface: f}
	name := f.list[3].Str // ts, event_id, schema, event
	line, err := e.facts.EncodeEntry(zapcore.Entry{Level: level, Message: name, Time: r.Time}, f.zap[:])
	clear(f.list) // hold no text of a message
	fieldPool.Put(f)
	if err != nil { // zap's encoders have no way to fail here
		panic(err)
	}
	return line
}

// MarshalLogObject writes the fields of the record.
func (f *fields) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	for i := range f.list {
		if err := addField(enc, &f.list[i]); err != nil {
			return err
		}
	}
	return nil
}

func addField(enc zapcore.ObjectEncoder, f *event.Field) error {
	switch f.Kind {
	case event.String:
		enc.AddString(f.Key, f.Str)
	case event.Int:
		enc.AddInt64(f.Key, f.Int)
	case event.Float:
		enc.AddFloat64(f.Key, f.Float)
	case event.Time:
		enc.AddTime(f.Key, f.Time)
	case event.Bool:
		enc.AddBool(f.Key, f.Int != 0)
	case event.Object:
		switch list := f.Any.(type) {
		case []event.Recipient:
			return enc.AddArray(f.Key, recipients(list))
		case []event.Line:
			return enc.AddArray(f.Key, transcript(list))
		}
		return enc.AddReflected(f.Key, f.Any)
	}
	return nil
}

// recipients and transcript are written by hand, because reflection took most
// of the time of a line. The replay test fails when a field is forgotten.
type (
	recipients []event.Recipient
	recipient  event.Recipient
	transcript []event.Line
	line       event.Line
)

// MarshalLogArray writes each recipient.
func (rs recipients) MarshalLogArray(enc zapcore.ArrayEncoder) error {
	for i := range rs {
		if err := enc.AppendObject((*recipient)(&rs[i])); err != nil {
			return err
		}
	}
	return nil
}

// MarshalLogObject writes the recipient as its JSON form has it.
func (r *recipient) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("address", r.Address)
	addText(enc, "orig_address", r.Original)
	if r.Disposition != mail.Disposition(0) {
		enc.AddString("disposition", r.Disposition.String())
	}
	if r.Code != 0 {
		enc.AddInt("code", r.Code)
	}
	addText(enc, "enhanced", r.Enhanced)
	addText(enc, "reply", r.Reply)
	addText(enc, "class", string(r.Class))
	return nil
}

// MarshalLogArray writes each line.
func (ls transcript) MarshalLogArray(enc zapcore.ArrayEncoder) error {
	for i := range ls {
		if err := enc.AppendObject((*line)(&ls[i])); err != nil {
			return err
		}
	}
	return nil
}

// MarshalLogObject writes the line as its JSON form has it.
func (l *line) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	if l.Seq != 0 {
		enc.AddInt("seq", l.Seq)
	}
	enc.AddFloat64("at", float64(time.Duration(l.At).Microseconds())/1e6)
	enc.AddString("from", l.From)
	enc.AddString("text", l.Text)
	if l.Bytes != 0 {
		enc.AddInt64("bytes", l.Bytes)
	}
	return nil
}

func addText(enc zapcore.ObjectEncoder, key, value string) {
	if value != "" {
		enc.AddString(key, value)
	}
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
