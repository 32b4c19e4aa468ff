// Package pickup takes messages from a directory.
//
// It exists for programs that hand in mail by writing a file: those that used
// the pickup directory of IIS SMTP or of Exchange, and scripts. A file that ends
// in .eml becomes a message; it is deleted when the message is on stable
// storage. What cannot become one goes to the folder bad, with a text file that
// says why.
//
// It promises that a file is not lost: until the queue has committed the message
// the file stays where it is, under its own name. A crash between the commit and
// the deletion repeats a message: at most one, since files are taken one after
// the other, and once, because the same file is then taken to its end. It takes
// regular files only, and never follows a symbolic link. Who may write into the
// directory may send mail with the rights of the pickup: it does not run on a
// directory that everybody may write into.
//
// To teach it another header field of the kind of X-Sender, add it to
// [parser.control].
package pickup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/policy"
)

// An Acceptor takes responsibility for messages.
type Acceptor interface {
	// Begin prepares for one content of about sizeHint octets.
	Begin(ctx context.Context, sizeHint int64) (Incoming, error)
}

// An Incoming takes one content. It is ended by Commit or by Abort, once.
type Incoming interface {
	io.Writer
	// Commit returns nil when message and content are on stable storage.
	Commit(ctx context.Context, d mail.Draft) error
	Abort()
}

// Options configure a Pickup.
type Options struct {
	Name        string // of the connector, in facts
	Dir         string // where files are dropped
	Hostname    string // our name, in Received fields
	Permissions policy.Permissions
	Senders     []string               // addresses and domains that messages may be from; empty: all
	Policy      func() *policy.Control // the relay control of the moment; nil: none
	Acceptor    Acceptor
	Ready       func() error // nil, or asked before each file: after an error files wait
	Emitter     event.Emitter

	FilesPerMinute int           // zero means 100, a negative value no limit
	MessageSize    int64         // octets; zero means 36 MiB
	HeaderSize     int           // octets; zero means 256 KiB
	Recipients     int           // of a message; zero means 200
	Settle         time.Duration // a file is whole when it has not changed for so long; zero means 2s
	Interval       time.Duration // between two looks; zero means 1s
}

// Bounds chosen by taste.
const (
	badDir    = "bad"
	perLook   = 1000             // files that one look considers
	emptyWait = time.Minute      // how long an empty file may stay empty
	retryWait = 10 * time.Second // after the queue took nothing
	laterWait = time.Minute      // after relay control refused a file for now
)

// Pickup takes messages from one directory.
type Pickup struct {
	opts  Options
	emit  event.Emitter
	root  *os.Root
	rate  *rate.Limiter
	seen  map[string]sight
	stuck map[string]sight     // files that were taken and cannot be deleted
	later map[string]time.Time // files that were refused for now
	slow  bool                 // the rate was reached, and that was stated
}

// sight is what a file looked like, and since when.
type sight struct {
	size  int64
	mod   time.Time
	since time.Time
}

func (s sight) same(o sight) bool { return s.size == o.size && s.mod.Equal(o.mod) }

// New opens the directory, which must be there, and tries whether files can be
// deleted from it: one that stays would be sent again and again.
func New(opts Options) (*Pickup, error) {
	fail := func(err error) (*Pickup, error) { return nil, fmt.Errorf("pickup directory %s: %w", opts.Dir, err) }
	def := func(p *int, d int) {
		if *p == 0 {
			*p = d
		}
	}
	def(&opts.FilesPerMinute, 100)
	def(&opts.HeaderSize, 256<<10)
	def(&opts.Recipients, 200)
	if opts.MessageSize == 0 {
		opts.MessageSize = 36 << 20
	}
	if opts.Settle <= 0 {
		opts.Settle = 2 * time.Second
	}
	if opts.Interval <= 0 {
		opts.Interval = time.Second
	}
	root, err := os.OpenRoot(opts.Dir)
	if err != nil {
		return fail(err)
	}
	if err := usable(root); err != nil {
		_ = root.Close() // nothing was written through it
		return fail(err)
	}
	limit := rate.Inf
	if opts.FilesPerMinute > 0 {
		limit = rate.Limit(float64(opts.FilesPerMinute) / 60)
	}
	return &Pickup{
		opts: opts, emit: opts.Emitter.Source(event.SourcePickup), root: root, rate: rate.NewLimiter(limit, max(opts.FilesPerMinute, 1)),
		seen: map[string]sight{}, stuck: map[string]sight{}, later: map[string]time.Time{},
	}, nil
}

