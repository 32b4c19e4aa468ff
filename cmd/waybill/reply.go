package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"waybill/cmd/internal/config"
	"waybill/relay/failure"
	"waybill/relay/mail"
)

func replyCmd(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "reply",
		Short:   "What the replies of next hops mean",
		Example: `  waybill reply explain "550 5.7.1 Service unavailable; client blocked using zen.spamhaus.org"`,
	}
	return group(cmd, replyExplainCmd(e))
}

// explained is the answer of reply explain.
type explained struct {
	Reply       string `json:"reply"`
	Class       string `json:"class"`
	Rule        string `json:"class_rule"`
	Permanence  string `json:"permanence"`
	Explanation string `json:"explanation"`
}

func replyExplainCmd(e *env) *cobra.Command {
	var path, verb string
	cmd := &cobra.Command{
		Use:   "explain REPLY",
		Short: "Class and rule of a reply, whether the failure lasts, and who must act",
		Long: `Tries a reply of a next hop against the rules, as the daemon would. The reply is
what a log or a bounce shows, from its code on; "-" reads it from standard input.
With --config the rules of replies.rules_file are asked first. Needs no daemon.
Exit code 1 when no rule knows the reply.`,
		Example: `  waybill reply explain "550 5.1.1 No such user"
  waybill reply explain "554 5.2.2 mailbox submission quota exceeded" --verb .
  waybill reply explain --config waybill.yaml - < reply.txt`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			said := strings.Join(args, " ")
			if said == "-" {
				b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), 64<<10))
				if err != nil {
					return err
				}
				said = string(b)
			}
			reply, err := failure.ParseReply(said)
			if err != nil {
				return usageError{err}
			}
			rules := failure.Default()
			if cmd.Flags().Changed("config") {
				cfg, problems := config.Load(path)
				if problems.Errors() {
					e.problems(problems)
					return &exitError{code: exitNo}
				}
				if rules, err = cfg.Replies.Rules(); err != nil {
					return err
				}
			}
			o := mail.Outcome{Disposition: mail.Deferred, Reply: reply, Remote: true, Verb: strings.ToUpper(verb)}
			if reply.Code >= 500 {
				o.Disposition = mail.Bounced
			}
			m := rules.Explain(&o)
			x := explained{reply.String(), string(m.Class), m.Rule, string(m.Permanence), m.Explanation}
			t := newTable("CLASS", "RULE", "PERMANENCE", "EXPLANATION")
			t.add(x.Class, x.Rule, x.Permanence, x.Explanation)
			if e.format == "table" {
				fmt.Fprintf(e.out, "class        %s\nrule         %s\npermanence   %s\nexplanation  %s\n", x.Class, x.Rule, x.Permanence, x.Explanation)
			} else if err := render(e, x, []explained{x}, t); err != nil {
				return err
			}
			if m.Rule == failure.RuleUnknown {
				return &exitError{code: exitNo, hint: "teach it with a rule in replies.rules_file; \"waybill config replies\" prints rules to go by"}
			}
			return nil
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().StringVar(&verb, "verb", "RCPT", "`COMMAND` that was answered: CONNECT, EHLO, STARTTLS, AUTH, MAIL, RCPT, DATA, or . for the content")
	_ = cmd.RegisterFlagCompletionFunc("verb", cobra.FixedCompletions([]string{"CONNECT", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "."}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// meaning is what a failure means, for a terminal.
func (e *env) meaning(class, rule, permanence, explanation string) string {
	return e.paint("cyan", "→ "+clean(explanation)) + " " + e.paint("dim", whose(class, rule, permanence))
}

// whose says in brackets what decided about a failure.
func whose(class, rule, permanence string) string {
	var words []string
	for _, s := range []string{class, permanence} {
		if s != "" {
			words = append(words, s)
		}
	}
	if rule != "" {
		words = append(words, "rule "+rule)
	}
	return "(" + clean(strings.Join(words, ", ")) + ")"
}

// meanings are what failures mean, each once, in the order in which they came.
type meanings struct{ list []meant }

type meant struct{ class, rule, permanence, explanation string }

func (m *meanings) add(class, rule, permanence, explanation string) {
	if explanation != "" && !slices.ContainsFunc(m.list, func(have meant) bool { return have.explanation == explanation }) {
		m.list = append(m.list, meant{class, rule, permanence, explanation})
	}
}

// tellMeanings says under a table what the failures in it mean.
func (e *env) tellMeanings(m *meanings) error {
	if e.format != "table" {
		return nil
	}
	var b strings.Builder
	for _, why := range m.list {
		lines, brackets := wrap("→ "+clean(why.explanation), max(e.columns()-2, 30)), whose(why.class, why.rule, why.permanence)
		for i, line := range lines {
			if i > 0 {
				line = "\n  " + line
			}
			b.WriteString(e.paint("cyan", line))
		}
		if screen.StringWidth(lines[len(lines)-1])+3+screen.StringWidth(brackets) <= e.columns() {
			b.WriteByte(' ')
		} else {
			b.WriteString("\n  ")
		}
		b.WriteString(e.paint("dim", brackets) + "\n")
	}
	if b.Len() == 0 {
		return nil
	}
	_, err := io.WriteString(e.out, "\n"+b.String())
	return err
}

// whyHeads are the columns that say in a spreadsheet what stands under a table
// for people.
func (e *env) whyHeads() []string {
	if e.format == "csv" {
		return []string{"RULE", "EXPLANATION"}
	}
	return nil
}

// whyCells fill those columns.
func (e *env) whyCells(rule, explanation string) []string {
	if e.format == "csv" {
		return []string{rule, explanation}
	}
	return nil
}
