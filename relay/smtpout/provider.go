package smtpout

import "strings"

// providers rolls hosts up by the end of their names. The first match counts.
var providers = []struct{ suffix, provider string }{
	{"olc.protection.outlook.com", "outlook"},
	{"hotmail.com", "outlook"},
	{"smtp-mail.outlook.com", "outlook"},
	{"protection.outlook.com", "m365"},
	{"mx.microsoft", "m365"},
	{"office365.com", "m365"},
	{"google.com", "google"},
	{"googlemail.com", "google"},
	{"gmail.com", "google"},
	{"yahoodns.net", "yahoo"},
	{"yahoo.com", "yahoo"},
	{"aol.com", "yahoo"},
	{"icloud.com", "apple"},
	{"me.com", "apple"},
	{"amazonaws.com", "amazon"},
	{"amazonses.com", "amazon"},
	{"pphosted.com", "proofpoint"},
	{"ppe-hosted.com", "proofpoint"},
	{"mimecast.com", "mimecast"},
	{"mimecast.co.za", "mimecast"},
	{"iphmx.com", "cisco"},
	{"barracudanetworks.com", "barracuda"},
	{"messagelabs.com", "broadcom"},
	{"hornetsecurity.com", "hornet"},
	{"antispameurope.com", "hornet"},
	{"gmx.net", "united_internet"},
	{"gmx.com", "united_internet"},
	{"web.de", "united_internet"},
	{"kundenserver.de", "united_internet"},
	{"ionos.com", "united_internet"},
	{"t-online.de", "telekom"},
	{"telekom.de", "telekom"},
	{"zoho.com", "zoho"},
	{"zoho.eu", "zoho"},
	{"protonmail.ch", "proton"},
	{"secureserver.net", "godaddy"},
	{"yandex.net", "yandex"},
	{"yandex.ru", "yandex"},
	{"mail.ru", "mailru"},
	{"qq.com", "tencent"},
}

// otherProvider is every host that no suffix matches.
const otherProvider = "other"

// Provider rolls a next hop up into one of [Providers] by the end of its name,
// so that it can be a metric label.
func Provider(host string) string {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	for _, p := range providers {
		if rest, ok := strings.CutSuffix(host, p.suffix); ok && (rest == "" || rest[len(rest)-1] == '.') {
			return p.provider
		}
	}
	return otherProvider
}

// Providers lists everything that [Provider] returns.
func Providers() []string {
	var all []string
	seen := map[string]bool{}
	for _, p := range providers {
		if !seen[p.provider] {
			seen[p.provider] = true
			all = append(all, p.provider)
		}
	}
	return append(all, otherProvider)
}
