package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waybill/cmd/internal/app"
	"waybill/cmd/internal/config"
	"waybill/cmd/internal/probe"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// probeOptions say what to probe, and how.
type probeOptions struct {
	config, connector, level, caFile string
	dns                              []string
	timeout                          time.Duration
	transcript                       bool
}

// probeLevel is the TLS level without a configuration: it looks at all that a
// domain can publish.
const probeLevel = "mta_sts"

func probeCmd(e *env) *cobra.Command {
	var o probeOptions
	cmd := &cobra.Command{
		Use:   "probe DOMAIN|HOST[:PORT]",
		Short: "Where a delivery would fail, and who can mend it",
		Long: `Walks a delivery without sending: DNS, mail exchangers, addresses, connection,
greeting, TLS and certificate, DANE, MTA-STS, extensions, login. It goes to
every mail exchanger and address, says QUIT in place of MAIL, and names the first
thing that would fail and who can mend it.

With --config it goes the way that messages of that relay go: the send connector
for the domain, its smart hosts, TLS level, source addresses and login. Without,
it goes by MX and looks at everything that the domain publishes about TLS. A
HOST with a port, or an address, is asked itself. No daemon is needed.

Exit code 1 when a message would not be handed over.`,
		Example: `  waybill probe example.org
  waybill probe example.org --config /etc/waybill/waybill.yaml
  waybill probe smtp.provider.example:587 --tls-level verify_name
  waybill probe example.org --transcript
  waybill probe example.org -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return e.probe(cmd.Context(), args[0], o) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.config, "config", "c", envOr("WAYBILL_CONFIG", ""), "configuration `FILE` (WAYBILL_CONFIG)")
	f.StringVar(&o.connector, "connector", "", "send connector `NAME`, instead of the one that routing chooses")
	f.StringVar(&o.level, "tls-level", "", "TLS `LEVEL` without --config: "+strings.Join(probeLevels, ", ")+" (default "+probeLevel+", or dane for a HOST)")
	f.StringVar(&o.caFile, "ca-file", "", "PEM `FILE` of the authorities to trust, without --config (default: the system's)")
	f.StringSliceVar(&o.dns, "dns", nil, "recursive name `SERVER` to ask, without --config; may be given several times")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "wait for one address, from connection to QUIT")
	f.BoolVar(&o.transcript, "transcript", false, "shows what both sides said")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
	_ = cmd.MarkFlagFilename("ca-file")
	_ = cmd.RegisterFlagCompletionFunc("tls-level", cobra.FixedCompletions(probeLevels, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

var probeLevels = []string{"none", "opportunistic", "encrypt", "verify", "verify_name", "dane", "mta_sts"}

func (e *env) probe(ctx context.Context, target string, o probeOptions) error {
	if o.timeout <= 0 {
		return usagef("--timeout %s: must be longer than nothing", o.timeout)
	}
	domain, host, err := probeTarget(target)
	if err != nil {
		return err
	}
	cfg, err := e.probeConfig(o, host)
	if err != nil {
		return err
	}
	facts := &probe.Facts{}
	out, err := app.NewOutbound(cfg, event.NewEmitter(cfg.Hostname, facts))
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }() // nothing was written
	s, connector, hop, err := out.Find(domain, o.connector)
	if err != nil {
		return err
	}
	name := s.Name
	if o.config == "" { // it is of our own making
		name = ""
	}
	r := probe.Run(ctx, probe.Options{
		Connector: connector, Resolver: out.Resolver, Facts: facts, Name: name, Route: s.Route, Level: s.TLS.Level, Hop: hop, Target: target, Timeout: o.timeout,
	})
	if !o.transcript {
		for i := range r.Hosts {
			for j := range r.Hosts[i].Addresses {
				r.Hosts[i].Addresses[j].Transcript = nil
			}
		}
	}
	if err := e.showProbe(&r); err != nil {
		return err
	}
	if r.Verdict == probe.Fail {
		return &exitError{code: exitNo}
	}
	return nil
}

// probeTarget reads the argument: a domain, or a host that is to be asked itself.
// The domain of a host is what routing goes by.
func probeTarget(target string) (domain, host string, err error) {
	bad := usagef("%q is not a domain, a host with a port, or an address", target)
	name, port, splitErr := net.SplitHostPort(target)
	if splitErr != nil {
		name = strings.Trim(target, "[]")
	}
	if ip, ipErr := netip.ParseAddr(name); ipErr == nil {
		host = net.JoinHostPort(ip.String(), or(port, "25"))
		literal := "[" + ip.String() + "]"
		if ip.Is6() {
			literal = "[IPv6:" + ip.String() + "]"
		}
		return literal, host, nil
	}
	if domain, err = mail.ParseDomain(strings.TrimSuffix(name, ".")); err != nil {
		return "", "", bad
	}
	if port != "" {
		host = target
	}
	return domain, host, nil
}

// probeConfig is the configuration to probe with: that of --config, or one with a
// single connector. A host that is named goes into a connector of its own.
func (e *env) probeConfig(o probeOptions, host string) (*config.Config, error) {
	if o.config != "" {
		for flag, set := range map[string]bool{"--tls-level": o.level != "", "--ca-file": o.caFile != "", "--dns": len(o.dns) > 0} {
			if set {
				return nil, usagef("%s is for probes without --config", flag)
			}
		}
		cfg, problems := config.Load(o.config)
		if problems.Errors() {
			e.problems(problems)
			return nil, &exitError{code: exitNo}
		}
		if host != "" && o.connector == "" {
			return nil, usagef("with --config, name the --connector that is to go to %s, or a domain", host)
		}
		if host == "" {
			return cfg, nil
		}
		for i := range cfg.Send {
			if cfg.Send[i].Name == o.connector {
				cfg.Send[i].Route, cfg.Send[i].SmartHosts = "smart_hosts", []config.SmartHost{{Host: host, Cost: 10}}
				if cfg.Send[i].TLS.Level == "mta_sts" { // which is about mail exchangers
					cfg.Send[i].TLS.Level = "dane"
				}
			}
		}
		return cfg, nil
	}
	if o.connector != "" {
		return nil, usagef("--connector needs --config")
	}
	level := o.level
	if level == "" {
		level = probeLevel
		if host != "" {
			level = "dane"
		}
	}
	if !slices.Contains(probeLevels, level) {
		return nil, usagef("--tls-level %s: %s", level, strings.Join(probeLevels, ", "))
	}
	if level == "mta_sts" && host != "" {
		return nil, usagef("--tls-level mta_sts is about a domain's mail exchangers, and not about a host")
	}
	cfg := config.Default()
	cfg.Hostname = hostName()
	s := config.NewSendConnector()
	s.Name, s.AddressSpaces, s.Route = "probe", []config.Space{{Space: "*", Cost: 10}}, "mx"
	s.TLS.Level, s.TLS.CAFile = level, o.caFile
	if host != "" {
		s.Route, s.SmartHosts = "smart_hosts", []config.SmartHost{{Host: host, Cost: 10}}
		s.TLS.Implicit = strings.HasSuffix(host, ":465")
	}
	cfg.Send = []config.SendConnector{s}
	for _, server := range o.dns {
		if ip, err := netip.ParseAddr(server); err == nil {
			server = netip.AddrPortFrom(ip, 53).String()
		} else if _, err := netip.ParseAddrPort(server); err != nil {
			return nil, usagef("--dns %s: such as 192.0.2.1 or 127.0.0.1:5353", server)
		}
		cfg.DNS.Servers = append(cfg.DNS.Servers, server)
	}
	return cfg, nil
}

// showProbe writes a report.
func (e *env) showProbe(r *probe.Report) error {
	if e.format != "table" {
		t := newTable("HOST", "ADDRESS", "VERDICT", "FAILED AT", "TLS", "VERIFY", "ERROR")
		for _, h := range r.Hosts {
			for _, a := range h.Addresses {
				t.add(h.Name, a.Addr, a.Verdict, a.Stage, a.TLSVersion, a.TLSVerify, a.Error)
			}
			if len(h.Addresses) == 0 {
				t.add(h.Name, "", h.Verdict, "", "", "", h.Error)
			}
		}
		return render(e, r, r.Hosts, t)
	}
	p := page{e: e, width: min(e.columns(), maxPage), signed: r.Route == "mx"}
	way := "by MX"
	if r.Route == "smart_hosts" {
		way = "to smart hosts"
	}
	switch {
	case r.Connector != "":
		way += ", connector " + r.Connector
	case r.Route == "smart_hosts":
		way = "the host itself"
	}
	p.line("%s  %s", e.paint("bold", clean(r.Target)), e.paint("dim", way+", TLS level "+r.Level))
	if r.STS != nil {
		p.line("MTA-STS    %s: %s; for %s", r.STS.Mode, clean(strings.Join(r.STS.MX, ", ")), age(time.Duration(r.STS.MaxAge)*time.Second))
	}
	if len(r.Reports) > 0 {
		p.line("TLS-RPT    reports go to %s", clean(strings.Join(r.Reports, ", ")))
	}
	for _, h := range r.Hosts {
		p.host(h)
	}
	if len(r.Findings) > 0 {
		p.line("")
	}
	for _, f := range r.Findings {
		p.finding(f)
	}
	p.line("")
	style := map[string]string{probe.OK: "green", probe.Warning: "yellow", probe.Fail: "red"}[r.Verdict]
	p.line("%s", e.paint(style, "Verdict: "+clean(r.Summary())+"."))
	if r.First != nil {
		p.field("first failure", strings.TrimSpace(or(r.First.Stage, "")+" "+r.First.Where)+": "+r.First.What)
		p.field("who mends it", r.First.Who)
		p.field("how", r.First.Fix)
	}
	return p.err
}

// maxPage is how wide a page is at most: longer lines are hard to read.
const maxPage = 110

// page writes lines that fit.
type page struct {
	e      *env
	width  int
	signed bool // whether names are is of interest
	err    error
}

func (p *page) line(format string, v ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.e.out, format+"\n", v...)
	}
}

// field writes a key and a text that may take several lines.
func (p *page) field(key, text string) {
	const indent = 15
	for i, part := range wrap(clean(text), max(p.width-indent, 30)) {
		if i > 0 {
			key = ""
		}
		p.line("%s%s", p.e.paint("dim", fmt.Sprintf("%-*s", indent, key)), part)
	}
}

func (p *page) mark(verdict string) string {
	style := map[string]string{probe.OK: "green", probe.Warning: "yellow", probe.Fail: "red"}[verdict]
	return p.e.paint(style, fmt.Sprintf("%-7s", verdict))
}

func (p *page) host(h probe.Host) {
	p.line("")
	about := ""
	switch {
	case h.Policy == "dane":
		about = "DANE: " + h.Text
	case h.Policy != "":
		about = h.Policy
	}
	if h.Secure && h.Policy != "dane" && p.signed {
		about += ", signed name"
	}
	p.line("%s %3d  %s  %s", p.mark(h.Verdict), h.Preference, p.e.paint("bold", clean(h.Name)), p.e.paint("dim", fit(clean(about), max(p.width-16-len(h.Name), 20))))
	if h.Error != "" {
		p.field("", h.Error)
	}
	for _, a := range h.Addresses {
		p.address(a)
	}
}

func (p *page) address(a probe.Address) {
	var took []string
	for _, stage := range []string{"connect", "banner", "tls", "auth"} {
		if d, ok := a.Stages[stage]; ok {
			took = append(took, stage+" "+seconds(d))
		}
	}
	p.line("  %s  %-24s %s", p.mark(a.Verdict), a.Addr, p.e.paint("dim", strings.Join(took, ", ")))
	row := func(key, text string) {
		if text == "" {
			return
		}
		for i, part := range wrap(clean(text), max(p.width-25, 30)) {
			if i > 0 {
				key = ""
			}
			p.line("           %s%s", p.e.paint("dim", fmt.Sprintf("%-14s", key)), part)
		}
	}
	row("greeting", a.Banner)
	if a.TLSVersion != "" {
		row("TLS", fmt.Sprintf("%s, %s, %s", a.TLSVersion, a.TLSCipher, verified(a.TLSVerify)))
	} else if a.TLSFailure != "" {
		row("TLS", "none: "+a.TLSFailure)
	}
	if c := a.Certificate; c != nil {
		names := c.Names
		more := ""
		if len(names) > 4 {
			names, more = names[:4], fmt.Sprintf(" and %d more", len(c.Names)-4)
		}
		row("certificate", fmt.Sprintf("for %s%s; by %s; until %s (%s)", or(strings.Join(names, ", "), c.Subject), more, or(c.Issuer, "nobody"), c.NotAfter.Format(time.DateOnly), left(c.NotAfter)))
	}
	row("extensions", strings.Join(a.Extensions, ", "))
	row("logged in as", a.User)
	if a.Error != "" {
		row("failed at", a.Stage+": "+a.Error)
	}
	for _, l := range a.Transcript {
		mark := map[string]string{"client": ">", "server": "<"}[l.From]
		p.line("             %s %s", p.e.paint("dim", or(mark, "*")), fit(clean(l.Text), max(p.width-16, 30)))
	}
}

func (p *page) finding(f probe.Finding) {
	p.line("%s %s", p.mark(f.Level), strings.Join(wrap(clean(strings.TrimPrefix(f.Where+": ", ": ")+f.What), max(p.width-8, 30)), "\n        "))
	p.line("        %s", p.e.paint("dim", strings.Join(wrap(clean(f.Who+": "+f.Fix), max(p.width-8, 30)), "\n        ")))
}

// verified is how far a certificate can be trusted, for people.
func verified(word string) string {
	switch word {
	case "dane":
		return "verified by DANE"
	case "mta_sts":
		return "verified as its MTA-STS policy asks"
	case "pkix_name":
		return "verified, with its name"
	case "pkix":
		return "verified, for another name"
	}
	return "not verified"
}

// left is how long until t, for people.
func left(t time.Time) string {
	switch d := time.Until(t); {
	case d < 0:
		return "expired"
	case d < 48*time.Hour:
		return "in " + age(d)
	default:
		return fmt.Sprintf("in %d d", int(d.Hours())/24)
	}
}

// wrap breaks text between words into lines of at most width columns, except
// where a word alone is wider.
func wrap(text string, width int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && screen.StringWidth(line)+1+screen.StringWidth(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// hostName is how we greet without a configuration.
func hostName() string {
	name, err := os.Hostname()
	if _, bad := mail.ParseDomain(name); err != nil || bad != nil {
		return "localhost.localdomain"
	}
	return name
}
