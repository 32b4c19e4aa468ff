package dashboards

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"

	"waybill/metrics"
	"waybill/relay/event"
	"waybill/relay/mail"
)

// dashboard is the part of Grafana's format that the tests look at.
type dashboard struct {
	UID           string `json:"uid"`
	Title         string `json:"title"`
	Description   string `json:"description"`
	SchemaVersion int    `json:"schemaVersion"`
	Templating    struct {
		List []struct {
			Name       string          `json:"name"`
			Type       string          `json:"type"`
			Query      json.RawMessage `json:"query"`
			Definition string          `json:"definition"`
			Datasource *datasource     `json:"datasource"`
		} `json:"list"`
	} `json:"templating"`
	Annotations struct {
		List []struct {
			Expr       string      `json:"expr"`
			Datasource *datasource `json:"datasource"`
			BuiltIn    int         `json:"builtIn"`
		} `json:"list"`
	} `json:"annotations"`
	Links  []struct{ URL string } `json:"links"`
	Panels []panel                `json:"panels"`
}

type datasource struct{ Type, UID string }

type panel struct {
	ID          int         `json:"id"`
	Type        string      `json:"type"`
	Title       string      `json:"title"`
	Description string      `json:"description"`
	Datasource  *datasource `json:"datasource"`
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct {
		Defaults struct {
			Unit string `json:"unit"`
		} `json:"defaults"`
	} `json:"fieldConfig"`
	Links   []struct{ Title, URL string } `json:"links"`
	Targets []map[string]any              `json:"targets"`
}

