package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waybill/cmd/internal/config"
	"waybill/cmd/internal/selftest"
	"waybill/relay/mail"
	"waybill/relay/policy"
	"waybill/relay/tlsconf"
)

// selftestOptions say what to try, and where.
type selftestOptions struct {
	config, user, passwordFile, caFile string
	domain, foreign                    string
	targets                            []string
	tls, all                           bool
	timeout                            time.Duration
	parallel                           int
}

func selftestCmd(e *env) *cobra.Command {
	var o selftestOptions
	cmd := &cobra.Command{
		Use:   "selftest",
		Short: "Try on our own listeners what makes an open relay",
		Long: `Tries the tricks by which strangers get a mail server to relay for them, or to
tell what it should not, against the listeners of a configuration or against
--target: percent hacks, source routes, quoted and nested addresses, bang paths,
address literals, look-alike letters, smuggling, XCLIENT and PROXY headers, VRFY
and EXPN, passwords before TLS, commands behind STARTTLS. With --user, also what
a user may not.

No message is left behind. What this machine may do by its address says nothing
about strangers, and is left out: run it from outside too, with --target. A
configuration that delays refusals (tarpit) makes it take a minute.

Exit code 1 when something is open or leaks, 3 when a listener cannot be reached.`,
		Example: `  waybill selftest --config waybill.yaml
  waybill selftest --target mx1.example.com:25 --domain example.com
  waybill selftest --target mx1.example.com:587 --user app1 --password-file app1.pw
  waybill selftest --config waybill.yaml --all -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.selftest(cmd.Context(), o) },
	}
	configFlag(cmd, &o.config)
	f := cmd.Flags()
	f.StringSliceVar(&o.targets, "target", nil, "`HOST:PORT` to test instead of the listeners of the configuration; may be given several times")
	f.BoolVar(&o.tls, "tls", false, "TLS from the first octet at --target; it is at port 465 anyway")
	f.StringVar(&o.domain, "domain", "", "`DOMAIN` that the server takes mail for (default: its first accepted domain, or the name in its greeting)")
	f.StringVar(&o.foreign, "recipient", "", "`ADDRESS` that the server takes no mail for (default: one at example.net, .com or .org)")
	f.StringVar(&o.user, "user", "", "log in as `NAME`, too (asks for the password unless --password-file)")
	f.StringVar(&o.passwordFile, "password-file", "", "`FILE` with the password")
	f.StringVar(&o.caFile, "ca-file", "", "PEM `FILE` of the authorities to trust for the login (default: the system's)")
	f.BoolVar(&o.all, "all", false, "shows also what is as it should be")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "wait for one answer")
	f.IntVar(&o.parallel, "parallel", 8, "sessions at once; a listener may limit those of one address")
	_ = cmd.MarkFlagFilename("password-file")
	_ = cmd.MarkFlagFilename("ca-file", "pem", "crt")
	return cmd
}

func (e *env) selftest(ctx context.Context, o selftestOptions) error {
	opts := selftest.Options{Domain: o.domain, Foreign: o.foreign, User: o.user, Timeout: o.timeout, Parallel: o.parallel}
	if o.parallel < 1 || o.timeout <= 0 {
		return usagef("--parallel and --timeout: want more than 0")
	}
	if len(o.targets) > 0 {
		for _, at := range o.targets {
			_, port, err := net.SplitHostPort(at)
			if err != nil {
				return usagef("--target %s: want HOST:PORT", at)
			}
			opts.Targets = append(opts.Targets, selftest.Target{Addr: at, Implicit: o.tls || port == "465"})
		}
	} else {
		cfg, problems := config.Load(o.config)
		if cfg == nil {
			e.problems(problems)
			return &exitError{code: exitNo}
		}
		selftestConfig(cfg, &opts)
	}
	if opts.Foreign == "" {
		opts.Foreign = "waybill-selftest@example.net"
	}
	if a, err := mail.ParseAddress(opts.Foreign); err != nil || a.Domain == "" {
		return usagef("--recipient %s: want an address", opts.Foreign)
	}
	if o.user != "" {
		pw, err := e.password(o.passwordFile, "Password for "+o.user+": ")
		if err != nil {
			return err
		}
		opts.Password = pw
	}
	if o.caFile != "" {
		roots, err := tlsconf.Roots(o.caFile)
		if err != nil {
			return err
		}
		opts.TLS = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	results, err := selftest.Run(ctx, opts)
	if selftest.Unreachable(err) {
		err = &exitError{exitUnreachable, err, `is "waybill serve" running?`}
	}
	if err != nil && len(results) == 0 {
		return err
	}
	bad := e.selftestResults(results, o.all)
	if bad == nil || err == nil {
		return cmp.Or(bad, err)
	}
	fmt.Fprintf(e.err, "waybill: %v\n", err) // what is open counts more than what is silent
	return bad
}

func (e *env) selftestResults(results []selftest.Result, all bool) error {
	t := newTable("TARGET", "AS", "TRICK", "SENT", "REPLY", "VERDICT", "WHY")
	t.flex = []int{3, 4, 6}
	t.spare = []int{3, 0}
	sums := map[selftest.Verdict]int{}
	for _, r := range results {
		sums[r.Verdict]++
		if all || e.format != "table" || r.Verdict != selftest.OK && r.Verdict != selftest.Skipped {
			sent := ""
			if n := len(r.Sent); n > 0 {
				sent = r.Sent[n-1]
			}
			t.add(r.Target, r.View, r.Trick, sent, clean(r.Reply), string(r.Verdict), clean(r.Why))
		}
	}
	if e.format != "table" || len(t.rows) > 0 {
		if err := render(e, results, results, t); err != nil {
			return err
		}
	}
	worst := selftest.Worst(results)
	if e.format == "table" {
		var parts []string
		for _, v := range []selftest.Verdict{selftest.OK, selftest.Skipped, selftest.Unclear, selftest.Warning, selftest.Leak, selftest.Open} {
			if sums[v] > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", sums[v], v))
			}
		}
		mark := e.paint("green", "✓")
		if worst.Bad() {
			mark = e.paint("red", "✗")
		}
		fmt.Fprintf(e.out, "%s %s: %s\n", mark, count(len(results), "trick"), strings.Join(parts, ", "))
		if sums[selftest.Skipped] > 0 && !all {
			e.note("--all shows what was skipped, and why")
		}
	}
	if worst.Bad() {
		return &exitError{code: exitNo}
	}
	return nil
}

// selftestConfig takes targets and names from a configuration.
func selftestConfig(cfg *config.Config, opts *selftest.Options) {
	for _, r := range cfg.Receive {
		for _, at := range r.Listen {
			host, port, err := net.SplitHostPort(at)
			if err != nil || port == "0" {
				continue // what is to be chosen at the start cannot be known here
			}
			if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
				host = outside()
			}
			opts.Targets = append(opts.Targets, selftest.Target{
				Name: r.Name, Addr: net.JoinHostPort(host, port), Implicit: r.TLS.Mode == "implicit", Clear: r.Auth.BeforeTLS,
				Trusted: func(client netip.Addr) string { return trusted(cfg, at, client) },
				Proxied: func(client netip.Addr) bool { return proxied(cfg, at, client) },
			})
		}
	}
	opts.Targets = uniqueTargets(opts.Targets)
	if opts.Domain == "" && len(cfg.AcceptedDomains) > 0 {
		opts.Domain, _ = mail.ParseDomain(cfg.AcceptedDomains[0].Domain)
	}
	if opts.Foreign != "" {
		return
	}
	var list []policy.Domain
	for _, d := range cfg.AcceptedDomains {
		list = append(list, policy.Domain{Name: d.Domain, Subdomains: d.Subdomains})
	}
	domains, err := policy.NewDomains(list)
	if err != nil {
		return // the configuration was checked
	}
	for _, d := range []string{"example.net", "example.com", "example.org"} {
		if _, ours := domains.Lookup(d); !ours {
			opts.Foreign = "waybill-selftest@" + d
			return
		}
	}
}

// uniqueTargets leaves out what connectors share.
func uniqueTargets(list []selftest.Target) (unique []selftest.Target) {
	seen := map[string]bool{}
	for _, t := range list {
		if !seen[t.Addr] {
			seen[t.Addr] = true
			unique = append(unique, t)
		}
	}
	return unique
}

// outside is an address of this machine that is not loopback, if there is one:
// clients from outside come to it.
func outside() string {
	addrs, _ := net.InterfaceAddrs() // without them loopback has to do
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap().Is4() && p.Addr().IsGlobalUnicast() {
			return p.Addr().Unmap().String()
		}
	}
	return "127.0.0.1"
}

// proxied reports whether a client has to speak the PROXY protocol to a listener.
func proxied(cfg *config.Config, listen string, client netip.Addr) bool {
	return slices.ContainsFunc(cfg.Receive, func(r config.ReceiveConnector) bool {
		return slices.Contains(r.Listen, listen) && slices.ContainsFunc(r.ProxyProtocol.Trusted, func(word string) bool {
			p, err := policy.ParseRange(word)
			return err == nil && p.Contains(policy.Canonical(client))
		})
	})
}

// trusted says by which connector a client that comes to a listener may relay
// without a login, or nothing.
func trusted(cfg *config.Config, listen string, client netip.Addr) string {
	var best config.ReceiveConnector
	bits := -1
	for _, r := range cfg.Receive {
		for _, at := range r.Listen {
			if at != listen {
				continue
			}
			for _, word := range r.RemoteRanges {
				if p, err := policy.ParseRange(word); err == nil && p.Contains(policy.Canonical(client)) && p.Bits() > bits {
					best, bits = r, p.Bits()
				}
			}
		}
	}
	rights, err := policy.ParsePermissions(best.Permissions)
	if bits < 0 || err != nil || !rights.Relay || best.Auth.Required {
		return ""
	}
	return fmt.Sprintf("connector %s lets %s relay", best.Name, client)
}
