package logtrack

import (
	"fmt"
	"strings"
	"time"

	"waybill/relay/event"
)

// info, warn and alarm make a sentence and its level.
func info(format string, args ...any) (string, string) {
	return fmt.Sprintf(format, args...), levelInfo
}

func warn(format string, args ...any) (string, string) {
	return fmt.Sprintf(format, args...), levelWarning
}

func alarm(format string, args ...any) (string, string) {
	return fmt.Sprintf(format, args...), levelError
}

// describe says a fact in one sentence. It is long because it is a table: one
// entry for each fact, which the linter asks for.
func describe(r *event.Record) (summary, level string) {
	switch ev := r.Event.(type) {
	case event.MessageQueued:
		return describeQueued(&ev)
	case event.MessageRouted:
		return describeRouted(&ev)
	case event.AttemptFinished:
		return describeAttempt(r, &ev)
	case event.RecipientRelayed:
		return info("%s: relayed to %s after %s", ev.Recipient, where(ev.Hop), span(ev.TTotal))
	case event.RecipientBounced:
		if ev.Actor != "" {
			return alarm("%s: given up by %s%s", ev.Recipient, ev.Actor, because(ev.Reason))
		}
		if ev.ClassRule == "operator" {
			return alarm("%s: ended by an operator: %s", ev.Recipient, said(ev.Answer))
		}
		return alarm("%s: failed for good at %s: %s", ev.Recipient, where(ev.Hop), said(ev.Answer))
	case event.RecipientExpired:
		return alarm("%s: given up after %s and %s; the last answer was: %s", ev.Recipient, span(ev.TTotal), count(ev.Attempts, "attempt"), said(ev.Answer))
	case event.RecipientDropped:
		return warn("%s: removed by %s%s", ev.Recipient, or(ev.Actor, "policy"), because(ev.Reason))
	case event.RecipientLate:
		return warn("%s: still not handed over after %s", ev.Recipient, span(ev.Target))
	case event.DSNQueued:
		return describeDSN(&ev)
	case event.MessageRetired:
		return info("Finished after %s and %s: %s", span(ev.TTotal), count(ev.Attempts, "attempt"), totals(&ev))
	case event.MessagePoisoned:
		return alarm("Isolated, because it broke its worker or is damaged: %s", ev.Error)
	case event.QueueHeld:
		return describeHeld(&ev)
	case event.QueueReleased:
		return info("Released by %s%s", ev.Actor, because(ev.Reason))
	case event.AdminActed:
		return describeAdmin(&ev)
	case event.SessionOpened:
		return info("%s session opened with %s", ev.Direction, or(hostOf(ev.RemoteName, ev.RemoteIP), ev.ClientIP.String()))
	case event.SessionClosed:
		return info("%s session closed (%s) after %s and %s", ev.Direction, ev.Cause, span(ev.Duration), count(ev.Messages, "message"))
	case event.TranscriptKept:
		return info("%s conversation of %s kept: %s", ev.Direction, count(ev.Lines, "line"), ev.Reason)
	case event.SessionRefused:
		return warn("Connection of %s refused: %s", ev.ClientIP, ev.Reason)
	case event.ClientAnnounced:
		return info("%s speaks for %s", ev.ProxyIP, ev.ClientIP)
	case event.CommandAnswered:
		return info("%s answered with %d", ev.Verb, ev.Code)
	case event.TLSNegotiated:
		return describeTLS(&ev)
	case event.TLSPolicyFailed:
		return warn("TLS of %s is not as %s wants it: %s", or(hostOf(ev.RemoteName, ev.RemoteIP), ev.Domain), ev.Policy, or(ev.Detail, ev.Reason))
	case event.TLSDowngraded:
		return warn("%s had TLS and has none now: %s", hostOf(ev.RemoteName, ev.RemoteIP), ev.Reason)
	case event.TLSReportSent:
		return info("Report on TLS with %s on %s goes to %s", ev.Domain, ev.Day, ev.Destination)
	case event.TLSReportFailed:
		return warn("Report on TLS with %s on %s cannot be handed to %s: %s", ev.Domain, ev.Day, ev.Destination, ev.Error)
	case event.AuthSucceeded:
		return info("%s logged in with %s", ev.User, ev.Mechanism)
	case event.AuthFailed:
		return warn("Login of %s with %s failed: %s", or(ev.User, "an unnamed user"), ev.Mechanism, ev.Reason)
	case event.SenderRefused:
		return warn("Sender %s refused with %d: %s", ev.MailFrom, ev.Code, ev.Reason)
	case event.RecipientRefused:
		return warn("Recipient %s refused with %d: %s", ev.Recipient, ev.Code, ev.Reason)
	case event.MessageRefused:
		return warn("Content refused with %d: %s", ev.Code, ev.Reason)
	case event.ThrottleEngaged:
		return warn("Limit %s (%s) engaged: %s", ev.Limit, ev.Scope, ev.Action)
	case event.PressureChanged:
		return info("Back-pressure of %s went from %d to %d", ev.Resource, ev.Was, ev.Level)
	case event.QueueLoaded:
		return info("Queue read at start: %s in %s", count(ev.Messages, "message"), span(ev.Took))
	case event.ConfigReloaded:
		return describeConfig(&ev)
	case event.CertificateReloaded:
		return describeCertificate(&ev)
	case event.DNSAnswered:
		return info("DNS question for %s: %s", ev.Type, ev.Result)
	case event.LookupAnswered:
		return describeLookup(&ev)
	case event.TokenRefreshed:
		return describeToken(&ev)
	case event.BackoffChanged:
		return describeBackoff(&ev)
	case event.ListingChanged:
		return describeListing(&ev)
	case event.Panicked:
		return alarm("A programming error in %s: %s", ev.Where, ev.Value)
	case event.Remarked:
		return warn("%s%s", or(ev.Remark, "An oddity"), because(ev.Detail))
	}
	return "", levelInfo
}

