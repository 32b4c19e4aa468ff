package logtrack

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
)

// TestScanIsBounded asks for everything, in no time: the answer says that it was
// cut and what to do, and is no error.
func TestScanIsBounded(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) { o.QueryTimeout = time.Nanosecond })
	someMail(s, 11, 300)
	if err := s.settleAll(); err != nil {
		t.Fatal(err)
	}
	everything := trackapi.Query{From: time.UnixMicro(1), Sender: "*e*@*", Limit: trackapi.MaxLimit}
	for _, test := range []struct {
		name string
		ask  func() (rows int, cut string, err error)
	}{
		{"messages", func() (int, string, error) {
			list, err := s.Messages(t.Context(), everything)
			if err != nil {
				return 0, "", err
			}
			return len(list.Messages), list.Cut, nil
		}},
		{"facts", func() (int, string, error) {
			list, err := s.Events(t.Context(), everything)
			if err != nil {
				return 0, "", err
			}
			return len(list.Events), list.Cut, nil
		}},
		{"aggregate", func() (int, string, error) {
			a, err := s.Aggregate(t.Context(), trackapi.AggregateQuery{Query: everything, Metric: "count"})
			if err != nil {
				return 0, "", err
			}
			return 0, a.Cut, nil
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			rows, cut, err := test.ask()
			if err != nil || cut == "" || rows > trackapi.MaxLimit {
				t.Errorf("%d rows, cut %q, %v; want an answer that says it was cut", rows, cut, err)
			}
		})
	}
}

// TestRowsAreBounded holds that no page is larger than asked for, and none than
// the limit.
func TestRowsAreBounded(t *testing.T) {
	s := openStore(t, t.TempDir())
	someMail(s, 12, 400)
	q := trackapi.Query{From: time.UnixMicro(1)}
	list, err := s.Messages(t.Context(), q)
	if err != nil || len(list.Messages) != trackapi.DefaultLimit || list.Cursor == "" {
		t.Errorf("%d messages, cursor %q, %v; want the default of %d and more to come", len(list.Messages), list.Cursor, err, trackapi.DefaultLimit)
	}
	facts, err := s.Events(t.Context(), q)
	if err != nil || len(facts.Events) != trackapi.DefaultLimit || facts.Cursor == "" {
		t.Errorf("%d facts, cursor %q, %v", len(facts.Events), facts.Cursor, err)
	}
	q.Limit = trackapi.MaxLimit + 1
	var p *trackapi.Problem
	if _, err := s.Messages(t.Context(), q); !errors.As(err, &p) || p.Field != "limit" {
		t.Errorf("more than the most: %v", err)
	}
}

// TestHeavyQueriesWait has as many aggregates under way as may be: the next one
// waits, and neither records nor other questions do.
func TestHeavyQueriesWait(t *testing.T) {
	s := openStore(t, t.TempDir())
	for range cap(s.heavy) {
		s.heavy <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := s.Aggregate(ctx, trackapi.AggregateQuery{Metric: "count"})
		done <- err
	}()
	someMail(s, 13, 100)
	if list, err := s.Messages(t.Context(), trackapi.Query{From: time.UnixMicro(1)}); err != nil || len(list.Messages) == 0 {
		t.Errorf("a search beside them: %+v, %v", list, err)
	}
	cancel() // its asker goes away
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("one more aggregate: %v, want it to wait", err)
	}
	<-s.heavy
	if _, err := s.Aggregate(t.Context(), trackapi.AggregateQuery{Metric: "count"}); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
}

// TestLeftOutMeanwhile has a query end while another finds a day damaged.
func TestLeftOutMeanwhile(t *testing.T) {
	s := openStore(t, t.TempDir())
	sn, err := s.snapshot(func(*meta) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	defer sn.release()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.leaveOut("20260301-0001", errors.New("damaged"))
	}()
	sn.finish(&trackapi.Page{}, false)
	<-done
	var page trackapi.Page
	if sn.finish(&page, false); !strings.Contains(page.Cut, "20260301-0001") {
		t.Errorf("cut %q, want the day that is left out", page.Cut)
	}
}
