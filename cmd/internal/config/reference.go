package config

import (
	"encoding"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Reference writes the documentation of all keys as Markdown.
func Reference(w io.Writer) error {
	var b strings.Builder
	b.WriteString(`# Configuration reference

Generated from the program by ` + "`waybill config doc`" + `. One YAML file; unknown keys, duplicates and bad values are errors.

- Durations are whole numbers with units: ` + "`30s`, `5m`, `1h30m`, `30d`, `1w`" + `. Sizes too: ` + "`256KiB`, `36MiB`, `1GiB`" + `, or the decimal ` + "`kB`, `MB`, `GB`" + `.
- ` + "`${NAME}`" + ` in a value is replaced from the environment; a variable that is not set is an error. ` + "`$$`" + ` is a dollar sign.
- File names are relative to the configuration file.
- ` + "`key:`" + ` without a value leaves the default.

`)
	section(&b, "The file", reflect.ValueOf(*Default()), "")
	sub := Default()
	sub.Receive = []ReceiveConnector{NewReceiveConnector("custom")}
	domain, space, host, send := AcceptedDomain{}, Space{}, SmartHost{}, NewSendConnector()
	issuer := Issuer{}
	issuer.preset("")
	domain.preset("")
	dir := Directory{}
	dir.preset("")
	space.preset("")
	host.preset("")
	for _, s := range []struct {
		title, key string
		value      any
	}{
		{"Certificates", "certificates.NAME", Certificate{}},
		{"Directories", "directories.NAME", dir},
		{"Users", "users", sub.Users},
		{"Token issuers", "users.oauth.issuers[]", issuer},
		{"Client certificates", "users.certificates[]", ClientCertificate{}},
		{"Receive connectors", "receive_connectors[]", sub.Receive[0]},
		{"Pickup directory", "pickup", sub.Pickup},
		{"Accepted domains", "accepted_domains[]", domain},
		{"Send connectors", "send_connectors[]", send},
		{"Address spaces", "send_connectors[].address_spaces[]", space},
		{"Smart hosts", "send_connectors[].smart_hosts[]", host},
		{"Schedules of domains", "send_connectors[].retry.domains[]", DomainRetry{}},
		{"Throttles", "throttles[]", newThrottle()},
		{"Back-pressure", "back_pressure", sub.BackPressure},
		{"TLS reports", "tls_reports", sub.TLSReports},
		{"DNS", "dns", sub.DNS},
		{"Queue", "queue", sub.Queue},
		{"Tracking", "tracking", sub.Tracking},
		{"Kinds of facts", "tracking.kinds[]", TrackingKind{}},
		{"HTTP", "http", sub.HTTP},
		{"Log", "log", sub.Log},
		{"Telemetry", "telemetry", sub.Telemetry},
	} {
		section(&b, s.title, reflect.ValueOf(s.value), s.key)
		switch s.key {
		case "receive_connectors[]":
			presets(&b)
		case "send_connectors[]":
			services(&b)
		}
	}
	_, err := io.WriteString(w, strings.TrimRight(b.String(), "\n")+"\n")
	return err
}

// section is a table of the keys of one struct, and of the structs in it.
func section(b *strings.Builder, title string, v reflect.Value, key string) {
	fmt.Fprintf(b, "## %s\n\n", title)
	if key != "" {
		fmt.Fprintf(b, "Under `%s`.\n\n", key)
	}
	b.WriteString("| key | type | default | meaning |\n|---|---|---|---|\n")
	rows(b, v, "")
	b.WriteByte('\n')
}

func rows(b *strings.Builder, v reflect.Value, prefix string) {
	for f := range v.Type().Fields() {
		key := f.Tag.Get("yaml")
		if key == "" {
			continue
		}
		val := v.FieldByIndex(f.Index)
		if nested(f.Type) {
			if prefix == "" && v.Type() == reflect.TypeFor[Config]() {
				fmt.Fprintf(b, "| `%s` | keys, see below | | %s |\n", key, f.Tag.Get("doc"))
				continue
			}
			rows(b, val, prefix+key+".")
			continue
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", prefix+key, typeName(f), defaultOf(f, val), cell(f.Tag.Get("doc")))
	}
}

// nested reports whether a field is a struct of keys.
func nested(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != secretType && !reflect.PointerTo(t).Implements(textType)
}

func typeName(f reflect.StructField) string {
	tag := f.Tag
	words := strings.ReplaceAll(tag.Get("enum"), ",", ", ")
	switch {
	case tag.Get("type") != "":
		return tag.Get("type")
	case f.Type.Kind() == reflect.Slice && words != "":
		return "list of " + words
	case words != "":
		return words
	case tag.Get("file") != "":
		return "file name"
	case f.Type == secretType:
		return "secret"
	}
	return kindName(f.Type, tag)
}

func kindName(t reflect.Type, tag reflect.StructTag) string {
	switch {
	case t == reflect.TypeFor[Duration]():
		return "duration"
	case t == reflect.TypeFor[Size]():
		return "size"
	case t == reflect.TypeFor[Percent]():
		return "percentage"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int:
		return fmt.Sprintf("number, %s to %s", tag.Get("min"), tag.Get("max"))
	case t.Kind() == reflect.Map:
		return "keys by name, see below"
	case t.Kind() == reflect.Slice && nested(t.Elem()):
		return "list, see below"
	case t.Kind() == reflect.Slice:
		return "list of " + strings.Replace(kindName(t.Elem(), tag), "string", "strings", 1)
	}
	return "string"
}

func defaultOf(f reflect.StructField, v reflect.Value) string {
	switch {
	case f.Tag.Get("required") != "":
		return "**needed**"
	case f.Tag.Get("default") != "":
		return cell(f.Tag.Get("default"))
	case f.Type == secretType, v.Kind() == reflect.Map:
		return ""
	}
	if text := plainText(v); text != "" {
		return "`" + text + "`"
	}
	return ""
}

// plainText is a value as one writes it.
func plainText(v reflect.Value) string {
	if m, ok := reflect.TypeAssert[encoding.TextMarshaler](v); ok {
		text, err := m.MarshalText()
		if err != nil {
			return err.Error()
		}
		return string(text)
	}
	if v.Kind() != reflect.Slice {
		return fmt.Sprint(v.Interface())
	}
	words := make([]string, v.Len())
	for i := range words {
		words[i] = plainText(v.Index(i))
	}
	return "[" + strings.Join(words, ", ") + "]"
}

func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }

// presets is a table of what the usages differ in.
func presets(b *strings.Builder) {
	b.WriteString("### Presets\n\n`usage` chooses these defaults; each key can be set all the same.\n\n| key |")
	columns := make([]map[string]string, len(Usages()))
	for i, usage := range Usages() {
		fmt.Fprintf(b, " %s |", usage)
		columns[i] = map[string]string{}
		flatten(reflect.ValueOf(NewReceiveConnector(usage)), "", columns[i])
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
	var order []string
	keys(reflect.TypeFor[ReceiveConnector](), "", &order)
	for _, key := range order {
		same := true
		for _, c := range columns[1:] {
			same = same && c[key] == columns[0][key]
		}
		if same || key == "usage" {
			continue
		}
		fmt.Fprintf(b, "| `%s` |", key)
		for _, c := range columns {
			fmt.Fprintf(b, " `%s` |", c[key])
		}
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
}

func flatten(v reflect.Value, prefix string, into map[string]string) {
	for f := range v.Type().Fields() {
		key := prefix + f.Tag.Get("yaml")
		if nested(f.Type) {
			flatten(v.FieldByIndex(f.Index), key+".", into)
		} else {
			into[key] = plainText(v.FieldByIndex(f.Index))
		}
	}
}

func keys(t reflect.Type, prefix string, into *[]string) {
	for f := range t.Fields() {
		key := prefix + f.Tag.Get("yaml")
		if nested(f.Type) {
			keys(f.Type, key+".", into)
		} else {
			*into = append(*into, key)
		}
	}
}

// services is a table of the presets of send connectors.
func services(b *strings.Builder) {
	b.WriteString("### Services\n\n`preset` chooses these defaults; each key can be set all the same. `waybill config presets` writes them with their sources; `presets_file` replaces them.\n\n" +
		"| preset | for | sets | needs |\n|---|---|---|---|\n")
	list, err := parsePresets(builtinPresets)
	if err != nil { // a test reads them
		panic("presets: " + err.Error())
	}
	usual := map[string]string{}
	flatten(reflect.ValueOf(NewSendConnector()), "", usual)
	var order []string
	keys(reflect.TypeFor[SendConnector](), "", &order)
	for _, name := range slices.Sorted(maps.Keys(list.Presets)) {
		preset := list.Presets[name]
		var s SendConnector
		_ = preset.apply(&s) // it was tried when it was read
		values := map[string]string{}
		flatten(reflect.ValueOf(s), "", values)
		var sets, needs []string
		for _, key := range order {
			if key == "smart_hosts" && len(s.SmartHosts) > 0 {
				sets = append(sets, "`smart_hosts: ["+s.SmartHosts[0].Host+"]`")
			} else if values[key] != usual[key] {
				sets = append(sets, "`"+key+": "+values[key]+"`")
			}
		}
		for _, key := range slices.Sorted(maps.Keys(preset.Needs)) {
			needs = append(needs, "`"+key+"`")
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", name, cell(preset.Title), strings.Join(sets, ", "), strings.Join(needs, ", "))
	}
	b.WriteByte('\n')
}
