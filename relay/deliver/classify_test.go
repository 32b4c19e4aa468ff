package deliver

import (
	"regexp"
	"strings"
	"testing"

	"waybill/relay/mail"
)

func TestClassify(t *testing.T) {
	const rcpt, data, dot, banner, from = "RCPT", "DATA", ".", "CONNECT", "MAIL"
	for _, test := range []struct {
		name  string
		verb  string
		reply string // code, enhanced code or "-", text
		want  mail.Class
	}{
		// Google
		{"gmail no account", rcpt, "550 5.1.1 The email account that you tried to reach does not exist. Please try double-checking the recipient's email address for typos or unnecessary spaces.", mail.ClassInvalidRecipient},
		{"gmail inactive", rcpt, "550 5.2.1 The email account that you tried to reach is inactive. For more information, go to https://support.google.com/mail/?p=DisabledUser", mail.ClassMailboxInactive},
		{"gmail full", rcpt, "452 4.2.2 The recipient's inbox is out of storage space. Please direct the recipient to https://support.google.com/mail/?p=OverQuotaTemp", mail.ClassMailboxFull},
		{"gmail full for good", rcpt, "552 5.2.2 The email account that you tried to reach is over quota. Please direct the recipient to", mail.ClassMailboxFull},
		{"gmail rate", dot, "421 4.7.28 Gmail has detected an unusual rate of mail originating from your IP address. To protect our users from spam, mail sent from your IP address has been temporarily rate limited.", mail.ClassThrottled},
		{"gmail unsolicited rate", dot, "421 4.7.0 [192.0.2.1 15] Our system has detected an unusual rate of unsolicited mail originating from your IP address.", mail.ClassThrottled},
		{"gmail user rate", rcpt, "450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered.", mail.ClassThrottled},
		{"gmail reputation", dot, "550 5.7.1 [192.0.2.1] Our system has detected that this message is likely suspicious due to the very low reputation of the sending IP address. To best protect our users from spam, the message has been blocked.", mail.ClassReputation},
		{"gmail spam", dot, "550 5.7.1 [192.0.2.1 12] Our system has detected that this message is likely unsolicited mail. To reduce the amount of spam sent to Gmail, this message has been blocked.", mail.ClassContent},
		{"gmail authentication", dot, "550 5.7.26 This mail has been blocked because the sender is unauthenticated. Gmail requires all senders to authenticate with either SPF or DKIM.", mail.ClassPolicy},
		{"gmail dmarc", dot, "550 5.7.26 Unauthenticated email from example.org is not accepted due to domain's DMARC policy.", mail.ClassPolicy},
		{"gmail ptr", dot, "550 5.7.25 [192.0.2.1] The IP address sending this message does not have a PTR record setup, or the corresponding forward DNS entry does not point to the sending IP.", mail.ClassPolicy},
		{"gmail attachment", dot, "552 5.7.0 This message was blocked because its content presents a potential security issue.", mail.ClassContent},
		{"gmail size", dot, "552 5.3.4 Your message exceeded Google's message size limits. For more information, visit", mail.ClassSize},
		{"gmail relay limit", from, "550 5.4.5 Daily SMTP relay sending limit exceeded for customer.", mail.ClassThrottled},
		{"gmail busy", banner, "421 4.7.0 Try again later, closing connection. (EHLO) a1-20020a", mail.ClassThrottled},
		{"gmail tls", from, "530 5.7.0 Must issue a STARTTLS command first. a1-20020a", mail.ClassTLS},
		{"gmail login", "AUTH", "535 5.7.8 Username and Password not accepted. For more information, go to", mail.ClassAuth},
		{"gmail system", dot, "451 4.3.0 Mail server temporarily rejected message.", mail.ClassOther},

		// Microsoft
		{"m365 no recipient", rcpt, "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient bob@example.com not found by SMTP address lookup", mail.ClassInvalidRecipient},
		{"m365 edge blocking", rcpt, "550 5.4.1 Recipient address rejected: Access denied. AS(201806281) [DB5EUR03FT012.eop-EUR03.prod.protection.outlook.com]", mail.ClassInvalidRecipient},
		{"outlook no mailbox", rcpt, "550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302).", mail.ClassInvalidRecipient},
		{"outlook blocked", from, "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service provider since part of their network is on our block list (S3140).", mail.ClassReputation},
		{"m365 banned", rcpt, "550 5.7.606 Access denied, banned sending IP [192.0.2.1]. To request removal from this list please visit https://sender.office.com/", mail.ClassReputation},
		{"outlook rate", from, "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation.", mail.ClassReputation},
		{"m365 access later", rcpt, "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77719) [DB5]", mail.ClassReputation},
		{"m365 dmarc", dot, "550 5.7.509 Access denied, sending domain example.org does not pass DMARC verification and has a DMARC policy of reject.", mail.ClassPolicy},
		{"m365 basic auth", "AUTH", "550 5.7.30 Basic authentication is not supported for Client Submission.", mail.ClassAuth},
		{"m365 not authenticated", from, "530 5.7.57 Client not authenticated to send mail. [AM0PR]", mail.ClassAuth},
		{"m365 concurrent", dot, "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information.", mail.ClassThrottled},
		{"m365 tenant limit", dot, "550 5.7.233 Your message can't be sent because your tenant exceeded its tenant external recipient rate limit", mail.ClassThrottled},
		{"exchange full", dot, "554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded", mail.ClassMailboxFull},
		{"exchange restricted group", rcpt, "550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup; authentication required; Delivery restriction check failed", mail.ClassPolicy},
		{"exchange rule", dot, "550 5.7.1 TRANSPORT.RULES.RejectMessage; the message was rejected by organization policy", mail.ClassPolicy},
		{"exchange relay", rcpt, "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain", mail.ClassPolicy},
		{"exchange resources", from, "452 4.3.1 Insufficient system resources (UsedDiskSpace)", mail.ClassOther},
		{"exchange size", from, "552 5.3.4 Message size exceeds fixed maximum message size", mail.ClassSize},
		{"exchange loop", dot, "554 5.4.14 Hop count exceeded - possible mail loop ATTR34", mail.ClassBadDomain},

		// Yahoo
		{"yahoo volume", from, "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1; see https://postmaster.yahooinc.com/error-codes", mail.ClassThrottled},
		{"yahoo greylist", from, "451 4.7.1 [GL01] Message from (192.0.2.1) temporarily deferred - 4.16.50. Please refer to", mail.ClassGreylist},
		{"yahoo blocked", banner, "553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.1, because the ip is in Spamhaus's list", mail.ClassReputation},
		{"yahoo no user", rcpt, "554 - delivery error: dd This user doesn't have a yahoo.com account (bob@yahoo.com) [0] - mta4008", mail.ClassInvalidRecipient},
		{"yahoo disabled", rcpt, "554 - delivery error: dd Sorry, your message to bob@yahoo.com cannot be delivered. This mailbox is disabled (554.30). - mta4008", mail.ClassMailboxInactive},
		{"yahoo policy", dot, "554 5.7.9 Message not accepted for policy reasons. See https://postmaster.yahooinc.com/error-codes", mail.ClassPolicy},
		{"yahoo full", rcpt, "552 5.2.2 Mailbox full", mail.ClassMailboxFull},

		// Postfix and Dovecot
		{"postfix unknown", rcpt, "550 5.1.1 <bob@example.com>: Recipient address rejected: User unknown in virtual mailbox table", mail.ClassInvalidRecipient},
		{"postfix relay", rcpt, "554 5.7.1 <bob@example.com>: Relay access denied", mail.ClassPolicy},
		{"postfix rbl", rcpt, "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org; https://www.spamhaus.org/query/ip/192.0.2.1", mail.ClassReputation},
		{"postgrey", rcpt, "450 4.2.0 <bob@example.com>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/help/example.com.html", mail.ClassGreylist},
		{"postfix too many", banner, "421 4.7.0 mx.example.com Error: too many connections from 192.0.2.1", mail.ClassThrottled},
		{"postfix too much", rcpt, "450 4.7.1 Error: too much mail from 192.0.2.1", mail.ClassThrottled},
		{"postfix name", rcpt, "450 4.7.25 Client host rejected: cannot find your hostname, [192.0.2.1]", mail.ClassPolicy},
		{"postfix helo", rcpt, "504 5.5.2 <localhost>: Helo command rejected: need fully-qualified hostname", mail.ClassPolicy},
		{"postfix sender", rcpt, "553 5.1.8 <alice@nowhere.example>: Sender address rejected: Domain not found", mail.ClassPolicy},
		{"postfix recipient domain", rcpt, "450 4.1.2 <bob@nowhere.example>: Recipient address rejected: Domain not found", mail.ClassBadDomain},
		{"postfix size", from, "552 5.3.4 Message size exceeds fixed limit", mail.ClassSize},
		{"postfix milter", dot, "554 5.7.1 Spam message rejected", mail.ClassContent},
		{"postfix virus", dot, "554 5.7.1 virus Eicar-Test-Signature detected by ClamAV - http://www.clamav.net", mail.ClassContent},
		{"postfix loop", dot, "554 5.4.0 Error: too many hops", mail.ClassBadDomain},
		{"dovecot quota", rcpt, "552 5.2.2 <bob@example.com> Quota exceeded (mailbox for user is full)", mail.ClassMailboxFull},
		{"postfix spf", rcpt, "550 5.7.23 <bob@example.com>: Recipient address rejected: Message rejected due to: SPF fail - not authorized.", mail.ClassPolicy},
		{"postfix storage", from, "452 4.3.1 Insufficient system storage", mail.ClassOther},

		// Exim and cPanel
		{"exim unrouteable", rcpt, "550 - Unrouteable address", mail.ClassInvalidRecipient},
		{"exim relay", rcpt, "550 - relay not permitted", mail.ClassPolicy},
		{"exim prohibition", rcpt, "550 - Administrative prohibition", mail.ClassPolicy},
		{"exim sender verify", rcpt, "550 - Verification failed for <alice@example.org>\nNo Such User Here\nSender verify failed", mail.ClassPolicy},
		{"cpanel no user", rcpt, "550 - No Such User Here", mail.ClassInvalidRecipient},
		{"exim local problem", rcpt, "451 - Temporary local problem - please try later", mail.ClassOther},
		{"exim concurrency", banner, "421 - Too many concurrent SMTP connections; please try again later.", mail.ClassThrottled},
		{"exim greylist", rcpt, "451 - Temporarily greylisted. Please try again later.", mail.ClassGreylist},
		{"exim size", from, "552 - Message size exceeds maximum permitted", mail.ClassSize},
		{"exim virus", dot, "550 - This message contains a virus (Eicar)", mail.ClassContent},

		// Filters
		{"proofpoint", banner, "554 5.7.0 Blocked - see https://ipcheck.proofpoint.com/?ip=192.0.2.1", mail.ClassReputation},
		{"proofpoint user", rcpt, "550 5.1.1 User Unknown", mail.ClassInvalidRecipient},
		{"mimecast greylist", rcpt, "451 - Internal resources are temporarily unavailable - https://community.mimecast.com/docs/DOC-1369#451 [abc]", mail.ClassGreylist},
		{"mimecast recipient", rcpt, "550 - Invalid Recipient - https://community.mimecast.com/docs/DOC-1369#550 [abc]", mail.ClassInvalidRecipient},
		{"mimecast envelope", rcpt, "550 - Administrative prohibition - envelope blocked - https://community.mimecast.com/docs/DOC-1369#550 [abc]", mail.ClassPolicy},
		{"mimecast spoofing", dot, "550 - Rejected by header based Anti-Spoofing policy: alice@example.org - https://community.mimecast.com", mail.ClassPolicy},
		{"mimecast network", banner, "554 - Host network not allowed - https://community.mimecast.com", mail.ClassReputation},
		{"barracuda reputation", banner, "554 - Service unavailable; Client host [mail.example.org] blocked using Barracuda Reputation; http://www.barracudacentral.com/q.cgi?ip=192.0.2.1", mail.ClassReputation},
		{"barracuda blocked", dot, "550 - permanent failure for one or more recipients (bob@example.com:blocked)", mail.ClassContent},
		{"barracuda unknown", dot, "550 - permanent failure for one or more recipients (bob@example.com:550 5.1.1 <bob@example.com>: Recipient address rejected)", mail.ClassInvalidRecipient},
		{"domino", rcpt, "550 - bob@example.com... User not listed in public Name & Address Book", mail.ClassInvalidRecipient},

		// Codes without helpful words
		{"bare 550 to RCPT", rcpt, "550 - no", mail.ClassInvalidRecipient},
		{"bare 554 to DATA", data, "554 - no", mail.ClassContent},
		{"bare 552 to MAIL", from, "552 - no", mail.ClassSize},
		{"bare 552 to RCPT", rcpt, "552 - no", mail.ClassMailboxFull},
		{"bare 452 to RCPT", rcpt, "452 - no", mail.ClassThrottled},
		{"bare 421 to the connection", banner, "421 - bye", mail.ClassThrottled},
		{"bare 554 to the connection", banner, "554 - no", mail.ClassReputation},
		{"no mail host", banner, "521 - mx.example.com", mail.ClassBadDomain},
		{"code only: mailbox full", rcpt, "452 4.2.2 -", mail.ClassMailboxFull},
		{"code only: content", dot, "554 5.6.0 -", mail.ClassContent},
		{"code only: encryption", from, "554 5.7.10 -", mail.ClassTLS},
		{"code only: policy", rcpt, "550 5.7.1 -", mail.ClassPolicy},
		{"code only: policy at the dot", dot, "550 5.7.1 -", mail.ClassContent},
		{"code only: congestion", rcpt, "451 4.4.5 -", mail.ClassThrottled},
		{"null MX of the sender", from, "550 5.7.27 -", mail.ClassPolicy},
		{"starttls refused", "STARTTLS", "454 - not now", mail.ClassTLS},
		{"nonsense", rcpt, "451 - zxcvb", mail.ClassOther},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := outcome(t, test.verb, test.reply)
			got, rule := Classify(o)
			if got != test.want {
				t.Errorf("Classify(%s: %s) = %s by %s, want %s", test.verb, test.reply, got, rule, test.want)
			}
		})
	}
}

