package queue

import (
	"encoding/binary"
	"errors"
	"strings"

	"github.com/dgraph-io/badger/v4"
)

// Marks are what there is one of, and changes with each save. While the queue is
// open they are behind all other keys. In front of the messages they would be in a
// table of new ones, too, which then spanned all old ones: Badger merged it with
// those, and wrote the whole queue again for every few thousand messages. A queue
// that was closed has its marks where programs of before look for them.

// restingMark is prefixMark in a queue that was closed. keyFormat is always there.
const restingMark = "g/"

var marks = [...]string{keyCommits, keySegment, keyOutbox, keyTold, keyJournal}

// restingKey is where a queue that was closed has key.
func restingKey(key string) string {
	if rest, ok := strings.CutPrefix(key, prefixMark); ok {
		return restingMark + rest
	}
	return key
}

// currentKey is where a queue that is open has what a closed one, or a program of
// before, has at key.
func currentKey(key string) string {
	if rest, ok := strings.CutPrefix(key, restingMark); ok && key != keyFormat {
		return prefixMark + rest
	}
	return key
}

// getMark gets key, or what a queue that was closed has for it.
func getMark(txn *badger.Txn, key string) (*badger.Item, error) {
	item, err := txn.Get([]byte(key))
	if errors.Is(err, badger.ErrKeyNotFound) && strings.HasPrefix(key, prefixMark) {
		item, err = txn.Get([]byte(restingKey(key)))
	}
	return item, err
}

// setFormat says which programs can open the queue, and has the marks where they
// look for them. Nobody else is there.
func (q *Queue) setFormat(format uint64) error {
	was := q.resting
	q.resting = format == formatNumber
	err := q.transact(int64(len(marks))*markSize, 2*len(marks)+1, func(txn *badger.Txn) error {
		for _, key := range marks {
			item, err := getMark(txn, key)
			if errors.Is(err, badger.ErrKeyNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			from, to := restingKey(key), key
			if q.resting {
				from, to = to, from
			}
			if string(item.Key()) == to {
				continue
			}
			value, err := item.ValueCopy(nil)
			if err != nil {
				return err
			}
			if err = errors.Join(txn.Delete([]byte(from)), txn.Set([]byte(to), value)); err != nil {
				return err
			}
		}
		return txn.Set([]byte(keyFormat), binary.BigEndian.AppendUint64(nil, format))
	})
	if err != nil {
		q.resting = was
	}
	return err
}
