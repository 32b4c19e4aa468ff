package logtrack

import (
	"testing"

	"go.uber.org/goleak"

	"waybill/logtrack/trackapi"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
	)
}

func openStore(t testing.TB, dir string, change ...func(*Options)) *Store {
	t.Helper()
	opts := Options{Dir: dir}
	for _, c := range change {
		c(&opts)
	}
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func must1[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	m := newMailer(1)
	for range 3000 {
		for _, r := range m.next() {
			s.Write(&r)
		}
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	q := trackapi.Query{Recipient: m.recipients[0], Explain: true, From: m.start}
	got := must1[*trackapi.Messages](t)(s.Messages(t.Context(), q))
	t.Log(len(got.Messages), got.TookMS, got.Explain)
	if len(got.Messages) == 0 {
		t.Fatal("nothing found")
	}
	tl := must1[*trackapi.Timeline](t)(s.Message(t.Context(), got.Messages[0].QueueID))
	for _, e := range tl.Timeline {
		t.Log(e.Event, e.Summary)
	}
	t.Logf("%+v", s.Stats())
}
