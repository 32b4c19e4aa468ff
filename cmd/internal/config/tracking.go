package config

import (
	"fmt"
	"time"

	"waybill/relay/event"
)

// KindRetention is how long each named kind of facts is kept.
func (t *Tracking) KindRetention() map[string]time.Duration {
	ages := map[string]time.Duration{}
	for _, k := range t.Kinds {
		for _, name := range k.Facts {
			ages[name] = time.Duration(k.Retention)
		}
	}
	return ages
}

// checkTrackingKinds checks the retention of kinds of facts.
func checkTrackingKinds(t *Tracking, p *collector) {
	seen := map[string]bool{}
	for i, k := range t.Kinds {
		path := fmt.Sprintf("tracking.kinds[%d]", i)
		switch {
		case k.Retention == 0: // said by the decoder
		case k.Retention < Day/24:
			p.errorf(path+".retention", "", "shorter than an hour")
		case k.Retention > t.Retention:
			p.errorf(path+".retention", "", "%v is longer than tracking.retention, %v", k.Retention, t.Retention)
		}
		for j, name := range k.Facts {
			at := fmt.Sprintf("%s.facts[%d]", path, j)
			class, known := event.ClassOf(name)
			switch {
			case seen[name]:
				p.errorf(at, "", "%q is there already", clip(name))
			case name == "session", name == "protocol":
			case name == event.Name(event.TranscriptKept{}):
				p.errorf(at, "set tracking.transcript_retention", "conversations have a retention of their own")
			case !known:
				p.errorf(at, "session, protocol, or a name of docs/reference/events.md", "there is no fact %q", clip(name))
			case class == event.Durable:
				p.errorf(at, "tracking.retention is for those", "%s is part of a message's history, which goes as a whole", name)
			}
			seen[name] = true
		}
	}
}
