package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/spf13/cobra"

	"waybill/logtrack/trackapi"
	"waybill/relay/mail"
)

// sendOptions say what to send, where, and whether to follow it.
type sendOptions struct {
	server, from, subject, body, file string
	to                                []string
	helo, user, passwordFile          string
	tls, insecure, noFollow           bool
	wait                              time.Duration
}

func sendCmd(e *env) *cobra.Command {
	var o sendOptions
	cmd := &cobra.Command{
		Use:   "send --to ADDRESS",
		Short: "Submit a test message and follow it to its end",
		Long: `Submits a message by SMTP, with STARTTLS where it is offered, and follows it
through the API until every recipient is relayed, bounced or expired. Exit code 0
when all are relayed.`,
		Example: `  waybill send --to ann@example.com
  waybill send --server 127.0.0.1:2587 --user app --password-file app.pw --to ann@example.com
  waybill send --to ann@example.com --file message.eml --no-follow`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.send(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.server, "server", "127.0.0.1:25", "`HOST:PORT` of a receive connector")
	f.StringSliceVar(&o.to, "to", nil, "recipient `ADDRESS`; may be given several times")
	f.StringVar(&o.from, "from", "postmaster@localhost.localdomain", "envelope sender `ADDRESS`, or <>")
	f.StringVar(&o.subject, "subject", "Waybill test message", "`TEXT`")
	f.StringVar(&o.body, "body", "", "`TEXT` of the message")
	f.StringVar(&o.file, "file", "", "send this `FILE` (headers and all) instead; - is standard input")
	f.StringVar(&o.helo, "helo", "localhost", "`NAME` to say in EHLO")
	f.StringVar(&o.user, "user", "", "log in as `NAME` (asks for the password unless --password-file)")
	f.StringVar(&o.passwordFile, "password-file", "", "`FILE` with the password")
	f.BoolVar(&o.tls, "tls", false, "TLS from the first octet (port 465)")
	f.BoolVar(&o.insecure, "insecure", false, "do not verify the server's certificate; on loopback it never is")
	f.BoolVar(&o.noFollow, "no-follow", false, "do not follow the message through the API")
	f.DurationVar(&o.wait, "wait", 30*time.Second, "how long to follow")
	_ = cmd.MarkFlagRequired("to")
	_ = cmd.MarkFlagFilename("file", "eml")
	_ = cmd.MarkFlagFilename("password-file")
	return cmd
}

func (e *env) send(ctx context.Context, o sendOptions) error {
	content, err := e.testMessage(o)
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(o.server)
	if err != nil {
		return usagef("--server %s: want HOST:PORT", o.server)
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() || host == "localhost" {
		o.insecure = true // nobody is between us and ourselves
	}
	cfg := &tls.Config{ServerName: host, InsecureSkipVerify: o.insecure, MinVersion: tls.VersionTLS12} //nolint:gosec // only when the user says --insecure, or on loopback
	began := time.Now()
	o.from = strings.Trim(o.from, "<>")
	c, err := dialSMTP(o, cfg)
	if err != nil {
		return smtpUnreachable(o, err)
	}
	defer func() { _ = c.Close() }() // after Quit it is closed already
	if o.user != "" {
		pw, err := e.password(o.passwordFile, "Password for "+o.user+": ")
		if err != nil {
			return err
		}
		if err := c.Auth(sasl.NewPlainClient("", o.user, pw)); err != nil {
			return fmt.Errorf("log in at %s: %w", o.server, refusal(err))
		}
	}
	if err := c.Mail(o.from, &smtp.MailOptions{UTF8: !ascii(o.from) || !ascii(strings.Join(o.to, ""))}); err != nil {
		return fmt.Errorf("sender <%s>: %w", o.from, refusal(err))
	}
	for _, to := range o.to {
		if err := c.Rcpt(to, nil); err != nil {
			return fmt.Errorf("recipient <%s>: %w", to, refusal(err))
		}
	}
	w, err := c.Data()
	if err != nil {
		return fmt.Errorf("content: %w", refusal(err))
	}
	if _, err := io.WriteString(w, content); err != nil {
		return err
	}
	resp, err := w.CloseWithResponse()
	if err != nil {
		return fmt.Errorf("content: %w", refusal(err))
	}
	_ = c.Quit() // the message is accepted; a lost QUIT changes nothing
	id := queueIDIn(resp.StatusText)
	if e.format == "table" {
		fmt.Fprintf(e.out, "%s accepted in %s: %s\n", e.paint("green", "✓"), age(time.Since(began)), clean(resp.StatusText))
	}
	if o.noFollow || id == "" {
		if e.format != "table" {
			return render(e, map[string]string{"queue_id": id, "reply": resp.StatusText}, []string{id}, newTable("QUEUE ID"))
		}
		return nil
	}
	return e.follow(ctx, id, o.wait)
}

// smtpUnreachable says what to do when there is no session with the server.
func smtpUnreachable(o sendOptions, err error) error {
	err = fmt.Errorf("cannot open a session with %s: %w", o.server, refusal(err))
	switch {
	case unreachable(err):
		return &exitError{exitUnreachable, err, "name the address of a receive connector with --server"}
	case certificateError(err):
		return &exitError{exitNo, err, "--insecure sends without verifying the certificate"}
	}
	return err
}

// refusal is a server's reply as it came: 550 5.1.1 no such user.
func refusal(err error) error {
	e, ok := errors.AsType[*smtp.SMTPError](err)
	if !ok {
		return err
	}
	r := mail.Reply{Code: e.Code, Text: clean(e.Message)}
	if c := e.EnhancedCode; c[0] > 0 {
		r.Enhanced = fmt.Sprintf("%d.%d.%d", c[0], c[1], c[2])
	}
	return errors.New(r.String())
}

func certificateError(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}

func ascii(s string) bool { return strings.IndexFunc(s, func(r rune) bool { return r > 0x7f }) < 0 }

func dialSMTP(o sendOptions, cfg *tls.Config) (*smtp.Client, error) {
	if o.tls {
		c, err := smtp.DialTLS(o.server, cfg)
		if err != nil {
			return nil, err
		}
		return c, c.Hello(o.helo)
	}
	c, err := smtp.Dial(o.server)
	if err != nil {
		return nil, err
	}
	if err := c.Hello(o.helo); err != nil {
		_ = c.Close() // the greeting was no good
		return nil, err
	}
	if ok, _ := c.Extension("STARTTLS"); !ok {
		return c, nil
	}
	_ = c.Quit() // go-smtp upgrades only on a new connection
	if c, err = smtp.DialStartTLS(o.server, cfg); err != nil {
		return nil, err
	}
	return c, c.Hello(o.helo)
}

// queueIDIn finds our queue ID in the reply to the content.
func queueIDIn(text string) string {
	for word := range strings.FieldsSeq(text) {
		if mail.ValidID(word) {
			return word
		}
	}
	return ""
}

func (e *env) testMessage(o sendOptions) (string, error) {
	if o.file != "" {
		var b []byte
		var err error
		if o.file == "-" {
			b, err = io.ReadAll(e.in)
		} else {
			b, err = os.ReadFile(o.file)
		}
		return string(b), err
	}
	now := time.Now()
	from := or(strings.Trim(o.from, "<>"), "postmaster@"+o.helo)
	body := or(o.body, "This is a test message.\r\n\r\nIf you read it, the way from "+o.server+" to you works.")
	return fmt.Sprintf("From: <%s>\r\nTo: <%s>\r\nSubject: %s\r\nDate: %s\r\nMessage-ID: <%s@%s>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n%s\r\n",
		from, strings.Join(o.to, ">, <"), mime.QEncoding.Encode("utf-8", o.subject), now.Format(time.RFC1123Z), strings.ToLower(mail.NewID(now)), o.helo, body), nil
}

// follow shows the message's timeline once every recipient has its end, or the time is up.
func (e *env) follow(ctx context.Context, id string, wait time.Duration) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var tl *trackapi.Timeline
	for {
		got, err := c.Message(ctx, id)
		var p *trackapi.Problem
		switch {
		case err == nil:
			tl = got
		case errors.As(err, &p) && p.Status == http.StatusNotFound: // not yet in the store
		case ctx.Err() == nil:
			return err
		}
		if tl != nil && settled(tl.Message) {
			break
		}
		select {
		case <-ctx.Done():
			if tl == nil {
				return &exitError{exitNo, fmt.Errorf("message %s is not in tracking after %s", id, wait), "is --api the HTTP side of the relay that took it?"}
			}
			e.note(fmt.Sprintf("not at its end after %s; go on with: waybill track show %s", wait, id))
			return e.showFollowed(tl)
		case <-tick.C:
		}
	}
	return e.showFollowed(tl)
}

func (e *env) showFollowed(tl *trackapi.Timeline) error {
	if e.format != "table" {
		t := newTable("TIME", "EVENT", "LEVEL", "SUMMARY")
		for _, en := range tl.Timeline {
			t.add(en.Time.Format(time.RFC3339Nano), en.Event, en.Level, en.Summary)
		}
		if err := render(e, tl, tl.Timeline, t); err != nil {
			return err
		}
	} else if err := e.drawTimeline(tl, false); err != nil {
		return err
	}
	if tl.Message.Disposition != "relayed" {
		return &exitError{code: exitNo}
	}
	return nil
}

// settled reports whether every recipient got its final disposition.
func settled(m trackapi.Message) bool {
	for _, r := range m.Recipients {
		var d mail.Disposition
		if d.UnmarshalText([]byte(r.Disposition)) != nil || !d.Final() {
			return false
		}
	}
	return len(m.Recipients) > 0
}
