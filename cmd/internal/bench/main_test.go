package main

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		name   string
		args   string
		parts  string // a part of the list
		relays string
		want   string // in the error; empty: none
	}{
		{"all", "", "compare,tracking,drain,latency,memory,large,tls,idle,queue", "waybill,waybill-untracked,postfix", ""},
		{"one part", "-only tracking", "tracking", "waybill,waybill-untracked,postfix", ""},
		{"their own order", "-only soak,compare", "compare,soak", "waybill,waybill-untracked,postfix", ""},
		{"the last to be asked for comes first", "-only=tls,drain -relays=waybill", "drain,tls", "waybill", ""},
		{"the soak alone", "-soak 1m", "soak", "waybill,waybill-untracked,postfix", ""},
		{"the soak and more", "-soak 1m -only soak,idle", "idle,soak", "waybill,waybill-untracked,postfix", ""},
		{"end of a name", "-only pare", "", "", `no part "pare"; there are compare, tracking`},
		{"no name", "-only compare,", "", "", `no part ""`},
		{"no such relay", "-relays exim", "", "", `no relay "exim"; there are waybill`},
		{"no rounds", "-rounds 0", "", "", "-rounds 0: at least 1"},
		{"fewer than none", "-warm -1", "", "", "-warm -1: at least 0"},
		{"short soak", "-soak 5s", "", "", "too few samples"},
		{"a word", "compare", "", "", "compare is no flag; parts are chosen by -only"},
		{"no such flag", "-parts all", "", "", "-parts"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o, err := parse(strings.Fields(test.args))
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("parse(%q) = %v, want %q", test.args, err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatalf("parse(%q): %v", test.args, err)
			}
			var names []string
			for _, p := range o.parts {
				names = append(names, p.name)
			}
			if got := strings.Join(names, ","); got != test.parts {
				t.Errorf("parts are %s, want %s", got, test.parts)
			}
			if got := strings.Join(o.relays, ","); got != test.relays {
				t.Errorf("relays are %s, want %s", got, test.relays)
			}
		})
	}
}

func TestHelpNamesAllParts(t *testing.T) {
	if _, err := parse([]string{"--help"}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("parse(--help) = %v, want %v", err, flag.ErrHelp)
	}
	var b strings.Builder
	help(&b)
	for _, p := range allParts() {
		if !strings.Contains(b.String(), "\n  "+p.name) {
			t.Errorf("help does not name %s:\n%s", p.name, &b)
		}
		if p.what == "" || len(p.relays) == 0 || p.run == nil {
			t.Errorf("part %s is not whole: %+v", p.name, p)
		}
	}
}

func TestCheckSaysWhatToDo(t *testing.T) {
	o, err := parse([]string{"-only", "tracking", "-waybill", filepath.Join(t.TempDir(), "none")})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.check(); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("check() without a program = %v, want a hint", err)
	}
	if o.binary, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	if err := o.check(); err != nil {
		t.Errorf("check() of a part without Postfix = %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	o.parts = slices.Clone(allParts()[:1])
	if err := o.check(); err == nil || !strings.Contains(err.Error(), "install-peers") {
		t.Errorf("check() without Postfix = %v, want a hint", err)
	}
}

// Parts go on after one that failed, and the whole fails.
func TestRunGoesOn(t *testing.T) {
	o, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if o.binary, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	o.dir, o.relays = t.TempDir(), []string{aWaybill}
	var ran []string
	add := func(name, relay string, err error) {
		o.parts = append(o.parts, part{name: name, relays: []string{relay}, run: func(options) error {
			ran = append(ran, name)
			return err
		}})
	}
	o.parts = nil
	add("first", aWaybill, errors.New("bad"))
	add("second", aUntracked, nil)
	add("third", aWaybill, nil)
	if err := run(o); err == nil || err.Error() != "1 of 3 parts failed: first" {
		t.Errorf("run() = %v, want that the first failed", err)
	}
	if want := []string{"first", "third"}; !slices.Equal(ran, want) {
		t.Errorf("ran %v, want %v", ran, want)
	}
}
