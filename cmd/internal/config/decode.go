package config

import (
	"encoding"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"waybill/relay/auth"
)

// Bounds of a file: aliases can make a small file a large tree, or an endless
// one.
const (
	maxNodes = 100_000
	maxDepth = 32
)

// decoder reads a YAML tree into a Config. Unlike the package's own decoder it
// goes on after a problem, and knows where each key stands.
type decoder struct {
	dir      string // what relative file names are relative to
	problems collector
	nodes    int
	presets  *SendPresets
}

// preset is a struct whose defaults depend on what the file says in it.
type preset interface{ preset(usage string) }

// scalar is a struct that may be written as one word.
type scalar interface{ setScalar(word string) }

var (
	textType   = reflect.TypeFor[encoding.TextUnmarshaler]()
	secretType = reflect.TypeFor[auth.Secret]()
	atLine     = regexp.MustCompile(`^line (\d+): `)
)

func (d *decoder) document(data []byte, into *Config) {
	doc, err := unmarshal(data)
	if err != nil {
		d.problems.syntax = true
		what := strings.TrimPrefix(err.Error(), "yaml: ")
		p := Problem{What: what}
		if m := atLine.FindStringSubmatch(what); m != nil {
			p.Line, _ = strconv.Atoi(m[1])
			p.What = strings.TrimPrefix(what, m[0])
		}
		p.What = "not valid YAML: " + clip(p.What)
		if strings.Contains(string(data), "\t") {
			p.Hint = "YAML is indented with spaces, never with tabs"
		}
		d.problems.add(p)
		return
	}
	if doc.Kind == 0 || len(doc.Content) == 0 {
		return // an empty file
	}
	if root := doc.Content[0]; root.Kind != yaml.MappingNode && !null(root) {
		d.problems.syntax = true
		d.problems.add(Problem{Line: root.Line, Column: root.Column, What: "want keys with values, such as hostname: mx1.example.com"})
		return
	}
	d.readPresets(doc.Content[0])
	into.presets = d.presets
	d.value(doc.Content[0], reflect.ValueOf(into).Elem(), "", "", 0)
}

// value reads n into v. The tag is the one of the struct field that v belongs to.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string, tag reflect.StructTag, depth int) {
	n = d.resolve(n, path, depth)
	if n == nil || null(n) {
		return // "key:" alone leaves the default
	}
	d.problems.positions[path] = position{n.Line, n.Column}
	if v.Type() == secretType || reflect.PointerTo(v.Type()).Implements(textType) || v.Kind() != reflect.Struct && v.Kind() != reflect.Slice && v.Kind() != reflect.Map {
		if text, ok := d.scalar(n, path); ok {
			d.set(n, v, text, path, tag)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if s, ok := reflect.TypeAssert[scalar](v.Addr()); ok && n.Kind == yaml.ScalarNode {
			if text, ok := d.scalar(n, path); ok {
				s.setScalar(text)
			}
			return
		}
		if d.want(n, yaml.MappingNode, path) {
			d.mapping(n, v, path, depth)
		}
	case reflect.Slice:
		if !d.want(n, yaml.SequenceNode, path) {
			return
		}
		list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, item := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			if null(item) {
				d.problems.add(Problem{Line: item.Line, Column: item.Column, Path: at, What: "empty"})
			}
			if p, ok := reflect.TypeAssert[preset](list.Index(i).Addr()); ok {
				p.preset(usageOf(item))
			}
			if s, ok := reflect.TypeAssert[*SendConnector](list.Index(i).Addr()); ok {
				d.sendPreset(item, s)
			}
			d.value(item, list.Index(i), at, tag, depth+1)
		}
		v.Set(list)
	case reflect.Map:
		if d.want(n, yaml.MappingNode, path) {
			d.table(n, v, path, depth)
		}
	}
}

// null reports whether a node is no value.
func null(n *yaml.Node) bool {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null" && n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) == 0
}

