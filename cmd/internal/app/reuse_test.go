package app

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"waybill/logtrack/trackapi"
	"waybill/relay/event"
	"waybill/relay/mail"
	"waybill/relay/relaytest"
	"waybill/relay/reuse"
)

// reusing is a relay that keeps all that is said, with a connector for each way
// that a content may take: as it comes, without header fields that its sender has
// no right to, repaired, and over TLS after a login.
const reusing = `hostname: relay.test
data_dir: DIR/data
certificates:
  default: {cert_file: DIR/tls.crt, key_file: DIR/tls.key}
users: {file: DIR/users.yaml}
receive_connectors:
  - {name: plain, usage: internal, listen: ["127.0.0.1:0"], remote_ranges: ["127.0.0.0/8"], transcript: all, limits: {message_size: 1MiB}}
  - {name: walled, usage: internal, permissions: [submit, relay], listen: ["127.0.0.1:0"], remote_ranges: ["127.0.0.0/8"], transcript: all, limits: {message_size: 1MiB}}
  - {name: devices, usage: internal, bare_newline: normalise, listen: ["127.0.0.1:0"], remote_ranges: ["127.0.0.0/8"], transcript: all, limits: {message_size: 1MiB}}
  - {name: secret, usage: client, listen: ["127.0.0.1:0"], transcript: all, limits: {tarpit: 0s, message_size: 1MiB, connections_per_source: 100}}
send_connectors:
  - {name: out, address_spaces: [{space: "*"}], smart_hosts: ["HOST"], tls: {level: none}, transcript: all, retry: {schedule: [1s]}}
queue: {disk_free_min: 256MiB}
back_pressure: {disk_latency: {medium: 0s, high: 0s}}
http: {listen: "127.0.0.1:0"}
log: {file: DIR/waybill.log, level: debug}
`

const password = "hunter2-hunter2-hunter2"

// sent is what the relay took from a client.
type sent struct {
	key     string // in its addresses and header fields
	content []byte // as it must arrive
}

// crowd are clients that misbehave side by side.
type crowd struct {
	*running
	mu   sync.Mutex
	sent map[mail.QueueID]sent
}

// TestMemoryIsReused has clients hand in messages beside others that break off in
// every way, over memory that all of them share and that a race build spoils
// whenever somebody gives it back. Each message must arrive octet for octet, and
// each fact, line and conversation must speak of one message alone.
func TestMemoryIsReused(t *testing.T) {
	const clients, acts = 6, 15
	host := relaytest.NewSmartHost(t)
	host.Do(relaytest.PhaseContent, relaytest.Action{Times: 4, After: 100, Silent: true, Reset: true}) // these go again, from the disk
	host.Do(relaytest.PhaseDot, relaytest.Action{Times: 4, Reply: "451 4.3.0 later"})
	host.Do(relaytest.PhaseRset, relaytest.Action{Times: 2, Close: true})
	f := newFixture(t, host.Addr())
	f.write(reusing)
	r := &crowd{running: f.start(), sent: map[mail.QueueID]sent{}}
	ctx, cancel := context.WithCancel(t.Context())
	var readers, senders sync.WaitGroup
	r.watch(ctx, &readers)
	for n := range clients {
		senders.Go(func() {
			c := &client{crowd: r, t: t, name: fmt.Sprintf("c%d", n), rng: rand.New(rand.NewPCG(uint64(n), 5))}
			defer c.leave()
			for range acts {
				c.act()
			}
		})
	}
	senders.Wait()
	if t.Failed() {
		cancel()
		readers.Wait()
		return
	}
	messages, err := host.Wait(len(r.sent), 2*time.Minute)
	if err != nil {
		t.Error(err)
	}
	for id, s := range r.sent {
		if m := r.message(string(id), "relayed").Message; m.MessageID != "<"+s.key+"@source.test>" || m.Sender != s.key+"@source.test" {
			t.Errorf("tracking has %s from %s as %s", m.MessageID, m.Sender, s.key)
		}
	}
	cancel()
	readers.Wait()
	r.stop()
	r.checkArrived(t, messages)
	r.checkFacts(t, filepath.Join(f.dir, "waybill.log"))
}