// outcome makes a failure of a reply such as "550 5.1.1 text", with "-" for what is missing.
func outcome(t testing.TB, verb, reply string) mail.Outcome {
	t.Helper()
	w := strings.SplitN(reply, " ", 3)
	o := mail.Outcome{Disposition: mail.Deferred, Remote: true, Verb: verb}
	for _, c := range w[0] {
		o.Reply.Code = o.Reply.Code*10 + int(c-'0')
	}
	if o.Reply.Code >= 500 {
		o.Disposition = mail.Bounced
	}
	if w[1] != "-" {
		o.Reply.Enhanced = w[1]
	}
	if w[2] != "-" {
		o.Reply.Text = w[2]
	}
	return o
}

func TestClassifyLocal(t *testing.T) {
	for _, test := range []struct {
		name     string
		outcome  mail.Outcome
		want     mail.Class
		wantRule string
	}{
		{"relayed", mail.Outcome{Disposition: mail.Relayed, Reply: mail.Reply{Code: 250}}, mail.ClassNone, ""},
		{"named by smtpout", mail.Outcome{Class: mail.ClassTLS, ClassRule: "local", Reply: mail.Reply{Code: 550, Text: "user unknown"}}, mail.ClassTLS, "local"},
		{"named without a rule", mail.Outcome{Class: mail.ClassDNS}, mail.ClassDNS, "local"},
		{"loop", mail.Outcome{Disposition: mail.Bounced, Reply: mail.Reply{Enhanced: "5.4.6", Text: "MX points at ourselves"}}, mail.ClassBadDomain, "local-loop"},
		{"connect", mail.Outcome{Disposition: mail.Deferred, Reply: mail.Reply{Enhanced: "4.4.1", Text: "connection refused"}}, mail.ClassConnect, "local-connect"},
		{"lost", mail.Outcome{Disposition: mail.Deferred, Reply: mail.Reply{Enhanced: "4.4.2"}}, mail.ClassTimeout, "local-lost"},
		{"null MX", mail.Outcome{Disposition: mail.Bounced, Reply: mail.Reply{Enhanced: "5.1.10"}}, mail.ClassBadDomain, "local-domain"},
		{"no words", mail.Outcome{Disposition: mail.Deferred}, mail.ClassOther, "local-other"},
		{"the next hop's words do not count for ours", mail.Outcome{Disposition: mail.Deferred, Reply: mail.Reply{Text: "user unknown"}}, mail.ClassOther, "local-other"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, rule := Classify(test.outcome); got != test.want || rule != test.wantRule {
				t.Errorf("Classify() = %q by %q, want %q by %q", got, rule, test.want, test.wantRule)
			}
		})
	}
}

