// Command waybill is an SMTP relay that shows where every message is, where it
// went, and why it is late. "waybill help" lists what it can do.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
