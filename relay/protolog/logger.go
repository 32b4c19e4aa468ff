package protolog

import (
	"fmt"
	"io"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Logger returns the program's own log (start, stop, what the operator should
// know of parts outside of the relay), written to the same output as the facts.
// Its lines have no key "event", and [Scan] passes over them. The level counts
// as for facts; nothing is sampled.
func (l *Log) Logger() *zap.Logger {
	return zap.New(&core{log: l, enc: l.enc.program}, options()...)
}

// NewLogger returns a logger for programs that write no facts, such as the
// commands. Each line goes to w at once, in one Write.
func NewLogger(w io.Writer, level, format string) (*zap.Logger, error) {
	least, err := parseLevel(level)
	if err != nil {
		return nil, err
	}
	enc, err := newEncoders(format)
	if err != nil {
		return nil, err
	}
	sink := zapcore.Lock(zapcore.AddSync(w))
	return zap.New(&core{sink: sink, least: least, enc: enc.program}, options()...), nil
}

func options() []zap.Option {
	return []zap.Option{zap.AddStacktrace(zapcore.DPanicLevel), zap.ErrorOutput(zapcore.AddSync(io.Discard))}
}

// core is a zapcore.Core that escapes as facts are escaped, and writes to a
// Log or to a sink.
type core struct {
	log   *Log
	sink  zapcore.WriteSyncer
	least zapcore.Level
	enc   zapcore.Encoder
}

// Enabled reports whether lines of level are written.
func (c *core) Enabled(level zapcore.Level) bool {
	if c.log != nil {
		return level >= c.log.level
	}
	return level >= c.least
}

// With returns a core that writes fields with each line.
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	with := *c
	with.enc = c.enc.Clone()
	for _, f := range fields {
		f.AddTo(with.enc)
	}
	return &with
}

// Check adds the core to ce when it wants the entry.
func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write writes one line.
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	buf, err := c.enc.EncodeEntry(e, fields)
	if err != nil {
		return fmt.Errorf("encode log line: %w", err)
	}
	defer buf.Free()
	if c.log != nil {
		c.log.add(escape(buf.Bytes()), e.Level, true)
		if e.Level > zapcore.ErrorLevel { // the program may end right after
			return c.log.Sync()
		}
		return nil
	}
	_, err = c.sink.Write(escape(buf.Bytes()))
	return err
}

// Sync brings the lines to the output.
func (c *core) Sync() error {
	if c.log != nil {
		return c.log.Sync()
	}
	return c.sink.Sync()
}
