package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHowTos loads every complete configuration that a how-to page shows: those
// that begin with a host name.
func TestHowTos(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join("..", "..", "..", "docs", "how-to", "replace-*.md"))
	more, err2 := filepath.Glob(filepath.Join("..", "..", "..", "docs", "how-to", "send-through-*.md"))
	if err := errors.Join(err, err2); err != nil || len(pages) == 0 || len(more) == 0 {
		t.Fatal(pages, more, err)
	}
	pages = append(pages, more...)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for block := range strings.SplitSeq(string(text), "```yaml\n") {
			block, _, _ = strings.Cut(block, "```")
			if !strings.HasPrefix(block, "hostname:") {
				continue
			}
			found++
			if _, problems := Parse(filepath.Base(page), []byte(block)); problems.Err() != nil {
				t.Error(problems.Err())
			}
		}
		if found == 0 {
			t.Errorf("%s shows no complete configuration", filepath.Base(page))
		}
	}
}
