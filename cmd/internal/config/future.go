package config

import (
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// future are keys that are planned and have no effect yet. They are refused by
// name, because a key that is ignored is a promise that is not kept. A value
// that asks for nothing, such as an empty list, is accepted.
var future = map[string]string{
	"receive_connectors[].dkim":    "DKIM signing",
	"receive_connectors[].filters": "content filters",
	"dkim":                         "DKIM signing",
	"filters":                      "content filters",
	"cluster":                      "several nodes",
	"acme":                         "certificates by ACME",
}

// futureMechanisms are SASL mechanisms that are planned for clients.
var futureMechanisms = []string{}

// sendMechanisms are those that we can log in with at smart hosts.
var sendMechanisms = []string{"PLAIN", "LOGIN", "SCRAM-SHA-256", "XOAUTH2", "NTLM", "GSSAPI"}

var index = regexp.MustCompile(`\[\d+\]`)

// pattern is a path without its indexes: the form of the keys of future.
func pattern(path string) string { return index.ReplaceAllString(path, "[]") }

// neutral reports whether a value asks for nothing.
func neutral(n *yaml.Node, depth int) bool {
	if n == nil || depth > maxDepth {
		return false
	}
	switch n.Kind {
	case yaml.ScalarNode:
		switch strings.ToLower(n.Value) {
		case "", "~", "null", "none", "off", "false", "0":
			return true
		}
	case yaml.SequenceNode:
		return len(n.Content) == 0
	case yaml.MappingNode:
		for i := 1; i < len(n.Content); i += 2 {
			if !neutral(n.Content[i], depth+1) {
				return false
			}
		}
		return true
	}
	return false
}
