package app

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"

	"waybill/relay/mail"
	"waybill/relay/route"
	"waybill/relay/smtpout"
)

// outlet is a send connector and what it becomes for hosts that an operator
// redirected mail to: the same in everything but the next hop, the name that a
// certificate must be for, and credentials, which are for its own smart hosts
// alone.
type outlet struct {
	*smtpout.Connector
	opts smtpout.Options

	mu      sync.Mutex
	targets []target // the one made last comes last
	closed  bool
	ends    sync.WaitGroup
}

type target struct {
	host string
	out  *smtpout.Connector
}

// maxTargets bounds the hosts that one connector is redirected to at a time. By
// taste: an operator names them.
const maxTargets = 32

func newOutlet(opts smtpout.Options) (*outlet, error) {
	out, err := smtpout.New(opts)
	if err != nil {
		return nil, err
	}
	return &outlet{Connector: out, opts: opts}, nil
}

// Attempt implements smtpout.Attempter.
func (o *outlet) Attempt(ctx context.Context, hop route.Hop, m smtpout.Message) smtpout.Result {
	host := hop.Target()
	if host == "" {
		return o.Connector.Attempt(ctx, hop, m)
	}
	out, err := o.target(host)
	switch {
	case errors.Is(err, errClosing):
		return smtpout.Result{Closed: true}
	case err != nil:
		res := smtpout.Result{Outcomes: make([]mail.Outcome, len(m.Envelope.Recipients))}
		for i := range res.Outcomes {
			res.Outcomes[i] = mail.Outcome{
				Disposition: mail.Deferred, Reply: mail.Reply{Enhanced: "4.4.4", Text: "redirect: " + err.Error()}, Class: mail.ClassOther,
			}
		}
		return res
	}
	return out.Attempt(ctx, hop, m)
}

var errClosing = errors.New("the connector is closed")

// target returns the connector for one host.
func (o *outlet) target(hostport string) (*smtpout.Connector, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, errClosing
	}
	for _, t := range o.targets {
		if t.host == hostport {
			return t.out, nil
		}
	}
	opts, err := redirected(o.opts, hostport)
	if err != nil {
		return nil, err
	}
	out, err := smtpout.New(opts)
	if err != nil {
		return nil, err
	}
	if len(o.targets) == maxTargets {
		old := o.targets[0]
		o.targets = o.targets[1:]
		o.ends.Go(func() { _ = old.out.Close() }) // waits for good-byes; nothing depends on them
	}
	o.targets = append(o.targets, target{hostport, out})
	return out, nil
}

// redirected are the options for one host.
func redirected(opts smtpout.Options, hostport string) (smtpout.Options, error) {
	host, word, err := net.SplitHostPort(hostport)
	if err != nil {
		return opts, err
	}
	port, err := strconv.ParseUint(word, 10, 16)
	if err != nil {
		return opts, err
	}
	opts.SmartHosts = []route.SmartHost{{Host: host, Port: uint16(port), Cost: 1}}
	opts.Auth = smtpout.Auth{}
	opts.TLSDomain = ""
	opts.ImplicitTLS = port == 465
	if opts.TLS == smtpout.TLSMTASTS { // a policy is a domain's, not a host's
		opts.TLS = smtpout.TLSDANE
	}
	return opts, nil
}

// Stats returns how many sessions there are, and how many there may be.
func (o *outlet) Stats() (open, limit int) {
	open, limit = o.Connector.Stats()
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, t := range o.targets {
		n, _ := t.out.Stats()
		open += n
	}
	return open, limit
}

// Close closes the connector and what it became.
func (o *outlet) Close() error {
	o.mu.Lock()
	o.closed = true
	targets := o.targets
	o.targets = nil
	o.mu.Unlock()
	errs := []error{o.Connector.Close()}
	for _, t := range targets {
		errs = append(errs, t.out.Close())
	}
	o.ends.Wait()
	return errors.Join(errs...)
}
