package probe

import (
	"fmt"
	"strings"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/smtpout"
)

// Who can mend something.
const (
	Us               = "us"
	Them             = "them"
	TheirDNS         = "their DNS"
	TheirCertificate = "their certificate"
	TheirPolicy      = "their MTA-STS policy"
	OurDNS           = "our DNS resolver"
	Network          = "the network between"
	Sender           = "whoever wrote the address"
)

// Finding is something that is not as it should be.
type Finding struct {
	Level string `json:"level"` // fail, warning
	Stage string `json:"stage"` // dns, policy, connect, banner, ehlo, starttls, tls, auth
	Where string `json:"where,omitempty"`
	What  string `json:"what"`
	Who   string `json:"who"` // who can mend it
	Fix   string `json:"fix"` // how
}

// explainDomain explains why no host is known.
func explainDomain(domain string, t *smtpout.Trouble) Finding {
	f := Finding{Level: Fail, Stage: "dns", Where: domain, What: t.Reply.Text}
	switch {
	case t.Reply.Code == 556: // RFC 7505
		f.What, f.Who, f.Fix = "the domain says that it takes no mail (null MX)", Sender, "write to another address; only the domain's owner can change that"
	case t.Permanent && strings.Contains(t.Reply.Text, "does not exist"):
		f.What, f.Who, f.Fix = "the domain does not exist", Sender, "look for a mistake in the spelling; else the domain has lapsed"
	case t.Permanent:
		f.What, f.Who, f.Fix = "the domain has no host that takes mail: neither MX nor address", TheirDNS, "publish an MX record"
	case strings.HasPrefix(t.Reply.Text, "no answer"):
		f.What, f.Who, f.Fix = "no answer from the DNS about the domain", OurDNS, "ask it by hand (dig MX DOMAIN): when it answers nothing at all, it is down; else the domain's own name servers do not answer"
	case unasked(t.Reply.Text):
		f.What, f.Who, f.Fix = "no name server could be asked: "+safe(t.Reply.Text), OurDNS, askServers
	default:
		f.What, f.Who = "the DNS cannot say: "+safe(t.Reply.Text), TheirDNS
		f.Fix = "SERVFAIL: their name servers are broken, or their DNSSEC signatures are (dig +cd MX DOMAIN answers then)"
	}
	return f
}

const askServers = "see that the name server runs and can be reached; dns.servers, or /etc/resolv.conf, says which one is asked"

// unasked reports whether an error of the DNS, as text, is that our name servers
// cannot be reached: none of them answered anything.
func unasked(text string) bool {
	return strings.Contains(text, "server ") && !strings.Contains(text, "answer")
}

// explainHost explains why a host, or one of its addresses, is not used.
func explainHost(h *smtpout.InspectedHost, o *Options) Finding {
	t := h.Failed
	f := Finding{Level: Fail, Stage: "dns", Where: h.Name, What: safe(t.Reply.Text), Who: TheirDNS}
	smart := o.Route == "smart_hosts"
	switch {
	case t.Reply.Enhanced == "5.4.6":
		f.Fix = "change the MX, or take the domain into accepted_domains with a send connector of its own"
		f.Who = "us, or " + TheirDNS
	case t.TLS == "mx_mismatch":
		f.Stage, f.Who, f.Fix = "policy", TheirPolicy, "add "+h.Name+" to the policy's mx lines, and change the id of the _mta-sts record; or remove it from the MX records"
	case t.TLS == "dnssec_failed":
		f.Stage, f.Fix = "policy", "their DNSSEC or name servers are broken for TLSA records; nothing may be sent meanwhile (RFC 7672 section 2.1.1)"
	case t.Reply.Enhanced == "5.4.4" && strings.Contains(t.Reply.Text, "not a public address"):
		f.Fix = "the MX has an address that is not of the internet; point it at a public one"
	case t.Class == mail.ClassDNS && unasked(t.Reply.Text):
		f.Who, f.Fix = OurDNS, askServers
	case smart && t.Class == mail.ClassDNS && !t.Permanent && strings.Contains(t.Reply.Text, "SERVFAIL"):
		f.Fix = "SERVFAIL: the name servers of its domain are broken, or their DNSSEC signatures are (dig +cd A " + h.Name + " answers then)"
	case smart && t.Class == mail.ClassDNS:
		f.Who, f.Fix = Us, "look for a mistake in send_connectors[].smart_hosts"
	case t.Class == mail.ClassDNS && strings.Contains(t.Reply.Text, "has no address"):
		f.What, f.Fix = "it has no address", "the MX names a host without A and AAAA records: publish them, or correct the MX"
	default:
		f.Fix = "try again; else ask their name servers by hand (dig A " + h.Name + ")"
	}
	return f
}

