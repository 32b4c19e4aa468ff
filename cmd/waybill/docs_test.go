package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// inline is a command in running text.
var inline = regexp.MustCompile("`((?:bin/)?waybill [a-z][^`]*)`")

// documented are the commands in a page, as they stand in it.
func documented(page string) (lines []string) {
	for _, m := range inline.FindAllStringSubmatch(page, -1) {
		lines = append(lines, strings.Join(strings.Fields(m[1]), " "))
	}
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "sudo -u waybill "); ok {
			line = rest
		}
		if strings.HasPrefix(line, "waybill ") || strings.HasPrefix(line, "bin/waybill ") {
			lines = append(lines, line)
		}
	}
	return lines
}

// command is a line without what is the shell's, and without a remark, which
// stands behind two spaces or a #.
func command(line string) string {
	for _, end := range []string{"  ", " #", " | ", " > ", " < ", " && ", " &", "; "} {
		line, _, _ = strings.Cut(line, end)
	}
	return strings.TrimSuffix(line, "\\")
}

// TestDocumentedCommands reads every command that stands in a page: there is
// such a command, it has these flags, and takes so many arguments.
func TestDocumentedCommands(t *testing.T) {
	root := filepath.Join("..", "..")
	pages := []string{filepath.Join(root, "README.md")}
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".md" && !strings.Contains(path, "decisions") && !strings.Contains(path, "reference") { // of their time, and generated
			pages = append(pages, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range documented(string(b)) {
			n++
			cmd, rest, err := plainRoot(t).Find(words(command(line))[1:])
			if err != nil {
				t.Errorf("%s: %s: %v", page, line, err)
				continue
			}
			if err := cmd.ParseFlags(rest); err != nil {
				t.Errorf("%s: %s: %v", page, line, err)
				continue
			}
			if given := cmd.Flags().Args(); len(given) > 0 || strings.Contains(line, "--") { // a bare name speaks of the command
				err = cmd.ValidateArgs(given)
				if cmd.HasSubCommands() && len(given) > 0 {
					err = cmd.RunE(cmd, given)
				}
				if err != nil {
					t.Errorf("%s: %s: %v", page, line, err)
				}
			}
		}
	}
	if n < 100 {
		t.Errorf("%d commands were found, want 100 at least: this proves less than it should", n)
	}
}