// resolve follows an alias, and guards against trees without an end.
func (d *decoder) resolve(n *yaml.Node, path string, depth int) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if d.nodes++; n == nil || d.nodes > maxNodes || depth > maxDepth {
		if d.nodes <= maxNodes+1 {
			d.problems.errorf(path, "", "the file is too large or too deep, or refers to itself")
		}
		return nil
	}
	return n
}

func (d *decoder) want(n *yaml.Node, kind yaml.Kind, path string) bool {
	if n.Kind == kind {
		return true
	}
	names := map[yaml.Kind]string{yaml.MappingNode: "keys with values", yaml.SequenceNode: "a list", yaml.ScalarNode: "one value"}
	hint := ""
	if kind == yaml.SequenceNode && n.Kind == yaml.ScalarNode {
		hint = fmt.Sprintf("write [%q]", clip(n.Value))
	}
	d.problems.errorf(path, hint, "want %s, got %s", names[kind], names[n.Kind])
	return false
}

// mapping reads the keys of a struct.
func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string, depth int) {
	fields := fieldsOf(v.Type())
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		at := join(path, key.Value)
		here := Problem{Line: key.Line, Column: key.Column, Path: at}
		if first, dup := seen[key.Value]; dup {
			here.What = fmt.Sprintf("the key is there already, in line %d", first)
			d.problems.add(here)
			continue
		}
		seen[key.Value] = key.Line
		field, ok := fields[key.Value]
		if !ok {
			d.unknown(here, key.Value, val, path, fields)
			continue
		}
		d.value(val, v.FieldByIndex(field.Index), at, field.Tag, depth+1)
	}
	for name, field := range fields {
		if _, given := seen[name]; field.Tag.Get("required") != "" && (!given || v.FieldByIndex(field.Index).IsZero()) {
			d.problems.add(Problem{Line: n.Line, Column: n.Column, Path: join(path, name), What: "this key is needed", Hint: field.Tag.Get("doc")})
		}
	}
}

// unknown says what an unknown key may have meant to be.
func (d *decoder) unknown(p Problem, key string, val *yaml.Node, path string, fields map[string]reflect.StructField) {
	if what, ok := future[pattern(join(path, key))]; ok {
		if !neutral(val, 0) {
			p.What, p.Hint = "not supported yet: "+what, "remove the key"
			d.problems.add(p)
		}
		return
	}
	p.What = "unknown key"
	switch guess := nearest(key, fields); {
	case key == "<<":
		p.What, p.Hint = "merge keys are not supported", "write the keys out"
	case guess != "":
		p.Hint = fmt.Sprintf("did you mean %s?", guess)
	default:
		names := make([]string, 0, len(fields))
		for name := range fields {
			names = append(names, name)
		}
		slices.Sort(names)
		p.Hint = "known here: " + strings.Join(names, ", ")
	}
	d.problems.add(p)
}

// table reads a map of structs by name.
func (d *decoder) table(n *yaml.Node, v reflect.Value, path string, depth int) {
	m := reflect.MakeMap(v.Type())
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		at := join(path, key.Value)
		name := reflect.ValueOf(key.Value)
		if m.MapIndex(name).IsValid() {
			d.problems.add(Problem{Line: key.Line, Column: key.Column, Path: at, What: "the name is there already"})
			continue
		}
		if null(n.Content[i+1]) {
			d.problems.add(Problem{Line: key.Line, Column: key.Column, Path: at, What: "empty"})
		}
		item := reflect.New(v.Type().Elem()).Elem()
		if p, ok := reflect.TypeAssert[preset](item.Addr()); ok {
			p.preset("")
		}
		d.value(n.Content[i+1], item, at, "", depth+1)
		m.SetMapIndex(name, item)
	}
	v.Set(m)
}

