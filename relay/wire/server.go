package wire

import "github.com/emersion/go-smtp"

// NewServer returns the go-smtp server that connections of this package are
// for: it has no limits, no deadlines and no TLS of its own. Serve it with a
// listener that returns values with a *Conn in them. Never call its Close: it
// closes connections while they are being read.
func NewServer(b smtp.Backend, log smtp.Logger) *smtp.Server {
	s := smtp.NewServer(b)
	s.MaxLineLength = 0
	s.AllowInsecureAuth = true // the session decides
	s.Domain = "localhost"     // our greeting goes out
	s.ErrorLog = log
	return s
}
