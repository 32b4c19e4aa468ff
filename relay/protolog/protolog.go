// Package protolog is the reader of facts that writes the record: one JSON line
// for each fact, through zap.
//
// It exists so that everything the relay did can be read, shipped and indexed
// again: a line holds exactly what [event.Record] holds, under the same names,
// and [Scan] reads it back (the replay law: the index of the live stream equals
// the index of the parsed lines). zap's own keys, level and msg, stand beside.
//
// It promises that durable and session facts are never sampled: when the output
// falls behind, the goroutine that states such a fact waits for room. Protocol
// facts (a command was answered, TLS was negotiated, DNS answered) never wait:
// they are sampled when the buffer fills and dropped when it is half full, and
// [Stats] counts them, with those that the stream itself has marked as minor. Lines reach the output within a second, errors at once.
// A crash loses that second; what must not be lost is in the queue's outbox and
// is stated again at the next start. Control characters, line separators and
// characters that reorder text are escaped, so that nothing a peer said can
// forge a line or fool a terminal.
//
// When an output fails (a full disk), lines are lost and counted, and mail goes
// on: the log is not worth more than the mail.
//
// A new fact needs one decision here: its level, in levelOf. The linter points
// at the place.
package protolog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap/zapcore"

	"waybill/relay/event"
	"waybill/relay/reuse"
)

// The formats of lines.
const (
	JSON    = "json"    // one object a line; the default
	Console = "console" // for people: level, name, then the object
)

// bufferSize is how much may wait for the output; flushInterval how long. Both
// by taste: 1 MiB is about a second of lines at 1,000 messages a second.
const (
	bufferSize    = 1 << 20
	flushInterval = time.Second
	sampleEvery   = 10 // one protocol fact in ten is kept while the buffer is between a quarter and half full
)

// Options configure a Log. The zero Options write JSON to standard output.
type Options struct {
	File     string        // empty: standard output
	MaxSize  int64         // octets at which the file is rotated; zero: never
	MaxAge   time.Duration // age of a file's first line at which it is rotated; zero: never
	Backups  int           // how many rotated files are kept; zero: all
	Keep     time.Duration // how long rotated files are kept; zero: for ever
	Compress bool          // rotated files with gzip
	Level    string        // debug, info (default), warn or error; above info, the lines are no longer the whole record
	Format   string        // JSON (default) or Console
}

// Stats are what became of the lines so far.
type Stats struct {
	Written uint64 // lines handed to the output
	Sampled uint64 // protocol facts left out while the output was behind
	Dropped uint64 // protocol facts left out because the output was far behind
	Failed  uint64 // lines lost because the output failed or was closed
	Waited  uint64 // how often a goroutine waited for room
	Pending int    // octets in the buffer
	Err     error  // the latest failure of the output, or nil
}

// output is where lines go.
type output interface {
	io.Writer
	Reopen() error
	Sync() error
	Close() error
}

// Log writes facts, and the program's own log, to one output. Its methods may
// be called by many goroutines at once.
type Log struct {
	out   output
	level zapcore.Level
	enc   encoders

	mu      sync.Mutex
	room    sync.Cond // signalled when pending was emptied
	pending []byte
	lines   uint64 // in pending
	closed  bool

	writing sync.Mutex // held while the output is used; taken before mu
	spare   []byte
	torn    bool // the output took only a part of a line

	fill    atomic.Int64 // len(pending)
	turn    atomic.Uint64
	written atomic.Uint64
	sampled atomic.Uint64
	dropped atomic.Uint64
	failed  atomic.Uint64
	waited  atomic.Uint64
	failure atomic.Pointer[error]

	wake chan struct{}
	quit chan struct{}
	done chan struct{}
}

// New opens the output and starts writing. The caller must Close the Log.
func New(opts Options) (*Log, error) {
	level, err := parseLevel(opts.Level)
	if err != nil {
		return nil, err
	}
	enc, err := newEncoders(opts.Format)
	if err != nil {
		return nil, err
	}
	var out output = stdout{os.Stdout}
	if opts.File != "" {
		if out, err = openFile(opts); err != nil {
			return nil, fmt.Errorf("open log: %w", err)
		}
	}
	return start(out, level, enc), nil
}

func start(out output, level zapcore.Level, enc encoders) *Log {
	l := &Log{
		out: out, level: level, enc: enc,
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
	}
	l.room.L = &l.mu
	go l.run()
	return l
}

