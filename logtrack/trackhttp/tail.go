package trackhttp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"go.uber.org/zap"

	"waybill/logtrack"
	"waybill/logtrack/trackapi"
	"waybill/relay/mail"
)

// resumeSlack is how far before a cursor a resumed stream begins: a fact may be
// recorded a moment after a younger one. A reader that resumes sees what it has
// seen of that time once more, with the same event ids.
const resumeSlack = 10 * time.Second

// maxResumed bounds how many event ids of what was missed are remembered.
const maxResumed = 100_000

// stream writes Server-Sent Events.
type stream struct {
	w    http.ResponseWriter
	rc   *http.ResponseController
	more func() bool // another event waits, so that flushing can wait too
}

func (s *stream) send(b []byte) bool {
	// The server's own write timeout is for answers, not for streams.
	_ = s.rc.SetWriteDeadline(time.Now().Add(30 * time.Second)) // not every writer has deadlines
	if _, err := s.w.Write(b); err != nil {                     //nolint:gosec // an event stream, not a page
		return false
	}
	return s.more() || s.rc.Flush() == nil
}

func (s *stream) fact(id string, line []byte) bool {
	b := append([]byte("id: "+id+"\ndata: "), line...)
	return s.send(append(b, "\n\n"...))
}

func (s *stream) end(err error) {
	s.send([]byte("event: end\ndata: " + err.Error() + "\n\n"))
}

// tail serves live facts as Server-Sent Events: from now on, or from the event
// that the cursor, or the header Last-Event-ID of a reader that comes back, names.
func (h *handler) tail(w http.ResponseWriter, r *http.Request) {
	q, p := trackapi.ParseQuery(r.URL.Query())
	if p != nil {
		WriteProblem(w, p)
		return
	}
	after := cmp.Or(q.Cursor, r.Header.Get("Last-Event-ID"))
	q.Cursor = ""
	if after != "" && !mail.ValidID(after) {
		WriteProblem(w, trackapi.BadParameter("cursor", "not an event ID", "the id of the last event that was read, or nothing to begin now"))
		return
	}
	s := &stream{w: w, rc: http.NewResponseController(w), more: func() bool { return false }}
	begun := false
	begin := func() bool {
		if begun {
			return true
		}
		begun = true
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Accel-Buffering", "no")
		w.WriteHeader(http.StatusOK)
		return s.send([]byte(": waiting for facts\n\n"))
	}
	sent := map[string]bool{}
	from := time.Time{}
	if after != "" { // what is far behind is read before the live facts begin to wait for us
		from = mail.IDTime(after).Add(-resumeSlack)
		sent[after] = true
		now := time.Now()
		ok, err := h.resume(r.Context(), q, from, sent, s, begin)
		if err != nil && !begun {
			h.fail(w, r, err)
			return
		}
		if err != nil {
			s.end(err)
		}
		if !ok || err != nil {
			return
		}
		from = now.Add(-resumeSlack)
	}
	t, err := h.opts.Store.Tail(q)
	switch {
	case err != nil && begun:
		s.end(err)
		return
	case errors.Is(err, logtrack.ErrTailCount), errors.Is(err, logtrack.ErrTailClosed):
		w.Header().Set("Retry-After", "5")
		WriteProblem(w, &trackapi.Problem{Type: "urn:waybill:problem:busy", Title: "No live stream now", Status: http.StatusServiceUnavailable, Detail: err.Error()})
		return
	case err != nil:
		h.fail(w, r, err)
		return
	}
	defer t.Close()
	s.more = func() bool { return len(t.C) > 0 }
	if !begin() {
		return
	}
	if after != "" { // what was recorded since
		ok, err := h.resume(r.Context(), q, from, sent, s, begin)
		if err != nil {
			s.end(err)
		}
		if !ok || err != nil {
			return
		}
	}
	h.live(r.Context(), t, s, sent)
}

// resume sends the facts from a time on that are not in sent.
func (h *handler) resume(ctx context.Context, q trackapi.Query, from time.Time, sent map[string]bool, s *stream, begin func() bool) (ok bool, err error) {
	q.From, q.To, q.Sort, q.Limit, q.Explain = from, time.Time{}, "time", trackapi.MaxLimit, false
	for {
		page, err := h.opts.Store.Events(ctx, q)
		if err != nil {
			return false, err
		}
		for _, raw := range page.Events {
			var head struct {
				ID string `json:"event_id"`
			}
			if err := json.Unmarshal(raw, &head); err != nil || sent[head.ID] {
				continue
			}
			if len(sent) >= maxResumed {
				clear(sent)
			}
			sent[head.ID] = true
			if !begin() || !s.fact(head.ID, raw) {
				return false, nil
			}
		}
		if q.Cursor = page.Cursor; q.Cursor == "" {
			if page.Cut != "" {
				return false, errors.New(page.Cut)
			}
			return true, nil
		}
	}
}

// live sends what happens, until the reader or the store ends it.
func (h *handler) live(ctx context.Context, t *logtrack.Tailer, s *stream, sent map[string]bool) {
	beat := time.NewTicker(h.opts.Heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			clear(sent) // what came before the stream was live has long gone by
			if !s.send([]byte(": still here\n\n")) {
				return
			}
		case rec, ok := <-t.C:
			if !ok {
				if err := t.Err(); err != nil {
					s.end(err)
				}
				return
			}
			if sent[rec.ID] {
				continue
			}
			line, err := rec.MarshalJSON()
			if err != nil {
				h.log.Error("live fact cannot be written", zap.Error(err))
				continue
			}
			if !s.fact(rec.ID, line) {
				return
			}
		}
	}
}
