package app

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// unloadProgram takes the pages of the program's own file out of this process'
// memory. The start runs through most of it once, and what runs from then on is
// less than half: that is found again in the kernel's cache. Mappings of which a
// page was ever written, as those that the loader relocates, are left alone.
func unloadProgram() error {
	list, err := ownMappings()
	if err != nil {
		return fmt.Errorf("unload the program: %w", err)
	}
	for _, m := range list {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("unload the program: %w", errno)
		}
	}
	return nil
}

// What userfaultfd(2) takes, as in linux/userfaultfd.h.
const (
	uffdUserModeOnly = 1
	uffdAPI          = 0xaa
	uffdWPAsync      = 1 << 15
	uffdModeWP       = 1 << 1
	uffdioAPI        = 0xc018aa3f
	uffdioRegister   = 0xc020aa00
)

// loadSinglePages has the kernel load single pages of the program's own file from
// then on. Otherwise it maps sixteen at a time, of which most are never used. It
// does not where a mapping is registered with a userfaultfd to tell which pages are
// written to; nobody writes to these, and nothing is ever told. The descriptor
// stays open as long as the process lives.
//
// It needs Linux 6.7, and no filter of system calls: some of them kill a process
// that makes one they do not know.
func loadSinglePages() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("load single pages: %w", err)
	}
	if !bytes.Contains(status, []byte("\nSeccomp:\t0\n")) {
		return errors.New("load single pages: system calls are filtered")
	}
	list, err := ownMappings()
	if err != nil {
		return fmt.Errorf("load single pages: %w", err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|uffdUserModeOnly, 0, 0)
	if errno != 0 {
		return fmt.Errorf("load single pages: %w", errno)
	}
	api := struct{ version, features, calls uint64 }{version: uffdAPI, features: uffdWPAsync}
	if _, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uffdioAPI, uintptr(unsafe.Pointer(&api))); errno != 0 { //nolint:gosec // as ioctl_userfaultfd(2) wants it
		return errors.Join(fmt.Errorf("load single pages: %w", errno), unix.Close(int(fd)))
	}
	for _, m := range list {
		register := struct{ start, octets, mode, calls uint64 }{uint64(m.from), uint64(m.to - m.from), uffdModeWP, 0}
		if _, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uffdioRegister, uintptr(unsafe.Pointer(&register))); errno != 0 { //nolint:gosec // the same
			return errors.Join(fmt.Errorf("load single pages: %w", errno), unix.Close(int(fd)))
		}
	}
	return nil
}

// ownMappings returns the cleanMappings of this process' program.
func ownMappings() ([]mapping, error) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return nil, err
	}
	return cleanMappings(maps, program), nil
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
