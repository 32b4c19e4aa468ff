package app

import (
	"os"
	"slices"
	"testing"
)

func TestCleanMappings(t *testing.T) {
	const smaps = `00400000-01184000 r-xp 00000000 fe:00 247741                             /usr/bin/waybill
Size:              13968 kB
Rss:                9000 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
01184000-01200000 r--p 00d84000 fe:00 247741                             /usr/bin/waybill
Anonymous:             4 kB
01200000-01300000 r--p 00e00000 fe:00 247741                             /usr/bin/waybill
Anonymous:             0 kB
01300000-01400000 rw-p 00f00000 fe:00 247741                             /usr/bin/waybill
Anonymous:             0 kB
01400000-01500000 r--s 00f00000 fe:00 247741                             /usr/bin/waybill
Anonymous:             0 kB
01500000-01600000 r-xp 00f00000 fe:00 247741                             /usr/bin/waybill (deleted)
Anonymous:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0 
Anonymous:             0 kB
7f1234567000-7f1234568000 r-xp 00000000 fe:00 1112                       /usr/lib/libc.so.6
Anonymous:             0 kB
`
	for _, test := range []struct {
		name    string
		smaps   string
		program string
		want    []mapping
	}{
		{"text and constants", smaps, "/usr/bin/waybill", []mapping{{0x400000, 0x1184000}, {0x1200000, 0x1300000}}},
		{"another program", smaps, "/usr/bin/other", nil},
		{"nothing", "", "/usr/bin/waybill", nil},
		{"no mappings", "VmFlags: rd\n\nAnonymous: 0 kB\nx-y r-xp 0 0 0 /usr/bin/waybill\nAnonymous: 0 kB\n", "/usr/bin/waybill", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := cleanMappings([]byte(test.smaps), test.program); !slices.Equal(got, test.want) {
				t.Errorf("cleanMappings = %x, want %x", got, test.want)
			}
		})
	}
}

// TestUnloadProgram takes this program out of memory, which goes on.
func TestUnloadProgram(t *testing.T) {
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if len(cleanMappings(maps, program)) == 0 {
		t.Fatal("no mapping of the program can be unloaded")
	}
	for range 3 {
		if err := unloadProgram(); err != nil {
			t.Error(err)
		}
	}
}
