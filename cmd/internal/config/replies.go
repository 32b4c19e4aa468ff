package config

import (
	"errors"
	"fmt"
	"os"

	"waybill/relay/failure"
)

// Replies is how replies of next hops are understood.
type Replies struct {
	RulesFile string `yaml:"rules_file" file:"true" doc:"YAML file of rules that say what replies mean: class, whether the failure lasts, who must act; asked before those that come with the program, which \"waybill config replies\" prints. \"waybill reply explain\" tries one"`
}

// Rules are the rules in the order in which they are asked. An error of the
// file is [failure.Problems].
func (r *Replies) Rules() (failure.Rules, error) {
	rules := failure.Default()
	if r.RulesFile == "" {
		return rules, nil
	}
	data, err := os.ReadFile(r.RulesFile)
	if err != nil {
		return failure.Rules{}, fmt.Errorf("replies.rules_file: %w", err)
	}
	own, err := failure.Parse(data)
	if err != nil {
		return failure.Rules{}, fmt.Errorf("replies.rules_file: %w", err)
	}
	return rules.With(own), nil
}

// checkReplies checks the operator's rules. What is wrong in their file is told
// with its line there.
func checkReplies(c *Config, p *collector) {
	_, err := c.Replies.Rules()
	if err == nil {
		return
	}
	if problems, ok := errors.AsType[failure.Problems](err); ok {
		for _, pr := range problems {
			p.add(Problem{File: c.Replies.RulesFile, Line: pr.Line, Path: "replies.rules_file", What: pr.What, Hint: pr.Hint})
		}
		return
	}
	what, hint := readable(c.Replies.RulesFile)
	if what == "" {
		what = plain(err)
	}
	p.errorf("replies.rules_file", hint, "%s", what)
}
