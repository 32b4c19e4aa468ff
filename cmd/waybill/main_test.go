package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/rogpeppe/go-internal/testscript"

	"waybill/cmd/internal/app"
	"waybill/cmd/internal/config"
	"waybill/logtrack/trackapi"
	"waybill/logtrack/trackhttp"
	"waybill/relay/relaytest"
	"waybill/relay/tlsconf"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"waybill": main})
}

// TestScripts runs testdata: one file for each behaviour of the command line.
// Beside the commands of testscript there are
//
//	daemon [FILE]            a relay that runs to the end of the script, with the configuration
//	                         FILE or a usual one; $WAYBILL_API, $SMTP and $HTTP say where
//	nexthop PHASE [REPLY]    what its next hop answers; without REPLY as usual
//	retry REGEXP ARGS...     waybill ARGS until it succeeds with that on stdout
//	until FILE REGEXP ARGS.. waybill ARGS until FILE has that
//	certificate              makes tls.crt and tls.key, which nobody signed
//	logged FILE REGEXP       waits until FILE has that
//	json NAME PATH           sets $NAME to a value of the JSON on stdout, such as messages.0.queue_id
//	narrow N                 no line of stdout is wider than N
//	freeport NAME            sets $NAME to a port at which nobody listens
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("NO_COLOR", "1")
			e.Setenv("COLUMNS", "")
			e.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"daemon": daemon, "nexthop": nexthop, "retry": retry, "until": repeat, "logged": logged, "certificate": certificate, "json": jsonValue, "narrow": narrower, "freeport": freePort,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

const usual = `hostname: relay.test
data_dir: $WORK/data
receive_connectors:
  - {name: in, usage: internal, listen: ["127.0.0.1:0"], remote_ranges: ["127.0.0.0/8"]}
send_connectors:
  - {name: out, address_spaces: [{space: "*"}], smart_hosts: ["$NEXTHOP"], tls: {level: none}}
queue: {disk_free_min: 256MiB}
http: {listen: "127.0.0.1:0"}
log: {file: $WORK/waybill.log}
`

// hosts are the next hops of the scripts that run, by their addresses.
var (
	hostsMu sync.Mutex
	hosts   = map[string]*relaytest.SmartHost{}
)

// tb lends a script to relaytest.
type tb struct{ *testscript.TestScript }

func (t tb) Helper()                      {}
func (t tb) Cleanup(f func())             { t.Defer(f) }
func (t tb) Fatalf(f string, args ...any) { t.TestScript.Fatalf(f, args...) }
func (t tb) Logf(f string, args ...any)   { t.TestScript.Logf(f, args...) }

func daemon(ts *testscript.TestScript, _ bool, args []string) {
	host := relaytest.NewSmartHost(tb{ts})
	hostsMu.Lock()
	hosts[host.Addr()] = host
	hostsMu.Unlock()
	ts.Setenv("NEXTHOP", host.Addr())
	text := usual
	if len(args) > 0 {
		text = ts.ReadFile(args[0])
	}
	file := ts.MkAbs("waybill.yaml")
	ts.Check(os.WriteFile(file, []byte(os.Expand(text, ts.Getenv)), 0o600))
	load := func() (*config.Config, error) {
		cfg, problems := config.Load(file)
		return cfg, problems.Err()
	}
	cfg, err := load()
	ts.Check(err)
	cfg.BackPressure.DiskLatency = config.DurationMarks{} // the disk of a machine that runs tests may be as slow as it is
	a, err := app.New(app.Options{Config: cfg, Load: load, DrainTime: time.Second})
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	ts.Defer(func() {
		cancel()
		if err := <-ended; err != nil {
			ts.Logf("the relay ended with %v", err)
		}
	})
	ts.Setenv("WAYBILL_API", "http://"+a.Addr())
	ts.Setenv("HTTP", a.Addr())
	ts.Setenv("SMTP", a.Receive()["in"][0].String())
	poll(ts, "the relay to be ready", func() error {
		resp, err := http.Get("http://" + a.Addr() + "/-/ready")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("ready answers %s", resp.Status)
		}
		return nil
	})
}

