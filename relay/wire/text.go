package wire

import "waybill/relay/transcript"

// Printable is s as a record may hold it; see [transcript.Printable].
func Printable(s string, limit int) string { return transcript.Printable(s, limit) }
