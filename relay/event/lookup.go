package event

// The words of [LookupAnswered.Lookup].
const (
	LookupUsers   = "users_ldap"
	LookupCommand = "users_command"
	LookupLDAP    = "recipients_ldap"
	LookupProbe   = "recipients_probe"
)

// Lookups are the words of [LookupAnswered.Lookup].
func Lookups() []string { return []string{LookupUsers, LookupCommand, LookupLDAP, LookupProbe} }

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
