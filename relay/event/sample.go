package event

import (
	"sync/atomic"
	"time"
)

// What is kept of commands that went well, by taste: all of them where a person
// could follow, and enough to see what is usual where there are very many. At
// full speed they are three facts of eight.
const (
	commandsKept   = 1000 // of each second, whatever comes
	commandsSample = 100  // one in so many beyond that
)

// Sample returns a Sink that writes to each of sinks in order, and marks as
// [Record.Minor] most commands that were answered well and quickly, while there
// are more than a thousand a second of them. What failed or took long is never marked.
func Sample(sinks ...Sink) Sink { return &sampler{next: fanout(sinks)} }

type sampler struct {
	next   fanout
	second atomic.Int64 // that is being counted
	seen   atomic.Int64 // in it
}

func (s *sampler) Write(r *Record) {
	s.taste(r)
	s.next.Write(r)
}

// WriteChange implements [ChangeSink].
func (s *sampler) WriteChange(recs []Record) {
	for i := range recs {
		s.taste(&recs[i])
	}
	s.next.WriteChange(recs)
}

func (s *sampler) taste(r *Record) {
	if ev, ok := r.Event.(CommandAnswered); ok && ev.Code < 400 && ev.Took < Secs(time.Second) {
		// Writers of two seconds at once may count some twice: that does no harm.
		if now := r.Time.Unix(); s.second.Swap(now) != now {
			s.seen.Store(0)
		}
		if n := s.seen.Add(1); n > commandsKept && n%commandsSample != 0 {
			r.Minor = true
		}
	}
}