func certificate(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(tlsconf.WriteSelfSigned(ts.MkAbs("tls.crt"), ts.MkAbs("tls.key"), "localhost", "127.0.0.1"))
}

func nexthop(ts *testscript.TestScript, _ bool, args []string) {
	hostsMu.Lock()
	host := hosts[ts.Getenv("NEXTHOP")]
	hostsMu.Unlock()
	switch len(args) {
	case 1:
		host.Do(args[0])
	case 2:
		host.Do(args[0], relaytest.Action{Reply: args[1]})
	default:
		ts.Fatalf("usage: nexthop PHASE [REPLY]")
	}
}

func retry(ts *testscript.TestScript, _ bool, args []string) {
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	poll(ts, "waybill "+strings.Join(args[1:], " "), func() error {
		if err := ts.Exec("waybill", args[1:]...); err != nil {
			return err
		}
		if got := ts.ReadFile("stdout"); !want.MatchString(got) {
			return fmt.Errorf("no %s in %s", want, got)
		}
		return nil
	})
}

func repeat(ts *testscript.TestScript, _ bool, args []string) {
	want, err := regexp.Compile(args[1])
	ts.Check(err)
	poll(ts, args[0]+" to have "+args[1], func() error {
		if err := ts.Exec("waybill", args[2:]...); err != nil {
			return err
		}
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && !want.Match(b) {
			err = fmt.Errorf("not in %s", b)
		}
		return err
	})
}

func logged(ts *testscript.TestScript, _ bool, args []string) {
	want, err := regexp.Compile(args[1])
	ts.Check(err)
	poll(ts, args[0]+" to have "+args[1], func() error {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && !want.Match(b) {
			err = fmt.Errorf("not in %s", b)
		}
		return err
	})
}

// poll asks again until real processes are as they should be.
func poll(ts *testscript.TestScript, what string, ok func() error) {
	deadline := time.After(2 * time.Minute)
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			ts.Fatalf("waited for %s: %v", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func jsonValue(ts *testscript.TestScript, _ bool, args []string) {
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	for key := range strings.SplitSeq(args[1], ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(at) {
				ts.Fatalf("no %s in a list of %d", key, len(at))
			}
			v = at[i]
		}
	}
	if v == nil {
		ts.Fatalf("no %s on stdout", args[1])
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

func narrower(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		if got := len([]rune(strings.TrimSuffix(line, "\n"))); got > n {
			ts.Fatalf("a line is %d wide, want %d:\n%s", got, n, line)
		}
	}
}

func freePort(ts *testscript.TestScript, _ bool, args []string) {
	port, release, err := relaytest.ReservePort()
	ts.Check(err)
	ts.Defer(release)
	ts.Setenv(args[0], strconv.Itoa(port))
}

// execute runs the program in this process.
func execute(args ...string) (code int, stdout, stderr string) {
	var out, errw bytes.Buffer
	code = run(context.Background(), args, strings.NewReader(""), &out, &errw)
	return code, out.String(), errw.String()
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		t.Run(shell, func(t *testing.T) {
			code, out, errw := execute("completion", shell)
			if code != exitOK || !strings.Contains(out, "waybill") || errw != "" {
				t.Errorf("completion %s = %d with %d octets, stderr %q", shell, code, len(out), errw)
			}
		})
	}
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"verbs", []string{"queue", ""}, "hold\t"},
		{"output", []string{"status", "-o", ""}, "jsonl"},
		{"disposition", []string{"track", "search", "--disposition", ""}, "bounced"},
		{"state", []string{"queue", "messages", "--state", ""}, "unroutable"},
		{"role", []string{"config", "token", "x", "--role", ""}, "operator"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, out, _ := execute(append([]string{"__complete"}, test.args...)...); !strings.Contains(out, test.want) {
				t.Errorf("completions of %q = %q, want %q among them", test.args, out, test.want)
			}
		})
	}
}

