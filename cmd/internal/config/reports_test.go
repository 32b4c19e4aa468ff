package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"waybill/relay/backscatter"
	"waybill/relay/failure"
)

func TestReports(t *testing.T) {
	const base = "hostname: mx1.example.com\nreceive_connectors:\n  - {name: in, usage: internal, listen: [\"127.0.0.1:2525\"], remote_ranges: [\"127.0.0.1\"]}\nsend_connectors:\n  - {name: out, address_spaces: [{space: \"*\"}]}\n"
	for _, test := range []struct {
		name string
		add  string
		file string // rules.yaml
		want string // a problem, or empty
	}{
		{"defaults", "", "", ""},
		{"strangers", "reports: {strangers: verified}\n", "", ""},
		{"unknown word", "reports: {strangers: some}\n", "", "reports.strangers: "},
		{"double bounces without a postmaster", "reports: {double_bounces: postmaster}\n", "", "waybill.yaml:6: reports.double_bounces: there is no postmaster to report to (set postmaster"},
		{"double bounces", "reports: {double_bounces: postmaster}\npostmaster: p@example.com\n", "", ""},
		{"rules", "replies: {rules_file: rules.yaml}\n", "- {name: mine, class: policy, means: m, text: [x]}\n", ""},
		{"bad rules", "replies: {rules_file: rules.yaml}\n", "- {name: mine, class: policy, means: m, text: [x]}\n- {name: mine, class: policy, means: m, text: [x]}\n", "rules.yaml:2: replies.rules_file: the name \"mine\" is taken by the rule in line 1"},
		{"no rules file", "replies: {rules_file: rules.yaml}\n", "", "waybill.yaml:6: replies.rules_file: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			name := filepath.Join(dir, "waybill.yaml")
			for file, text := range map[string]string{name: base + test.add, filepath.Join(dir, "rules.yaml"): test.file} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c, problems := Load(name)
			if test.want != "" {
				if !problems.Errors() || !strings.Contains(problems.Error(), test.want) {
					t.Errorf("problems %v, want %q", problems, test.want)
				}
				return
			}
			if c == nil {
				t.Fatal(problems)
			}
			rules, err := c.Replies.Rules()
			if n := len(rules.List()) - len(failure.Default().List()); err != nil || n != strings.Count(test.file, "name:") {
				t.Errorf("%d rules of one's own, %v", n, err)
			}
			if test.add == "" && (c.Reports.Strangers != string(backscatter.UnlessForged) || c.Reports.DoubleBounces != "drop") {
				t.Errorf("defaults %+v", c.Reports)
			}
		})
	}
}
