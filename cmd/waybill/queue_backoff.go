package main

import (
	"time"

	"waybill/logtrack/trackapi"
)

// stateOfQueue is what a next hop does, and, where it has asked for less mail,
// how it is treated.
func stateOfQueue(q trackapi.Queue) string {
	if q.Backoff == "" {
		return q.State
	}
	return q.State + ", " + q.Backoff + " (" + q.BackoffRule + ")"
}

// nextOfQueue is when the next hop is tried again.
func nextOfQueue(q trackapi.Queue) time.Time {
	if q.Backoff == "pause" && q.BackoffUntil.After(q.Next) {
		return q.BackoffUntil
	}
	return q.Next
}
