package smtpout

import (
	"strconv"
	"strings"
	"time"

	"waybill/relay/mail"
)

// parseMinimum reads the least time that a next hop promises for by-mode R (RFC
// 2852 section 3). What is malformed counts as not there.
func parseMinimum(params string) int64 {
	n, err := strconv.ParseUint(strings.TrimSpace(params), 10, 31)
	if err != nil {
		return 0
	}
	return int64(n)
}

// deliverBy is what MAIL says to s of the time by which the message is to be
// delivered, or why it cannot go over s: in by-mode R only to hosts that keep
// the promise (RFC 2852 section 4). Another host of the next hop may do better.
func (s *session) deliverBy(by mail.DeliverBy, now time.Time) (param string, f *failure) {
	if by.IsZero() {
		return "", nil
	}
	value, inTime := by.Value(now)
	switch {
	case !inTime:
		f = ours("MAIL", 550, "5.4.7", mail.ClassOther, "the time by which the sender wants it delivered has passed")
	case !s.ext.deliverBy && !by.Return:
		return "", nil
	case !s.ext.deliverBy:
		f = ours("MAIL", 550, "5.3.3", mail.ClassOther, "the sender wants it delivered in time or returned, and %s does not offer DELIVERBY", s.at)
	case by.Return && by.Deadline.Sub(now) < time.Duration(s.ext.minBy)*time.Second:
		f = ours("MAIL", 550, "5.3.3", mail.ClassOther, "the sender wants it delivered sooner than the %d seconds that %s takes", s.ext.minBy, s.at)
	default:
		return " BY=" + value, nil
	}
	f.at = s.at
	return "", f
}
