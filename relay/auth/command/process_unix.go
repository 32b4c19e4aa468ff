//go:build unix

package command

import (
	"os/exec"
	"syscall"
)

// isolate gives a program a process group of its own, so that what it has started
// ends with it.
func isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
