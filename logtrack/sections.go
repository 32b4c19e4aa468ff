package logtrack

import (
	"fmt"
	"strings"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
)

// Results of checks.
const (
	checkPass = "pass"
	checkFail = "fail"
	checkNone = "none"
)

// addSections puts what a fact tells of attempts, checks and changes into the
// sections of a message's view. A fact of a new check or change is told here.
func addSections(out *trackapi.Timeline, r *event.Record, stages []trackapi.Stage) {
	check := func(name, result string, attempt int, format string, args ...any) {
		out.Checks = append(out.Checks, trackapi.Check{Time: r.Time, Name: name, Result: result, Attempt: attempt, Detail: fmt.Sprintf(format, args...)})
	}
	change := func(name, actor string, attempt int, format string, args ...any) {
		out.Changes = append(out.Changes, trackapi.Change{Time: r.Time, Name: name, Actor: actor, Attempt: attempt, Detail: fmt.Sprintf(format, args...)})
	}
	switch ev := r.Event.(type) { //nolint:gochecksumtype // the other facts tell of nothing that has a section
	case event.MessageQueued:
		if r.Session != "" && r.Source != event.SourceImport {
			admission(&ev, check)
			change("received", "", 0, "a Received field was added")
		}
		for word := range strings.FieldsSeq(ev.Changed) {
			name, n, _ := strings.Cut(word, ":")
			detail := changeText[name]
			if detail == "" {
				detail = name
			}
			change(name, "", 0, "%s", strings.ReplaceAll(detail, "%", n))
		}
	case event.AttemptFinished:
		out.Attempts = append(out.Attempts, attemptOf(r, &ev, stages))
		if ev.Converted != "" {
			change("converted", "", ev.Attempt, "content was encoded for %s, which does not take it as it is: %s", where(ev.Hop), ev.Converted)
		}
		nextHop(&ev, check)
	case event.RecipientDropped:
		change("dropped", ev.Actor, 0, "%s was removed%s", ev.Recipient, because(ev.Reason))
	case event.RecipientBounced:
		if ev.Actor != "" {
			change("bounced", ev.Actor, 0, "%s was given up%s", ev.Recipient, because(ev.Reason))
		}
	case event.AdminActed:
		if ev.Target != "" {
			change("redirected", ev.Actor, 0, "%s to %s%s", ev.Action, ev.Target, because(ev.Reason))
		}
	}
}

type checker func(name, result string, attempt int, format string, args ...any)

// admission tells of the checks of the session that handed a message in.
func admission(ev *event.MessageQueued, check checker) {
	switch {
	case ev.AuthUser != "" && ev.AuthMechanism != "":
		check("authentication", checkPass, 0, "%s logged in with %s", ev.AuthUser, ev.AuthMechanism)
	case ev.AuthUser != "":
		check("authentication", checkPass, 0, "known as %s", ev.AuthUser)
	default:
		check("authentication", checkNone, 0, "the client did not log in")
	}
	if ev.TLSVersion == "" {
		check("transport", checkNone, 0, "the session was not encrypted")
		return
	}
	check("transport", checkPass, 0, "TLS %s with %s", ev.TLSVersion, or(ev.TLSCipher, "an unnamed cipher"))
}

// nextHop tells whether a next hop was as its TLS level wants it.
func nextHop(ev *event.AttemptFinished, check checker) {
	level := ""
	if ev.TLSPolicy != "" {
		level = ", as " + ev.TLSPolicy + " asks for"
	}
	switch {
	case ev.TLSFailure != "" && ev.TLSPolicy == "opportunistic" && ev.TLSVersion == "" && ev.OutSession != "":
		check("next_hop_tls", checkNone, ev.Attempt, "%s: not encrypted (%s), which opportunistic allows", where(ev.Hop), ev.TLSFailure)
	case ev.TLSFailure != "":
		check("next_hop_tls", checkFail, ev.Attempt, "%s: %s%s", where(ev.Hop), ev.TLSFailure, strings.ReplaceAll(level, ", as", ", not as"))
	case ev.TLSVersion != "":
		check("next_hop_tls", checkPass, ev.Attempt, "%s: TLS %s, %s%s", where(ev.Hop), ev.TLSVersion, or(ev.TLSVerify, "not verified"), level)
	case ev.OutSession != "": // else there was no session, or nobody tells
		check("next_hop_tls", checkNone, ev.Attempt, "%s: not encrypted", where(ev.Hop))
	}
}

// changeText says the words of [event.Changes]; % is the number that a word has.
var changeText = map[string]string{
	"date":       "a Date field was missing and was added",
	"message_id": "a Message-ID field was missing and was added",
	"from":       "a From field was missing and was added",
	"separator":  "an empty line was put before a content without a header section",
	"fields":     "% header fields were removed that the client may not set",
	"newlines":   "bare line ends, or NUL, were repaired",
	"postmaster": "a recipient was replaced by the configured postmaster",
}

func attemptOf(r *event.Record, ev *event.AttemptFinished, stages []trackapi.Stage) trackapi.DeliveryAttempt {
	a := trackapi.DeliveryAttempt{
		Attempt: ev.Attempt, Start: r.Time.Add(-time.Duration(sum(ev.Stages))), End: r.Time, Disposition: ev.Disposition.String(), Recipients: []string{},
		Connector: ev.ConnectorOut, RemoteHost: hostOf(ev.RemoteName, ev.RemoteIP), SessionID: ev.OutSession, Reused: ev.Reused,
		Code: ev.Code, Enhanced: ev.Enhanced, Reply: ev.Reply, Class: string(ev.Class), Next: ev.NextAttempt, Stages: stages,
	}
	if ev.RemoteIP.IsValid() {
		a.RemoteIP = ev.RemoteIP.String()
	}
	if ev.LocalIP.IsValid() {
		a.LocalIP = ev.LocalIP.String()
	}
	if ev.TLSVersion != "" {
		a.TLS = strings.TrimSpace("TLS " + ev.TLSVersion + " " + ev.TLSCipher)
	}
	for _, to := range ev.Recipients {
		a.Recipients = append(a.Recipients, to.Address)
	}
	return a
}