// usable makes the folder for bad files, and tries out our rights.
func usable(root *os.Root) error {
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	if openToAll(info) {
		return errors.New("everybody on this machine may write into it, and so send mail; take that right away (chmod o-w)")
	}
	if err := root.Mkdir(badDir, 0o770); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, dir := range []string{".", badDir} {
		name := filepath.Join(dir, ".waybill-"+mail.NewID(time.Now()))
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Close(), root.Remove(name)); err != nil {
			return err
		}
	}
	return nil
}

// Close gives the directory back. It is not called while Run runs.
func (p *Pickup) Close() error { return p.root.Close() }

// Run takes files until ctx is done. The file in hand is taken to its end.
func (p *Pickup) Run(ctx context.Context) error {
	t := time.NewTimer(0)
	defer t.Stop()
	failing := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		wait := p.opts.Interval
		switch err := p.look(ctx); {
		case err == nil:
			failing = ""
		case ctx.Err() != nil:
			return nil
		default:
			wait = max(wait, retryWait)
			if why := printable(err.Error()); why != failing { // once, not at each look
				failing = why
				p.emit.Emit(event.Remarked{Remark: "the pickup directory cannot be worked on", Detail: why})
			}
		}
		t.Reset(wait)
	}
}

// look takes the files that are whole, the oldest first. An error means that
// the rest must wait.
func (p *Pickup) look(ctx context.Context) error {
	files, err := p.list()
	if err != nil {
		return err
	}
	now := time.Now()
	seen := make(map[string]sight, len(files))
	var whole []string
	for name, s := range files {
		if was, ok := p.seen[name]; ok && was.same(s) {
			s.since = was.since
		} else {
			s.since = now
		}
		seen[name] = s
		settle := p.opts.Settle
		if s.size == 0 {
			settle = emptyWait
		}
		// One that was renamed in has not changed for a moment already.
		if quiet := max(now.Sub(s.since), now.Sub(s.mod)); quiet >= settle {
			whole = append(whole, name)
		}
	}
	p.seen = seen
	maps.DeleteFunc(p.stuck, func(name string, was sight) bool { s, there := files[name]; return !there || !s.same(was) })
	maps.DeleteFunc(p.later, func(name string, _ time.Time) bool { _, there := files[name]; return !there })
	slices.SortFunc(whole, func(a, b string) int {
		if c := seen[a].mod.Compare(seen[b].mod); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	for _, name := range whole {
		if _, taken := p.stuck[name]; taken || now.Before(p.later[name]) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if p.opts.Ready != nil && p.opts.Ready() != nil {
			return nil // whoever is not ready says why
		}
		if !p.rate.Allow() {
			p.throttled()
			return nil
		}
		if err := p.take(ctx, name, seen[name]); err != nil {
			return err
		}
	}
	p.slow = false
	return nil
}

// throttled states that the rate was reached, once until it no longer is.
func (p *Pickup) throttled() {
	if !p.slow {
		p.slow = true
		p.emit.Emit(event.ThrottleEngaged{Connector: p.opts.Name, Scope: "source", Limit: "files_per_minute", Action: "defer"})
	}
}

// list finds regular files that end in .eml.
func (p *Pickup) list() (map[string]sight, error) {
	dir, err := p.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	entries, err := dir.ReadDir(perLook)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	files := map[string]sight{}
	for _, e := range entries {
		if name := e.Name(); strings.EqualFold(filepath.Ext(name), ".eml") && e.Type().IsRegular() {
			if info, err := e.Info(); err == nil { // else it has gone
				files[name] = sight{size: info.Size(), mod: info.ModTime()}
			}
		}
	}
	return files, nil
}

// take makes a message of one file. It returns an error when the queue, or the
// disk, can take nothing now; what is wrong with the file itself is settled.
func (p *Pickup) take(ctx context.Context, name string, s sight) error {
	f, err := p.open(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // whoever put it there took it back
	case err != nil:
		return p.reject(name, mail.Envelope{}, 0, refuse("internal", "%v", err), false)
	}
	session := mail.NewID(time.Now())
	t := transfer{p: p, session: session, emit: p.emit.Session(session), name: name}
	err = p.guarded(&t, func() error { return t.run(ctx, f, s.mod) })
	_ = f.Close() // only read
	if err == nil {
		return p.remove(name, s)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var e *mail.ReplyError
	switch {
	case !errors.As(err, &e):
		return err
	case e.Temporary() && t.stated: // relay control does not know yet
		p.later[name] = time.Now().Add(laterWait)
		return nil
	case e.Temporary(): // the queue takes nothing: all files wait
		return err
	}
	return p.reject(name, t.parsed.env, t.size, e, t.stated)
}

// guarded runs do. A panic is a fact, and puts the file aside: it would come
// again with it.
func (p *Pickup) guarded(t *transfer, do func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			t.emit.Emit(event.Panicked{Where: "pickup", Value: printable(fmt.Sprint(v)), Stack: string(debug.Stack())})
			err = refuse("internal", "a programming error, see the log")
		}
	}()
	return do()
}

// open opens a file as it was seen: a regular one that nobody has put another
// in place of.
func (p *Pickup) open(name string) (*os.File, error) {
	before, err := p.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	f, err := p.root.OpenFile(name, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, err
	}
	after, err := f.Stat()
	switch {
	case err != nil:
	case !os.SameFile(before, after) || !after.Mode().IsRegular():
		err = errors.New("the file was exchanged while it was opened")
	case linked(after): // else a link to somebody's file would send it
		err = errors.New("the file has another name too (hard link)")
	default:
		return f, nil
	}
	_ = f.Close() // only read
	return nil, err
}

// remove deletes a file whose message is queued. When that fails it must not be
// sent again: it is put aside, or at least remembered.
func (p *Pickup) remove(name string, s sight) error {
	err := p.root.Remove(name)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		p.sync()
		return nil
	}
	if moved := p.root.Rename(name, filepath.Join(badDir, p.free(name)+".sent")); moved == nil {
		p.sync()
		p.emit.Emit(event.Remarked{Remark: "a pickup file was sent and could not be deleted", Detail: printable(name + ": " + err.Error())})
		return nil
	}
	p.stuck[name] = s
	p.emit.Emit(event.Remarked{Remark: "a pickup file was sent and could not be deleted", Detail: printable(name + ": " + err.Error() + "; it stays, and will be sent again after a restart")})
	return nil
}