// Write writes the line of r. It may wait for room, see the package comment.
func (l *Log) Write(r *event.Record) {
	level := levelOf(r.Event)
	if level < l.level {
		return
	}
	if r.Minor {
		l.sampled.Add(1)
		return
	}
	wait := event.Class(r.Event) != event.Protocol
	if !wait && !l.admit() {
		return
	}
	room := linePool.Get().(*[]byte)
	line, err := l.enc.heads.appendLine((*room)[:0], level, r)
	if err != nil { // a time that JSON has no form for; durable facts do not come here with one
		l.failed.Add(1)
		failure := err // only then on the heap
		l.failure.Store(&failure)
		return
	}
	l.add(escape(line), level, wait)
	if cap(line) <= maxPooled {
		reuse.Spoil(line)
		*room = line
		linePool.Put(room)
	}
}

// admit decides whether a protocol fact is kept. The fill may change before
// its line is added; a few lines more or less do no harm.
func (l *Log) admit() bool {
	switch fill := l.fill.Load(); {
	case fill > bufferSize/2:
		l.dropped.Add(1)
		return false
	case fill > bufferSize/4 && l.turn.Add(1)%sampleEvery != 0:
		l.sampled.Add(1)
		return false
	}
	return true
}

// add puts line, which ends in a line end, into the buffer.
func (l *Log) add(line []byte, level zapcore.Level, wait bool) {
	l.mu.Lock()
	for !l.closed && len(l.pending) > 0 && len(l.pending)+len(line) > bufferSize {
		if !wait {
			l.mu.Unlock()
			l.dropped.Add(1)
			return
		}
		l.waited.Add(1)
		l.nudge()
		l.room.Wait()
	}
	if l.closed {
		l.mu.Unlock()
		l.failed.Add(1)
		return
	}
	l.pending = append(l.pending, line...)
	l.lines++
	fill := len(l.pending)
	l.fill.Store(int64(fill))
	l.mu.Unlock()
	if fill > bufferSize/8 || level >= zapcore.ErrorLevel {
		l.nudge()
	}
}

func (l *Log) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run empties the buffer until the Log is closed.
func (l *Log) run() {
	defer close(l.done)
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-l.wake:
		case <-l.quit:
			return
		}
		l.writing.Lock()
		_ = l.flush() // counted, and kept for Stats
		l.writing.Unlock()
	}
}

// flush hands the buffer to the output. The caller holds l.writing.
func (l *Log) flush() error {
	l.mu.Lock()
	buf, lines := l.pending, l.lines
	l.pending, l.lines = l.spare[:0], 0
	l.fill.Store(0)
	l.mu.Unlock()
	l.room.Broadcast()
	l.spare = buf
	if len(buf) == 0 {
		return nil
	}
	if l.torn { // begin a new line after one that was cut
		if _, err := l.out.Write([]byte{'\n'}); err != nil {
			return l.fail(err, lines)
		}
		l.torn = false
	}
	n, err := l.out.Write(buf)
	if err != nil {
		l.torn = n > 0 && buf[n-1] != '\n'
		whole := countLines(buf[:n])
		l.written.Add(whole)
		return l.fail(err, lines-min(whole, lines))
	}
	l.written.Add(lines)
	return nil
}

func (l *Log) fail(err error, lines uint64) error {
	l.failed.Add(lines)
	l.failure.Store(&err)
	return err
}

// Sync writes what is in the buffer and brings the output to stable storage.
func (l *Log) Sync() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	return errors.Join(l.flush(), l.out.Sync())
}

// Reopen opens the file again by its name, as a program that moved the log away
// expects after SIGHUP. On an error the old file stays in use.
func (l *Log) Reopen() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	return errors.Join(l.flush(), l.out.Reopen())
}

// Close writes what is in the buffer, brings it to stable storage and closes
// the output. Facts that come later are counted as failed.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	l.room.Broadcast()
	close(l.quit)
	<-l.done
	l.writing.Lock()
	defer l.writing.Unlock()
	return errors.Join(l.flush(), l.out.Sync(), l.out.Close())
}

// Stats reads the counts.
func (l *Log) Stats() Stats {
	s := Stats{
		Written: l.written.Load(), Sampled: l.sampled.Load(), Dropped: l.dropped.Load(),
		Failed: l.failed.Load(), Waited: l.waited.Load(), Pending: int(l.fill.Load()),
	}
	if err := l.failure.Load(); err != nil {
		s.Err = *err
	}
	return s
}

func countLines(b []byte) (n uint64) {
	for _, c := range b {
		if c == '\n' {
			n++
		}
	}
	return n
}

// stdout is an output that is neither synced nor closed: it may be a pipe or a
// terminal, and it is not ours.
type stdout struct{ io.Writer }

// Reopen does nothing.
func (stdout) Reopen() error { return nil }

// Sync does nothing.
func (stdout) Sync() error { return nil }

// Close does nothing.
func (stdout) Close() error { return nil }
