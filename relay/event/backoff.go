package event

// The words of [BackoffChanged.Mode].
const (
	BackoffNone   = "none"
	BackoffSlow   = "slow"
	BackoffSingle = "single"
	BackoffPause  = "pause"
)

// BackoffModes are the words of [BackoffChanged.Mode] but for none.
func BackoffModes() []string { return []string{BackoffSlow, BackoffSingle, BackoffPause} }
