package logtrack

import (
	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// understood adds to the recipients of a whole message what their last failure
// means, or who gave them up. Rows of a search leave it out: it is long, and seldom read there.
func (fo *fold) understood() []trackapi.Recipient {
	list := make([]trackapi.Recipient, len(fo.msg.Recipients))
	at := make(map[string]*trackapi.Recipient, len(list))
	for i := range list {
		list[i] = fo.msg.Recipients[i]
		list[i].ClassRule, list[i].Permanence, list[i].Explanation, list[i].Actor = "", "", "", ""
		at[addressKey(list[i].Address)] = &list[i]
	}
	tell := func(address string, a *event.Answer) {
		if r := at[addressKey(address)]; r != nil {
			r.ClassRule, r.Permanence, r.Explanation = a.ClassRule, string(a.Permanence), a.Explanation
		}
	}
	ended := func(address, actor string) {
		if r := at[addressKey(address)]; r != nil {
			r.Actor = actor
		}
	}
	for i := range fo.recs {
		switch ev := fo.recs[i].Event.(type) { //nolint:gochecksumtype // only what tells of a failure
		case event.AttemptFinished:
			for k := range ev.Recipients {
				// The answer is that of the worst recipient; others have it when they were told the same.
				rc, a := &ev.Recipients[k], event.Answer{}
				if rc.Disposition != mail.Relayed && rc.Class == ev.Class && rc.Code == ev.Code && (rc.Reply == "" || rc.Reply == ev.Reply) {
					a = ev.Answer
				}
				tell(rc.Address, &a)
			}
		case event.RecipientRelayed:
			tell(ev.Recipient, &event.Answer{})
		case event.RecipientBounced:
			tell(ev.Recipient, &ev.Answer)
			if ev.ClassRule == "operator" { // older facts do not name him
				ended(ev.Recipient, or(ev.Actor, "an operator"))
			}
		case event.RecipientExpired:
			tell(ev.Recipient, &ev.Answer)
		case event.RecipientDropped: // by an operator, whatever a next hop said before
			tell(ev.Recipient, &event.Answer{})
			ended(ev.Recipient, ev.Actor)
		}
	}
	return list
}

// meaning is what an answer means, as the end of a sentence.
func meaning(a event.Answer) string {
	if a.Explanation == "" {
		return ""
	}
	return " (" + a.Explanation + ")"
}