// explainPolicy explains what is wrong with an MTA-STS policy that cannot be had.
func explainPolicy(ev event.TLSPolicyFailed) Finding {
	f := Finding{Level: Warning, Stage: "policy", Where: ev.Domain, Who: TheirPolicy}
	switch ev.Reason {
	case "policy_malformed":
		f.What, f.Fix = "its MTA-STS policy cannot be read: "+safe(ev.Detail), "correct https://mta-sts."+ev.Domain+"/.well-known/mta-sts.txt"
	case "policy_certificate":
		f.What, f.Fix = "the certificate of its MTA-STS policy host is not trusted: "+safe(ev.Detail), "renew the certificate of mta-sts."+ev.Domain
	default:
		f.What, f.Fix = "its MTA-STS policy cannot be fetched: "+safe(ev.Detail), "look at https://mta-sts."+ev.Domain+"/.well-known/mta-sts.txt; when no domain's policy can be fetched, your way to port 443 is closed"
		f.Who = "them, or the network between"
	}
	f.What += "; mail goes as without it"
	return f
}

// explainSession explains why no message would go to an address.
func explainSession(h *smtpout.InspectedHost, s *smtpout.InspectedSession, o *Options) Finding {
	t := s.Failed
	f := Finding{Level: Fail, What: safe(t.Reply.Text), Who: Them}
	if t.Remote {
		f.What = fmt.Sprintf("it answers %d %s", t.Reply.Code, safe(strings.TrimSpace(t.Reply.Enhanced+" "+t.Reply.Text)))
	}
	if t.TLS != "" {
		f = explainTLS(h, s, o)
		f.Level = Fail
		return f
	}
	connected := s.Local.IsValid()
	switch t.Verb {
	case "CONNECT":
		f.Stage = "banner"
		switch {
		case !connected:
			f.Stage = "connect"
			connectTrouble(&f, t, o)
		case t.Remote && t.Reply.Code/100 == 5:
			f.Fix = "it turns this relay away: look for our address in block lists, for our reverse name, and read the words of the answer"
		case t.Remote:
			f.Fix = "it takes no mail from us now: greylisting, limits or reputation; try again later, and read the words of the answer"
		case t.Class == mail.ClassTimeout:
			f.What, f.Fix = "it accepts the connection and says nothing", "the server is overloaded, or a middlebox is in between; some servers wait up to 30 s on purpose (give a longer --timeout)"
		default:
			f.Fix = "something else than a mail server listens there, or it closes the connection: look at who connects"
		}
	case "EHLO", "HELO":
		f.Stage = "ehlo"
		f.Fix = "it does not like how we greet: hostname must be a full name that resolves to our address"
		if t.Remote {
			f.Who = Us
		} else {
			f.Fix = "the server breaks off after the greeting: tell its postmaster"
		}
	case "AUTH":
		f.Stage, f.Who = "auth", Us
		switch {
		case t.Remote && t.Reply.Code == 535:
			f.Fix = "user name or password are wrong: auth.username and auth.password_file"
		case t.Remote:
			f.Fix = "read the answer; the provider may have switched this kind of login off"
		default:
			f.Fix = "choose an auth.mechanism that the host offers"
		}
	case "STARTTLS":
		f.Stage, f.Fix = "starttls", "tell its postmaster"
	default:
		f.Stage, f.Fix = "session", "tell its postmaster"
	}
	return f
}

func connectTrouble(f *Finding, t *smtpout.Trouble, o *Options) {
	text := strings.ToLower(t.Reply.Text)
	switch {
	case strings.Contains(text, "no source address"), strings.Contains(text, "cannot assign requested address"):
		f.Who, f.Fix = Us, "send_connectors[].source_addresses has no address for this: one of each family that this machine has"
	case strings.Contains(text, "network is unreachable"), strings.Contains(text, "no route to host"):
		f.Who, f.Fix = Network, "this machine has no way there; for IPv6 addresses alone it does no harm"
	case strings.Contains(text, "connection refused"):
		f.What, f.Fix = "nobody listens there (connection refused)", "the mail server is down, or the DNS record is wrong"
		if o.Route == "smart_hosts" {
			f.Who, f.Fix = "them, or us", "the host is down, or the port is wrong"
			if o.Name != "" {
				f.Fix = "the smart host is down, or its port in send_connectors[].smart_hosts is wrong"
			}
		}
	case t.Class == mail.ClassTimeout:
		f.What, f.Who, f.Fix = "no answer to the connection", "them, or the network between", "the host is down, or a firewall drops packets: try from another network"
	default:
		f.Fix = "look at the words of the error"
	}
}