func TestTableFits(t *testing.T) {
	for _, columns := range []int{24, 40, 80, 120, 200} {
		t.Run(strconv.Itoa(columns), func(t *testing.T) {
			t.Setenv("COLUMNS", strconv.Itoa(columns))
			var out bytes.Buffer
			e := &env{out: &out, noColor: true, format: "table"}
			tab := newTable("QUEUE ID", "SENDER", "RECIPIENT", "STATE", "SIZE", "LAST REPLY")
			tab.flex, tab.spare = []int{1, 2, 5}, []int{4, 1}
			tab.add("01J9ZC3K5V8Q2M7RXT4W6Y0ABC", "a-long-sender@a-long-domain.example", "ann@example.com", "deferred", "12.3 KiB",
				"450 4.7.1 wait\x1b[31m a while \u202eplease, we do not know you yet")
			tab.add("01J9ZC3K5V8Q2M7RXT4W6Y0ABD", "", "", "", "", "")
			if err := tab.write(e); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(out.String()) {
				if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > columns {
					t.Errorf("a line is %d wide, want %d:\n%s", n, columns, out.String())
				}
			}
			if strings.ContainsAny(out.String(), "\x1b\u202e") {
				t.Error("control characters of a mail are written")
			}
			if columns >= 80 && !strings.Contains(out.String(), "01J9ZC3K5V8Q2M7RXT4W6Y0ABC") {
				t.Errorf("the queue ID is cut although there is room:\n%s", out.String())
			}
			if columns == 200 && !strings.Contains(out.String(), "12.3 KiB") {
				t.Errorf("a column is left out although there is room:\n%s", out.String())
			}
		})
	}
}

// TestTableColumns has columns begin at the same place of the screen, however wide
// what stands before them is.
func TestTableColumns(t *testing.T) {
	const wide = 2 // columns of an ideograph or an emoji
	for _, test := range []struct {
		name, cell string
		columns    int
		want       string // in ten columns
	}{
		{"letters", "ann@a.test", 10, "ann@a.test"},
		{"letters, cut", "ann@aa.test", 11, "ann@aa.te…"},
		{"ideographs", "山田@b.jp", 2*wide + 5, "山田@b.jp"},
		{"ideographs, cut", "山田太郎@b.jp", 4*wide + 5, "山田太郎@…"},
		{"ideographs, cut between two", "x山田太郎様@b", 1 + 5*wide + 2, "x山田太郎…"},
		{"half an ideograph is not shown", "山田太郎様@b", 5*wide + 2, "山田太郎…"},
		{"combining", "e\u0301a\u0308@b", 4, "e\u0301a\u0308@b"},
		{"emoji", "👩‍🚒@b", wide + 2, "👩‍🚒@b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := func(columns int) string {
				tab := newTable("SENDER", "STATE")
				tab.flex = []int{0}
				tab.add("x", "!")
				tab.add(test.cell, "!")
				return tab.text(&env{noColor: true}, columns)
			}
			lines := strings.Split(text(1<<20), "\n")
			if want := strings.Repeat(" ", max(test.columns, len("SENDER"))-1+gap); lines[1] != "x"+want+"!" {
				t.Errorf("the column before has %d columns, want %d:\n%q", len(lines[1])-1-gap, test.columns, lines)
			}
			if want := test.cell + strings.Repeat(" ", max(0, len("SENDER")-test.columns)+gap) + "!"; lines[2] != want {
				t.Errorf("the row is %q, want %q", lines[2], want)
			}
			if got := fit(test.cell, 10); got != test.want {
				t.Errorf("fit() = %q, want %q", got, test.want)
			}
		})
	}
}

