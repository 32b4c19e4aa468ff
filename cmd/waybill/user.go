package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"waybill/relay/auth"
)

func userCmd(e *env) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "user",
		Short: "The password file",
		Long: `Edits the file that users.file names. A running daemon takes the change into
use by itself within a minute, or at once with SIGHUP.`,
		Example: `  waybill user add app --users users.yaml --sender app@example.com
  waybill user list --users users.yaml`,
	}
	cmd.PersistentFlags().StringVar(&file, "users", envOr("WAYBILL_USERS", "users.yaml"), "the password `FILE` (WAYBILL_USERS)")
	_ = cmd.MarkPersistentFlagFilename("users", "yaml", "yml")
	return group(cmd, userAddCmd(e, &file), userListCmd(e, &file), userRemoveCmd(e, &file), userPasswdCmd(e, &file))
}

func userAddCmd(e *env, file *string) *cobra.Command {
	var u auth.User
	var passwordFile string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a user; asks for the password",
		Example: `  waybill user add app --sender app@example.com --sender @app.example.com
  waybill user add crm --sender @example.com --permission submit --permission relay
  pwgen 24 1 | waybill user add app --any-sender`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(u.Senders) == 0 && !u.AnySender {
				return usagef("a login sends only as its own addresses: name them with --sender, or allow all with --any-sender")
			}
			users, err := auth.OpenUsers(*file)
			if errors.Is(err, fs.ErrNotExist) {
				users, err = auth.CreateUsers(*file)
			}
			if err != nil {
				return err
			}
			pw := ""
			if !u.Passwordless {
				if pw, err = e.newPassword(passwordFile, args[0]); err != nil {
					return err
				}
			}
			u.Name = args[0]
			if err := users.Add(u, auth.NewSecret(pw)); err != nil {
				return err
			}
			e.note(fmt.Sprintf("added %s to %s", u.Name, *file))
			if u.NTLM {
				e.note("warning: the NT hash in " + *file + " is as good as the password: who reads it can log in with NTLM as " + u.Name)
			}
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&u.Senders, "sender", nil, "`ADDRESS` or @domain that the user may send as; may be given several times")
	cmd.Flags().BoolVar(&u.AnySender, "any-sender", false, "the user may send as anybody")
	cmd.Flags().StringSliceVar(&u.Permissions, "permission", nil, "a `RIGHT` of the user's own instead of the receive connector's, such as relay; may be given several times")
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "`FILE` with the password")
	cmd.Flags().BoolVar(&u.NTLM, "ntlm", false, "keep the password in the form that NTLM needs, too: an NT hash, which is as good as the password")
	cmd.Flags().BoolVar(&u.Passwordless, "no-password", false, "no password: the user logs in with a Kerberos ticket, a token or a certificate")
	cmd.MarkFlagsMutuallyExclusive("no-password", "password-file")
	cmd.MarkFlagsMutuallyExclusive("no-password", "ntlm")
	return cmd
}

// openUsers opens the password file of a command that needs one to be there.
func openUsers(file string) (*auth.Users, error) {
	users, err := auth.OpenUsers(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &exitError{exitNo, fmt.Errorf("there is no user file %s", file), `name it with --users, or make it with "waybill user add"`}
	}
	return users, err
}

func userListCmd(e *env, file *string) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "The users, without their passwords",
		Example: "  waybill user list --users users.yaml",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			users, err := openUsers(*file)
			if err != nil {
				return err
			}
			list := users.List()
			t := newTable("NAME", "SENDERS", "PERMISSIONS", "CREDENTIALS", "DISABLED")
			t.flex = []int{1}
			for _, u := range list {
				senders := strings.Join(u.Senders, " ")
				if u.AnySender {
					senders = "(any)"
				}
				rights := "(connector's)"
				if u.Permissions != nil {
					rights = strings.Join(u.Permissions, " ")
				}
				t.add(u.Name, senders, rights, strings.Join(u.Stored, " "), fmt.Sprint(u.Disabled))
			}
			return render(e, list, list, t)
		},
	}
}

func userRemoveCmd(e *env, file *string) *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME",
		Short:   "Remove a user",
		Example: "  waybill user remove app",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			users, err := openUsers(*file)
			if err != nil {
				return err
			}
			if err := users.Remove(args[0]); err != nil {
				return err
			}
			e.note("removed " + args[0])
			return nil
		},
	}
}

func userPasswdCmd(e *env, file *string) *cobra.Command {
	var passwordFile string
	cmd := &cobra.Command{
		Use:     "passwd NAME",
		Short:   "Change a user's password",
		Example: "  waybill user passwd app",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			users, err := openUsers(*file)
			if err != nil {
				return err
			}
			pw, err := e.newPassword(passwordFile, args[0])
			if err != nil {
				return err
			}
			if err := users.SetPassword(args[0], auth.NewSecret(pw)); err != nil {
				return err
			}
			e.note("changed the password of " + args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "`FILE` with the password")
	return cmd
}

// newPassword reads a password that is to be stored: twice, where a person types it.
func (e *env) newPassword(file, name string) (string, error) {
	pw, err := e.password(file, "New password for "+name+": ")
	if err != nil {
		return "", err
	}
	if _, ok := terminalOf(e.in); ok && file == "" {
		again, err := e.password("", "Once more: ")
		if err != nil {
			return "", err
		}
		if again != pw {
			return "", errors.New("the two passwords differ")
		}
	}
	return pw, nil
}

// password reads a password from file, or asks for it, or takes the first line
// of standard input when there is no terminal.
func (e *env) password(file, prompt string) (string, error) {
	if file != "" {
		b, err := os.ReadFile(file) //nolint:gosec // the user names it
		return strings.TrimRight(string(b), "\r\n"), err
	}
	if fd, ok := terminalOf(e.in); ok {
		fmt.Fprint(e.err, prompt)
		b, err := term.ReadPassword(fd)
		fmt.Fprintln(e.err)
		return string(b), err
	}
	line, err := bufio.NewReader(e.in).ReadString('\n')
	if line == "" && err != nil {
		return "", errors.New("no password on standard input")
	}
	return strings.TrimRight(line, "\r\n"), nil
}
