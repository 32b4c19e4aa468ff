package wire

import (
	"sync"

	"waybill/relay/reuse"
)

// An idle connection holds a small buffer, which the usual pipelined commands fit
// into; one that is sending holds a large one from a pool. With 10,000 idle
// sessions each KiB of the small one is 10 MiB. The large one must hold an AUTH line of 12,288 octets (RFC
// 4954 section 4). 64 KiB was measured: BenchmarkBody gains nothing beyond it.
const (
	smallBuffer = 1 << 10
	largeBuffer = 64 << 10
)

var largeBuffers = sync.Pool{New: func() any { b := make([]byte, largeBuffer); return &b }}

// input holds octets that were received and not yet consumed: buf[r:w].
type input struct {
	small []byte
	large *[]byte // from the pool, or nil
	buf   []byte
	r, w  int
	total int64 // octets received
}

func (in *input) bytes() []byte { return in.buf[in.r:in.w] }

func (in *input) len() int { return in.w - in.r }

func (in *input) advance(n int) { in.r += n }

// room makes space and returns it: in the large buffer when large is set or
// the small one is full. It is empty when even the large one is full.
func (in *input) room(large bool) []byte {
	if in.buf == nil {
		in.small = make([]byte, smallBuffer)
		in.buf = in.small
	}
	if in.r > 0 {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	if in.large == nil && (large || in.w == len(in.buf)) {
		in.large = largeBuffers.Get().(*[]byte)
		in.w = copy(*in.large, in.buf[:in.w])
		in.buf = *in.large
	}
	return in.buf[in.w:]
}

func (in *input) filled(n int) {
	in.w += n
	in.total += int64(n)
}

// put holds p, which is at most largeBuffer octets. Nothing else is held.
func (in *input) put(p []byte) {
	in.r, in.w = 0, 0
	room := in.room(len(p) > smallBuffer)
	in.w = copy(room, p)
}

// shrink gives the large buffer back when what it holds fits into the small one.
func (in *input) shrink() {
	if in.large == nil || in.len() > len(in.small) {
		return
	}
	in.w = copy(in.small, in.buf[in.r:in.w])
	in.r = 0
	in.buf = in.small
	reuse.Spoil(*in.large)
	largeBuffers.Put(in.large)
	in.large = nil
}

// release gives all buffers back.
func (in *input) release() {
	if in.large != nil {
		reuse.Spoil(*in.large)
		largeBuffers.Put(in.large)
	}
	*in = input{total: in.total}
}
