package event

// The words of [DSNQueued.Suppressed].
const (
	SuppressedNullSender = "null_sender" // the message is a report itself: nobody is told of a double bounce
	SuppressedNotify     = "notify"      // NOTIFY does not want it
	SuppressedForged     = "forged"      // SPF says that the sender's domain does not send from there
	SuppressedStranger   = "stranger"    // the sender could not be verified, or strangers get no reports
	SuppressedLoop       = "loop"        // a report would go round: about a report with a sender, or to who could not be reached
)

// Suppressions are the words of [DSNQueued.Suppressed].
func Suppressions() []string {
	return []string{SuppressedNullSender, SuppressedNotify, SuppressedForged, SuppressedStranger, SuppressedLoop}
}
