// Package reuse finds out who still uses memory that has gone back to a pool.
//
// The way of a message has pools: of contents, of lines, of rows, of transcripts.
// What is taken from one may be read and written until it goes back, and by nobody
// after that; whoever does it all the same sees, or writes, the octets of another
// message. No compiler tells, and a test sees it only by luck, because what was
// there mostly still is.
//
// So each pool of octets hands what comes back to [Spoil]. In programs that are
// built with the race detector, as all tests are once in CI, it writes over them:
// a reader that is late finds octets that no message has, and the detector finds
// the writer and the reader that nothing keeps apart. In all other programs it is
// nothing. Pools of structs clear what comes back anyway.
//
// A new pool of octets calls Spoil where it takes them back.
package reuse

// Octet is what spoiled memory is full of. It begins no text in UTF-8 that
// anybody writes, and is in no command and no header field.
const Octet = 0xdd

// Spoils reports whether Spoil does anything.
const Spoils = spoils

// Spoil writes over all of the memory of b, also beyond its length.
func Spoil(b []byte) {
	if spoils {
		b = b[:cap(b)]
		for i := range b {
			b[i] = Octet
		}
	}
}