// sync makes a deletion last, where the system can.
func (p *Pickup) sync() {
	if dir, err := p.root.Open("."); err == nil {
		_ = dir.Sync() // without it a power cut may repeat the message, as the package comment says
		_ = dir.Close()
	}
}

// reject puts a file aside, with the reason beside it.
func (p *Pickup) reject(name string, env mail.Envelope, size int64, e *mail.ReplyError, stated bool) error {
	if !stated {
		f := event.MessageRefused{Refusal: p.refusal(e, env), Size: size}
		for _, r := range env.Recipients {
			f.Recipients = append(f.Recipients, event.Recipient{Address: r.Address.String(), Code: e.Reply.Code, Enhanced: e.Reply.Enhanced})
		}
		p.emit.Emit(f)
	}
	to := p.free(name)
	why := fmt.Sprintf("%s\n%s %s was not sent: %s\n", time.Now().Format(time.RFC3339), e.Reply.Enhanced, printable(name), printable(e.Error()))
	if err := p.root.WriteFile(filepath.Join(badDir, to+".reason.txt"), []byte(why), 0o640); err != nil {
		return err
	}
	err := p.root.Rename(name, filepath.Join(badDir, to))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// free is a name that the folder for bad files has not got: name, or name with
// something unique before it.
func (p *Pickup) free(name string) string {
	if _, err := p.root.Lstat(filepath.Join(badDir, name)); err == nil || len(name) > 200 {
		return mail.NewID(time.Now()) + "-" + name[max(0, len(name)-200):]
	}
	return name
}

// refusal is what facts about a refusal have in common.
func (p *Pickup) refusal(e *mail.ReplyError, env mail.Envelope) event.Refusal {
	r := event.Refusal{
		Connector: p.opts.Name, MailFrom: event.Sender(env.Sender), Code: e.Reply.Code, Enhanced: e.Reply.Enhanced,
		Reply: e.Reply.String(), Reason: e.Reason,
	}
	if e.Err != nil {
		r.Error = printable(e.Err.Error())
	}
	return r
}

// refuse is a refusal of a file for good, in words for whoever wrote it.
func refuse(reason, format string, args ...any) *mail.ReplyError {
	enhanced := map[string]string{"syntax": "5.6.0", "size": "5.3.4", "header": "5.3.4", "recipients": "5.5.3", "hops": "5.4.6"}[reason]
	if enhanced == "" {
		enhanced = "5.3.0"
	}
	e := mail.Refuse(550, enhanced, reason, "the file cannot become a message")
	e.Err = fmt.Errorf(format, args...)
	return e
}
