//go:build !unix

package smtpout

// quiet cannot look without waiting here; a session that has ended is noticed
// at its next command.
func (s *session) quiet() bool { return s.r.r.Buffered() == 0 }

// heard cannot look without waiting here.
func (s *session) heard() bool { return false }
