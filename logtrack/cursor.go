package logtrack

import (
	"encoding/base64"
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"waybill/logtrack/trackapi"
)

// position is a place in the order of a list: a time and an identifier.
type position struct {
	at int64
	id string
}

func (a position) compare(b position) int {
	switch {
	case a.at != b.at:
		if a.at < b.at {
			return -1
		}
		return 1
	case a.id < b.id:
		return -1
	case a.id > b.id:
		return 1
	}
	return 0
}

// signature ties a cursor to the query that it belongs to.
func signature(kind string, q trackapi.Query) uint32 {
	q.Cursor, q.Limit, q.Explain = "", 0, false
	v := q.Values()
	// A relative range moves between pages; the cursor keeps the place.
	v.Del("from")
	v.Del("to")
	return uint32(xxhash.Sum64String(kind + "?" + v.Encode())) //nolint:gosec // a part of the hash is enough
}

func (a position) cursor(sig uint32) string {
	b := binary.BigEndian.AppendUint32([]byte{1}, sig)
	b = binary.AppendVarint(b, a.at)
	b = append(b, a.id...)
	return base64.RawURLEncoding.EncodeToString(b)
}

// readCursor reads a cursor; ok is false for the start of a list.
func readCursor(s string, sig uint32) (pos position, ok bool, err error) {
	if s == "" {
		return position{}, false, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) < 6 || b[0] != 1 || len(b) > 400 {
		return position{}, false, trackapi.BadParameter("cursor", "not a cursor", "leave it out to begin again")
	}
	if binary.BigEndian.Uint32(b[1:]) != sig {
		return position{}, false, trackapi.BadParameter("cursor", "it belongs to another query", "keep the filters and the order while paging, or leave it out to begin again")
	}
	at, n := binary.Varint(b[5:])
	if n <= 0 {
		return position{}, false, trackapi.BadParameter("cursor", "not a cursor", "leave it out to begin again")
	}
	return position{at, string(b[5+n:])}, true, nil
}
