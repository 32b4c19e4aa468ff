package event

// The words of [ListingChanged.Result].
const (
	ListingListed  = "listed"  // the list has the address
	ListingClean   = "clean"   // it has it not
	ListingUnknown = "unknown" // it does not answer, or not as a list does
)
