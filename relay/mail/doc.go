// Package mail holds the words of the relay: addresses, envelopes, replies,
// dispositions, outcomes and identifiers.
//
// It exists so that every other package means the same thing by the same
// word. It promises that an [Address] or a parameter that it has parsed can be
// written back to a peer without changing its meaning: what relay control saw
// is what goes out. It does no I/O and imports only the standard library and
// the IDNA tables.
//
// To add a word, add a type whose zero value means something, and say in its
// comment which RFC it comes from.
package mail
