package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"waybill/relay/relaytest"
)

func TestSkipContent(t *testing.T) {
	long := strings.Repeat(strings.Repeat("waybill ", 9)+"\r\n", 100)
	for _, test := range []struct {
		name string
		in   string
		ok   bool
		want string // what is left
	}{
		{"empty", ".\r\nRSET", true, "RSET"},
		{"lines", "a\r\nb\r\n.\r\nQUIT\r\n", true, "QUIT\r\n"},
		{"long", long + ".\r\nQUIT\r\n", true, "QUIT\r\n"},
		{"dots", "..\r\n...\r\n.a\r\na.\r\n.b.\r\n\r\n.\r\n.\r\n", true, ".\r\n"},
		{"no end", long, false, ""},
		{"no whole end", long + ".\r", false, ".\r"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, size := range []int{16, 17, 31, 4096} {
				for _, r := range []io.Reader{strings.NewReader(test.in), iotest.OneByteReader(strings.NewReader(test.in))} {
					br := bufio.NewReaderSize(r, size)
					ok := skipContent(br)
					left, err := io.ReadAll(br)
					if err != nil || ok != test.ok || string(left) != test.want {
						t.Errorf("with a buffer of %d: %t and %q left, %v, want %t and %q", size, ok, left, err, test.ok, test.want)
					}
				}
			}
		})
	}
}

// A sink takes mail as a relay does, so that a load can be given to it.
func TestLoadIsCounted(t *testing.T) {
	s, err := newSink("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for _, n := range []int{20, 1, 50} { // what came of one load does not count for the next
		l := &load{addr: local(s.port()), n: n, conns: 5, size: 1000, to: sinkUser}
		got, err := l.run(s, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if err := got.complete(n); err != nil || got.Accepted != n {
			t.Errorf("%d of %d accepted: %v", got.Accepted, n, err)
		}
		if got.AcceptRate <= 0 || got.EndRate <= 0 || got.P50 <= 0 || got.P50 > got.P99 {
			t.Errorf("figures are %+v", got)
		}
	}
}

func TestSinkKnowsWhatItWaitsFor(t *testing.T) {
	s, err := newSink("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	s.expect(10)
	if first := s.expect(3); first != 10 {
		t.Fatalf("the second load begins with %d, want 10", first)
	}
	for _, test := range []struct {
		name           string
		id             string
		arrived, twice int // after it
	}{
		{"late of the first load", "0000000009", 0, 0},
		{"of the second", "0000000010", 1, 0},
		{"twice", "0000000010", 1, 1},
		{"of none", "0000000013", 1, 1},
		{"not a number", "gggggggggg", 1, 1},
		{"the last", "0000000012", 2, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			if !s.body(bufio.NewReader(strings.NewReader("Message-ID: <" + test.id + ".bench@bench.test>\r\n\r\ntext\r\n.\r\n"))) {
				t.Fatal("the content has no end")
			}
			if arrived, twice, _ := s.wait(0, 0); arrived != test.arrived || twice != test.twice {
				t.Errorf("%d arrived, %d twice, want %d and %d", arrived, twice, test.arrived, test.twice)
			}
		})
	}
}

func TestComplete(t *testing.T) {
	for _, test := range []struct {
		name string
		r    result
		want bool
	}{
		{"all", result{Arrived: 3}, true},
		{"one lost", result{Arrived: 2}, false},
		{"one twice", result{Arrived: 3, Twice: 1}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := test.r.complete(3); (err == nil) != test.want {
				t.Errorf("complete(3) = %v, want none: %t", err, test.want)
			}
		})
	}
}

func TestFirstOf(t *testing.T) {
	for _, test := range []struct {
		name string
		errs []error
		want string
	}{
		{"none", []error{nil, nil}, ""},
		{"one", []error{nil, io.EOF}, "EOF"},
		{"several", []error{nil, io.EOF, io.ErrClosedPipe}, "2 of 3 connections failed, the first: EOF"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			if err := firstOf(test.errs); err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("firstOf() = %q, want %q", got, test.want)
			}
		})
	}
}

// A relay that ends fails the load once, not once a connection.
func TestLoadFailsWithItsRelay(t *testing.T) {
	addr := net.JoinHostPort("127.0.0.1", relaytest.Port(t))
	_, err := (&load{addr: addr, n: 10, conns: 4, size: 1000, to: sinkUser}).run(nil, 0)
	if _, ok := errors.AsType[*net.OpError](err); !ok || strings.Count(err.Error(), "refused") != 1 {
		t.Errorf("run() = %v, want that it was refused, once", err)
	}
}
