// Package dialect reads and writes what a node must have in the words of other tools: Ignition, the #cloud-config of CoreOS
// Container Linux, and the #cloud-config of cloud-init (written only). Whatever one of them cannot say is named, never dropped in silence.
package dialect

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/validate"
)

// Dialect is a way to write down what a node must have.
type Dialect string

// The dialects. Profile is Coldrack's own kind, which this package only recognizes.
const (
	Profile     Dialect = "profile"
	Ignition    Dialect = "ignition"
	CloudConfig Dialect = "cloud-config" // of CoreOS Container Linux
	CloudInit   Dialect = "cloud-init"
)

// MaxSize bounds a file in bytes. One with a bigger configuration is a mistake: it must fit into an initial RAM disk.
const MaxSize = 16 << 20

// Detect tells the dialect of a file by how it begins; "" for none. CoreOS' and cloud-init's #cloud-config begin alike: it is CoreOS'.
func Detect(text []byte) Dialect {
	first, _, _ := bytes.Cut(text, []byte("\n"))
	var object struct {
		Ignition json.RawMessage `json:"ignition"`
	}
	switch trimmed := bytes.TrimSpace(text); {
	case string(bytes.TrimRight(first, " \t\r")) == header:
		return CloudConfig
	case bytes.HasPrefix(trimmed, []byte("{")):
		// What is no whole JSON is told so by the parser of the dialect that it is most like.
		if json.Unmarshal(trimmed, &object) == nil && object.Ignition == nil {
			return Profile
		}
		return Ignition
	case bytes.Contains(text, []byte("coldrack.dev/")):
		return Profile
	}
	return ""
}

// Node is what a node must have, and what only an operating system with its own updates can be told.
type Node struct {
	// Config has no host name and no interfaces where the file is for many machines.
	Config     nodeconfig.Config
	KernelArgs []string
	Update     Update
}

// Update is how an operating system with update_engine updates itself.
type Update struct {
	Group, Server, RebootStrategy string
}

// Finding is a fault of a file, or something of it that was not carried over.
type Finding struct {
	// Line is counted from 1; 0 where it is not known.
	Line int `json:"line,omitempty"`
	// Field is the path of the field as it is written in the file, such as "coreos.units[0].name".
	Field   string `json:"field"`
	Message string `json:"message"`
}

func (f Finding) String() string {
	text := f.Message
	if f.Field != "" {
		text = f.Field + ": " + text
	}
	if f.Line > 0 {
		text = fmt.Sprintf("line %d: %s", f.Line, text)
	}
	return text
}

// Result is what was read.
type Result struct {
	Node Node
	// Version of the dialect, where it has one.
	Version string
	// Problems make the file wrong; the Node then counts for nothing.
	Problems []Finding
	// Warnings are what is allowed, and most likely not meant.
	Warnings []Finding
	// Lost is what a Node has no place for.
	Lost []Finding
}

// Parse reads a file of a dialect other than Profile and CloudInit.
func Parse(d Dialect, text []byte, v Variables) Result {
	switch {
	case len(text) > MaxSize:
		return Result{Problems: []Finding{{Message: fmt.Sprintf("the file has %d bytes; at most %d are read", len(text), MaxSize)}}}
	case d == Ignition:
		return parseIgnition(text)
	case d == CloudConfig:
		return parseCloudConfig(text, v)
	}
	return Result{Problems: []Finding{{Message: fmt.Sprintf("%q cannot be read; want %s or %s", d, Ignition, CloudConfig)}}}
}

// Encode writes n in a dialect other than Profile, and tells what it has no words for. It fails with nodeconfig.Problems when n is not valid.
func Encode(d Dialect, n Node) (text []byte, lost []Finding, err error) {
	switch d {
	case Ignition:
		return encodeIgnition(n)
	case CloudConfig:
		return encodeCloudConfig(n)
	case CloudInit:
		return encodeCloudInit(n)
	}
	return nil, nil, fmt.Errorf("%q cannot be written", d)
}

// builder collects a Node item by item, and refuses what breaks a rule for values at the place where it is written.
type builder struct {
	Result
	paths map[string]string // of files: the field that has it
}

func (b *builder) problem(line int, field, format string, args ...any) {
	b.Problems = append(b.Problems, Finding{line, field, fmt.Sprintf(format, args...)})
}

func (b *builder) lost(line int, field, format string, args ...any) {
	b.Lost = append(b.Lost, Finding{line, field, fmt.Sprintf(format, args...)})
}

