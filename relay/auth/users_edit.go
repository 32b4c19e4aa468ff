package auth

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"waybill/relay/policy"

	"go.yaml.in/yaml/v3"
)

// ErrUserExists is returned by [Users.Add] for a name that is taken.
var ErrUserExists = errors.New("the user exists")

// Add writes a new user with its password into the file. A passwordless user has
// an empty one.
func (u *Users) Add(user User, password Secret) error {
	line, err := newLine(user, password)
	if err != nil {
		return err
	}
	return u.editList(func(list *yaml.Node) error {
		if i, err := find(list, user.Name); err != nil || i >= 0 {
			return errors.Join(err, fmt.Errorf("add %q: %w", user.Name, ErrUserExists))
		}
		var n yaml.Node
		if err := n.Encode(line); err != nil {
			return fmt.Errorf("add %q: %w", user.Name, err)
		}
		list.Style = 0
		list.Content = append(list.Content, &n)
		return nil
	})
}

// Remove takes a user out of the file.
func (u *Users) Remove(name string) error {
	return u.editList(func(list *yaml.Node) error {
		i, err := found(list, name)
		if err != nil {
			return fmt.Errorf("remove %q: %w", name, err)
		}
		list.Content = append(list.Content[:i], list.Content[i+1:]...)
		return nil
	})
}

// SetPassword gives a user a new password. All stored forms change together, and
// that for NTLM stays only where there was one.
func (u *Users) SetPassword(name string, password Secret) error {
	line, err := newLine(User{Name: name, NTLM: true}, password)
	if err != nil {
		return err
	}
	return u.editList(func(list *yaml.Node) error {
		i, err := found(list, name)
		if err != nil {
			return fmt.Errorf("set password of %q: %w", name, err)
		}
		set(list.Content[i], "password", line.Password)
		set(list.Content[i], "scram_sha_256", line.Scram)
		replace(list.Content[i], "nt_hash", line.NT)
		replace(list.Content[i], "passwordless", "")
		return nil
	})
}

func newLine(user User, password Secret) (userLine, error) {
	if _, err := prepareName(user.Name); err != nil {
		return userLine{}, err
	}
	for _, s := range user.Senders {
		if err := CheckSender(s); err != nil {
			return userLine{}, err
		}
	}
	if _, err := policy.ParsePermissions(user.Permissions); err != nil {
		return userLine{}, err
	}
	line := userLine{
		Name: user.Name, Senders: user.Senders, AnySender: user.AnySender, Permissions: user.Permissions, Disabled: user.Disabled, Passwordless: user.Passwordless,
	}
	if user.Passwordless && password.IsZero() {
		return line, nil
	}
	pw, err := preparePassword(password.Expose())
	if err != nil {
		return userLine{}, err
	}
	if user.NTLM {
		line.NT = NewNTHash(pw).hexText()
	}
	keys, err := newScram(pw)
	if err != nil {
		return userLine{}, err
	}
	line.Password, line.Scram = newArgon(pw).String(), keys.String()
	return line, nil
}

// editList changes the list of users in the file, and keeps what people wrote
// around it: order and comments.
func (u *Users) editList(change func(list *yaml.Node) error) error {
	return u.edit(func(data []byte) ([]byte, error) {
		if _, err := parseUsers(data); err != nil {
			return nil, err
		}
		var doc yaml.Node
		if err := yaml.Unmarshal(data, &doc); err != nil {
			return nil, plainYAMLError(err)
		}
		list, err := listOf(&doc)
		if err != nil {
			return nil, err
		}
		if err := change(list); err != nil {
			return nil, err
		}
		var out bytes.Buffer
		enc := yaml.NewEncoder(&out)
		enc.SetIndent(2)
		if err := errors.Join(enc.Encode(&doc), enc.Close()); err != nil {
			return nil, err
		}
		return out.Bytes(), nil
	})
}

// listOf finds or makes the list under the key "users".
func listOf(doc *yaml.Node) (*yaml.Node, error) {
	if doc.Kind == 0 {
		*doc = yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{{Kind: yaml.MappingNode}}}
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode { // an empty document is a null
		*root = yaml.Node{Kind: yaml.MappingNode, HeadComment: root.HeadComment, FootComment: root.FootComment}
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value != "users" {
			continue
		}
		if list := root.Content[i+1]; list.Kind != yaml.SequenceNode {
			*list = yaml.Node{Kind: yaml.SequenceNode}
		}
		return root.Content[i+1], nil
	}
	list := &yaml.Node{Kind: yaml.SequenceNode}
	root.Content = append(root.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: "users"}, list)
	return list, nil
}

// find gives the index of a user, or -1.
func find(list *yaml.Node, name string) (int, error) {
	want, err := prepareName(name)
	if err != nil {
		return -1, err
	}
	for i, n := range list.Content {
		var line userLine
		if err := n.Decode(&line); err != nil {
			return -1, plainYAMLError(err)
		}
		if got, err := prepareName(line.Name); err == nil && got == want {
			return i, nil
		}
	}
	return -1, nil
}

func found(list *yaml.Node, name string) (int, error) {
	i, err := find(list, name)
	if err == nil && i < 0 {
		err = ErrUnknownUser
	}
	return i, err
}

// replace sets a key that is there, or removes it when the value is empty.
func replace(m *yaml.Node, key, value string) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		switch {
		case m.Content[i].Value != key:
			continue
		case value == "":
			m.Content = append(m.Content[:i], m.Content[i+2:]...)
		default:
			m.Content[i+1].SetString(value)
		}
		return
	}
}

func set(m *yaml.Node, key, value string) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			m.Content[i+1].SetString(value)
			return
		}
	}
	var k, v yaml.Node
	k.SetString(key)
	v.SetString(value)
	m.Content = append(m.Content, &k, &v)
}

// edit replaces the file by what change makes of it: whole or not at all,
// readable by its owner only, and by one process at a time.
func (u *Users) edit(change func(data []byte) ([]byte, error)) error {
	u.write.Lock()
	defer u.write.Unlock()
	path, err := filepath.EvalSymlinks(u.path) // a link stays a link
	if errors.Is(err, fs.ErrNotExist) {
		path = u.path
	} else if err != nil {
		return fmt.Errorf("user file: %w", err)
	}
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("lock user file: %w", err)
	}
	defer unlock()
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read user file: %w", err)
	}
	data, err = change(data)
	if err != nil {
		return fmt.Errorf("user file %s: %w", u.path, err)
	}
	if _, err := parseUsers(data); err != nil { // never write what Reload would refuse
		return fmt.Errorf("user file %s: %w", u.path, err)
	}
	if err := replaceFile(path, data); err != nil {
		return fmt.Errorf("write user file: %w", err)
	}
	_, err = u.Reload()
	return err
}

// replaceFile writes path by way of a new file beside it. The result has mode
// 0600, and the owner of the file that it replaces, when we may set it.
func replaceFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	keepOwner(f, path)
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