type rules struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Record, Alert, Expr string
			For                 string
			Labels, Annotations map[string]string
		}
	}
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readYAML decodes the file called name, and refuses keys that it should not have.
func readYAML(t testing.TB, name string, into any) {
	t.Helper()
	if err := yaml.Unmarshal(read(t, name), into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func dashboards(t testing.TB) map[string]*dashboard {
	t.Helper()
	files, err := filepath.Glob("*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	all := map[string]*dashboard{}
	for _, name := range files {
		d := &dashboard{}
		if err := json.Unmarshal(read(t, name), d); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all[name] = d
	}
	return all
}

func TestDashboards(t *testing.T) {
	uids := map[string]string{}
	all := dashboards(t)
	for name, d := range all {
		if twin, twice := uids[d.UID]; twice || !strings.HasPrefix(d.UID, "waybill-") {
			t.Errorf("%s: uid %q is also in %q, or does not begin with waybill-", name, d.UID, twin)
		}
		uids[d.UID] = name
	}
	variable := func(d *datasource) bool {
		return d != nil && (d.Type == "prometheus" && d.UID == "${prometheus}" || d.Type == "waybill-mail-datasource" && d.UID == "${waybill}")
	}
	linked := regexp.MustCompile(`"/d/([\w-]+)`)
	for name, d := range all {
		t.Run(name, func(t *testing.T) {
			if d.SchemaVersion != 42 || d.Title == "" || d.Description == "" {
				t.Errorf("schemaVersion %d, title %q, description %q", d.SchemaVersion, d.Title, d.Description)
			}
			known := map[string]bool{}
			for _, v := range d.Templating.List {
				if known[v.Name] {
					t.Errorf("variable %s twice", v.Name)
				}
				known[v.Name] = true
				if v.Type == "query" && !variable(v.Datasource) {
					t.Errorf("variable %s has a fixed data source", v.Name)
				}
			}
			for _, a := range d.Annotations.List {
				if a.BuiltIn == 0 && !variable(a.Datasource) {
					t.Errorf("annotation %q has a fixed data source", a.Expr)
				}
			}
			ids := map[int]bool{}
			for i, p := range d.Panels {
				if ids[p.ID] || p.ID == 0 {
					t.Errorf("panel id %d is not unique", p.ID)
				}
				ids[p.ID] = true
				g := p.GridPos
				if g.W <= 0 || g.H <= 0 || g.X+g.W > 24 {
					t.Errorf("panel %q does not fit: %+v", p.Title, g)
				}
				for _, o := range d.Panels[:i] {
					if og := o.GridPos; g.X < og.X+og.W && og.X < g.X+g.W && g.Y < og.Y+og.H && og.Y < g.Y+g.H {
						t.Errorf("panels %q and %q overlap", p.Title, o.Title)
					}
				}
				if p.Type == "row" {
					continue
				}
				if p.Title == "" || p.Description == "" || p.FieldConfig.Defaults.Unit == "" || len(p.Links) == 0 || len(p.Targets) == 0 {
					t.Errorf("panel %q lacks a title, a description, a unit, a link or a target", p.Title)
				}
				if !strings.HasSuffix(p.Description, ".") {
					t.Errorf("panel %q: description %q is no sentence", p.Title, p.Description)
				}
				if !variable(p.Datasource) {
					t.Errorf("panel %q has a fixed data source", p.Title)
				}
				refs := map[any]bool{}
				for _, target := range p.Targets {
					ds, _ := target["datasource"].(map[string]any)
					if !variable(&datasource{fmt.Sprint(ds["type"]), fmt.Sprint(ds["uid"])}) || refs[target["refId"]] {
						t.Errorf("panel %q, target %v: fixed data source, or refId twice", p.Title, target["refId"])
					}
					refs[target["refId"]] = true
				}
			}
			src := string(read(t, name))
			for _, m := range linked.FindAllStringSubmatch(src, -1) {
				if uids[m[1]] == "" {
					t.Errorf("link to dashboard %s, which is not here", m[1])
				}
			}
			for _, m := range regexp.MustCompile(`\$(?:\{(\w+)|(\w+))`).FindAllStringSubmatch(src, -1) {
				if v := m[1] + m[2]; !known[v] && !strings.HasPrefix(v, "__") {
					t.Errorf("variable $%s is not defined", v)
				}
			}
		})
	}
}

// expressions are all PromQL expressions, by where they stand.
func expressions(t testing.TB) map[string]string {
	t.Helper()
	exprs := map[string]string{}
	for name, d := range dashboards(t) {
		for _, p := range d.Panels {
			for i, target := range p.Targets {
				if e, ok := target["expr"].(string); ok {
					exprs[fmt.Sprintf("%s: %s %d", name, p.Title, i)] = e
				}
			}
		}
		for _, a := range d.Annotations.List {
			if a.Expr != "" {
				exprs[name+": annotation "+a.Expr] = a.Expr
			}
		}
		for _, v := range d.Templating.List {
			if inner, ok := strings.CutPrefix(v.Definition, "label_values("); ok {
				series, _, _ := strings.Cut(inner, ", ")
				exprs[name+": variable "+v.Name] = series
			}
		}
	}
	for _, file := range []string{"rules.yaml", "alerts.yaml"} {
		var r rules
		readYAML(t, file, &r)
		for _, g := range r.Groups {
			for _, rule := range g.Rules {
				exprs[file+": "+rule.Record+rule.Alert] = rule.Expr
			}
		}
	}
	return exprs
}

var (
	ident    = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*`)
	selector = regexp.MustCompile(`(waybill_\w+)\s*\{([^}]*)\}`)
	matcher  = regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
	quoted   = regexp.MustCompile(`"[^"]*"`)
	word     = regexp.MustCompile(`^[\w()-]+$`)
)

// TestMetricsExist looks up every metric, label and label value in the registry
// of package metrics.
func TestMetricsExist(t *testing.T) {
	known := map[string]metrics.Metric{}
	for _, m := range metrics.New(prometheus.NewRegistry(), metrics.Options{}).Metrics() {
		known[m.Name] = m
		if m.Type == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				known[m.Name+suffix] = m
			}
		}
	}
	recorded := map[string]bool{}
	var r rules
	readYAML(t, "rules.yaml", &r)
	for _, g := range r.Groups {
		for _, rule := range g.Rules {
			recorded[rule.Record] = true
		}
	}
	used := map[string]bool{}
	for where, expr := range expressions(t) {
		for _, name := range ident.FindAllString(quoted.ReplaceAllString(expr, `""`), -1) {
			switch {
			case strings.HasPrefix(name, "waybill:"):
				if !recorded[name] {
					t.Errorf("%s: no rule records %s", where, name)
				}
			case strings.HasPrefix(name, "waybill_"):
				m, ok := known[name]
				if !ok {
					t.Errorf("%s: there is no metric %s", where, name)
				}
				used[m.Name] = true
				if ok && m.Type == "histogram" && name == m.Name {
					t.Errorf("%s: %s is a histogram; name its _bucket, _sum or _count", where, name)
				}
			}
		}
		for _, m := range selector.FindAllStringSubmatch(expr, -1) {
			for _, match := range matcher.FindAllStringSubmatch(m[2], -1) {
				checkMatcher(t, where, known[m[1]], match[1], match[3])
			}
		}
	}
	for name, m := range known {
		if name == m.Name && !used[name] {
			t.Errorf("no panel and no rule shows %s", name)
		}
	}
}