func describeQueued(ev *event.MessageQueued) (summary, level string) {
	summary = fmt.Sprintf("Accepted from %s%s (%s)", or(ev.MailFrom, "an unnamed sender"), whom(" for ", ev.Recipients), octets(ev.Size))
	if ev.ClientIP.IsValid() {
		summary += ", handed in by " + ev.ClientIP.String()
	}
	if ev.AuthUser != "" {
		summary += " as " + ev.AuthUser
	}
	if ev.Parent != "" {
		summary += ", made from " + string(ev.Parent)
	}
	return summary, levelInfo
}

// whom names recipients behind word. Other servers' logs do not always tell them.
func whom(word string, list []event.Recipient) string {
	if len(list) == 0 {
		return ""
	}
	return word + recipients(list)
}

func describeRouted(ev *event.MessageRouted) (summary, level string) {
	if ev.ConnectorOut == "" {
		return alarm("No send connector takes %s: %s", recipients(ev.Recipients), ev.Why)
	}
	return info("Routed %s through %s to %s: %s", recipients(ev.Recipients), ev.ConnectorOut, ev.Queue, ev.Why)
}

// suppressed says why nobody is told, for each of [event.Suppressions].
var suppressed = map[string]string{
	event.SuppressedNullSender: "the message has no sender to tell (null reverse-path)",
	event.SuppressedNotify:     "the sender asked for none (NOTIFY)",
	event.SuppressedForged:     "the sender is forged: SPF says that its domain does not send from there",
	event.SuppressedStranger:   "the sender is a stranger who could not be verified, or gets none",
	event.SuppressedLoop:       "it would go round: the message is a report, or its sender could not be reached before",
}

func describeDSN(ev *event.DSNQueued) (summary, level string) {
	if ev.Suppressed != "" {
		return info("No %s report was made: %s", ev.Kind, or(suppressed[ev.Suppressed], ev.Suppressed))
	}
	return info("Queued a %s report to the sender%s as %s", ev.Kind, whom(" about ", ev.Recipients), ev.DSN)
}

func describeHeld(ev *event.QueueHeld) (summary, level string) {
	until := ""
	if !ev.Until.IsZero() {
		until = " until " + ev.Until.UTC().Format(time.RFC3339)
	}
	return warn("Held by %s%s%s", ev.Actor, because(ev.Reason), until)
}

func describeTLS(ev *event.TLSNegotiated) (summary, level string) {
	if ev.Failure != "" {
		return warn("TLS failed: %s", ev.Failure)
	}
	return info("TLS %s with %s (%s)", ev.Version, ev.Cipher, or(ev.Verify, "not verified"))
}

func describeConfig(ev *event.ConfigReloaded) (summary, level string) {
	if ev.Error != "" {
		return alarm("Configuration not taken into use: %s", ev.Error)
	}
	return info("Configuration %s taken into use", ev.Revision)
}

func describeCertificate(ev *event.CertificateReloaded) (summary, level string) {
	if ev.Error != "" {
		return alarm("Certificate %s not taken into use: %s", ev.Certificate, ev.Error)
	}
	return info("Certificate %s taken into use", ev.Certificate)
}

func describeLookup(ev *event.LookupAnswered) (summary, level string) {
	if ev.Error != "" {
		return warn("Look-up %s had no answer: %s", ev.Lookup, ev.Error)
	}
	return info("Look-up %s: %s in %s", ev.Lookup, ev.Result, span(ev.Took))
}

func describeToken(ev *event.TokenRefreshed) (summary, level string) {
	if ev.Error != "" {
		return warn("No OAuth token for %s: %s", ev.Connector, ev.Error)
	}
	return info("OAuth token for %s, good until %s", ev.Connector, ev.Expires.Format(time.RFC3339))
}

func describeBackoff(ev *event.BackoffChanged) (summary, level string) {
	if ev.Mode == event.BackoffNone {
		return info("Next hop %s is served as usual again", ev.Queue)
	}
	return warn("Next hop %s asked for less: %s until %s (rule %s)", ev.Queue, ev.Mode, ev.Until.Format(time.TimeOnly), ev.Rule)
}

func describeListing(ev *event.ListingChanged) (summary, level string) {
	switch ev.Result {
	case event.ListingClean:
		return info("Our address %s is not on the blocklist %s", ev.LocalIP, ev.List)
	case event.ListingUnknown:
		return warn("Blocklist %s does not answer about %s%s", ev.List, ev.LocalIP, because(ev.Error))
	}
	return warn("Our address %s is on the blocklist %s (%s)%s", ev.LocalIP, ev.List, ev.Codes, because(ev.Detail))
}

// describeAdmin says who did what to how many, and why.
func describeAdmin(ev *event.AdminActed) (summary, level string) {
	summary, level = fmt.Sprintf("%s did %q", ev.Actor, ev.Action), levelInfo
	if ev.Target != "" {
		summary += " to " + ev.Target
	}
	var what []string
	if ev.Filter != "" {
		what = append(what, ev.Filter)
	}
	if ev.Affected > 1 {
		what = append(what, fmt.Sprintf("%d affected", ev.Affected))
	}
	if len(what) > 0 {
		summary += " (" + strings.Join(what, "; ") + ")"
	}
	summary += because(ev.Reason)
	if ev.Result != "ok" {
		summary, level = summary+"; it ended with "+ev.Result, levelWarning
	}
	return summary, level
}
