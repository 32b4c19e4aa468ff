package trackimport

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
)

// Lines reads files one after the other, as text: those that are compressed by
// gzip are unpacked, and each ends with a line end.
func Lines(files []string) io.ReadCloser { return &lines{files: files} }

type lines struct {
	files []string
	file  *os.File
	in    io.Reader
	last  byte
}

// Read gives what comes next.
func (l *lines) Read(b []byte) (int, error) {
	for {
		if l.in == nil {
			if len(l.files) == 0 {
				return 0, io.EOF
			}
			if err := l.open(l.files[0]); err != nil {
				return 0, err
			}
			l.files, l.last = l.files[1:], '\n'
		}
		n, err := l.in.Read(b)
		if n > 0 {
			l.last = b[n-1]
			return n, nil
		}
		switch {
		case errors.Is(err, io.EOF):
			l.in = nil
			if err := l.Close(); err != nil {
				return 0, err
			}
			if l.last != '\n' && len(b) > 0 {
				l.last, b[0] = '\n', '\n'
				return 1, nil
			}
		case err != nil:
			return 0, err
		}
	}
}

func (l *lines) open(name string) error {
	f, err := os.Open(name) //nolint:gosec // the user names it
	if err != nil {
		return err
	}
	in := bufio.NewReaderSize(f, 256<<10)
	l.file, l.in = f, in
	if magic, err := in.Peek(2); err == nil && bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(in)
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", name, err), l.Close())
		}
		l.in = z
	}
	return nil
}

// Close closes the file that is being read.
func (l *lines) Close() error {
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