// file adds one. What only Coldrack's rules refuse is lost, not wrong: other tools may write it.
func (b *builder) file(line int, field string, f nodeconfig.File) {
	if !path.IsAbs(f.Path) {
		b.problem(line, field, "%q is not an absolute path", shorten(f.Path))
		return
	}
	if err := validate.FilePath(f.Path); err != nil {
		b.lost(line, field, "the file %q %v", shorten(f.Path), err)
		return
	}
	if f.Owner != "" {
		if err := validate.FileOwner(f.Owner); err != nil {
			b.lost(line, field, "the file %s: its owner %q %v", f.Path, shorten(f.Owner), err)
			return
		}
	}
	if err := validate.FileMode(f.Mode); err != nil {
		b.problem(line, field, "mode %v", err)
		return
	}
	if b.paths == nil {
		b.paths = map[string]string{}
	}
	if other := b.paths[f.Path]; other != "" {
		b.problem(line, field, "%s is written by %s, too", f.Path, other)
		return
	}
	for other, at := range b.paths {
		if strings.HasPrefix(other, f.Path+"/") || strings.HasPrefix(f.Path, other+"/") {
			b.problem(line, field, "%s and %s of %s: one cannot be a file and a folder", f.Path, other, at)
			return
		}
	}
	b.paths[f.Path] = field
	b.Node.Config.Files = append(b.Node.Config.Files, f)
}

// key checks one SSH key.
func (b *builder) key(line int, field, key string) (string, bool) {
	key = strings.TrimSpace(key)
	if err := validate.SSHKey(key); err != nil {
		b.problem(line, field, "%q %v", shorten(key), err)
		return "", false
	}
	return key, true
}

// fixedLogin is why settings of a login are lost.
const fixedLogin = "a login of Coldrack has a free number, the folder /home/NAME, a group of its own, and no comment"

// user adds a login, or completes it where it is there.
func (b *builder) user(line int, field string, u nodeconfig.User) {
	c := &b.Node.Config
	if u.Name == "root" {
		c.SSHKeys = append(c.SSHKeys, u.SSHKeys...)
		if u.PasswordHash != "" {
			b.lost(line, field, "a password for root; Coldrack lets root in by SSH keys only")
		}
		return
	}
	if err := validate.UserName(u.Name); err != nil {
		b.lost(line, field, "the login %q %v", shorten(u.Name), err)
		return
	}
	if u.PasswordHash != "" && validate.PasswordHash(u.PasswordHash) != nil {
		b.problem(line, field, "the password of %s %v", u.Name, validate.PasswordHash(u.PasswordHash)) // not the hash itself
		return
	}
	if u.Shell != "" {
		if err := validate.Path(u.Shell); err != nil {
			b.problem(line, field, "the shell %q %v", shorten(u.Shell), err)
			return
		}
	}
	i := slices.IndexFunc(c.Users, func(o nodeconfig.User) bool { return o.Name == u.Name })
	if i < 0 {
		c.Users = append(c.Users, u)
		return
	}
	have := &c.Users[i]
	have.SSHKeys = append(have.SSHKeys, u.SSHKeys...)
	have.Sudo = have.Sudo || u.Sudo
	if u.PasswordHash != "" {
		have.PasswordHash = u.PasswordHash
	}
	if u.Shell != "" {
		have.Shell = u.Shell
	}
}

// unit adds one that is not a file of systemd-networkd.
func (b *builder) unit(line int, field string, u nodeconfig.Unit) {
	if err := validate.UnitName(u.Name); err != nil {
		b.lost(line, field, "the unit %q %v", shorten(u.Name), err)
		return
	}
	if slices.ContainsFunc(b.Node.Config.Units, func(o nodeconfig.Unit) bool { return o.Name == u.Name }) {
		b.problem(line, field, "%q is there twice", u.Name)
		return
	}
	if u.Masked && (u.Content != "" || u.Enabled) {
		b.lost(line, field, "%s is masked; its content and its being enabled have no effect", u.Name)
		u.Content, u.Enabled = "", false
	}
	if err := validate.Unit(u.Content, u.Enabled, u.Masked); err != nil {
		b.problem(line, field, "%v", err)
		return
	}
	if u == (nodeconfig.Unit{Name: u.Name}) {
		return // nothing is said of it
	}
	b.Node.Config.Units = append(b.Node.Config.Units, u)
}

// dropIn adds a part of a unit's configuration.
func (b *builder) dropIn(line int, field, unit, name, content string) {
	if !validate.IsUnitName(unit) || strings.Contains(name, "/") || !strings.HasSuffix(name, ".conf") || name == ".conf" {
		b.problem(line, field, "%q is not the name of a drop-in, such as 10-limits.conf", shorten(name))
		return
	}
	b.file(line, field, nodeconfig.File{Path: path.Join("/etc/systemd/system", unit+".d", name), Content: []byte(content)})
}

// networkFile tells whether a name is that of a file of systemd-networkd, which CoreOS listed among the units.
func networkFile(name string) bool {
	return slices.Contains([]string{".network", ".netdev", ".link"}, path.Ext(name)) && !strings.Contains(name, "/")
}

// sudoGroups are the groups whose members may become root on CoreOS and its successors.
var sudoGroups = []string{"sudo", "wheel"}

// groups tells whether the groups of a login let it become root, and reports the others.
func (b *builder) groups(line int, field, login string, groups []string) (sudo bool) {
	for _, g := range groups {
		if slices.Contains(sudoGroups, g) {
			sudo = true
			continue
		}
		b.lost(line, field, "%s in the group %q; a node's logins are in their own group and, with sudo, in that of sudo", login, shorten(g))
	}
	return sudo
}

func shorten(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