// watch has readers of all kinds beside the clients, of which some are slow.
func (r *crowd) watch(ctx context.Context, readers *sync.WaitGroup) {
	readers.Go(func() {
		_ = r.api.Tail(ctx, trackapi.Query{}, func(record json.RawMessage) error {
			r.clean("a fact that was followed", record)
			return nil
		})
	})
	readers.Go(func() {
		_ = r.api.TailProtocol(ctx, trackapi.ProtocolFilter{}, func(l trackapi.ProtocolLine) error {
			r.clean("a line that was followed", []byte(l.Text))
			return nil
		})
	})
	readers.Go(func() {
		every := time.NewTicker(100 * time.Millisecond)
		defer every.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-every.C:
			}
			if got, err := r.api.Events(ctx, trackapi.Query{Limit: 100}); err == nil {
				for _, record := range got.Events {
					r.clean("a fact that was found", record)
				}
			}
		}
	})
}

// clean reports octets that no fact has.
func (r *crowd) clean(what string, b []byte) {
	r.t.Helper()
	if bytes.IndexByte(b, reuse.Octet) >= 0 || bytes.Contains(b, []byte(`\ufffd`)) || bytes.Contains(b, []byte("\ufffd")) || bytes.Contains(b, []byte(`\xdd`)) {
		r.t.Errorf("%s has octets of memory that was given back: %.1000q", what, b)
	}
	for _, secret := range []string{password, base64.StdEncoding.EncodeToString([]byte(password))[:20]} {
		if bytes.Contains(b, []byte(secret)) {
			r.t.Errorf("%s has a password: %.1000q", what, b)
		}
	}
}

// checkArrived compares what came with what was sent.
func (r *crowd) checkArrived(t *testing.T, messages []relaytest.Message) {
	want := map[string][]byte{}
	for _, s := range r.sent {
		want[s.key] = s.content
	}
	for i := range messages {
		m := &messages[i]
		key := m.Envelope.Sender.Local
		content, known := want[key]
		if !known {
			t.Errorf("%q came twice, or should not have come", key)
			continue
		}
		delete(want, key)
		if to := m.Envelope.Recipients[0].Address.Local; len(m.Envelope.Recipients) != 1 || to != key {
			t.Errorf("%s came for %s", key, to)
		}
		if !bytes.HasSuffix(m.Content, content) {
			t.Errorf("%s came changed, from octet %d of %d", key, differs(m.Content, content), len(content))
		}
		trace := m.Content[:max(len(m.Content)-len(content), 0)]
		r.clean("the trace of "+key, trace)
		if bytes.Count(trace, []byte("Received:")) != 1 || !bytes.Contains(trace, []byte(key+"@dest.test")) {
			t.Errorf("%s came behind %q", key, trace)
		}
	}
	for key := range want {
		t.Errorf("%s has not come", key)
	}
}

// differs is where the end of got differs from want.
func differs(got, want []byte) int {
	got = got[max(len(got)-len(want), 0):]
	for i := range got {
		if got[i] != want[i] {
			return i
		}
	}
	return len(got)
}

var keys = regexp.MustCompile(`\bc\d+-\d+-(?:sent|never)\b`)