func TestWords(t *testing.T) {
	for _, test := range []struct {
		name string
		got  string
		want string
	}{
		{"no time", age(0), "0 s"},
		{"microseconds", age(300 * time.Microsecond), "0.3 ms"},
		{"seconds", age(9400 * time.Millisecond), "9.4 s"},
		{"minutes", age(119 * time.Minute), "119 m"},
		{"hours", age(3*time.Hour + 20*time.Minute), "3 h 20 m"},
		{"days", age(52 * time.Hour), "2 d 4 h"},
		{"octets", size(1023), "1023 B"},
		{"kibibytes", size(1536), "1.5 KiB"},
		{"tebibytes", size(5 << 50), "5120.0 TiB"},
		{"one", count(1, "message"), "1 message"},
		{"none", count(0, "message"), "0 messages"},
		{"past", until(time.Now().Add(-time.Hour)), "now"},
		{"never", until(time.Time{}), "-"},
		{"a hashed address", (&env{format: "table"}).unhash("~014e1617df2ab434e766@here.test +1"), "~014e1617…@here.test +1"},
		{"for spreadsheets", (&env{format: "csv"}).unhash("~014e1617df2ab434e766@here.test"), "~014e1617df2ab434e766@here.test"},
		{"no hash", (&env{format: "table"}).unhash("~ann@here.test"), "~ann@here.test"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.got != test.want {
				t.Errorf("got %q, want %q", test.got, test.want)
			}
		})
	}
}

func TestTimes(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		name  string
		text  string
		past  time.Duration // what when makes of it, from now
		ahead time.Duration
		wrong bool
	}{
		{"hours", "2h", -2 * time.Hour, 2 * time.Hour, false},
		{"days", "1.5d", -36 * time.Hour, 36 * time.Hour, false},
		{"with a sign", "-2h", -2 * time.Hour, 2 * time.Hour, false},
		{"a time", now.Add(time.Hour).Format(time.RFC3339Nano), time.Hour, time.Hour, false},
		{"more than a number", "7xd", 0, 0, true},
		{"words", "yesterday", 0, 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, f := range map[string]func(string) (time.Time, error){"when": when, "ahead": ahead} {
				want := map[string]time.Duration{"when": test.past, "ahead": test.ahead}[name]
				got, err := f(test.text)
				if test.wrong != (err != nil) || err == nil && got.Sub(now.Add(want)).Abs() > time.Minute {
					t.Errorf("%s(%q) = %v, %v, want %v, error %t", name, test.text, got, err, now.Add(want), test.wrong)
				}
				if test.wrong && !isUsage(err) {
					t.Errorf("%s(%q) is not a usage error: %v", name, test.text, err)
				}
			}
		})
	}
	if _, err := ahead("2020-01-01"); err == nil {
		t.Error("ahead(2020-01-01) = nil, want an error: it has passed")
	}
}

func TestCSVDoesNotCompute(t *testing.T) {
	var out bytes.Buffer
	e := &env{out: &out, format: "csv"}
	tab := newTable("SENDER", "IN/MIN")
	tab.add("=cmd|' /C calc'!A1@evil.example", "1")
	tab.add("a\nb\x1b@x", "-2")
	tab.add("-2+cmd|' /C calc'!A1@evil.example", "-")
	tab.add("＝1@evil.example", "-0.5")
	if err := render(e, nil, []int{}, tab); err != nil {
		t.Fatal(err)
	}
	want := "sender,in_per_min\n'=cmd|' /C calc'!A1@evil.example,1\na b·@x,-2\n" +
		"'-2+cmd|' /C calc'!A1@evil.example,-\n'＝1@evil.example,-0.5\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestWhyThereIsNoSession(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		code int
		hint string
	}{
		{"nobody listens", &net.OpError{Op: "dial", Err: errors.New("connection refused")}, exitUnreachable, "--server"},
		{"unknown authority", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, exitNo, "--insecure"},
		{"a refusal", &smtp.SMTPError{Code: 554, Message: "not for you"}, exitNo, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var errw bytes.Buffer
			code := (&env{err: &errw}).explain(smtpUnreachable(sendOptions{server: "mx.example.com:25"}, test.err))
			got := errw.String()
			if code != test.code || !strings.Contains(got, "cannot open a session with mx.example.com:25") || !strings.Contains(got, test.hint) || test.hint == "" && strings.Contains(got, "hint") {
				t.Errorf("= %d %q, want %d with a hint of %q", code, got, test.code, test.hint)
			}
		})
	}
}

