package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"waybill/cmd/internal/config"
	"waybill/relay/backoff"
	"waybill/relay/failure"
)

func checkCmd(e *env) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check a configuration; name every problem with its line",
		Long: `Reads the configuration and the files that it names, and prints every problem
as FILE:LINE: path: what is wrong (hint). Refuses a configuration that would be
an open relay. Exit code 1 when there are errors; warnings alone are none.`,
		Example: "  waybill check --config waybill.yaml",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, problems := config.Load(path)
			if e.format != "table" {
				t := newTable("FILE", "LINE", "PATH", "LEVEL", "PROBLEM", "HINT")
				rows := []problem{}
				for _, p := range problems {
					row := problem{p.File, p.Line, p.Column, p.Path, problemLevel(p), p.What, p.Hint}
					rows = append(rows, row)
					t.add(row.File, fmt.Sprint(row.Line), row.Path, row.Level, row.Problem, row.Hint)
				}
				if err := render(e, rows, rows, t); err != nil {
					return err
				}
			} else {
				e.problems(problems)
				if cfg != nil {
					fmt.Fprintf(e.out, "%s is good: %s, %s, revision %s\n", path, count(len(cfg.Receive), "receive connector"), count(len(cfg.Send), "send connector"), cfg.Revision())
				}
			}
			if problems.Errors() {
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
	configFlag(cmd, &path)
	return cmd
}

// problem is one line of check's answer.
type problem struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Path    string `json:"path,omitempty"`
	Level   string `json:"level"` // error, warning
	Problem string `json:"problem"`
	Hint    string `json:"hint,omitempty"`
}

func problemLevel(p config.Problem) string {
	if p.Warning {
		return "warning"
	}
	return "error"
}

func configCmd(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show, explain and begin a configuration",
		Example: `  waybill config example > waybill.yaml
  waybill config show --config waybill.yaml
  waybill config doc | less`,
	}
	var path string
	show := &cobra.Command{
		Use:     "show",
		Short:   "The effective configuration, defaults included, secrets masked",
		Example: "  waybill config show --config waybill.yaml",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, problems := config.Load(path)
			e.problems(problems)
			if problems.Errors() {
				return &exitError{code: exitNo}
			}
			return cfg.Write(e.out)
		},
	}
	configFlag(show, &path)
	return group(cmd, show,
		&cobra.Command{
			Use: "doc", Short: "The reference of all keys", Example: "  waybill config doc | less", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return config.Reference(e.out) },
		},
		&cobra.Command{
			Use: "example", Short: "A commented example", Example: "  waybill config example > waybill.yaml", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				_, err := io.WriteString(e.out, config.Example())
				return err
			},
		},
		&cobra.Command{
			Use: "backoff", Short: "The replies by which next hops ask for less mail", Args: cobra.NoArgs,
			Long: `Prints the rules by which mail to a next hop is slowed down when that asks for it,
with what their keys mean. backoff.rules_file names a file with more of them.`,
			Example: "  waybill config backoff | less",
			RunE: func(*cobra.Command, []string) error {
				_, err := io.WriteString(e.out, backoff.Shipped())
				return err
			},
		},
		&cobra.Command{
			Use: "replies", Short: "What the replies of next hops mean", Args: cobra.NoArgs,
			Long: `Prints the rules by which replies are understood: class, whether the failure
lasts, and who must act. replies.rules_file names a file with more of them, and
"waybill reply explain" tries one.`,
			Example: "  waybill config replies | less",
			RunE: func(*cobra.Command, []string) error {
				_, err := io.WriteString(e.out, failure.Shipped())
				return err
			},
		},
		&cobra.Command{
			Use: "presets", Short: "The presets of send connectors, with their sources, as presets_file takes them", Example: "  waybill config presets > presets.yaml", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				_, err := e.out.Write(config.BuiltinPresets())
				return err
			},
		},
		tokenCmd(e))
}

// tokenCmd makes a token and the line for http.tokens_file.
func tokenCmd(e *env) *cobra.Command {
	var role string
	cmd := &cobra.Command{
		Use:   "token NAME",
		Short: "Make an API token and its entry for http.tokens_file",
		Long: `Prints a new token on standard output, once, and on standard error the entry
for the file that http.tokens_file names: it has only the token's hash.`,
		Example: `  waybill config token grafana --role viewer
  waybill config token ops --role operator > ops.token`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			var r config.Role
			if err := r.UnmarshalText([]byte(role)); err != nil {
				return usageError{err}
			}
			token, hash := config.NewToken()
			e.note("The token, shown this once:")
			fmt.Fprintln(e.out, token.Expose())
			fmt.Fprintf(e.err, "Its entry in http.tokens_file:\n- name: %q\n  role: %s\n  token_sha256: %s\n", args[0], r, hash)
			return nil
		},
	}
	cmd.Flags().StringVar(&role, "role", "viewer", "viewer, operator or admin")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"viewer", "operator", "admin"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
