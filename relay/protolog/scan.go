package protolog

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"

	"waybill/relay/event"
)

// maxLine bounds one line that Scan reads. A transcript of a whole session and
// a thousand recipients stay well below.
const maxLine = 16 << 20

// LineError is a line that Scan could not read as a record.
type LineError struct {
	Line int // counts from 1
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

func (e *LineError) Unwrap() error { return e.Err }

// Scan reads the records out of a log, oldest first, as the log has them. Lines
// of the program's own log are passed over. A line that is no record, as one
// that a crash cut off, yields a *LineError with the zero Record, and reading
// goes on; any other error is the last. Files that were compressed must be
// decompressed by the caller.
func Scan(r io.Reader) iter.Seq2[event.Record, error] {
	return func(yield func(event.Record, error) bool) {
		sc := bufio.NewScanner(r)
		sc.Buffer(make([]byte, 64<<10), maxLine)
		for n := 1; sc.Scan(); n++ {
			line := bytes.TrimLeft(sc.Bytes(), "\x00 \t\r") // NULs stand where a power cut left a hole
			if len(line) == 0 {
				continue
			}
			rec, ok, err := parseLine(line)
			if err != nil {
				err = &LineError{Line: n, Err: err}
			} else if !ok {
				continue
			}
			if !yield(rec, err) {
				return
			}
		}
		if err := sc.Err(); err != nil {
			yield(event.Record{}, fmt.Errorf("read log: %w", err))
		}
	}
}

// parseLine reads one line; ok is false for a line of the program's own log.
func parseLine(line []byte) (rec event.Record, ok bool, err error) {
	if line[0] != '{' { // the console form: fields follow the last tab
		i := bytes.Index(line, []byte("\t{"))
		if i < 0 {
			return rec, false, errors.New("not a JSON object")
		}
		line = line[i+1:]
	}
	err = json.Unmarshal(line, &rec)
	if err == nil {
		return rec, true, nil
	}
	var probe struct {
		Event *string `json:"event"`
	}
	if json.Unmarshal(line, &probe) == nil && probe.Event == nil {
		return event.Record{}, false, nil
	}
	return event.Record{}, false, err
}
