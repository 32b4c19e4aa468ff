package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"waybill/relay/backoff"
)

func TestBackoffRules(t *testing.T) {
	const base = "hostname: mx1.example.com\nreceive_connectors:\n  - {name: in, usage: internal, listen: [\"127.0.0.1:2525\"], remote_ranges: [\"127.0.0.1\"]}\nsend_connectors:\n  - {name: out, address_spaces: [{space: \"*\"}]}\n"
	shipped := len(backoff.Default())
	for _, test := range []struct {
		name  string
		add   string
		rules string // of the file, or empty when there is none
		want  int    // rules
		fails string
	}{
		{"those that come with the program", "", "", shipped, ""},
		{"off", "backoff: {mode: off}\n", "", 0, ""},
		{"with a file", "backoff: {rules_file: rules.yaml}\n", "- {name: mine, do: pause, code: [451], text: go away}\n", shipped + 1, ""},
		{"one replaced", "backoff: {rules_file: rules.yaml}\n", "- {name: busy, do: none, code: [421]}\n", shipped, ""},
		{"no such file", "backoff: {rules_file: rules.yaml}\n", "", 0, "backoff.rules_file"},
		{"bad file", "backoff: {rules_file: rules.yaml}\n", "- {name: mine, do: panic, code: [451]}\n", 0, `rule 1 ("mine"): do: "panic"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			name := filepath.Join(dir, "waybill.yaml")
			if err := os.WriteFile(name, []byte(base+test.add), 0o600); err != nil {
				t.Fatal(err)
			}
			if test.rules != "" {
				if err := os.WriteFile(filepath.Join(dir, "rules.yaml"), []byte(test.rules), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c, problems := Load(name)
			if test.fails != "" {
				if c != nil || !strings.Contains(problems.Error(), test.fails) {
					t.Errorf("problems %v, want one with %q", problems, test.fails)
				}
				return
			}
			if c == nil {
				t.Fatal(problems)
			}
			rules, err := c.Backoff.Rules()
			if err != nil || len(rules) != test.want {
				t.Errorf("%d rules, %v; want %d", len(rules), err, test.want)
			}
		})
	}
}