func checkMatcher(t *testing.T, where string, m metrics.Metric, label, value string) {
	t.Helper()
	if label == "job" || label == "instance" || label == "le" && m.Type == "histogram" {
		return
	}
	i := slices.IndexFunc(m.Labels, func(l metrics.Label) bool { return l.Name == label })
	if i < 0 {
		t.Errorf("%s: %s has no label %s", where, m.Name, label)
		return
	}
	if m.Labels[i].Values == nil || label == "provider" { // names from configuration
		return
	}
	for alternative := range strings.SplitSeq(value, "|") {
		if word.MatchString(alternative) && !slices.Contains(m.Labels[i].Values, alternative) {
			t.Errorf("%s: label %s of %s is never %q", where, label, m.Name, alternative)
		}
	}
}

// TestQueries compares the queries to our own data source with its contract,
// the files in grafana-plugin/testdata/queries, and their words with the facts.
func TestQueries(t *testing.T) {
	files, err := filepath.Glob("../grafana-plugin/testdata/queries/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("the contract of queries is missing: %v", err)
	}
	keys := map[string]map[string]bool{}
	filters := map[string]bool{}
	for _, name := range files {
		var q map[string]any
		if err := json.Unmarshal(read(t, name), &q); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		kind := fmt.Sprint(q["queryType"])
		if keys[kind] == nil {
			keys[kind] = map[string]bool{"datasource": true, "refId": true, "queryType": true}
		}
		for k := range q {
			keys[kind][k] = true
			if filepath.Base(name) == "messages_all_filters.json" && k != "rows" {
				filters[k] = true
			}
		}
	}
	// What the contract's examples happen not to use.
	keys["aggregate"]["view"], keys["queues"]["queue"] = true, true
	for _, kind := range []string{"messages", "aggregate", "events"} {
		for k := range filters {
			keys[kind][k] = true
		}
	}
	words := map[string][]string{
		"event": event.Names(), "disposition": mail.Dispositions(), "view": {"facts", "logs", "trace", "stages", "recipients", "transcript", "table", "series"},
		"metric": {"count", "rate", "bytes", "latency_p50", "latency_p90", "latency_p95", "latency_p99", "latency_max"}, "rows": {"messages", "recipients"},
		"by": {"sender_domain", "recipient_domain", "connector", "remote_host", "provider", "disposition", "class", "code", "event"}, "sort": {"-time", "time"},
	}
	for name, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				kind, ok := target["queryType"].(string)
				if !ok {
					continue
				}
				if keys[kind] == nil {
					t.Errorf("%s: %s: there is no query type %q", name, p.Title, kind)
				}
				for k, v := range target {
					if !keys[kind][k] {
						t.Errorf("%s: %s: a query of type %s has no %q", name, p.Title, kind, k)
					}
					text, ok := v.(string)
					if !ok || text == "" || words[k] == nil {
						continue
					}
					for w := range strings.SplitSeq(text, ",") {
						if !strings.HasPrefix(w, "$") && !slices.Contains(words[k], w) {
							t.Errorf("%s: %s: %s is never %q", name, p.Title, k, w)
						}
					}
				}
			}
		}
	}
}

func alerts(t testing.TB) map[string]map[string]string {
	t.Helper()
	var r rules
	readYAML(t, "alerts.yaml", &r)
	all := map[string]map[string]string{}
	for _, g := range r.Groups {
		for _, rule := range g.Rules {
			if all[rule.Alert] != nil {
				t.Errorf("alert %s twice", rule.Alert)
			}
			all[rule.Alert] = rule.Annotations
			if s := rule.Labels["severity"]; s != "critical" && s != "warning" && s != "info" {
				t.Errorf("alert %s: severity %q", rule.Alert, s)
			}
		}
	}
	return all
}