func TestRules(t *testing.T) {
	classes := map[mail.Class]bool{}
	for _, c := range mail.Classes() {
		classes[c] = true
	}
	seen := map[string]bool{RuleLocal: true, ruleUnknown: true, ruleExpired: true}
	for _, r := range rules {
		if seen[r.name] || !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)+$`).MatchString(r.name) {
			t.Errorf("rule %q: the name is taken or malformed", r.name)
		}
		seen[r.name] = true
		if !classes[r.class] || r.why == "" {
			t.Errorf("rule %s: class %q, why %q", r.name, r.class, r.why)
		}
		if r.code == "" && r.enh == "" && r.verb == "" && r.text == nil && r.name != "local-other" {
			t.Errorf("rule %s takes everything", r.name)
		}
		for _, p := range r.text {
			if p != strings.ToLower(p) || p == "" || strings.HasPrefix(p, "*") || strings.HasSuffix(p, "*") {
				t.Errorf("rule %s: text %q", r.name, p)
			}
		}
	}
	if got, want := len(Rules()), len(rules)+2; got != want {
		t.Errorf("Rules() lists %d rules, want %d", got, want)
	}
}

func FuzzClassify(f *testing.F) {
	f.Add(550, "5.1.1", "RCPT", "User unknown", true)
	f.Add(0, "", "", "", false)
	f.Add(-1, "x.y.z", "*", strings.Repeat("a*b", 1000), true)
	f.Fuzz(func(t *testing.T, code int, enhanced, verb, text string, remote bool) {
		class, rule := Classify(mail.Outcome{Disposition: mail.Bounced, Reply: mail.Reply{Code: code, Enhanced: enhanced, Text: text}, Verb: verb, Remote: remote})
		if class == mail.ClassNone || rule == "" {
			t.Errorf("Classify() = %q by %q", class, rule)
		}
	})
}

func BenchmarkClassify(b *testing.B) {
	o := outcome(b, "RCPT", "451 - "+strings.Repeat("words that no rule knows, ", 8))
	b.ReportAllocs()
	for b.Loop() {
		Classify(o)
	}
}