// An address alone is the recipient, most likely.
func TestRouteExplainWantsTo(t *testing.T) {
	for _, args := range [][]string{{"b@example.org"}, {"a@example.com", "--from", "c@example.com"}} {
		code, _, errw := execute(append([]string{"route", "explain"}, args...)...)
		if want := "--to " + args[0]; code != exitUsage || !strings.Contains(errw, want) {
			t.Errorf("route explain %v = %d %q, want %d and %q", args, code, errw, exitUsage, want)
		}
	}
	if code, _, errw := execute("route", "explain", "--to", "b@example.org", "what"); code != exitUsage || !strings.Contains(errw, `takes no "what"`) {
		t.Errorf("route explain with more = %d %q, want %d", code, errw, exitUsage)
	}
}

// What the API says of a parameter is about the command line: it exits as other
// mistakes there do, with how the command goes.
func TestProblemsOfTheAPI(t *testing.T) {
	for _, test := range []struct {
		name    string
		problem *trackapi.Problem
		want    int
	}{
		{"a wrong parameter", trackapi.BadParameter("state", "unknown state", "queued, active"), exitUsage},
		{"not found", &trackapi.Problem{Type: "about:blank", Title: "Not found", Status: http.StatusNotFound}, exitNo},
		{"refused", &trackapi.Problem{Type: "about:blank", Title: "Nothing was changed", Status: http.StatusBadRequest}, exitNo},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { trackhttp.WriteProblem(w, test.problem) }))
			defer s.Close()
			code, out, errw := execute("queue", "messages", "--state", "asleep", "--api", s.URL)
			if code != test.want || out != "" || !strings.Contains(errw, test.problem.Error()) {
				t.Errorf("= %d %q %q, want %d and %q", code, out, errw, test.want, test.problem.Error())
			}
			if usage := strings.Contains(errw, `hint: "waybill help queue messages" shows flags and examples`); usage != (test.want == exitUsage) {
				t.Errorf("%q: says how the command goes: %t", errw, usage)
			}
		})
	}
}

func TestConfirmNeedsATerminal(t *testing.T) {
	e := &env{in: strings.NewReader("y\n"), err: io.Discard}
	if err := e.confirm("remove 3 messages?"); !isUsage(err) {
		t.Errorf("confirm without a terminal = %v, want a usage error", err)
	}
}

