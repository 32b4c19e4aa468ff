package config

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// Write writes the configuration as it is in use, with all defaults. Secrets
// are masked.
func (c *Config) Write(w io.Writer) error {
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(node(reflect.ValueOf(c).Elem(), 0)), enc.Close()); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// Revision names the configuration: two that mean the same have the same one.
// Secrets have no part in it, because it is public.
func (c *Config) Revision() string {
	var b bytes.Buffer
	if err := c.Write(&b); err != nil {
		return "unknown"
	}
	sum := sha256.Sum256(b.Bytes())
	return hex.EncodeToString(sum[:6])
}

// node is v as YAML, in the order of the struct's fields. Short structs within
// lists are written in one line.
func node(v reflect.Value, depth int) *yaml.Node {
	if m, ok := reflect.TypeAssert[encoding.TextMarshaler](v); ok {
		text, err := m.MarshalText()
		if err != nil {
			text = []byte(err.Error())
		}
		return word(string(text))
	}
	switch v.Kind() {
	case reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for f := range v.Type().Fields() {
			if key := f.Tag.Get("yaml"); key != "" {
				n.Content = append(n.Content, word(key), node(v.FieldByIndex(f.Index), depth+1))
			}
		}
		if depth > 2 && !slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return c.Kind != yaml.ScalarNode }) && len(n.Content) <= 6 {
			n.Style = yaml.FlowStyle
		}
		return n
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			n.Content = append(n.Content, node(v.Index(i), depth+1))
		}
		if !slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return c.Kind != yaml.ScalarNode }) {
			n.Style = yaml.FlowStyle
		}
		return n
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int {
			if a.String() < b.String() {
				return -1
			}
			return 1
		})
		for _, key := range keys {
			n.Content = append(n.Content, word(key.String()), node(v.MapIndex(key), depth+1))
		}
		return n
	case reflect.Bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(v.Bool())}
	case reflect.Int:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.FormatInt(v.Int(), 10)}
	}
	return word(v.String())
}

// word is a string that is read back as the same string: a dollar sign is
// doubled, and what YAML would take for something else is quoted.
func word(s string) *yaml.Node {
	var n yaml.Node
	n.SetString(string(bytes.ReplaceAll([]byte(s), []byte("$"), []byte("$$"))))
	return &n
}
