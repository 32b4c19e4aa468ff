// Package relaytest helps to test the relay, and to demonstrate it, against the
// real thing: sockets, TLS and SMTP, not fakes of them.
//
// It exists because what goes wrong between mail servers goes wrong on the
// wire: a reply too early, a connection that ends after the final dot, a host
// that says one octet a second. [SmartHost] is a next hop that does on request
// whatever a next hop can do; [Recorder] keeps the facts that the relay states;
// [Resolver] answers what package dns answers, from a map; [NewCertificate]
// makes certificates. Nothing here imports package testing: whatever takes a
// [TB] takes a *testing.T, and the rest serves programs too.
//
// To add a misbehaviour, add a field to [Action] and obey it in session.act.
package relaytest

import "time"

// TB is the part of testing.TB that is needed here.
type TB interface {
	Helper()
	Cleanup(f func())
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
}

// waitLimit bounds every wait of a test that did not say how long: long enough
// for a loaded machine, short enough to see which wait failed.
const waitLimit = time.Minute
