package dns

import "container/list"

// lru keeps the answers that were used last. It is guarded by Resolver.mu.
type lru struct {
	size  int
	order *list.List // of *entry; the front was used last
	byKey map[question]*list.Element
}

type entry struct {
	key    question
	answer *answer
}

func newLRU(size int) *lru {
	return &lru{size: size, order: list.New(), byKey: map[question]*list.Element{}}
}

func (c *lru) get(key question) *answer {
	e, ok := c.byKey[key]
	if !ok {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry).answer
}

func (c *lru) put(key question, a *answer) {
	if c.size <= 0 {
		return
	}
	if e, ok := c.byKey[key]; ok {
		e.Value.(*entry).answer = a
		c.order.MoveToFront(e)
		return
	}
	for c.order.Len() >= c.size {
		old := c.order.Back()
		delete(c.byKey, old.Value.(*entry).key)
		c.order.Remove(old)
	}
	c.byKey[key] = c.order.PushFront(&entry{key, a})
}
