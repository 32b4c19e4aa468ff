package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestNoRace holds what the Makefile says of the packages that make race leaves
// out: they start no goroutine, and have nothing to share one with.
func TestNoRace(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	text, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	list := regexp.MustCompile(`(?m)^NO_RACE\s*:= (.+)$`).FindSubmatch(text)
	if list == nil {
		t.Fatal("the Makefile has no NO_RACE")
	}
	for name := range strings.FieldsSeq(string(list[1])) {
		files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(name), "*.go"))
		if err != nil || len(files) == 0 {
			t.Errorf("%s: no package (%v)", name, err)
		}
		for _, file := range files {
			for _, why := range concurrency(t, file) {
				t.Errorf("%s: make race leaves this package out; take it out of NO_RACE", why)
			}
		}
	}
}

// concurrency says where a file has to do with goroutines; those for end-to-end
// tests do not count.
func concurrency(t *testing.T, name string) (found []string) {
	t.Helper()
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range file.Comments {
		if group.Pos() < file.Package && strings.Contains(group.List[0].Text, "//go:build e2e") {
			return nil
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found = append(found, fset.Position(n.Pos()).String()+": go")
		case *ast.SendStmt, *ast.SelectStmt, *ast.ChanType:
			found = append(found, fset.Position(n.Pos()).String()+": a channel")
		case *ast.ImportSpec:
			switch path := strings.Trim(n.Path.Value, `"`); path {
			case "sync", "sync/atomic", "golang.org/x/sync/errgroup", "net/http/httptest":
				found = append(found, fset.Position(n.Pos()).String()+": import of "+path)
			}
		case *ast.CallExpr:
			if call, ok := n.Fun.(*ast.SelectorExpr); ok && call.Sel.Name == "Parallel" {
				found = append(found, fset.Position(n.Pos()).String()+": t.Parallel")
			}
		}
		return true
	})
	return found
}
