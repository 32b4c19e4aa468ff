package config

// Downgrade says what becomes of messages for hosts that do not take their
// content as it is.
type Downgrade struct {
	Content       string `yaml:"content" enum:"convert,bounce,send" doc:"what becomes of such messages: converted, part by part, to quoted-printable or base64; returned with 5.6.3; or sent as they are, against the standard, which many hosts bear. Binary content is never sent so"`
	Unconvertible string `yaml:"unconvertible" enum:"bounce,send" doc:"what becomes of those that conversion would break or cannot help: signed ones (DKIM, ARC, S/MIME, OpenPGP), and those with 8-bit header fields"`
}
