// Package logtrack is the message-tracking store: a searchable index over the
// facts of package event.
//
// It exists so that anybody who asks "where is this mail?" gets an answer from
// the same facts that the log line and the metrics tell. It is a reader: it
// states nothing of its own, and the relay never calls it but through
// event.Sink.
//
// It promises that a record written before a successful [Store.Sync] survives
// kill -9 and a power cut, that a record is found by the next query after
// [Store.Write] returns, that every field of every fact comes back as it went
// in, that a record written twice (same event id) is kept once, and that the
// index over the live stream equals the index over the parsed log lines
// ([Store.Reindex]). It never takes the relay down: when its disk fails it
// drops, counts and says so, and [Store.Sync] returns an error, so that the
// queue keeps its outbox. DESIGN.md has the bytes.
//
// To make a new field searchable, add it to the table in fields.go; a new fact
// needs nothing here but its sentence in describe.go, which the linter asks for.
package logtrack