// checkFacts looks at all that was stated.
func (r *crowd) checkFacts(t *testing.T, log string) {
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	ids, queued, told := map[string]bool{}, 0, 0
	for line := range bytes.Lines(text) {
		r.clean("a line of the log", line)
		var rec event.Record
		if rec.UnmarshalJSON(line) != nil {
			continue // of the program
		}
		if ids[rec.ID] {
			t.Errorf("stated twice: %s", line)
		}
		ids[rec.ID] = true
		about := map[string]bool{}
		for _, key := range keys.FindAllString(string(line), -1) {
			about[key] = true
		}
		if s, ok := r.sent[rec.Message]; ok && rec.Message != "" {
			if _, ok := rec.Event.(event.MessageQueued); ok {
				queued++
			}
			if len(about) != 1 || !about[s.key] {
				t.Errorf("%v in a fact of %s: %s", about, s.key, line)
			}
		}
		if ev, ok := rec.Event.(event.TranscriptKept); ok {
			told++
			clients := map[string]bool{}
			for key := range about {
				name, _, _ := strings.Cut(key, "-")
				clients[name] = true
			}
			if len(clients) > 1 || ev.Direction == event.Outbound && len(about) != 1 {
				t.Errorf("a conversation of %v: %s", about, line)
			}
		}
	}
	if queued != len(r.sent) || told < queued {
		t.Errorf("%d messages were stated and %d conversations, want %d and more", queued, told, len(r.sent))
	}
}

// client is one of them, with a connection that it may have.
type client struct {
	*crowd
	t    *testing.T
	name string
	rng  *rand.Rand
	n    int
	to   string // connector
	conn net.Conn
	in   *bufio.Reader
}

// act does one of the things that clients do.
func (c *client) act() {
	for _, a := range []struct {
		share int
		do    func()
	}{
		{8, c.whole},
		{3, c.pipelined},
		{3, c.reset},
		{4, c.chunks},
		{2, c.givesUp},
		{2, c.goesAway},
		{2, c.tooLarge},
		{2, c.bareNewline},
		{3, c.forbidden},
		{3, c.device},
		{3, c.logsIn},
	} {
		if c.rng.IntN(35) < a.share {
			a.do()
			if c.t.Failed() {
				return
			}
		}
	}
}

// connect is there at a connector.
func (c *client) connect(to string) {
	if c.conn != nil && c.to == to {
		return
	}
	c.leave()
	conn, err := net.Dial("tcp", c.Receive()[to][0].String())
	if err != nil {
		c.t.Error(err)
		return
	}
	c.to = to
	c.use(conn)
	c.answer("220")
	c.say("EHLO "+c.name+".test", "250")
}

func (c *client) use(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(5 * time.Minute))
	c.conn, c.in = conn, bufio.NewReader(conn)
}

func (c *client) leave() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

func (c *client) write(s string) {
	if c.conn == nil {
		return
	}
	for len(s) > 0 { // in pieces of any size
		n := len(s)
		if c.rng.IntN(3) == 0 {
			n = 1 + c.rng.IntN(n)
		}
		if _, err := c.conn.Write([]byte(s[:n])); err != nil {
			return // the answer tells
		}
		s = s[n:]
	}
}

// answer reads a reply.
func (c *client) answer(want string) string {
	var all strings.Builder
	for c.conn != nil {
		line, err := c.in.ReadString('\n')
		all.WriteString(line)
		if err != nil {
			if want != "" {
				c.t.Errorf("%s at %s: %q, %v, want %s", c.name, c.to, all.String(), err, want)
			}
			c.leave()
			return ""
		}
		if len(line) > 3 && line[3] == ' ' {
			if !strings.HasPrefix(line, want) {
				c.t.Errorf("%s at %s: %q, want %s", c.name, c.to, all.String(), want)
			}
			return line
		}
	}
	return ""
}

func (c *client) say(line, want string) string {
	c.write(line + "\r\n")
	return c.answer(want)
}

// key names the next message.
func (c *client) key(fate string) string {
	c.n++
	return fmt.Sprintf("%s-%d-%s", c.name, c.n, fate)
}

var filler = strings.Repeat(" and some more words", 45)

