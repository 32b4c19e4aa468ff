package logtrack

import (
	"fmt"
	"sync"
)

// refs remembers where facts were found, by event id.
type refs struct {
	mu   sync.Mutex
	byID map[string]rowRef
}

func newRefs() *refs { return &refs{byID: map[string]rowRef{}} }

func (x *refs) add(at int64, id string, ref rowRef) position {
	x.mu.Lock()
	defer x.mu.Unlock()
	if id == "" { // a fact without an id is known by its place
		id = fmt.Sprintf("#%d.%d", ref.src.head.seq, ref.row)
	}
	x.byID[id] = ref
	return position{at, id}
}

func (x *refs) at(id string) rowRef {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.byID[id]
}
