package protolog

import (
	"fmt"

	"go.uber.org/zap/zapcore"

	"waybill/relay/event"
	"waybill/relay/mail"
)

func parseLevel(s string) (zapcore.Level, error) {
	switch s {
	case "debug":
		return zapcore.DebugLevel, nil
	case "", "info":
		return zapcore.InfoLevel, nil
	case "warn":
		return zapcore.WarnLevel, nil
	case "error":
		return zapcore.ErrorLevel, nil
	}
	return 0, fmt.Errorf("log level %.20q: want debug, info, warn or error", s)
}

// Severity is the level of the line of ev: debug, info, warn or error.
func Severity(ev event.Event) string { return levelOf(ev).String() }

// levelOf says how much a fact asks for attention: debug is for the protocol,
// info for the ordinary course, warn for what somebody's mail suffered from,
// error for what an operator must look at.
func levelOf(ev event.Event) zapcore.Level {
	switch ev := ev.(type) {
	case event.CommandAnswered:
		return zapcore.DebugLevel
	case event.DNSAnswered:
		return zapcore.DebugLevel
	case event.BackoffChanged:
		return warnIf(ev.Mode != event.BackoffNone)
	case event.ListingChanged:
		return warnIf(ev.Result != event.ListingClean)
	case event.LookupAnswered:
		if ev.Error != "" {
			return zapcore.WarnLevel
		}
		return zapcore.DebugLevel
	case event.TLSNegotiated:
		return warnIf(ev.Failure != "")
	case event.SessionOpened, event.SessionClosed, event.ClientAnnounced, event.TranscriptKept, event.AuthSucceeded, event.MessageQueued, event.RecipientRelayed,
		event.RecipientDropped, event.DSNQueued, event.QueueHeld, event.QueueReleased, event.QueueLoaded, event.MessageRetired, event.TLSReportSent:
		return zapcore.InfoLevel
	case event.MessageRouted:
		return warnIf(ev.ConnectorOut == "")
	case event.AttemptFinished:
		return warnIf(ev.Disposition == mail.Bounced || ev.Uncertain)
	case event.AdminActed:
		return warnIf(ev.Result == "error")
	case event.SessionRefused, event.AuthFailed, event.SenderRefused, event.RecipientRefused, event.MessageRefused,
		event.RecipientBounced, event.RecipientExpired, event.RecipientLate, event.ThrottleEngaged, event.TLSPolicyFailed, event.TLSDowngraded, event.TLSReportFailed, event.Remarked:
		return zapcore.WarnLevel
	case event.PressureChanged:
		switch {
		case ev.Level >= 2:
			return zapcore.ErrorLevel
		case ev.Level == 1:
			return zapcore.WarnLevel
		}
		return zapcore.InfoLevel
	case event.ConfigReloaded:
		return errorIf(ev.Error != "")
	case event.CertificateReloaded:
		return errorIf(ev.Error != "")
	case event.TokenRefreshed:
		return warnIf(ev.Error != "")
	case event.MessagePoisoned, event.Panicked:
		return zapcore.ErrorLevel
	}
	return zapcore.InfoLevel
}

func warnIf(bad bool) zapcore.Level {
	if bad {
		return zapcore.WarnLevel
	}
	return zapcore.InfoLevel
}

func errorIf(bad bool) zapcore.Level {
	if bad {
		return zapcore.ErrorLevel
	}
	return zapcore.InfoLevel
}
