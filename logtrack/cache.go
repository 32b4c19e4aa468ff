package logtrack

import (
	"container/list"
	"sync"
)

// viewCache keeps the views of blocks that were read last, up to a size.
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
const viewCost = 4 << 10

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
		c.weigh(e.Value.(*cached))
		return e.Value.(*cached).view
	}
	v := newView(h, func(read func([]byte) error) error { return p.body(h.seq, read) })
	c.byKey[key] = c.order.PushFront(&cached{key: key, view: v, size: viewCost})
	c.total += viewCost
	for c.total > c.max && c.order.Len() > 1 {
		c.remove(c.order.Back())
	}
	return v
}

// weigh counts what a view has grown to; done when it is used again, or when
// it is about to go.
func (c *viewCache) weigh(e *cached) {
	size := viewCost + e.view.bytes()
	c.total += size - e.size
	e.size = size
}

func (c *viewCache) remove(e *list.Element) {
	v := e.Value.(*cached)
	c.total -= v.size
	delete(c.byKey, v.key)
	c.order.Remove(e)
}

// settle weighs the latest views, after a query.
func (c *viewCache) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for e := c.order.Front(); e != nil && n < 256; e = e.Next() {
		c.weigh(e.Value.(*cached))
		n++
	}
	for c.total > c.max && c.order.Len() > 0 {
		c.remove(c.order.Back())
	}
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

func (v *view) bytes() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.size
}
