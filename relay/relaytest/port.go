package relaytest

import "strconv"

// Port is a TCP port at which nobody listens. Until the test ends, nobody is given
// it who asks for any free one, and it is returned only once; who knows it may
// listen there, on any address of this host, as often as wanted.
func Port(t TB) string {
	t.Helper()
	port, release, err := ReservePort()
	if err != nil {
		t.Fatalf("reserve a port: %v", err)
	}
	t.Cleanup(release)
	return strconv.Itoa(port)
}
