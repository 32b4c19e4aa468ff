package logtrack

import (
	"container/list"
	"sync"
)

// viewCache keeps the views of blocks that were read last, up to a size. A
// view tells it how much it grows by, so that a query over thousands of blocks
// holds no more than that.
type viewCache struct {
	mu    sync.Mutex
	max   int64
	total int64
	byKey map[viewKey]*list.Element
	order *list.List // of *cached, the latest first
}

type viewKey struct {
	part *partition
	seq  uint32
}

type cached struct {
	key  viewKey
	view *view
	size int64 // as counted in total
}

// viewCost is what a view takes beside its columns.
const viewCost = 12 << 10

func newViewCache(limit int64) *viewCache {
	return &viewCache{max: limit, byKey: map[viewKey]*list.Element{}, order: list.New()}
}

// get is the view of a block. The partition must be acquired while it is used.
func (c *viewCache) get(p *partition, h *header) *view {
	key := viewKey{p, h.seq}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.byKey[key]; ok {
		c.order.MoveToFront(e)
		return e.Value.(*cached).view
	}
	v := newView(h, func(read func([]byte) error) error { return p.body(h.seq, read) })
	v.grew = func(size int64) { c.grew(key, v, size) }
	c.byKey[key] = c.order.PushFront(&cached{key: key, view: v, size: viewCost})
	c.total += viewCost
	c.shrink()
	return v
}

// peek is the view of a block that is there already, or nil.
func (c *viewCache) peek(p *partition, h *header) *view {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.byKey[viewKey{p, h.seq}]; ok {
		return e.Value.(*cached).view
	}
	return nil
}

// grew counts what a view has decoded.
func (c *viewCache) grew(key viewKey, v *view, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[key]
	if !ok || e.Value.(*cached).view != v { // it has gone already
		return
	}
	e.Value.(*cached).size += size
	c.total += size
	c.shrink()
}

// shrink drops the views that were used longest ago. c.mu is held.
func (c *viewCache) shrink() {
	for c.total > c.max && c.order.Len() > 1 {
		c.remove(c.order.Back())
	}
}

func (c *viewCache) remove(e *list.Element) {
	v := e.Value.(*cached)
	c.total -= v.size
	delete(c.byKey, v.key)
	c.order.Remove(e)
}

// forget drops the views of a partition.
func (c *viewCache) forget(p *partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, e := range c.byKey {
		if key.part == p {
			c.remove(e)
		}
	}
}

func (c *viewCache) size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}