// content is the content of a message, with lines that are of no other.
func (c *client) content(key, fields string) string {
	sizes := []int{0, 500, 4 << 10, 16 << 10, 16<<10 + 40, 60 << 10, 64 << 10, 256 << 10, 256<<10 + 1, 400 << 10}
	size := sizes[c.rng.IntN(len(sizes))] + c.rng.IntN(100)
	var b strings.Builder
	fmt.Fprintf(&b, "Message-ID: <%s@source.test>\r\nFrom: <%s@source.test>\r\nSubject: %s\r\n%s\r\n", key, key, key, fields)
	for i := 0; b.Len() < size; i++ {
		if c.rng.IntN(4) == 0 {
			b.WriteByte('.')
		}
		b.WriteString(key + " line " + strconv.Itoa(i) + filler[:c.rng.IntN(len(filler))] + "\r\n")
	}
	return b.String()
}

func stuffed(content string) string { return strings.ReplaceAll(content, "\r\n.", "\r\n..") }

func envelope(key string) string {
	return fmt.Sprintf("MAIL FROM:<%s@source.test>\r\nRCPT TO:<%s@dest.test>\r\n", key, key)
}

// begin says an envelope, and what follows it.
func (c *client) begin(key, then string) {
	c.write(envelope(key))
	c.answer("250")
	c.answer("250")
	if then != "" {
		c.say(then, "354")
	}
}

// took reads the reply to a content, and notes that it must arrive.
func (c *client) took(key, content string) {
	_, id, _ := strings.Cut(c.answer("250"), "queued as ")
	if id = strings.TrimSpace(id); id == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent[mail.QueueID(id)] = sent{key, []byte(content)}
}

// whole hands a message in.
func (c *client) whole() {
	c.connect([]string{"plain", "walled"}[c.rng.IntN(2)])
	key := c.key("sent")
	content := c.content(key, "")
	c.begin(key, "DATA")
	c.write(stuffed(content) + ".\r\n")
	c.took(key, content)
}

// pipelined hands two in: the second envelope comes with the end of the first
// content (RFC 2920).
func (c *client) pipelined() {
	c.connect("plain")
	first, second := c.key("sent"), c.key("sent")
	content := c.content(first, "")
	c.begin(first, "DATA")
	c.write(stuffed(content) + ".\r\n" + envelope(second) + "DATA\r\n")
	c.took(first, content)
	for _, want := range []string{"250", "250", "354"} {
		c.answer(want)
	}
	content = c.content(second, "")
	c.write(stuffed(content) + ".\r\nNOOP\r\n")
	c.took(second, content)
	c.answer("250")
}

// reset begins a message and takes it back.
func (c *client) reset() {
	c.connect("plain")
	c.begin(c.key("never"), "")
	c.say([]string{"RSET", "EHLO again.test"}[c.rng.IntN(2)], "250")
	c.whole()
}

// chunks hands a message in by BDAT (RFC 3030).
func (c *client) chunks() {
	c.connect([]string{"plain", "walled"}[c.rng.IntN(2)])
	key := c.key("sent")
	content := c.content(key, "")
	c.begin(key, "")
	rest := content
	for len(rest) > 0 && c.rng.IntN(5) > 0 {
		n := c.rng.IntN(len(rest) + 1)
		c.write(fmt.Sprintf("BDAT %d\r\n%s", n, rest[:n]))
		c.answer("250")
		rest = rest[n:]
	}
	c.write(fmt.Sprintf("BDAT %d LAST\r\n%s", len(rest), rest))
	c.took(key, content)
}

// givesUp ends a content by RSET between its chunks.
func (c *client) givesUp() {
	c.connect("plain")
	key := c.key("never")
	content := c.content(key, "")
	c.begin(key, "")
	c.write(fmt.Sprintf("BDAT %d\r\n%s", len(content), content))
	c.answer("250")
	c.say("RSET", "250")
	c.whole()
}

// goesAway is cut off in the middle of a content.
func (c *client) goesAway() {
	c.connect([]string{"plain", "devices"}[c.rng.IntN(2)])
	key := c.key("never")
	content := c.content(key, "")
	if c.rng.IntN(2) == 0 {
		c.begin(key, "DATA")
		c.write(content[:c.rng.IntN(len(content))])
	} else {
		c.begin(key, "")
		c.write(fmt.Sprintf("BDAT %d\r\n%s", len(content)+1, content))
	}
	c.leave()
}

