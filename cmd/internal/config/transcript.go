package config

import (
	"fmt"
	"strings"

	"waybill/relay/policy"
	"waybill/relay/transcript"
)

// Transcript says which sessions' conversations are kept. The short form is the
// mode alone.
type Transcript struct {
	Mode string         `yaml:"mode" type:"off, failures, all, or a share" doc:"which sessions' conversations are kept: none, those that failed or were slow, all, or those that failed and a share of the others, such as 0.01. \"transcript: all\" is short for \"transcript: {mode: all}\""`
	Also TranscriptAlso `yaml:"also" doc:"conversations that are kept besides"`
}

// TranscriptAlso names conversations that are kept whatever the mode.
type TranscriptAlso struct {
	ClientIP []string `yaml:"client_ip" doc:"those of these addresses and networks, whatever the mode"`
	User     []string `yaml:"user" doc:"those of these logins, whatever the mode"`
	Sender   []string `yaml:"sender" doc:"those with one of these senders, whatever the mode: an address, \"@example.com\", or a pattern with \"*\""`
}

// SendTranscript says which attempts' conversations are kept.
type SendTranscript struct {
	Mode string             `yaml:"mode" type:"off, failures, all, or a share" doc:"which attempts' conversations are kept: none, those that failed, were slow or have an uncertain end, all, or those that failed and a share of the others, such as 0.01. \"transcript: all\" is short for \"transcript: {mode: all}\""`
	Also SendTranscriptAlso `yaml:"also" doc:"conversations that are kept besides"`
}

// SendTranscriptAlso names attempts whose conversations are kept whatever the mode.
type SendTranscriptAlso struct {
	Sender []string `yaml:"sender" doc:"those for one of these senders, whatever the mode: an address, \"@example.com\", or a pattern with \"*\""`
}

// setScalar reads the short form.
func (t *Transcript) setScalar(word string) { t.Mode = word }

// setScalar reads the short form.
func (t *SendTranscript) setScalar(word string) { t.Mode = word }

// Rule is t as the relay takes it.
func (t *Transcript) Rule() (transcript.Rule, error) {
	rule := transcript.Rule{Mode: t.Mode, Users: t.Also.User, Senders: t.Also.Sender}
	for _, w := range t.Also.ClientIP {
		p, err := policy.ParseRange(w)
		if err != nil {
			return rule, err
		}
		rule.ClientIP = append(rule.ClientIP, p)
	}
	return rule, nil
}

// Rule is t as the relay takes it.
func (t *SendTranscript) Rule() transcript.Rule {
	return transcript.Rule{Mode: t.Mode, Senders: t.Also.Sender}
}

func checkTranscript(t *Transcript, p *collector, path string) {
	checkMode(t.Mode, p, path)
	for i, w := range t.Also.ClientIP {
		if _, err := policy.ParseRange(w); err != nil {
			p.errorf(fmt.Sprintf("%s.also.client_ip[%d]", path, i), "such as 192.0.2.7 or 192.0.2.0/24", "%q is neither an address nor a network", clip(w))
		}
	}
	for i, w := range t.Also.User {
		if strings.TrimSpace(w) == "" {
			p.errorf(fmt.Sprintf("%s.also.user[%d]", path, i), "", "empty")
		}
	}
	checkSenders(t.Also.Sender, p, path)
}

func checkMode(mode string, p *collector, path string) {
	if _, err := transcript.NewChooser(transcript.Rule{Mode: mode}); err == nil && mode != "" {
		return
	}
	if _, long := p.positions[path+".mode"]; long {
		path += ".mode"
	}
	p.errorf(path, "", "%q is none of off, failures, all, or a share from 0 to 1", clip(mode))
}

func checkSenders(list []string, p *collector, path string) {
	for i, w := range list {
		if w != "<>" && !strings.ContainsAny(w, "@*") {
			p.errorf(fmt.Sprintf("%s.also.sender[%d]", path, i), `such as ann@example.com, "@example.com" or "*@*.example.com"`, "%q is no address and no pattern", clip(w))
		}
	}
}
