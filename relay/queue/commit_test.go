package queue

import (
	"slices"
	"testing"
	"time"
)

// TestAcknowledgeOrder has a group of several kinds acknowledged: those for whom
// a client waits hear of it first.
func TestAcknowledgeOrder(t *testing.T) {
	client := []arrival{{from: time.Now()}}
	settled, housekeeping := &change{done: make(chan error)}, &change{done: make(chan error)}
	first, second := &change{arrived: client, done: make(chan error)}, &change{arrived: client, done: make(chan error)}
	go acknowledge([]*change{settled, first, housekeeping, second})
	var got []string
	for range 4 { // none of the channels holds anything: one word at a time
		select {
		case <-settled.done:
			got = append(got, "settled")
		case <-first.done:
			got = append(got, "first client")
		case <-housekeeping.done:
			got = append(got, "housekeeping")
		case <-second.done:
			got = append(got, "second client")
		}
	}
	if want := []string{"first client", "second client", "settled", "housekeeping"}; !slices.Equal(got, want) {
		t.Errorf("acknowledged: %v, want %v", got, want)
	}
}

// TestSegmentIsReady has the first message of a new queue go into a file that was
// made before it came.
func TestSegmentIsReady(t *testing.T) {
	h := open(t, nil)
	h.contents.makers.Wait()
	h.contents.mu.Lock()
	made, spares := h.contents.next, len(h.contents.spares)
	h.contents.mu.Unlock()
	if spares != 1 {
		t.Fatalf("%d segments are ready at the start, want 1", spares)
	}
	h.put(t, "content", "a@example.com")
	h.contents.mu.Lock()
	defer h.contents.mu.Unlock()
	if h.contents.next != made {
		t.Errorf("the first message had %d files made, want none", h.contents.next-made)
	}
}
