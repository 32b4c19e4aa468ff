// Package smtpin receives mail: it listens for each receive connector, speaks
// SMTP through go-smtp on connections of package wire, asks relay control, and
// streams each content to an [Acceptor].
//
// It exists so that one place knows what a session is: who the peer is, what it
// may do, what it has said. It promises that a client reads 250 after the end
// of its content only when the Acceptor has taken responsibility, that the
// content reaches the Acceptor byte for byte (but for bare newlines, where a
// connector is configured to mend them), that a session's memory does not grow
// with its content, that a panic ends one session and no more, and that each
// refusal is stated once with its reason.
//
// A [Server] has the listeners and the life of the sessions, a session is one
// connection, a transaction is one MAIL to its end.
//
// To add a check of the envelope, add it to package policy; of the content, to
// transaction.take, which sees every octet; an extension of SMTP begins in
// package wire, where EHLO is answered.
package smtpin