func TestRunbooks(t *testing.T) {
	uids := map[string]bool{}
	for _, d := range dashboards(t) {
		uids[d.UID] = true
	}
	all := alerts(t)
	for name, notes := range all {
		if notes["summary"] == "" || notes["description"] == "" || strings.Contains(notes["summary"], "{{") {
			t.Errorf("alert %s: the summary is missing or varies, or the description is missing", name)
		}
		if want := "dashboards/runbooks/" + name + ".md"; notes["runbook_url"] != want {
			t.Errorf("alert %s: runbook_url %q, want %q", name, notes["runbook_url"], want)
		}
		page, err := os.ReadFile(filepath.Join("runbooks", name+".md"))
		if err != nil {
			t.Error(err)
		}
		for _, head := range []string{"# " + name + "\n", "\n## What it means\n", "\n## How to look\n", "\n## What to do\n"} {
			if !strings.Contains(string(page), head) {
				t.Errorf("runbook of %s has no %q", name, head)
			}
		}
		path, _, _ := strings.Cut(notes["dashboard_url"], "?")
		if uid, ok := strings.CutPrefix(path, "/d/"); !ok || !uids[uid] {
			t.Errorf("alert %s: dashboard_url %q names no dashboard", name, notes["dashboard_url"])
		}
	}
	pages, err := os.ReadDir("runbooks")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		if all[strings.TrimSuffix(p.Name(), ".md")] == nil {
			t.Errorf("runbook %s has no alert", p.Name())
		}
	}
}

// TestAlertsAreTested wants a case in which each alert fires, and one in which
// it does not.
func TestAlertsAreTested(t *testing.T) {
	fires, quiet := map[string]bool{}, map[string]bool{}
	note := func(name string, some bool) {
		if some {
			fires[name] = true
		} else {
			quiet[name] = true
		}
	}
	named := regexp.MustCompile(`alertname="(\w+)"`)
	for _, file := range []string{"alerts_test.yaml", "alerts_week_test.yaml"} {
		var f struct {
			Tests []struct {
				Exprs []struct {
					Expr    string
					Samples []any `yaml:"exp_samples"`
				} `yaml:"promql_expr_test"`
				Alerts []struct {
					Name   string `yaml:"alertname"`
					Alerts []any  `yaml:"exp_alerts"`
				} `yaml:"alert_rule_test"`
			}
		}
		readYAML(t, file, &f)
		for _, test := range f.Tests {
			for _, e := range test.Exprs {
				for _, m := range named.FindAllStringSubmatch(e.Expr, -1) {
					note(m[1], len(e.Samples) > 0)
				}
			}
			for _, a := range test.Alerts {
				note(a.Name, len(a.Alerts) > 0)
			}
		}
	}
	for name := range alerts(t) {
		if !fires[name] || !quiet[name] {
			t.Errorf("alert %s: fires in a test: %t, stays quiet in a test: %t", name, fires[name], quiet[name])
		}
	}
}

// TestPromtool and TestAmtool let the real programs read the files.
func TestPromtool(t *testing.T) {
	tool := lookTool(t, "promtool")
	dir := configDir(t)
	for _, args := range [][]string{
		{"check", "rules", "rules.yaml", "alerts.yaml"},
		{"test", "rules", "alerts_test.yaml", "alerts_week_test.yaml"},
		{"check", "config", filepath.Join(dir, "prometheus.yml")},
	} {
		if tool == "" {
			return
		}
		if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

func TestAmtool(t *testing.T) {
	if tool := lookTool(t, "amtool"); tool != "" {
		if out, err := exec.Command(tool, "check-config", "provisioning/alertmanager.yml").CombinedOutput(); err != nil {
			t.Errorf("amtool check-config: %v\n%s", err, out)
		}
	}
}

// lookTool finds a program of Prometheus; it may be missing only where nobody
// demands it.
func lookTool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("WAYBILL_REQUIRE_PROMTOOL") == "1" {
			t.Fatalf("%s is not installed, and WAYBILL_REQUIRE_PROMTOOL=1", name)
		}
		fmt.Fprintf(os.Stderr, "dashboards: %s is not installed: its checks were NOT made\n", name)
		return ""
	}
	return path
}

