package config

import (
	"os"
	"path/filepath"
)

// CommandLimits bound the program that knows users.
type CommandLimits struct {
	Timeout   Duration `yaml:"timeout" doc:"wait for its answer; it is ended then"`
	Processes int      `yaml:"processes" min:"1" max:"1000" doc:"how often it runs at once; other logins wait"`
}

func checkUsersCommand(c *Config, p *collector) {
	if list := c.Users.Command; len(list) > 0 && !filepath.IsAbs(list[0]) {
		p.errorf("users.command[0]", "such as /usr/local/bin/waybill-users", "%q is not a whole path", clip(list[0]))
	}
	if d := c.Users.CommandLimit.Timeout; d < second/10 || d > 15*second {
		p.errorf("users.command_limits.timeout", "", "%v is not between 100ms and 15s", d)
	}
}

// checkUsersCommandFile looks at the program, which decides who everybody is.
func checkUsersCommandFile(c *Config, p *collector) {
	list := c.Users.Command
	if len(list) == 0 || !filepath.IsAbs(list[0]) {
		return
	}
	switch info, err := os.Stat(list[0]); {
	case err != nil || info.IsDir() || info.Mode().Perm()&0o111 == 0:
		p.errorf("users.command[0]", "chmod 755, if it is there", "%s is no program", clip(list[0]))
	case info.Mode().Perm()&0o002 != 0:
		p.errorf("users.command[0]", "chmod o-w "+list[0], "everybody on this machine can change %s, and so who may log in", clip(list[0]))
	}
}