// tooLarge sends more than may be.
func (c *client) tooLarge() {
	c.connect("walled")
	key := c.key("never")
	content := c.content(key, "")
	content += strings.Repeat(key+strings.Repeat(" filler", 100)+"\r\n", 1+(1<<20)/700)
	switch c.rng.IntN(3) {
	case 0:
		c.begin(key, "DATA")
		c.write(stuffed(content) + ".\r\n")
		c.answer("552")
	case 1:
		c.begin(key, "")
		c.write(fmt.Sprintf("BDAT %d LAST\r\n%s", len(content), content))
		c.answer("552")
	default: // a chunk that was sent before the refusal came
		c.begin(key, "")
		c.write(fmt.Sprintf("BDAT %d\r\n%sBDAT 2 LAST\r\n\r\n", len(content), content))
		c.answer("552")
		c.answer("503")
	}
	c.whole()
}

// bareNewline sends what is refused in the middle.
func (c *client) bareNewline() {
	c.connect("plain")
	key := c.key("never")
	content := c.content(key, "") + "a line\nthat has none\r\n" + c.content(key, "")
	c.begin(key, "DATA")
	c.write(stuffed(content) + ".\r\n")
	c.answer("550")
	c.answer("") // nothing that follows can be trusted
	c.leave()
}

// forbidden has header fields that are taken out, so that what follows them moves.
func (c *client) forbidden() {
	c.connect("walled")
	key := c.key("sent")
	const mark = "X-Kept: yes\r\n"
	content := c.content(key, mark)
	out := "X-MS-Exchange-Organization-SCL: -1\r\n\t" + strings.Repeat("folded ", c.rng.IntN(3000)) + "\r\n"
	c.begin(key, "DATA")
	c.write(stuffed(out+strings.Replace(content, mark, out+mark+out, 1)) + ".\r\n")
	c.took(key, content)
}

// device sends lines that end in a bare LF, which are repaired.
func (c *client) device() {
	c.connect("devices")
	key := c.key("sent")
	content := c.content(key, "")
	bare := []byte(stuffed(content))
	for i := 0; i < len(bare)-2; i++ {
		if bare[i] == '\r' && bare[i+2] != '.' && c.rng.IntN(10) == 0 {
			bare = append(bare[:i], bare[i+1:]...)
		}
	}
	c.begin(key, "DATA")
	c.write(string(bare) + ".\r\n")
	c.took(key, content)
}

// logsIn tries a wrong password, which is long, before the right one.
func (c *client) logsIn() {
	c.leave()
	c.connect("secret")
	c.say("STARTTLS", "220")
	if c.conn == nil {
		return
	}
	c.use(tls.Client(c.conn, &tls.Config{RootCAs: c.roots, ServerName: "localhost"}))
	c.say("EHLO "+c.name+".test", "250")
	plain := func(user, pass string) string {
		return base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + pass))
	}
	if reply := c.say("AUTH PLAIN "+plain("app", strings.Repeat(password, 1+c.rng.IntN(200))), ""); strings.HasPrefix(reply, "2") {
		c.t.Errorf("a wrong password was answered %q", reply)
	}
	c.say("AUTH PLAIN", "334")
	if reply := c.say(plain("app", "app"), ""); !strings.HasPrefix(reply, "235") {
		if !strings.HasPrefix(reply, "454") { // as it is after failed logins from here
			c.t.Errorf("%s: %q, want to be logged in", c.name, reply)
		}
		c.leave()
		return
	}
	key := c.key("sent")
	content := "Date: Mon, 2 Nov 2026 10:00:00 +0000\r\n" + c.content(key, "")
	c.begin(key, "DATA")
	c.write(stuffed(content) + ".\r\n")
	c.took(key, content)
}