var variable = regexp.MustCompile(`\$\$|\$\{([^}]*)\}?`)

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// scalar is the text of n with its variables replaced: ${NAME} from the
// environment, and $$ for a dollar sign. It is done after the YAML is read, so
// that no variable can add keys.
func (d *decoder) scalar(n *yaml.Node, path string) (string, bool) {
	if !d.want(n, yaml.ScalarNode, path) {
		return "", false
	}
	ok := true
	text := variable.ReplaceAllStringFunc(n.Value, func(found string) string {
		if found == "$$" {
			return "$"
		}
		name := strings.TrimSuffix(strings.TrimPrefix(found, "${"), "}")
		if !strings.HasSuffix(found, "}") || !variableName.MatchString(name) {
			d.problems.errorf(path, "write ${NAME}, or $$ for a dollar sign", "malformed variable")
			ok = false
			return ""
		}
		val, set := os.LookupEnv(name)
		if !set {
			d.problems.errorf(path, "set it, or write $$ for a dollar sign", "the environment variable %s is not set", name)
			ok = false
		}
		return val
	})
	if n.Value != text {
		d.problems.hide(text, n.Value)
	}
	if ok && strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		d.problems.errorf(path, "", "the value has a control character")
		return "", false
	}
	return text, ok
}

// set puts text into v and checks it against the field's tag. Problems quote
// the file, not the environment.
func (d *decoder) set(n *yaml.Node, v reflect.Value, text, path string, tag reflect.StructTag) {
	if v.Type() == secretType {
		v.Set(reflect.ValueOf(auth.NewSecret(text)))
		return
	}
	if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			d.problems.errorf(path, "", "%v", err)
		}
		return
	}
	switch v.Kind() {
	case reflect.String:
		if words := tag.Get("enum"); words != "" && !slices.Contains(strings.Split(words, ","), text) {
			if slices.Contains(strings.Split(tag.Get("future"), ","), text) && text != "" {
				d.problems.errorf(path, "", "not supported yet: %s", text)
				return
			}
			d.problems.errorf(path, "", "%q is none of %s", clip(n.Value), strings.ReplaceAll(words, ",", ", "))
			return
		}
		if tag.Get("file") != "" && text != "" && !filepath.IsAbs(text) {
			text = filepath.Join(d.dir, text)
		}
		v.SetString(text)
	case reflect.Bool:
		if text != "true" && text != "false" {
			d.problems.errorf(path, "", "%q is neither true nor false", clip(n.Value))
			return
		}
		v.SetBool(text == "true")
	case reflect.Int:
		low, _ := strconv.Atoi(tag.Get("min"))
		high, _ := strconv.Atoi(tag.Get("max"))
		i, err := strconv.Atoi(text)
		if err != nil || i < low || i > high {
			d.problems.errorf(path, "", "%q is not a number from %d to %d", clip(n.Value), low, high)
			return
		}
		v.SetInt(int64(i))
	}
}

// fieldsOf lists the fields of a struct by their keys.
func fieldsOf(t reflect.Type) map[string]reflect.StructField {
	fields := map[string]reflect.StructField{}
	for f := range t.Fields() {
		if key := f.Tag.Get("yaml"); key != "" {
			fields[key] = f
		}
	}
	return fields
}

// usageOf is the word that chooses a connector's preset.
func usageOf(n *yaml.Node) string {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	for i := 0; n != nil && i+1 < len(n.Content) && n.Kind == yaml.MappingNode; i += 2 {
		if n.Content[i].Value == "usage" {
			return n.Content[i+1].Value
		}
	}
	return ""
}

func join(path, key string) string {
	if path == "" {
		return clip(key)
	}
	return path + "." + clip(key)
}

// nearest is the known key that key is most likely a slip of, or empty.
func nearest(key string, fields map[string]reflect.StructField) string {
	best, least := "", 3
	if len(key) <= 4 {
		least = 2
	}
	for name := range fields {
		dist := distance(key, name)
		if strings.ReplaceAll(strings.ToLower(key), "-", "_") == name {
			dist = 0
		}
		if dist < least || dist == least && best != "" && name < best {
			best, least = name, dist
		}
	}
	return best
}

// distance counts the letters to insert, delete, change or swap between a and b
// (Levenshtein, with swaps).
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
