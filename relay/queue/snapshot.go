package queue

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/dgraph-io/badger/v4"
)

// snapshot is the database as a commit left it, for who reads single records. A
// transaction of Badger begins when all commits before it have ended: who reads by
// one of his own waits for the commit under way, and with it for the disk, for
// what has been there long before. The committer waits for that anyway.
type snapshot struct {
	before *badger.Txn       // what was there before the commit. Many read by it: without iterators that changes nothing in it
	last   map[string][]byte // the records of messages that the commit wrote, by key; nil: deleted
	users  int               // those who read, and one for being the latest; the lock of snapshots guards it
}

// written are the records of messages that a group writes.
func written(group []*change) map[string][]byte {
	last := make(map[string][]byte, len(group))
	for _, c := range group {
		for _, p := range c.set {
			if isMessageKey(p.key) {
				last[string(p.key)] = p.value
			}
		}
		for _, k := range c.del {
			if isMessageKey(k) {
				last[string(k)] = nil
			}
		}
	}
	return last
}

func isMessageKey(key []byte) bool { return strings.HasPrefix(string(key), prefixMessage) }

// get reads a record. Its value is good until the snapshot is given back.
func (s *snapshot) get(key []byte, f func(v []byte) error) error {
	if v, ok := s.last[string(key)]; ok {
		if v == nil {
			return badger.ErrKeyNotFound
		}
		return f(v)
	}
	item, err := s.before.Get(key)
	if err != nil {
		return err
	}
	return item.Value(f)
}

// snapshots has the latest one.
type snapshots struct {
	mu     sync.Mutex
	latest *snapshot
}

// set makes s the latest; nil ends them.
func (l *snapshots) set(s *snapshot) {
	if s != nil {
		s.users = 1
	}
	l.mu.Lock()
	old := l.latest
	l.latest = s
	l.mu.Unlock()
	if old != nil {
		l.drop(old)
	}
}

// take returns the latest one, to be given back by drop, or nil.
func (l *snapshots) take() *snapshot {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.latest != nil {
		l.latest.users++
	}
	return l.latest
}

func (l *snapshots) drop(s *snapshot) {
	l.mu.Lock()
	s.users--
	unused := s.users == 0
	l.mu.Unlock()
	if unused {
		s.before.Discard()
	}
}

// read reads the record of a message that is not finished, as the last commit
// left it that memory may know of.
func (q *Queue) read(id ident) (*stored, error) {
	s := q.snapshots.take()
	if s == nil { // nothing was committed yet, or the queue was closed
		return q.readLive(id)
	}
	defer q.snapshots.drop(s)
	q.life.RLock() // the files are mapped: nobody reads them once they are closed
	defer q.life.RUnlock()
	if q.closed {
		return nil, ErrClosed
	}
	var m *stored
	err := s.get(messageKey(string(id.QueueID())), func(v []byte) (err error) {
		m, err = decodeRecord(v)
		return err
	})
	switch {
	case errors.Is(err, badger.ErrKeyNotFound):
		return nil, ErrNotFound
	case err != nil:
		return nil, fmt.Errorf("read message %s: %w", id.QueueID(), err)
	case m.done:
		return nil, ErrNotFound
	}
	return m, nil
}