// configDir is /etc/prometheus as docker-compose.yml mounts it.
func configDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	var c compose
	readYAML(t, "../docker-compose.yml", &c)
	for _, v := range c.Services["prometheus"].Volumes {
		from, to, _ := strings.Cut(strings.TrimSuffix(v, ":ro"), ":")
		if name, ok := strings.CutPrefix(to, "/etc/prometheus/"); ok {
			if err := os.WriteFile(filepath.Join(dir, name), read(t, filepath.Join("..", from)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

type compose struct {
	Services map[string]struct {
		Image       string
		Build       any
		Ports       []string
		Volumes     []string
		Environment map[string]string
		ReadOnly    bool           `yaml:"read_only"`
		DependsOn   map[string]any `yaml:"depends_on"`
		Healthcheck struct{ Test []string }
	}
	Volumes map[string]any
}

func TestCompose(t *testing.T) {
	var c compose
	readYAML(t, "../docker-compose.yml", &c)
	for name, s := range c.Services {
		_, tag, tagged := strings.Cut(s.Image, ":")
		if !tagged || tag == "latest" {
			t.Errorf("service %s: image %q is not pinned", name, s.Image)
		}
		if len(s.Healthcheck.Test) == 0 || !s.ReadOnly {
			t.Errorf("service %s: no health check, or a writable root", name)
		}
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("service %s: port %s is not on loopback", name, p)
			}
		}
		for other := range s.DependsOn {
			if _, ok := c.Services[other]; !ok {
				t.Errorf("service %s depends on %s, which is not there", name, other)
			}
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if !strings.HasPrefix(from, "./") {
				if _, ok := c.Volumes[from]; !ok {
					t.Errorf("service %s: volume %s is not declared", name, from)
				}
				continue
			}
			if !strings.HasSuffix(v, ":ro") {
				t.Errorf("service %s: %s is mounted writable", name, from)
			}
			if _, err := os.Stat(filepath.Join("..", from)); err != nil && from != "./grafana-plugin/dist" { // built by make plugin
				t.Errorf("service %s: %v", name, err)
			}
		}
	}
	if got := c.Services["grafana"].Environment["GF_PLUGINS_ALLOW_LOADING_UNSIGNED_PLUGINS"]; got != "waybill-mail-datasource" {
		t.Errorf("Grafana allows the unsigned plugin %q", got)
	}
	if tool, err := exec.LookPath("docker-compose"); err == nil {
		cmd := exec.Command(tool, "config", "-q")
		cmd.Dir = ".."
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("docker-compose config: %v\n%s", err, out)
		}
	}
}

func TestProvisioning(t *testing.T) {
	var ds struct {
		Datasources []struct{ Name, UID, Type, URL string }
	}
	readYAML(t, "provisioning/grafana/datasources/waybill.yaml", &ds)
	types := map[string]string{}
	for _, d := range ds.Datasources {
		types[d.Type] = d.UID
	}
	if types["prometheus"] != "waybill-prometheus" || types["waybill-mail-datasource"] != "waybill-mail" {
		t.Errorf("data sources = %v", types)
	}
	if !strings.Contains(string(read(t, "provisioning/grafana/datasources/waybill.yaml")), "name: message_uid") {
		t.Error("exemplars lead nowhere")
	}
	// The relay answers only under names that it knows.
	var relay struct {
		Hostname string
		HTTP     struct{ Listen string }
	}
	readYAML(t, "provisioning/waybill.yaml", &relay)
	_, port, _ := strings.Cut(relay.HTTP.Listen, ":")
	for _, name := range []string{"provisioning/prometheus.yml", "provisioning/grafana/datasources/waybill.yaml", "../docker-compose.yml"} {
		want := relay.Hostname + ":" + port
		if strings.HasSuffix(name, "docker-compose.yml") {
			want = relay.Hostname
		}
		if !strings.Contains(string(read(t, name)), want) {
			t.Errorf("%s does not name the relay as %s", name, want)
		}
	}
	var tokens []struct {
		Role string
		Hash string `yaml:"token_sha256"`
	}
	readYAML(t, "provisioning/tokens.yaml", &tokens)
	hash := sha256.Sum256(read(t, "provisioning/viewer.token"))
	if len(tokens) != 1 || tokens[0].Role != "viewer" || tokens[0].Hash != hex.EncodeToString(hash[:]) {
		t.Errorf("tokens.yaml = %+v, want one viewer with the hash of viewer.token", tokens)
	}
	for name, d := range dashboards(t) {
		for _, v := range d.Templating.List {
			if v.Type == "datasource" && v.Name != "prometheus" && v.Name != "waybill" {
				t.Errorf("%s: variable %s chooses a data source that is not provisioned", name, v.Name)
			}
		}
	}
}
