package config

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"waybill/relay/auth"
	"waybill/relay/mail"
)

func TestMain(m *testing.M) {
	machineName = func() (string, error) { return "relay.example.com", nil }
	turns = func() int { return 32 }
	os.Exit(m.Run())
}

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with a file, or writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not current (run the test with -update):\n%s", name, got)
	}
}

func parseFile(t *testing.T, name string) (*Config, Problems) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return Parse(filepath.Base(name), data)
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(names) == 0 {
		t.Fatal("no files in ", dir)
	}
	return names
}

// The problems of each bad file stand beside it, as the operator reads them.
func TestBad(t *testing.T) {
	t.Setenv("WAYBILL_TEST_SECRET", "hunter2")
	t.Setenv("WAYBILL_TEST_EVIL", "127.0.0.1:25\"]\nhostname: x")
	for _, name := range files(t, "testdata/bad") {
		t.Run(filepath.Base(name), func(t *testing.T) {
			c, problems := parseFile(t, name)
			if c != nil || !problems.Errors() || problems.Err() == nil {
				t.Errorf("the file is accepted, with %v", problems)
			}
			if strings.Contains(problems.Error(), "hunter2") {
				t.Errorf("the problems quote the environment:\n%v", problems)
			}
			golden(t, strings.TrimSuffix(name, ".yaml")+".want", problems.Error()+"\n")
		})
	}
}

// Good files may have warnings. What is in use reads back as the same.
func TestGood(t *testing.T) {
	for _, name := range files(t, "testdata/good") {
		t.Run(filepath.Base(name), func(t *testing.T) {
			c, problems := parseFile(t, name)
			if c == nil || problems.Err() != nil {
				t.Fatalf("the file is refused:\n%v", problems)
			}
			golden(t, strings.TrimSuffix(name, ".yaml")+".want", lines(problems)+effective(t, c))
			again, problems := Parse(c.name, []byte(effective(t, c)))
			if problems.Err() != nil {
				t.Fatalf("the effective configuration is refused:\n%v", problems)
			}
			if effective(t, again) != effective(t, c) || again.Revision() != c.Revision() {
				t.Errorf("the effective configuration reads back as another:\n%s", effective(t, again))
			}
		})
	}
}

func lines(ps Problems) string {
	if len(ps) == 0 {
		return ""
	}
	return "# " + strings.ReplaceAll(ps.Error(), "\n", "\n# ") + "\n"
}

