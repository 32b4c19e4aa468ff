package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"waybill/cmd/internal/app"
	"waybill/cmd/internal/config"
	"waybill/relay/dns"
	"waybill/relay/mail"
	"waybill/relay/policy"
	"waybill/relay/route"
)

func routeCmd(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "route",
		Short:   "Which way a message would go, and why",
		Example: "  waybill route explain --from a@example.com --to b@example.org",
	}
	return group(cmd, routeExplainCmd(e))
}

// explanation is the answer of route explain.
type explanation struct {
	Connector  string            `json:"connector,omitempty"`
	Queue      string            `json:"queue"`
	Why        string            `json:"why"`
	TLS        string            `json:"tls_level,omitempty"`
	Retry      *retryPlan        `json:"retry,omitempty"`
	NextHops   []nextHop         `json:"next_hops,omitempty"`
	Candidates []route.Candidate `json:"candidates"`
	DNSError   string            `json:"dns_error,omitempty"`
}

type nextHop struct {
	Host       string   `json:"host"`
	Preference int      `json:"preference"`
	Addresses  []string `json:"addresses,omitempty"`
	Error      string   `json:"error,omitempty"`
}

func routeExplainCmd(e *env) *cobra.Command {
	var path, from, to, receive, user, client string
	var octets int64
	var noDNS bool
	cmd := &cobra.Command{
		Use:   "explain --to ADDRESS",
		Short: "Every candidate connector, why it lost, the winner and its next hops",
		Example: `  waybill route explain --from a@example.com --to b@example.org
  waybill route explain --to b@example.org --size 50000000 --no-dns`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return nil
			case to == "":
				return usagef("the recipient goes behind a flag: --to %s", args[0])
			}
			return usagef("route explain takes no %q beside its flags", args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, problems := config.Load(path)
			if problems.Errors() {
				e.problems(problems)
				return &exitError{code: exitNo}
			}
			q := route.Query{Size: octets, Receive: receive, User: user}
			var err error
			if client != "" {
				if q.Receive != "" {
					return usagef("--client finds the receive connector: leave out --receive-connector")
				}
				if q.Receive, err = receiverOf(cfg, client); err != nil {
					return usageError{err}
				}
			}
			if q.Sender, err = mail.ParseAddress(strings.Trim(from, "<>")); err != nil {
				return usagef("--from: %w", err)
			}
			if q.Recipient, err = mail.ParseAddress(to); err != nil || q.Recipient.IsNull() {
				return usagef("--to %s: not an address", to)
			}
			table, err := app.Table(cfg)
			if err != nil {
				return err
			}
			d := table.Explain(q)
			x := explanation{Connector: d.Hop.Connector, Queue: d.Hop.Name, Why: d.Why, Candidates: d.Candidates}
			if d.Connector != nil {
				x.describe(cmd.Context(), cfg, d, q, noDNS)
			}
			if err := e.showRoute(x); err != nil {
				return err
			}
			if d.Connector == nil {
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().StringVar(&from, "from", "<>", "sender `ADDRESS`")
	cmd.Flags().StringVar(&to, "to", "", "recipient `ADDRESS`")
	cmd.Flags().StringVar(&receive, "receive-connector", "", "receive connector `NAME`")
	cmd.Flags().StringVar(&user, "user", "", "login `NAME`")
	cmd.Flags().StringVar(&client, "client", "", "`IP` address of the client: what it connects to first decides the receive connector")
	cmd.Flags().Int64Var(&octets, "size", 0, "octets of the message")
	cmd.Flags().BoolVar(&noDNS, "no-dns", false, "do not look up the next hops")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

// receiverOf names the receive connector that takes a client's connections: the
// one with the most specific range that it is in.
func receiverOf(cfg *config.Config, client string) (string, error) {
	ip, err := netip.ParseAddr(client)
	if err != nil {
		return "", fmt.Errorf("--client: %w", err)
	}
	name, best := "", -1
	for _, r := range cfg.Receive {
		for _, word := range r.RemoteRanges {
			if p, err := policy.ParseRange(word); err == nil && p.Contains(ip.Unmap()) && p.Bits() > best {
				name, best = r.Name, p.Bits()
			}
		}
	}
	if name == "" {
		return "", fmt.Errorf("--client: no receive connector takes connections from %s", ip)
	}
	return name, nil
}

// describe adds the next hops with their addresses.
func (x *explanation) describe(ctx context.Context, cfg *config.Config, d route.Decision, q route.Query, noDNS bool) {
	for _, s := range cfg.Send {
		if s.Name == d.Hop.Connector {
			x.TLS = s.TLS.Level
			x.Retry = planOf(app.Retry(s.Retry), d.Hop.Name)
		}
	}
	if len(d.Connector.SmartHosts) > 0 {
		x.smartHosts(ctx, cfg, d.Connector, noDNS)
		return
	}
	if noDNS {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	r, err := dns.New(dns.Options{Servers: cfg.DNS.Servers})
	if err != nil {
		x.DNSError = err.Error()
		return
	}
	defer func() { _ = r.Close() }() // its questions are answered
	hosts, err := r.MX(ctx, q.Recipient.DomainKey())
	if err != nil {
		x.DNSError = dnsError(err)
		return
	}
	for _, mx := range hosts {
		h := nextHop{Host: mx.Host, Preference: int(mx.Preference)}
		addrs, err := r.Addrs(ctx, mx.Host)
		if err != nil {
			h.Error = dnsError(err)
		}
		for _, a := range addrs {
			h.Addresses = append(h.Addresses, a.String())
		}
		x.NextHops = append(x.NextHops, h)
	}
}

// smartHosts adds the smart hosts in the order of their costs, with the
// addresses of those that are names.
func (x *explanation) smartHosts(ctx context.Context, cfg *config.Config, c *route.Connector, noDNS bool) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	r, err := dns.New(dns.Options{Servers: cfg.DNS.Servers})
	if err == nil {
		defer func() { _ = r.Close() }() // its questions are answered
	}
	hosts := slices.Clone(c.SmartHosts)
	slices.SortStableFunc(hosts, func(a, b route.SmartHost) int { return cmp.Compare(a.Cost, b.Cost) })
	for _, s := range hosts {
		h := nextHop{Host: fmt.Sprintf("%s:%d", s.Host, s.Port), Preference: s.Cost}
		if _, isIP := netip.ParseAddr(s.Host); isIP != nil && !noDNS && err == nil {
			addrs, err := r.Addrs(ctx, s.Host)
			if err != nil {
				h.Error = dnsError(err)
			}
			for _, a := range addrs {
				h.Addresses = append(h.Addresses, a.String())
			}
		}
		x.NextHops = append(x.NextHops, h)
	}
	if err != nil {
		x.DNSError = err.Error()
	}
}

func dnsError(err error) string {
	if e, ok := errors.AsType[*dns.Error](err); ok {
		verdict := "permanent"
		if e.Temporary() {
			verdict = "temporary"
		}
		return fmt.Sprintf("%s: %v", verdict, err)
	}
	return err.Error()
}

func (e *env) showRoute(x explanation) error {
	t := newTable("CONNECTOR", "ADDRESS SPACE", "COST", "WON", "WHY")
	t.flex = []int{4}
	for _, c := range x.Candidates {
		won := ""
		if c.Won {
			won = "yes"
		}
		t.add(c.Connector, or(c.Space, "-"), fmt.Sprint(c.Cost), won, c.Why)
	}
	if e.format != "table" {
		return render(e, x, x.Candidates, t)
	}
	if err := t.write(e); err != nil {
		return err
	}
	fmt.Fprintf(e.out, "\nconnector  %s\nqueue      %s\nwhy        %s\n", or(x.Connector, "none: unroutable"), x.Queue, x.Why)
	if x.TLS != "" {
		fmt.Fprintf(e.out, "tls        %s\n", x.TLS)
	}
	if x.Retry != nil {
		fmt.Fprintf(e.out, "retry      %s\n", x.Retry)
		if x.Retry.Domain != "" {
			fmt.Fprintf(e.out, "           as said for %s\n", x.Retry.Domain)
		}
		if x.Retry.DelayDSN != "" {
			fmt.Fprintf(e.out, "           the sender is told of a delay after %s\n", x.Retry.DelayDSN)
		}
	}
	if x.DNSError != "" {
		fmt.Fprintf(e.out, "dns        %s\n", clean(x.DNSError))
	}
	for i, h := range x.NextHops {
		key := "next hops"
		if i > 0 {
			key = ""
		}
		fmt.Fprintf(e.out, "%-10s %3d  %s  %s\n", key, h.Preference, clean(h.Host), or(strings.Join(h.Addresses, " "), h.Error))
	}
	return nil
}
