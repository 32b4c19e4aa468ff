package event

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite docs/reference/events.md")

// TestReference holds docs/reference/events.md to what this package declares.
func TestReference(t *testing.T) {
	got, err := reference()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("..", "..", "docs", "reference", "events.md")
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
		t.Error("docs/reference/events.md is out of date: run make docs")
	}
}

// reference writes a page from the doc comments and tags of facts.go.
func reference() (string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), "facts.go", nil, parser.ParseComments)
	if err != nil {
		return "", err
	}
	structs := map[string]*ast.StructType{}
	docs := map[string]string{}
	for _, d := range file.Decls {
		gen, ok := d.(*ast.GenDecl)
		if !ok || gen.Tok != token.TYPE {
			continue
		}
		for _, s := range gen.Specs {
			spec := s.(*ast.TypeSpec)
			if st, ok := spec.Type.(*ast.StructType); ok {
				structs[spec.Name.Name] = st
				docs[spec.Name.Name] = strings.Join(strings.Fields(gen.Doc.Text()), " ")
			}
		}
	}
	var b strings.Builder
	b.WriteString(`# Facts

One line of the log, one row of the tracking store. Every record has ` + "`ts`, `event_id`, `schema` and `event`" + `;
` + "`node`, `source`, `config_rev`, `session_id`, `queue_id` and `message_uid`" + ` where they apply. Times are RFC 3339 in UTC,
durations are seconds, sizes are octets. A field without a value is left out. This page is generated.

`)
	for _, row := range table {
		k := kinds[reflect.TypeOf(row.event)]
		typ := k.typ.Name()
		text := docs[typ]
		text = strings.TrimPrefix(text, typ+" says ")
		fmt.Fprintf(&b, "## %s\n\nSays %s Class: %s.\n\n| field | type | meaning |\n|---|---|---|\n", k.name, text, [...]string{"", "protocol", "session", "durable"}[row.class])
		writeFields(&b, structs, structs[typ])
		b.WriteByte('\n')
	}
	b.WriteString("## Parts\n\n")
	for _, name := range []string{"Recipient", "Line"} {
		fmt.Fprintf(&b, "### %s\n\n%s\n\n| field | type | meaning |\n|---|---|---|\n", name, docs[name])
		writeFields(&b, structs, structs[name])
		b.WriteByte('\n')
	}
	return b.String(), nil
}

func writeFields(b *strings.Builder, structs map[string]*ast.StructType, st *ast.StructType) {
	for _, f := range st.Fields.List {
		if len(f.Names) == 0 {
			writeFields(b, structs, structs[f.Type.(*ast.Ident).Name])
			continue
		}
		tag := strings.Trim(f.Tag.Value, "`")
		tag = strings.TrimSuffix(strings.TrimPrefix(tag, `json:"`), `"`)
		key, _, _ := strings.Cut(tag, ",")
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", key, typeWord(f.Type), strings.ReplaceAll(strings.TrimSpace(f.Comment.Text()), "|", "\\|"))
	}
}

func typeWord(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.Ident:
		switch x.Name {
		case "string":
			return "text"
		case "int", "int64", "uint16":
			return "number"
		case "bool":
			return "true"
		case "Seconds":
			return "seconds"
		}
		return x.Name
	case *ast.ArrayType:
		return "list of " + typeWord(x.Elt)
	case *ast.SelectorExpr:
		return map[string]string{"Addr": "address", "Time": "time", "QueueID": "queue ID", "Disposition": "disposition", "Class": "failure class"}[x.Sel.Name]
	}
	return "?"
}
