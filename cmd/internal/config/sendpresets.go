package config

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// builtinPresets is what is known of services that take mail of others. It is
// data, because it changes without the program.
//
//go:embed presets.yaml
var builtinPresets []byte

// SendPreset is a service: the defaults of a send connector to it.
type SendPreset struct {
	Title    string            `yaml:"title"`
	Settings yaml.Node         `yaml:"settings"` // a part of a send connector
	Needs    map[string]string `yaml:"needs"`    // keys that the operator gives, and hints
	Wants    map[string]string `yaml:"wants"`    // keys without which there is a warning, which they say
	Sources  []string          `yaml:"sources"`
	Notes    []string          `yaml:"notes"`
}

// SendPresets is a file of them.
type SendPresets struct {
	Version int                   `yaml:"version"`
	Checked string                `yaml:"checked"` // when somebody last looked whether it is so
	Presets map[string]SendPreset `yaml:"presets"`
}

// BuiltinPresets is the file of presets that the program brings.
func BuiltinPresets() []byte { return slices.Clone(builtinPresets) }

// parsePresets reads a file of presets, and tries each.
func parsePresets(data []byte) (*SendPresets, error) {
	var list SendPresets
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	dec.KnownFields(true)
	if err := dec.Decode(&list); err != nil {
		return nil, errors.New(strings.ReplaceAll(strings.TrimPrefix(err.Error(), "yaml: "), "\n", ";"))
	}
	if list.Version != 1 {
		return nil, fmt.Errorf("version %d is not known; want 1", list.Version)
	}
	for _, name := range slices.Sorted(maps.Keys(list.Presets)) {
		var s SendConnector
		if err := list.Presets[name].apply(&s); err != nil {
			return nil, fmt.Errorf("presets.%s.settings: %w", name, err)
		}
	}
	return &list, nil
}

// apply makes s a connector with the defaults of the preset.
func (p SendPreset) apply(s *SendConnector) error {
	*s = NewSendConnector()
	if p.Settings.Kind == 0 {
		return nil
	}
	d := decoder{problems: collector{positions: map[string]position{}}}
	// Not by value, which would ask for the keys that every connector needs.
	v := reflect.ValueOf(s).Elem()
	fields := fieldsOf(v.Type())
	if p.Settings.Kind != yaml.MappingNode {
		return errors.New("want keys with values")
	}
	for i := 0; i+1 < len(p.Settings.Content); i += 2 {
		key := p.Settings.Content[i].Value
		field, ok := fields[key]
		if !ok || key == "name" || key == "preset" {
			return fmt.Errorf("%q is no key of a send connector that a preset may have", clip(key))
		}
		d.value(p.Settings.Content[i+1], v.FieldByIndex(field.Index), key, field.Tag, 1)
	}
	if len(d.problems.list) > 0 {
		first := d.problems.list[0]
		return fmt.Errorf("%s: %s", first.Path, first.What)
	}
	return nil
}

// readPresets finds the presets of the file that is about to be read.
func (d *decoder) readPresets(root *yaml.Node) {
	data := builtinPresets
	if name, node := presetsFile(root); name != "" {
		if !filepath.IsAbs(name) {
			name = filepath.Join(d.dir, name)
		}
		own, err := os.ReadFile(name) //nolint:gosec // a file that the configuration names
		if err == nil && len(own) > maxFile {
			err = errors.New("the file is too large")
		}
		if err != nil {
			what, hint := readable(name)
			if what == "" {
				what = plain(err)
			}
			d.problems.add(Problem{Line: node.Line, Column: node.Column, Path: "presets_file", What: what, Hint: hint})
			own = builtinPresets
		}
		if _, err := parsePresets(own); err != nil {
			d.problems.add(Problem{Line: node.Line, Column: node.Column, Path: "presets_file", What: err.Error()})
			own = builtinPresets
		}
		data = own
	}
	list, err := parsePresets(data)
	if err != nil { // the builtin ones: a test reads them
		panic("presets: " + err.Error())
	}
	d.presets = list
}

func presetsFile(root *yaml.Node) (name string, node *yaml.Node) {
	for i := 0; root.Kind == yaml.MappingNode && i+1 < len(root.Content); i += 2 {
		if n := root.Content[i+1]; root.Content[i].Value == "presets_file" && n.Kind == yaml.ScalarNode {
			return n.Value, n
		}
	}
	return "", nil
}

// sendPreset makes a send connector that names a preset what the preset says.
func (d *decoder) sendPreset(n *yaml.Node, s *SendConnector) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	for i := 0; n != nil && n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value != "preset" || d.presets == nil {
			continue
		}
		if p, ok := d.presets.Presets[n.Content[i+1].Value]; ok {
			_ = p.apply(s) // it was tried when it was read
			// A copy, so that connectors share nothing.
			s.SmartHosts = slices.Clone(s.SmartHosts)
		}
	}
}

// checkPresets asks for what presets need.
func checkPresets(c *Config, p *collector) {
	if c.presets == nil {
		return
	}
	for i := range c.Send {
		s := &c.Send[i]
		if s.Preset == "" {
			continue
		}
		path := fmt.Sprintf("send_connectors[%d]", i)
		preset, ok := c.presets.Presets[s.Preset]
		if !ok {
			p.errorf(path+".preset", "", "%q is none of %s", clip(s.Preset), strings.Join(slices.Sorted(maps.Keys(c.presets.Presets)), ", "))
			continue
		}
		for key, hint := range preset.Needs {
			if f, ok := find(reflect.ValueOf(*s), key); ok && f.IsZero() && !s.replaced(key) {
				p.errorf(path+"."+key, hint, "the preset %s needs it", s.Preset)
				p.broken[path+"."+key] = true // nobody need say it again
				if key == "auth.tenant" {
					p.broken[path+".auth.token_url"] = true
				}
			}
		}
		for key, why := range preset.Wants {
			if f, ok := find(reflect.ValueOf(*s), key); ok && f.IsZero() {
				p.warnf(path+"."+key, "", "%s", why)
			}
		}
	}
}

// replaced reports whether a key of a preset's login is not needed because the
// connector logs in in another way.
func (s *SendConnector) replaced(key string) bool {
	switch key {
	case "auth.tenant":
		return s.Auth.TokenURL != "" || s.Auth.Mechanism != "XOAUTH2"
	case "auth.client_id":
		return s.Auth.Mechanism != "XOAUTH2"
	case "auth.username":
		return s.Auth.Mechanism == "none" || s.Auth.CacheFile != ""
	}
	return false
}

// find is the field with a key such as auth.username.
func find(v reflect.Value, key string) (reflect.Value, bool) {
	first, rest, more := strings.Cut(key, ".")
	field, ok := fieldsOf(v.Type())[first]
	if !ok {
		return reflect.Value{}, false
	}
	f := v.FieldByIndex(field.Index)
	if more && f.Kind() == reflect.Struct {
		return find(f, rest)
	}
	return f, !more
}

// PresetNames lists the presets that the program brings.
func PresetNames() []string {
	list, err := parsePresets(builtinPresets)
	if err != nil { // a test reads them
		panic("presets: " + err.Error())
	}
	return slices.Sorted(maps.Keys(list.Presets))
}