func effective(t testing.TB, c *Config) string {
	t.Helper()
	var b bytes.Buffer
	if err := c.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// shortest is a valid file to which tests add a line.
const shortest = `hostname: mx1.example.com
receive_connectors: [{name: a, usage: internal}]
send_connectors: [{name: out, address_spaces: [{space: "*"}]}]
`

func TestTenLinesAreSafe(t *testing.T) {
	c, problems := Parse("waybill.yaml", []byte(shortest))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for _, usage := range Usages() {
		r := NewReceiveConnector(usage)
		if r.Usage != usage || !local(&r) {
			t.Errorf("usage %s listens on %v by default, want loopback only", usage, r.Listen)
		}
	}
	if at, err := parseListen(c.HTTP.Listen); err != nil || !at.Addr().IsLoopback() {
		t.Errorf("HTTP listens on %s by default", c.HTTP.Listen)
	}
	if c.Receive[0].TLS.Mode != "off" || c.Send[0].Route != "mx" || c.Send[0].AddressSpaces[0].Cost != defaultCost {
		t.Errorf("what follows from other keys is wrong: %+v", c)
	}
}

func TestTLSWhenACertificateIsNamed(t *testing.T) {
	c, problems := Parse("waybill.yaml", []byte(shortest+"certificates: {mx1: {cert_file: a, key_file: b}}\n"))
	if problems.Err() != nil {
		t.Fatal(problems)
	}
	if got := c.Receive[0].TLS; got.Mode != "starttls" || got.Certificate != "mx1" {
		t.Errorf("TLS = %+v, want starttls with mx1", got)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("WAYBILL_TEST_HOPS", "17")
	t.Setenv("WAYBILL_TEST_PASSWORD", "a$b: c")
	c, problems := Parse("waybill.yaml", []byte(`
hostname: mx1.example.com
receive_connectors: [{name: a, usage: internal, limits: {hops: "${WAYBILL_TEST_HOPS}"}, banner: "${WAYBILL_TEST_HOPS}$$x$y"}]
send_connectors:
  - name: out
    address_spaces: [{space: "*"}]
    smart_hosts: [mail.example.com]
    auth: {mechanism: PLAIN, username: x, password: "${WAYBILL_TEST_PASSWORD}"}
`))
	if problems.Err() != nil {
		t.Fatal(problems)
	}
	if c.Receive[0].Limits.Hops != 17 || c.Receive[0].Banner != "17$x$y" {
		t.Errorf("hops = %d, banner = %q", c.Receive[0].Limits.Hops, c.Receive[0].Banner)
	}
	if pw, err := c.Send[0].Auth.Secret(); err != nil || pw.Expose() != "a$b: c" {
		t.Errorf("password = %q, %v", pw.Expose(), err)
	}
	out := effective(t, c) + fmt.Sprintf("%v%+v%#v", c, c, *c)
	if strings.Contains(out, "a$b: c") || strings.Contains(out, "a$$b") || !strings.Contains(out, "[secret]") {
		t.Errorf("the password is printed:\n%s", out)
	}
}

// What "waybill check" says is compared with what the daemon says, which may have
// been given another name of the same file.
func TestRevisionWhateverTheFileIsCalled(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "waybill.yaml"), []byte(shortest+"log: {file: waybill.log}\ndata_dir: data\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	var revisions []string
	for _, name := range []string{"waybill.yaml", filepath.Join("..", filepath.Base(dir), "waybill.yaml"), filepath.Join(dir, "waybill.yaml")} {
		c, problems := Load(name)
		if problems.Err() != nil {
			t.Fatal(problems)
		}
		if want := filepath.Join(dir, "data"); c.DataDir != want {
			t.Errorf("%s: data_dir = %s, want %s", name, c.DataDir, want)
		}
		revisions = append(revisions, c.Revision())
	}
	if revisions[0] != revisions[1] || revisions[0] != revisions[2] {
		t.Errorf("revisions are %q, want one", revisions)
	}
}

func TestRevision(t *testing.T) {
	revision := func(text string) string {
		t.Helper()
		c, problems := Parse("waybill.yaml", []byte(text))
		if problems.Err() != nil {
			t.Fatal(problems)
		}
		return c.Revision()
	}
	base := revision(shortest)
	if len(base) != 12 || base != revision("# a comment\n"+shortest+"queue: {engine: badger}\n") {
		t.Errorf("the same configuration has another revision than %s", base)
	}
	if base == revision(shortest+"queue: {disk_free_min: 2GiB}\n") {
		t.Error("another configuration has the same revision")
	}
}

func TestPositions(t *testing.T) {
	_, problems := Parse("waybill.yaml", []byte("hostname: mx1.example.com\nqueue:\n  engine: none\n  disk_free_min: 1x\n"))
	want := []Problem{
		{Line: 3, Column: 11, Path: "queue.engine"}, {Line: 4, Column: 18, Path: "queue.disk_free_min"},
	}
	for _, w := range want {
		if !slices.ContainsFunc(problems, func(p Problem) bool {
			return p.Line == w.Line && p.Column == w.Column && p.Path == w.Path && p.File == "waybill.yaml"
		}) {
			t.Errorf("no problem at %d:%d %s in\n%v", w.Line, w.Column, w.Path, problems)
		}
	}
}

func TestTooManyConnectors(t *testing.T) {
	var b strings.Builder
	b.WriteString("hostname: mx1.example.com\nreceive_connectors: [{name: a, usage: internal}]\nsend_connectors:\n")
	for i := range maxConnectors {
		fmt.Fprintf(&b, "  - {name: out%d, address_spaces: [{space: \"*\", cost: %d}]}\n", i, i+1)
	}
	_, problems := Parse("waybill.yaml", []byte(b.String()))
	if !strings.Contains(problems.Error(), "51 connectors") {
		t.Errorf("problems = %v, want one about 51 connectors", problems)
	}
}

// Aliases can make a few lines a tree of millions of nodes.
func TestAliasBomb(t *testing.T) {
	text := "hostname: mx1.example.com\nsend_connectors:\n  - &c {name: x, address_spaces: [{space: \"*\"}], retry: {schedule: [" + strings.Repeat("1m,", 3000) + "]}}\n" +
		strings.Repeat("  - *c\n", 3000)
	_, problems := Parse("waybill.yaml", []byte(text))
	if !strings.Contains(problems.Error(), "too large or too deep") || len(problems) > maxProblems {
		t.Errorf("%d problems, want one about the size", len(problems))
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode fs.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "waybill.yaml")
	text := shortest + `
certificates:
  default: {cert_file: tls.crt, key_file: tls.key}
  other: {cert_file: ., key_file: none}
users: {file: users.yaml}
accepted_domains: [{domain: example.com, recipients: {file: recipients.txt}}]
http: {listen: "127.0.0.1:8025", tokens_file: tokens.yaml}
log: {file: nowhere/log}
`
	text = strings.Replace(text, "usage: internal", "usage: internal, tls: {client_ca_file: ca.pem}", 1)
	text = strings.Replace(text, "name: out,", "name: out, smart_hosts: [a.example], auth: {mechanism: PLAIN, username: x, password_file: password}, tls: {ca_file: none.pem},", 1)
	write("waybill.yaml", text, 0o600)
	write("tls.crt", "x", 0o644)
	write("tls.key", "x", 0o644)
	write("ca.pem", "x", 0o644)
	write("password", "\n", 0o644)
	write("recipients.txt", "bob\nno body@x\n", 0o644)
	write("tokens.yaml", "- {name: a, role: root}\n", 0o600)
	c, problems := Load(path)
	if c != nil || !problems.Errors() {
		t.Error("Load took bad files")
	}
	golden(t, "testdata/load.want", strings.NewReplacer(dir+"/", "", dir, ".").Replace(problems.Error())+"\n")

	if c, problems := Load(filepath.Join(dir, "missing.yaml")); c != nil || !strings.Contains(problems.Error(), "missing.yaml: no such file") {
		t.Errorf("Load of a missing file = %v", problems)
	}

	users, err := auth.CreateUsers(filepath.Join(dir, "users.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := users.Add(auth.User{Name: "app"}, auth.NewSecret("x")); err != nil {
		t.Fatal(err)
	}
	write("password", "secret\r\nrest\n", 0o600)
	write("recipients.txt", "# who\nBob\nann@example.com # Ann\n\n", 0o644)
	token, hash := NewToken()
	write("tokens.yaml", "- {name: grafana, role: viewer, token_sha256: "+hash+"}\n", 0o600)
	text = strings.NewReplacer("log: {file: nowhere/log}", "", "certificates:", "data_dir: .", "  default: {cert_file: tls.crt, key_file: tls.key}\n", "",
		"  other: {cert_file: ., key_file: none}\n", "", ", tls: {client_ca_file: ca.pem}", "", " tls: {ca_file: none.pem},", "").Replace(text)
	write("waybill.yaml", text, 0o600)
	c, problems = Load(path)
	if c == nil || len(problems) > 0 {
		t.Fatalf("Load = %v", problems)
	}
	if pw, err := c.Send[0].Auth.Secret(); err != nil || pw.Expose() != "secret" {
		t.Errorf("password = %q, %v", pw.Expose(), err)
	}
	known, err := c.AcceptedDomains[0].Load()
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{"bob@example.com": true, "BOB@EXAMPLE.com": true, "ann@example.com": true, "eve@example.com": false} {
		a, err := mail.ParseAddress(addr)
		if err != nil || known(a) != want {
			t.Errorf("recipient %s is known: %t, want %t", addr, known(a), want)
		}
	}
	tokens, err := LoadTokens(c.HTTP.TokensFile)
	if err != nil {
		t.Fatal(err)
	}
	if who, ok := tokens.Find(token.Expose()); !ok || who != (Token{"grafana", RoleViewer}) {
		t.Errorf("Find = %v, %t", who, ok)
	}
	for _, wrong := range []string{"", "x", hash} {
		if who, ok := tokens.Find(wrong); ok {
			t.Errorf("Find(%q) = %v", wrong, who)
		}
	}
}

func TestTokens(t *testing.T) {
	_, hash := NewToken()
	for _, test := range []struct{ name, text, want string }{
		{"empty", "", ""},
		{"good", "- {name: a, role: operator, token_sha256: " + hash + "}", ""},
		{"not a list", "a: b", "want a list"},
		{"unknown key", "- {name: a, token: x}", "want a list"},
		{"role", "- {name: a, role: god, token_sha256: " + hash + "}", "role"},
		{"no role", "- {name: a, role: none, token_sha256: " + hash + "}", "role"},
		{"clear token", "- {name: a, role: viewer, token_sha256: letmein}", "64 hexadecimal"},
		{"twice", "- {name: a, role: viewer, token_sha256: " + hash + "}\n- {name: a, role: viewer, token_sha256: " + hash + "}", "twice"},
		{"no name", "- {role: viewer, token_sha256: " + hash + "}", "name"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseTokens([]byte(test.text))
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("parseTokens = %v, want %q", err, test.want)
			}
			if err != nil && (strings.Contains(err.Error(), "letmein") || strings.Contains(err.Error(), hash)) {
				t.Errorf("the error quotes a token: %v", err)
			}
		})
	}
	if !RoleAdmin.Allows(RoleViewer) || RoleViewer.Allows(RoleOperator) || RoleNone.Allows(RoleViewer) || Role(9).String() != "role(9)" {
		t.Error("roles do not include each other as they should")
	}
}

func TestDuration(t *testing.T) {
	for in, want := range map[string]string{
		"0": "0s", "0s": "0s", "30s": "30s", "90s": "1m30s", "5m": "5m", "48h": "2d", "1h30m": "1h30m", "30d": "30d", "1w": "7d", "1d12h": "1d12h", "1500ms": "1s500ms",
		"": "", "5": "", "m": "", "5 m": "", "5x": "", "-5s": "", "1.5h": "", "99999999999s": "", "4000d": "", "1m1": "", "2147483647w": "", "1y": "",
	} {
		d, err := ParseDuration(in)
		if (err == nil) != (want != "") || err == nil && d.String() != want {
			t.Errorf("ParseDuration(%q) = %v, %v, want %q", in, d, err, want)
		}
		if again, err2 := ParseDuration(d.String()); err == nil && (err2 != nil || again != d) {
			t.Errorf("%v reads back as %v, %v", d, again, err2)
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[string]string{
		"0": "0B", "36MiB": "36MiB", "1024KiB": "1MiB", "36 MiB": "36MiB", "1000B": "1000B", "1MB": "1000000B", "1kB": "1000B", "1025B": "1025B", "1024TiB": "1024TiB",
		"": "", "36": "", "36M": "", "MiB": "", "-1MiB": "", "1.5GiB": "", "36mib": "", "1025TiB": "", "99999999999999999999B": "",
	} {
		s, err := ParseSize(in)
		if (err == nil) != (want != "") || err == nil && s.String() != want {
			t.Errorf("ParseSize(%q) = %v, %v, want %q", in, s, err, want)
		}
		if again, err2 := ParseSize(s.String()); err == nil && (err2 != nil || again != s) {
			t.Errorf("%v reads back as %v, %v", s, again, err2)
		}
	}
}

func TestSmartHostSplit(t *testing.T) {
	for in, want := range map[string]string{
		"mail.example.com": "mail.example.com 25", "MAIL.example.com:587": "mail.example.com 587", "192.0.2.1": "192.0.2.1 25", "192.0.2.1:26": "192.0.2.1 26",
		"2001:db8::1": "2001:db8::1 25", "[2001:db8::1]": "2001:db8::1 25", "[2001:db8::1]:26": "2001:db8::1 26", "bücher.example:25": "xn--bcher-kva.example 25",
		"localhost": "localhost 25", "": "", "a b": "", "a:": "", "a:0": "", "a:x": "", "a:70000": "", "*.example.com": "",
	} {
		host, port, err := SmartHost{Host: in}.Split()
		if got := fmt.Sprintf("%s %d", host, port); (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("Split of %q = %s, %v, want %q", in, got, err, want)
		}
	}
}

func TestReference(t *testing.T) {
	var b bytes.Buffer
	if err := Reference(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "../../../docs/reference/config.md", b.String())
}

func TestExample(t *testing.T) {
	c, problems := Parse("example.yaml", []byte(Example()))
	if c == nil || len(problems) > 0 {
		t.Errorf("the example has problems:\n%v", problems)
	}
}

// Every field has what reader, writer and reference need.
func TestTags(t *testing.T) {
	known := map[string]bool{}
	var walk func(typ reflect.Type, path string)
	walk = func(typ reflect.Type, path string) {
		for f := range typ.Fields() {
			if !f.IsExported() {
				continue
			}
			key := join(path, f.Tag.Get("yaml"))
			if f.Tag.Get("yaml") == "" || f.Tag.Get("doc") == "" {
				t.Errorf("field %s of %s has no key or no meaning", f.Name, typ)
			}
			if f.Type.Kind() == reflect.Int && f.Type != reflect.TypeFor[Size]() && f.Tag.Get("max") == "" {
				t.Errorf("number %s has no bounds", key)
			}
			known[pattern(key)] = true
			switch elem := f.Type; {
			case nested(elem):
				walk(elem, key)
			case elem.Kind() == reflect.Slice && nested(elem.Elem()):
				walk(elem.Elem(), key+"[0]")
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
	for _, key := range slices.Sorted(maps.Keys(future)) {
		if known[key] {
			t.Errorf("%s is there, and said to be planned", key)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, dir := range []string{"testdata/good", "testdata/bad"} {
		names, _ := filepath.Glob(filepath.Join(dir, "*.yaml"))
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add([]byte(Example()))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, problems := Parse("fuzz.yaml", data)
		if (c == nil) != problems.Errors() || len(problems) > maxProblems {
			t.Fatalf("config %v with problems\n%v", c, problems)
		}
		for _, p := range problems {
			if p.What == "" || p.File == "" || strings.ContainsAny(p.String(), "\n\x00\x1b") {
				t.Errorf("problem %q", p.String())
			}
		}
		if c == nil {
			return
		}
		again, problems := Parse("fuzz.yaml", []byte(effective(t, c)))
		if problems.Err() != nil {
			t.Fatalf("the effective configuration is refused:\n%v\n%s", problems, effective(t, c))
		}
		if again.Revision() != c.Revision() {
			t.Errorf("the effective configuration reads back as another:\n%s\n%s", effective(t, c), effective(t, again))
		}
	})
}
