package deliver

import "waybill/relay/mail"

// rule says which replies mean which failure class. All conditions that are
// set must hold; of the texts, one.
type rule struct {
	name  string // stays the same over versions: it is in the record as class_rule
	class mail.Class
	why   string   // what the reply means, for operators
	code  string   // prefixes of the reply code, apart by spaces: "4", "421 45"
	enh   string   // enhanced codes, apart by spaces; "x" stands for any class, "*" at the end for any rest
	verb  string   // answered commands, apart by spaces
	local bool     // only our own words; without it only the next hop's
	text  []string // lower case; "*" stands for anything between
}

// The verbs of a session before any message, and of the message itself.
const (
	verbsSession = "CONNECT EHLO HELO STARTTLS AUTH"
	verbsContent = "DATA . BDAT"
)

// rules are asked in this order; the first that matches decides. First come the
// sayings of certain providers, then common sayings by class, then the enhanced
// code (RFC 3463, and the IANA registry that grew from it), then reply code and
// command. A reply that no rule knows is "other".
//
// To add a rule, put it before the first that would take its replies too, give
// it a name that says where it comes from, and a reply to TestClassify.
var rules = []rule{
	// Our own words. smtpout names the class of most of them itself.
	{name: "local-loop", class: mail.ClassBadDomain, why: "the MX records of the domain point at ourselves", local: true, enh: "x.4.6"},
	{name: "local-connect", class: mail.ClassConnect, why: "no connection", local: true, enh: "x.4.1"},
	{name: "local-lost", class: mail.ClassTimeout, why: "the connection broke or the next hop fell silent", local: true, enh: "x.4.2"},
	{name: "local-dns", class: mail.ClassDNS, why: "the name servers did not answer", local: true, enh: "x.4.3"},
	{name: "local-domain", class: mail.ClassBadDomain, why: "the domain does not exist or takes no mail", local: true, enh: "x.1.2 x.1.10 x.4.4"},
	{name: "local-tls", class: mail.ClassTLS, why: "TLS could not be had as required", local: true, enh: "x.7.4 x.7.5 x.7.10"},
	{name: "local-auth", class: mail.ClassAuth, why: "we could not log in", local: true, enh: "x.7.8 x.7.9 x.7.3"},
	{name: "local-size", class: mail.ClassSize, why: "larger than the next hop or the connectors take", local: true, enh: "x.3.4 x.2.3"},
	{name: "local-content", class: mail.ClassContent, why: "the next hop cannot take this kind of content", local: true, enh: "x.6.*"},
	{name: "local-other", class: mail.ClassOther, why: "our own reason without a class of its own", local: true},

	// Microsoft 365, Outlook.com and Exchange.
	{name: "ms-recipient-denied", class: mail.ClassInvalidRecipient, why: "directory-based edge blocking: no such recipient in the tenant", enh: "5.4.1", text: []string{"recipient address rejected: access denied"}},
	{name: "ms-recipient-not-found", class: mail.ClassInvalidRecipient, why: "no such recipient", text: []string{"resolver.adr.recipientnotfound", "resolver.adr.recipnotfound", "resolver.adr.exrecipnotfound", "recipientnotfound", "resolver.adr.ambiguous"}},
	{name: "ms-quota", class: mail.ClassMailboxFull, why: "the mailbox is over its quota", text: []string{"quotaexceededexception", "storedrv.deliver; mailbox full", "mapiexceptionshutoffquotaexceeded"}},
	{name: "ms-disabled", class: mail.ClassMailboxInactive, why: "the mailbox is disabled", text: []string{"accountdisabled", "mailboxdisabledexception", "storedrv.deliver; disabled mailbox"}},
	{name: "ms-basic-auth", class: mail.ClassAuth, why: "the tenant takes no user name and password; use OAuth or a connector", enh: "5.7.30 5.7.57 5.7.139"},
	{name: "ms-limit", class: mail.ClassThrottled, why: "a sending limit of the mailbox or tenant", text: []string{"concurrent connection limit exceeded", "concurrent connections limit exceeded", "sender thread limit exceeded", "submission quota", "submissionquotaexceeded", "exceeded the maximum number of recipients per day"}},
	{name: "ms-limit-code", class: mail.ClassThrottled, why: "a limit of the tenant: recipients per day, suspicious volume, address spaces", enh: "5.7.232 5.7.233 5.7.705 5.7.708 5.7.750 4.7.750"},
	{name: "ms-blocked-ip", class: mail.ClassReputation, why: "our address is on Microsoft's block list; ask for delisting", text: []string{"banned sending ip", "part of their network is on our block list", "(s3140)", "(s3150)", "s3140", "s3150", "delist.messaging.microsoft.com", "sender.office.com"}},
	{name: "ms-ip-rate", class: mail.ClassReputation, why: "slowed down because of the reputation of our address", enh: "4.7.650 4.7.651 4.7.652 4.7.500"},
	{name: "ms-access-later", class: mail.ClassReputation, why: "access denied for a while because of the reputation of our address", text: []string{"access denied, please try again later*as", "please try again later*(s775", "server busy. please try again later from"}},
	{name: "ms-dmarc", class: mail.ClassPolicy, why: "the sender's domain fails DMARC", enh: "5.7.509 5.7.515 5.7.512"},
	{name: "ms-policy", class: mail.ClassPolicy, why: "a rule of the recipient's organization", text: []string{"resolver.rst.", "transport.rules.", "restricted recipients", "does not allow external forwarding"}},
	{name: "ms-storage-busy", class: mail.ClassOther, why: "the server is short of resources", code: "4", text: []string{"insufficient system resources"}},

	// Google.
	{name: "gmail-rate", class: mail.ClassThrottled, why: "too much mail from us, or to this mailbox, at once", text: []string{"unusual rate of*mail", "receiving mail at a rate that", "receiving mail too quickly", "daily smtp relay sending limit", "daily user sending limit", "daily email sending quota", "exceeded*daily"}},
	{name: "gmail-reputation", class: mail.ClassReputation, why: "our address or the sender's domain has a bad reputation with Google", text: []string{"very low reputation", "low reputation of the sending"}},
	{name: "gmail-security", class: mail.ClassContent, why: "the attachment or its type is blocked", text: []string{"content presents a potential security issue", "potential security issue"}},
	{name: "gmail-spam", class: mail.ClassContent, why: "looks like unsolicited mail", text: []string{"likely unsolicited mail", "likely suspicious"}},
	{name: "gmail-unauthenticated", class: mail.ClassPolicy, why: "neither SPF nor DKIM pass, or DMARC says reject", text: []string{"sender is unauthenticated", "unauthenticated email from", "did not pass dmarc", "sender guidelines"}},
	{name: "gmail-later", class: mail.ClassThrottled, why: "asked to come back later", text: []string{"try again later, closing connection"}},

	// Yahoo and AOL.
	{name: "yahoo-greylist", class: mail.ClassGreylist, why: "put off as an unknown sender", text: []string{"[gl01]"}},
	{name: "yahoo-volume", class: mail.ClassThrottled, why: "put off because of volume or complaints", text: []string{"[ts0", "[tss", "unexpected volume or user complaints", "message temporarily deferred"}},
	{name: "yahoo-blocked", class: mail.ClassReputation, why: "our address is blocked", text: []string{"[bl21]", "[bl22]", "[bl23]", "[ipts0"}},
	{name: "yahoo-no-account", class: mail.ClassInvalidRecipient, why: "no such account", text: []string{"delivery error: dd this user doesn't have", "delivery error: dd requested mail action aborted, mailbox not found"}},
	{name: "yahoo-disabled", class: mail.ClassMailboxInactive, why: "the account is disabled", text: []string{"this mailbox is disabled"}},

	// Filters in front of many domains.
	{name: "proofpoint-ip", class: mail.ClassReputation, why: "our address is blocked by Proofpoint; see the page it names", text: []string{"ipcheck.proofpoint.com", "proofpoint dynamic reputation"}},
	{name: "mimecast-greylist", class: mail.ClassGreylist, why: "Mimecast's greylisting", code: "451", text: []string{"internal resources are temporarily unavailable", "internal resource temporarily unavailable"}},
	{name: "mimecast-recipient", class: mail.ClassInvalidRecipient, why: "Mimecast knows no such recipient", text: []string{"invalid recipient*mimecast"}},
	{name: "mimecast-policy", class: mail.ClassPolicy, why: "a policy at Mimecast", text: []string{"anti-spoofing policy", "envelope blocked", "rejected due to security policies", "account inbounds disabled"}},
	{name: "mimecast-network", class: mail.ClassReputation, why: "our network is blocked at Mimecast", text: []string{"host network not allowed", "csi.mimecast.org"}},
	{name: "barracuda-unknown", class: mail.ClassInvalidRecipient, why: "Barracuda: unknown recipient behind it", text: []string{"permanent failure for one or more recipients*5.1.1"}},
	{name: "barracuda-blocked", class: mail.ClassContent, why: "Barracuda took it for spam", text: []string{"permanent failure for one or more recipients*blocked", "barracuda*identified as spam"}},
	{name: "cloudmark-ip", class: mail.ClassReputation, why: "Cloudmark's sender intelligence", text: []string{"csi.cloudmark.com", "cloudmark sender intelligence"}},

	// Sayings of servers in general. What is sure comes first: a full mailbox is no policy.
	{name: "text-starttls", class: mail.ClassTLS, why: "the next hop wants TLS first", text: []string{"must issue a starttls", "starttls is required", "starttls required", "tls is required", "requires tls", "encryption required for", "encryption is required", "session encryption"}},
	{name: "text-relaying", class: mail.ClassPolicy, why: "the next hop does not relay for us or is not responsible for the domain", text: []string{"relay access denied", "relaying denied", "relay not permitted", "unable to relay", "relaying is not permitted", "relaying not allowed", "not permitted to relay", "not a relay", "we do not relay"}},
	{name: "text-login", class: mail.ClassAuth, why: "the next hop wants a login, or did not accept ours", text: []string{"authentication required", "authentication is required", "authentication unsuccessful", "authentication failed", "authentication credentials invalid", "username and password not accepted", "client not authenticated", "smtp auth is required", "too many login attempts", "client was not authenticated", "bad username or password", "invalid login"}},
	{name: "text-greylist", class: mail.ClassGreylist, why: "greylisted: comes through when tried again", code: "4", text: []string{"greylist", "graylist", "grey list", "gray list", "grey-list", "gray-list", "greyl", "first-time sender", "you must wait*before"}},
	{name: "text-full", class: mail.ClassMailboxFull, why: "no room in the mailbox", text: []string{
		"mailbox is full", "mailbox full", "mail box full", "mailfolder is full", "over quota", "overquota", "over-quota", "quota exceeded", "exceeded*quota", "quota is full", "out of storage", "exceeded storage allocation",
		"mailbox*exceeded*size", "storage quota", "inbox is full", "insufficient disk quota", "not enough storage space in", "mailbox has exceeded", "mailbox size limit", "user is over*quota",
	}},
	{name: "text-inactive", class: mail.ClassMailboxInactive, why: "the mailbox is closed or asleep", text: []string{
		"mailbox disabled", "mailbox is disabled", "account disabled", "account is disabled", "account has been disabled", "account is inactive", "mailbox is inactive", "mailbox inactive", "inactive user", "user disabled",
		"account that you tried to reach is inactive", "account that you tried to reach is disabled", "account has been suspended", "account is suspended", "mailbox suspended", "no longer active", "account closed", "account expired", "account is locked", "mailbox unavailable or access denied*inactive", "not active", "deactivated",
	}},
	{name: "text-sender", class: mail.ClassPolicy, why: "the sender's address or domain is not accepted", text: []string{"sender address rejected", "sender verify failed", "sender rejected", "verification failed for", "invalid sender", "sender domain*not", "domain of sender address", "sender not allowed", "not owned by user"}},
	{name: "text-loop", class: mail.ClassBadDomain, why: "the mail goes round in circles behind the next hop", text: []string{"too many hops", "hop count exceeded", "mail loop", "routing loop", "loops back to", "loop detected"}},
	{name: "text-domain", class: mail.ClassBadDomain, why: "the recipient's domain is wrong or not handled there", text: []string{"domain not found", "domain does not exist", "host or domain name not found", "unknown domain", "domain does not accept mail", "not accept*mail for this domain", "not handle*mail for*domain", "no mx record", "nullmx", "null mx", "not hosted here", "domain is not", "recipient domain"}},
	{name: "text-unknown", class: mail.ClassInvalidRecipient, why: "no such address", text: []string{
		"user unknown", "unknown user", "no such user", "no such recipient", "no such mailbox", "no such address", "no such person", "no such account", "recipient unknown", "unknown recipient", "user not found", "recipient not found", "mailbox not found", "address not found",
		"does not exist", "doesn't exist", "do not exist", "not exist", "invalid recipient", "invalid mailbox", "invalid address", "unrouteable address", "unroutable address", "no mailbox here", "not a valid mailbox", "not a valid recipient", "no valid recipients", "user doesn't have", "doesn't have a*account",
		"not our customer", "address unknown", "unknown address", "unknown local", "not listed in*name*address book", "recipient address rejected: undeliverable", "recipient address rejected: unverified", "mailbox unavailable: user", "bad destination mailbox", "unknown mailbox", "no account by that name", "is not known here", "rejected: user", "account not available", "has no mailbox",
	}},
	{name: "text-size", class: mail.ClassSize, why: "the message is too large", text: []string{
		"message size exceeds", "message too large", "message too big", "message is too large", "exceeds maximum message size", "exceeds the maximum", "exceeded*message size limit", "exceeds*size limit", "size exceeds", "maximum message size", "message exceeds", "message file too big", "exceeds fixed limit", "larger than the current system limit", "content too large",
	}},
	{name: "text-rate", class: mail.ClassThrottled, why: "too much at once", text: []string{
		"too many connections", "too many concurrent", "too many simultaneous", "too many sessions", "connection limit", "concurrency limit", "connection rate", "rate limit", "rate-limit", "ratelimit", "throttl", "too much mail", "too many messages", "too many emails", "too many mails", "too many recipients", "too many rcpts", "too many errors",
		"sending too fast", "too fast", "slow down", "hourly limit", "daily limit", "daily quota", "sending limit", "exceeded the limit", "quota per", "message rate", "try again later: load", "server too busy", "server busy", "excessive", "resources temporarily unavailable: load",
	}},
	{name: "text-auth-result", class: mail.ClassPolicy, why: "SPF, DKIM, DMARC or the reverse name do not pass", text: []string{
		"dmarc", "dkim", "spf ", "spf:", "spf-", "(spf)", "sender policy framework", "ptr record", "reverse dns", "reverse lookup", "rdns", "reverse hostname", "cannot find your", "could not be resolved", "does not resolve", "helo command rejected", "invalid helo", "helo name", "fully-qualified hostname",
	}},
	{name: "text-virus", class: mail.ClassContent, why: "a virus, or what looks like one", text: []string{"virus", "malware", "infected", "phish", "trojan", "eicar"}},
	{name: "text-blocklist", class: mail.ClassReputation, why: "our address or domain is on a block list", text: []string{
		"blocked using", "spamhaus", "spamcop", "sorbs", "barracudacentral", "barracuda reputation", "uceprotect", "invaluement", "abuseat", "surriel", "blacklist", "black list", "blocklist", "block list", "blocked list", "denylist", "dnsbl", "rbl", "senderbase", "talosintelligence", "senderscore",
		"reputation", "listed at", "listed in", "listed on", "is listed", "blocked by our", "ip is blocked", "ip address is blocked", "your ip", "your network", "bad sender", "banned", "connections will not be accepted from", "client host rejected: access", "client host*blocked",
	}},
	{name: "text-spam", class: mail.ClassContent, why: "took the content for spam", text: []string{
		"spam", "unsolicited", "junk mail", "bulk mail", "content rejected", "message content", "content restrictions", "content filter", "rejected by content", "message contains", "contains a url", "suspicious", "bad attachment", "attachment", "blocked file", "file type", "header syntax", "malformed message", "message looks like", "message rejected", "message refused", "message blocked",
	}},
	{name: "text-policy", class: mail.ClassPolicy, why: "a rule of theirs, without details", text: []string{"policy", "policies", "administrative prohibition", "administratively", "not authorized", "not authorised", "unauthorized", "not allowed", "not permitted", "prohibited", "access denied", "permission denied", "refused by", "restricted", "rejected by recipient"}},
	{name: "text-timeout", class: mail.ClassTimeout, why: "the next hop waited too long, for us or for its own next hop", text: []string{"timeout exceeded", "timed out", "timeout waiting", "idle timeout"}},

	// Enhanced codes (RFC 3463, RFC 7372, RFC 7505, IANA).
	{name: "code-recipient", class: mail.ClassInvalidRecipient, why: "the code says: bad destination mailbox", enh: "x.1.1 x.1.3 x.1.4 x.1.6 x.2.4"},
	{name: "code-domain", class: mail.ClassBadDomain, why: "the code says: bad destination system", enh: "x.1.2 x.1.10 x.4.4 x.4.6"},
	{name: "code-sender", class: mail.ClassPolicy, why: "the code says: bad sender address", enh: "x.1.7 x.1.8 x.7.27"},
	{name: "code-inactive", class: mail.ClassMailboxInactive, why: "the code says: mailbox disabled", enh: "x.2.1"},
	{name: "code-full", class: mail.ClassMailboxFull, why: "the code says: mailbox full", enh: "x.2.2"},
	{name: "code-size", class: mail.ClassSize, why: "the code says: message too big", enh: "x.2.3 x.3.4"},
	{name: "code-connect", class: mail.ClassConnect, why: "the code says: no answer from the host behind the next hop", enh: "x.4.1"},
	{name: "code-lost", class: mail.ClassTimeout, why: "the code says: bad connection, or time expired, behind the next hop", enh: "x.4.2 x.4.7"},
	{name: "code-dns", class: mail.ClassDNS, why: "the code says: directory server failure", enh: "x.4.3"},
	{name: "code-congestion", class: mail.ClassThrottled, why: "the code says: congestion, too many recipients or a flood", enh: "x.4.5 x.5.3 x.7.28 x.3.2"},
	{name: "code-content", class: mail.ClassContent, why: "the code says: content or media error", enh: "x.6.*"},
	{name: "code-tls", class: mail.ClassTLS, why: "the code says: encryption needed or failed", enh: "x.7.4 x.7.5 x.7.6 x.7.10 x.7.11"},
	{name: "code-auth", class: mail.ClassAuth, why: "the code says: credentials", enh: "x.7.8 x.7.9 x.7.12 x.7.13 x.7.14", verb: verbsSession + " MAIL"},
	{name: "code-spam", class: mail.ClassContent, why: "security code in answer to the content", enh: "5.7.*", verb: verbsContent},
	{name: "code-policy", class: mail.ClassPolicy, why: "the code says: security or policy", enh: "x.7.*"},

	// Reply codes (RFC 5321 section 4.2) with the command that was answered.
	{name: "verb-auth", class: mail.ClassAuth, why: "AUTH was refused", verb: "AUTH"},
	{name: "verb-starttls", class: mail.ClassTLS, why: "STARTTLS was refused", verb: "STARTTLS"},
	{name: "reply-no-mail", class: mail.ClassBadDomain, why: "the host takes no mail (RFC 7504)", code: "521 556"},
	{name: "reply-auth", class: mail.ClassAuth, why: "the reply code says: log in", code: "530 534 535 538"},
	{name: "reply-rcpt", class: mail.ClassInvalidRecipient, why: "the recipient was refused without details", code: "550 551 553", verb: "RCPT"},
	{name: "reply-storage", class: mail.ClassMailboxFull, why: "storage exceeded, in answer to the recipient", code: "552", verb: "RCPT"},
	{name: "reply-rcpt-limit", class: mail.ClassThrottled, why: "no more recipients for now", code: "452", verb: "RCPT"},
	{name: "reply-size", class: mail.ClassSize, why: "storage exceeded, in answer to the message", code: "552"},
	{name: "reply-sender", class: mail.ClassPolicy, why: "the sender was refused without details", code: "550 551 553 554", verb: "MAIL"},
	{name: "reply-content", class: mail.ClassContent, why: "the message was refused without details", code: "550 551 553 554", verb: verbsContent},
	{name: "reply-banner", class: mail.ClassReputation, why: "the next hop does not talk to us", code: "5", verb: "CONNECT EHLO HELO"},
	{name: "reply-closing", class: mail.ClassThrottled, why: "the next hop closes before any message", code: "421", verb: "CONNECT EHLO HELO MAIL"},
}
