package app

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// unloadProgram takes the pages of the program's own file out of this process'
// memory. The start runs through most of it once, and what runs from then on is
// less than half: that is found again in the kernel's cache, some tens of pages
// at a time. Mappings of which a page was ever written, as those that the loader
// relocates, are left alone.
func unloadProgram() error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("unload the program: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("unload the program: %w", err)
	}
	for _, m := range cleanMappings(maps, program) {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("unload the program: %w", errno)
		}
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ from, to uintptr }

// cleanMappings returns the mappings of program in smaps, as proc_pid_smaps(5)
// has them, that cannot be written to and of which every page is the file's.
func cleanMappings(smaps []byte, program string) (list []mapping) {
	var at mapping
	lines := bufio.NewScanner(bytes.NewReader(smaps))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if begin, end, ok := strings.Cut(fields[0], "-"); ok && len(fields) >= 5 {
			from, err1 := strconv.ParseUint(begin, 16, 64)
			to, err2 := strconv.ParseUint(end, 16, 64)
			at = mapping{}
			if err1 == nil && err2 == nil && from < to && len(fields) == 6 && fields[5] == program && !strings.Contains(fields[1], "w") && strings.HasSuffix(fields[1], "p") {
				at = mapping{uintptr(from), uintptr(to)}
			}
			continue
		}
		// What is anonymous in a mapping of a file was written to.
		if fields[0] == "Anonymous:" && len(fields) == 3 && fields[1] == "0" && at.from != 0 {
			list = append(list, at)
			at = mapping{}
		}
	}
	return list
}
