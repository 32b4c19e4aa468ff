package tlsrpt

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"waybill/relay/mail"
)

// Report is a report as RFC 8460 section 4.4 has it.
type Report struct {
	Organization string    `json:"organization-name"`
	DateRange    DateRange `json:"date-range"`
	Contact      string    `json:"contact-info"`
	ID           string    `json:"report-id"`
	Policies     []Result  `json:"policies"`
}

// DateRange is the time that a report is about.
type DateRange struct {
	Start time.Time `json:"start-datetime"`
	End   time.Time `json:"end-datetime"`
}

// Result is what happened under one policy.
type Result struct {
	Policy   Policy    `json:"policy"`
	Summary  Summary   `json:"summary"`
	Failures []Failure `json:"failure-details,omitempty"`
}

// Policy is what a domain publishes, as we saw it.
type Policy struct {
	Type   string   `json:"policy-type"` // tlsa, sts, no-policy-found
	String []string `json:"policy-string,omitempty"`
	Domain string   `json:"policy-domain"`
	MX     []string `json:"mx-host,omitempty"` // sts: patterns
}

// Summary counts sessions.
type Summary struct {
	Successful int `json:"total-successful-session-count"`
	Failed     int `json:"total-failure-session-count"`
}

// Failure is one kind of failure.
type Failure struct {
	Type  string `json:"result-type"`
	From  string `json:"sending-mta-ip,omitempty"`
	MX    string `json:"receiving-mx-hostname,omitempty"`
	To    string `json:"receiving-ip,omitempty"`
	Count int    `json:"failed-session-count"`
	Code  string `json:"failure-reason-code,omitempty"` // a word of our own
}

// report makes the report about d for a domain.
func (r *Reporter) report(d *day, domain, id string) (Report, Summary) {
	begin, _ := time.Parse(time.DateOnly, d.Date) // it is a date
	rep := Report{
		Organization: r.opts.Organization, Contact: r.opts.Contact, ID: id,
		DateRange: DateRange{begin, begin.Add(24*time.Hour - time.Second)},
	}
	var total Summary
	for _, t := range d.about(domain) {
		res := Result{Policy: t.policy(), Summary: Summary{t.Successful, t.failed()}}
		for _, f := range t.Failures {
			kind, ok := resultTypes[f.Reason]
			if !ok {
				kind = "validation-failure"
			}
			res.Failures = append(res.Failures, Failure{Type: kind, From: f.From, MX: f.MX, To: f.To, Count: f.Count, Code: f.Reason})
		}
		total.Successful += res.Summary.Successful
		total.Failed += res.Summary.Failed
		rep.Policies = append(rep.Policies, res)
	}
	return rep, total
}

func (t *tally) policy() Policy {
	p := Policy{Type: t.Type, Domain: t.Domain}
	if t.Type == typeTLSA && t.Base != "" {
		p.Domain = t.Base
	}
	if t.Text != "" {
		p.String = strings.Split(t.Text, "; ")
	}
	for _, line := range p.String {
		if mx, ok := strings.CutPrefix(line, "mx: "); ok && t.Type == typeSTS {
			p.MX = append(p.MX, mx)
		}
	}
	return p
}

// pack writes a report as it goes: JSON, compressed (RFC 8460 section 5.1).
func pack(rep Report) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := json.NewEncoder(z).Encode(rep); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// fileName is the name that a report has as a file (RFC 8460 section 5.1).
func (r *Reporter) fileName(rep Report, domain string) string {
	unique, _, _ := strings.Cut(rep.ID, "@")
	return fmt.Sprintf("%s!%s!%d!%d!%s.json.gz", r.submitter(), domain, rep.DateRange.Start.Unix(), rep.DateRange.End.Unix(), unique)
}

// submitter is the domain that reports are from.
func (r *Reporter) submitter() string { return r.opts.From.DomainKey() }

// compose writes a report as a message (RFC 8460 section 5.3). Everything that a
// stranger named is a domain or an address, and was checked to be one.
func (r *Reporter) compose(rep Report, total Summary, domain string, to mail.Address, packed []byte) (content []byte, d mail.Draft) {
	now := time.Now()
	id := mail.NewID(now)
	d = mail.Draft{
		ID: mail.QueueID(id), UID: mail.NewUID(now),
		Envelope: mail.Envelope{
			Sender:     r.opts.From,
			Recipients: []mail.Recipient{{Address: to, Notify: mail.NotifyNever}}, // a report about a report is nobody's
			// RFC 8460 section 3: a report arrives despite the failures that it is about.
			TLSOptional: true,
		},
		Priority: mail.PriorityLow,
		Header:   mail.Header{MessageID: "<" + id + "@" + r.submitter() + ">", From: r.opts.From.String()},
	}
	d.Header.Subject = "Report Domain: " + domain + " Submitter: " + r.submitter() + " Report-ID: <" + rep.ID + ">"
	boundary := "=_waybill_" + id
	var b bytes.Buffer
	line := func(format string, v ...any) { fmt.Fprintf(&b, format+"\r\n", v...) }
	line("Date: %s", now.UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	line("From: <%s>", r.opts.From)
	line("To: <%s>", to)
	line("Subject: Report Domain: %s\r\n Submitter: %s\r\n Report-ID: <%s>", domain, r.submitter(), rep.ID)
	line("Message-ID: %s", d.Header.MessageID)
	line("TLS-Report-Domain: %s", domain)
	line("TLS-Report-Submitter: %s", r.submitter())
	line("TLS-Required: No") // RFC 8689 section 5
	line("Auto-Submitted: auto-generated")
	line("MIME-Version: 1.0")
	line("Content-Type: multipart/report; report-type=\"tlsrpt\";\r\n\tboundary=\"%s\"", boundary)
	line("")
	d.Header.Bytes = b.Len()
	line("--%s", boundary)
	line("Content-Type: text/plain; charset=us-ascii\r\nContent-Transfer-Encoding: 7bit\r\n")
	line("This is a report on TLS (RFC 8460) with the mail exchangers of\r\n%s\r\non %s (UTC): %d sessions succeeded, %d failed.", domain, rep.DateRange.Start.Format(time.DateOnly), total.Successful, total.Failed)
	if total.Failed > 0 {
		line("\r\nWhat failed:\r\n")
		for _, res := range rep.Policies {
			for _, f := range res.Failures {
				line("  %6d  %s (%s)\r\n          %s", f.Count, f.Type, f.Code, plain(f.MX))
			}
		}
	}
	line("\r\nDetails are in the attachment. Questions:\r\n%s", plain(rep.Contact))
	line("\r\n--%s", boundary)
	line("Content-Type: application/tlsrpt+gzip\r\nContent-Transfer-Encoding: base64\r\nContent-Disposition: attachment;\r\n\tfilename=\"%s\"\r\n", r.fileName(rep, domain))
	text := base64.StdEncoding.EncodeToString(packed)
	for len(text) > 0 {
		n := min(len(text), 76)
		line("%s", text[:n])
		text = text[n:]
	}
	line("\r\n--%s--", boundary)
	d.Envelope.Size = int64(b.Len())
	return b.Bytes(), d
}

// plain keeps what a line of plain text may hold.
func plain(s string) string { return clip(printable(s), 300) }

// printable makes ASCII of what may be a stranger's.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return clip(s, 500)
}

func clip(s string, most int) string {
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
