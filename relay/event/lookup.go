package event

// LookupAnswered says how a question about a user or a recipient ended that the
// relay had to ask another server, or its cache.
type LookupAnswered struct {
	Lookup string  `json:"lookup"` // a [Lookups] word
	Result string  `json:"result"` // a [LookupResults] word
	Took   Seconds `json:"took"`
	Error  string  `json:"error,omitzero"` // why there was no answer
}

func (LookupAnswered) fact() {}

// The words of [LookupAnswered.Lookup].
const (
	LookupUsers = "users_ldap"
	LookupLDAP  = "recipients_ldap"
	LookupProbe = "recipients_probe"
)

// Lookups are the words of [LookupAnswered.Lookup].
func Lookups() []string { return []string{LookupUsers, LookupLDAP, LookupProbe} }

// The words of [LookupAnswered.Result].
const (
	LookupCached      = "cached"      // the answer was there
	LookupStale       = "stale"       // there was no answer, and an old one served
	LookupKnown       = "known"       // the user's password is right, or the recipient exists
	LookupUnknown     = "unknown"     // it is not, or does not
	LookupUnavailable = "unavailable" // there was no answer
)

// LookupResults are the words of [LookupAnswered.Result].
func LookupResults() []string {
	return []string{LookupCached, LookupStale, LookupKnown, LookupUnknown, LookupUnavailable}
}