// tlsWords explain why TLS is not as it should be, by the words of
// event.TLSFailures; %s is the host.
var tlsWords = map[string]struct{ stage, what, who, fix string }{
	"not_offered":         {"starttls", "it does not offer STARTTLS", Them, "switch it on there; when other networks see it, a firewall between takes it out"},
	"refused":             {"starttls", "it offers STARTTLS and then refuses it", Them, "tell its postmaster: often the server cannot read its certificate"},
	"injected":            {"starttls", "something spoke between STARTTLS and TLS: an attack, or a broken server", "them, or the network between", "do not send; compare from another network"},
	"no_shared_cipher":    {"tls", "it has no cipher in common with us", Them, "it wants obsolete ciphers: update its TLS"},
	"version":             {"tls", "it has no TLS version in common with us", Them, "it speaks obsolete TLS only: update it; or lower tls.min_version for a connector of its own"},
	"old_protocol":        {"tls", "it speaks SSL", Them, "update its TLS"},
	"not_tls":             {"tls", "what it says after STARTTLS is not TLS", Them, "a proxy or an inspecting firewall may be in between"},
	"bad_certificate":     {"tls", "its certificate is malformed, or not for servers", TheirCertificate, "install a server certificate"},
	"unknown_authority":   {"tls", "its certificate is from nobody whom we trust", TheirCertificate, "install a certificate from a public authority, with the chain; for an authority of your own set tls.ca_file"},
	"certificate_expired": {"tls", "its certificate has expired, or is not valid yet", TheirCertificate, "renew it"},
	"name_mismatch":       {"tls", "its certificate is for other names", TheirCertificate, "get one with the name %s; for a provider's certificate set tls.tls_domain"},
	"no_certificate":      {"tls", "it wants a certificate of ours", Us, "set tls.client_certificate"},
	"closed":              {"tls", "it closes the connection in the TLS handshake", Them, "the server cannot use its certificate, or a middlebox is in between"},
	"timeout":             {"tls", "the TLS handshake does not end", "them, or the network between", "often a firewall, or an MTU problem on the way"},
	"peer_alert":          {"tls", "it gives the TLS handshake up", Them, "look into its log"},
	"other":               {"tls", "the TLS handshake fails", Them, "read the words of the error"},
	"tlsa_mismatch":       {"tls", "its certificate does not match its TLSA records (DANE)", TheirDNS, "the certificate was renewed and the records were not: publish the new certificate's TLSA record for %s"},
	"dnssec_failed":       {"policy", "there is no authentic answer about its TLSA records", TheirDNS, "mend DNSSEC"},
	"mx_mismatch":         {"policy", "it is not among the hosts of the domain's MTA-STS policy, which is being tried out (testing)", TheirPolicy, "add %s to the policy's mx lines before it is enforced"},
	"policy_unavailable":  {"policy", "the MTA-STS policy cannot be fetched", TheirPolicy, "look at the policy host"},
	"policy_malformed":    {"policy", "the MTA-STS policy cannot be read", TheirPolicy, "correct it"},
	"policy_certificate":  {"policy", "the certificate of the MTA-STS policy host is not trusted", TheirPolicy, "renew it"},
}

// explainTLS explains why TLS is not as it should be.
func explainTLS(h *smtpout.InspectedHost, s *smtpout.InspectedSession, o *Options) Finding {
	reason := s.TLSFailure
	if s.Failed != nil && s.Failed.TLS != "" {
		reason = s.Failed.TLS
	}
	w, ok := tlsWords[reason]
	if !ok {
		w = tlsWords["other"]
	}
	f := Finding{Stage: w.stage, What: w.what, Who: w.who, Fix: w.fix}
	if s.Failed != nil && s.Failed.Verb != "STARTTLS" && w.who == TheirCertificate { // the handshake was over: it is about ours
		return Finding{Stage: "tls", What: "it does not take the certificate that we show: " + safe(s.Failed.Reply.Text), Who: Us, Fix: "set tls.client_certificate to one that it knows"}
	}
	if strings.Contains(f.Fix, "%s") {
		f.Fix = fmt.Sprintf(f.Fix, h.Name)
	}
	switch {
	case reason == "name_mismatch" && len(s.Peer) > 0:
		f.What += ": " + safe(strings.Join(s.Peer[0].DNSNames, ", "))
	case reason == "certificate_expired" && len(s.Peer) > 0:
		if end := s.Peer[0].NotAfter.UTC(); end.Before(o.Now) {
			f.What = "its certificate has expired on " + end.Format("2006-01-02")
		}
	case s.Failed != nil && s.Failed.Remote:
		f.What += fmt.Sprintf(": %d %s", s.Failed.Reply.Code, safe(s.Failed.Reply.Text))
	case s.Failed == nil && s.TLSDetail != "" && (reason == "other" || reason == "peer_alert"):
		f.What += ": " + safe(s.TLSDetail)
	}
	if s.Failed == nil && s.TLSVersion == "" {
		f.What += "; mail goes in plain text"
	}
	if s.Failed != nil && h.Policy.Policy != "" && reason != "no_certificate" { // that is no policy of ours
		f.What += demands(h.Policy.Policy)
	}
	return f
}

// demands is why that stops a message.
func demands(policy string) string {
	switch policy {
	case "dane":
		return ", and its TLSA records demand more"
	case "mta_sts":
		return ", and the domain's MTA-STS policy demands more"
	case "none", "opportunistic":
		return ""
	}
	return ", and tls.level of the send connector is " + policy
}