func TestServeStopsBeforeItStarts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "waybill.yaml")
	if err := os.WriteFile(file, []byte("hostname: 1\nnothing: here\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errw := execute("serve", "--config", file)
	if code != exitNo || !strings.Contains(errw, "nothing was started") || !strings.Contains(errw, "waybill.yaml:2") {
		t.Errorf("serve = %d, %q, want 1 and the problem", code, errw)
	}
}

func TestTimelineTellsRepeatedAttemptsOnce(t *testing.T) {
	at := time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC)
	tl := &trackapi.Timeline{Message: trackapi.Message{QueueID: "01J9ZC3K5V8Q2M7RXT4W6Y0ABC", Time: at}}
	for i := range 9 {
		tl.Timeline = append(tl.Timeline, trackapi.Entry{
			Time: at.Add(time.Duration(i) * 90 * time.Second), Event: "attempt_finished", Level: "warning",
			Summary: fmt.Sprintf("Deferred by mx: 451 greylisted; next attempt in %d s", 90+i),
		})
		tl.Checks = append(tl.Checks, trackapi.Check{Time: at.Add(time.Duration(i)), Name: "next_hop_tls", Result: "pass", Detail: "mx: TLS 1.3", Attempt: i + 1})
	}
	tl.Timeline[8].Summary = "Deferred by mx: 452 mailbox full; next attempt in 5 m"
	for _, test := range []struct {
		name string
		full bool
		want string
	}{
		{"in short", false, `      +0 s ├ ● Deferred by mx: 451 greylisted; next attempt in 90 s
           ┊ 6 more attempts ended like this (--full shows them)
+10 m 30 s ├ ● Deferred by mx: 451 greylisted; next attempt in 97 s
 +12 m 0 s └ ● Deferred by mx: 452 mailbox full; next attempt in 5 m
`},
		{"in full", true, `     +90 s ├ ● Deferred by mx: 451 greylisted; next attempt in 91 s
  +3 m 0 s ├ ● Deferred by mx: 451 greylisted; next attempt in 92 s
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := (&env{out: &out, noColor: true}).drawTimeline(tl, test.full); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out.String(), test.want) {
				t.Errorf("got\n%s\nwant\n%s", out.String(), test.want)
			}
			if want := "mx: TLS 1.3  attempts 1 to 9\n"; strings.Count(out.String(), "next_hop_tls") != 1 || !strings.Contains(out.String(), want) {
				t.Errorf("checks\n%s\nwant %s once", out.String(), want)
			}
		})
	}
}

// Who gave a recipient up by hand is named, and not the last next hop.
func TestTimelineSaysWhoEndedIt(t *testing.T) {
	tl := &trackapi.Timeline{Message: trackapi.Message{QueueID: "01J9ZC3K5V8Q2M7RXT4W6Y0ABC", Recipients: []trackapi.Recipient{
		{Address: "a@example.com", Disposition: "bounced", RemoteHost: "mx.example.com", Actor: "ann"},
		{Address: "b@example.com", Disposition: "bounced", RemoteHost: "mx.example.com"},
	}}}
	var out bytes.Buffer
	if err := (&env{out: &out, noColor: true}).drawTimeline(tl, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a@example.com  by ann\n", "b@example.com  by mx.example.com\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got\n%s\nwant %q", out.String(), want)
		}
	}
}

func TestForemost(t *testing.T) {
	now := time.Now()
	greylisted := trackapi.QueuedRecipient{State: "deferred", Attempts: 3, Next: now.Add(time.Minute), Reply: "451 4.7.1 greylisted"}
	unknown := trackapi.QueuedRecipient{State: "bounced", Attempts: 1, Reply: "550 5.1.1 no such user"}
	relayed := trackapi.QueuedRecipient{State: "relayed", Attempts: 1, Reply: "250 ok"}
	stopped := trackapi.QueuedRecipient{State: "queued", Next: now.Add(time.Second), Waits: "the next hop takes nothing"}
	for _, test := range []struct {
		name     string
		list     []trackapi.QueuedRecipient
		attempts int
		next     time.Time
		said     string
	}{
		{"who has left is not told of", []trackapi.QueuedRecipient{greylisted, unknown, relayed}, 3, greylisted.Next, greylisted.Reply},
		{"of a kept one, who has it", []trackapi.QueuedRecipient{relayed, unknown}, 1, time.Time{}, relayed.Reply},
		{"nobody else", []trackapi.QueuedRecipient{unknown}, 1, time.Time{}, unknown.Reply},
		{"the next hop's word before ours", []trackapi.QueuedRecipient{greylisted, stopped}, 3, stopped.Next, greylisted.Reply},
		{"ours when there is none", []trackapi.QueuedRecipient{stopped, stopped}, 0, stopped.Next, stopped.Waits},
	} {
		t.Run(test.name, func(t *testing.T) {
			attempts, next, last := foremost(waiting(test.list))
			if said := or(last.Reply, last.Waits); attempts != test.attempts || !next.Equal(test.next) || said != test.said {
				t.Errorf("= %d, %v, %q, want %d, %v, %q", attempts, next, said, test.attempts, test.next, test.said)
			}
		})
	}
}

// What an operator did is told with who did it, to what, and why.
func TestTailOfActions(t *testing.T) {
	var out strings.Builder
	e := &env{out: &out, noColor: true, format: "table"}
	if err := e.tailLine([]byte(`{"ts":"2026-03-01T12:00:00Z","event":"admin_acted","actor":"ops","action":"redirect","filter":"domain:example.com","target":"relay2.example.net","affected":3,"reason":"maintenance","client_ip":"192.0.2.7"}`)); err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(out.String(), " ")
	if want := "admin_acted        redirect  domain:example.com  to relay2.example.net  3 messages  by ops  client 192.0.2.7  maintenance\n"; got != want {
		t.Errorf("tailLine = %q, want %q", got, want)
	}
}
