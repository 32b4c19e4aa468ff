package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "rewrite docs/reference/cli.md")

// TestReference holds docs/reference/cli.md to the commands.
func TestReference(t *testing.T) {
	got := reference(plainRoot(t))
	path := filepath.Join("..", "..", "docs", "reference", "cli.md")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Error("docs/reference/cli.md is out of date: run make docs")
	}
}

// plainRoot is the root command with the defaults of an empty environment.
func plainRoot(t *testing.T) *cobra.Command {
	t.Helper()
	for _, name := range []string{"WAYBILL_API", "WAYBILL_TOKEN_FILE", "WAYBILL_CONFIG", "WAYBILL_USERS", "NO_COLOR"} {
		t.Setenv(name, "")
	}
	root := newRoot(&env{})
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	return root
}

// walk calls f for every command that people see.
func walk(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			walk(c, f)
		}
	}
}

func reference(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString(`# Command line

Generated from the commands by ` + "`make docs`" + `; ` + "`waybill help COMMAND`" + ` says the same.

| exit code | means |
|---|---|
| 0 | yes, or done |
| 1 | a negative answer: not found, invalid, not relayed, failed |
| 2 | a mistake in the command line |
| 3 | no daemon at ` + "`--api`" + `, or no server at ` + "`--server`" + ` |

Answers go to standard output, and what is said beside them to standard error.
Tables are for people: they fit the terminal (or ` + "`COLUMNS`" + `) and shorten what does
not. ` + "`-o json`" + ` is the API's own answer, ` + "`-o jsonl`" + ` one line for each row, and
` + "`-o csv`" + ` is for spreadsheets: octets, seconds and RFC 3339 times. A cell that a
spreadsheet would compute begins with an apostrophe.

## Flags of every command

`)
	flags(&b, root.PersistentFlags())
	walk(root, func(c *cobra.Command) {
		if c == root || c.Name() == "help" || c.HasParent() && c.Parent().Name() == "completion" {
			return
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s.\n", c.CommandPath(), strings.TrimSuffix(c.Short, "."))
		if c.Long != "" && c.Name() != "completion" {
			fmt.Fprintf(&b, "\n%s\n", strings.TrimSpace(c.Long))
		}
		fmt.Fprintf(&b, "\n```\n%s\n```\n", strings.TrimSuffix(c.UseLine(), " [flags]"))
		if c.Example != "" {
			fmt.Fprintf(&b, "\nExamples:\n\n```sh\n%s\n```\n", strings.ReplaceAll(strings.TrimPrefix(c.Example, "  "), "\n  ", "\n"))
		}
		if c.LocalNonPersistentFlags().HasAvailableFlags() || c.PersistentFlags().HasAvailableFlags() {
			b.WriteString("\n")
			all := pflag.NewFlagSet("", pflag.ContinueOnError)
			all.AddFlagSet(c.PersistentFlags())
			all.AddFlagSet(c.LocalNonPersistentFlags())
			flags(&b, all)
		}
	})
	return b.String()
}

func flags(b *strings.Builder, set *pflag.FlagSet) {
	b.WriteString("| flag | default | |\n|---|---|---|\n")
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		kind, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if kind != "" {
			name += " " + kind
		}
		def := f.DefValue
		switch {
		case def == "false" || def == "0" || def == "0s" || def == "[]":
			def = ""
		case def != "":
			def = "`" + def + "`"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", name, def, strings.ReplaceAll(usage, "|", "\\|"))
	})
}

// TestEveryCommandHelps wants of every command a summary, an example that is one
// of its own, flags that say what they are for, and help that can be shown.
func TestEveryCommandHelps(t *testing.T) {
	walk(plainRoot(t), func(c *cobra.Command) {
		t.Run(c.CommandPath(), func(t *testing.T) {
			if c.Short == "" && c.Long == "" {
				t.Error("no summary")
			}
			own := c.Name() != "help" && c.Name() != "completion" && (!c.HasParent() || c.Parent().Name() != "completion")
			if own && c.HasParent() && c.Example == "" {
				t.Error("no example")
			}
			c.LocalFlags().VisitAll(func(f *pflag.Flag) {
				if f.Usage == "" {
					t.Errorf("--%s has no usage", f.Name)
				}
			})
			var out bytes.Buffer
			c.SetOut(&out)
			if err := c.Help(); err != nil || !strings.Contains(out.String(), "Usage:") {
				t.Errorf("help = %v, %q", err, out.String())
			}
			for line := range strings.Lines(out.String()) {
				if own && len([]rune(line)) > 180 {
					t.Errorf("a line of the help is %d wide: %s", len([]rune(line)), line)
				}
			}
		})
	})
}

// TestExamplesParse runs every example up to the point where it would act.
func TestExamplesParse(t *testing.T) {
	var examples []string
	walk(plainRoot(t), func(c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			examples = append(examples, strings.TrimSpace(line))
		}
	})
	for _, line := range examples {
		t.Run(line, func(t *testing.T) {
			_, command, ok := strings.Cut(" "+line, " waybill ")
			if !ok {
				t.Fatal("an example without waybill")
			}
			command, _, _ = strings.Cut(command, " | ")
			command, _, _ = strings.Cut(command, " > ")
			cmd, args, err := plainRoot(t).Find(words(command))
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.ParseFlags(args); err != nil {
				t.Fatal(err)
			}
			if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
				t.Error(err)
			}
			if err := cmd.ValidateRequiredFlags(); err != nil {
				t.Error(err)
			}
			if !cmd.Runnable() || cmd.HasSubCommands() {
				t.Errorf("%s is not a command that does something", cmd.CommandPath())
			}
		})
	}
}

// words splits a line as a shell does, for quotes and spaces.
func words(line string) []string {
	var list []string
	var word strings.Builder
	quote, any := rune(0), false
	for _, r := range line + " " {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote, any = r, true
		case quote == 0 && r == ' ':
			if any || word.Len() > 0 {
				list = append(list, word.String())
			}
			word.Reset()
			any = false
		default:
			word.WriteRune(r)
		}
	}
	return list
}
