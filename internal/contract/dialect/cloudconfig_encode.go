package dialect

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"path"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"coldrack.dev/internal/contract/nodeconfig"
)

// Types of CoreOS' #cloud-config, in the order in which they are written.
type cloudConfig struct {
	Hostname       string      `yaml:"hostname,omitempty"`
	ManageEtcHosts string      `yaml:"manage_etc_hosts,omitempty"`
	Users          []cloudUser `yaml:"users,omitempty"`
	WriteFiles     []cloudFile `yaml:"write_files,omitempty"`
	CoreOS         coreos      `yaml:"coreos,omitempty"`
}

type cloudUser struct {
	Name   string   `yaml:"name"`
	Passwd string   `yaml:"passwd,omitempty"`
	Groups []string `yaml:"groups,omitempty"`
	Shell  string   `yaml:"shell,omitempty"`
	Keys   []string `yaml:"ssh_authorized_keys,omitempty"`
}

type cloudFile struct {
	Path        string `yaml:"path"`
	Permissions quoted `yaml:"permissions,omitempty"`
	Owner       string `yaml:"owner,omitempty"`
	Encoding    string `yaml:"encoding,omitempty"`
	Content     block  `yaml:"content"`
	Defer       bool   `yaml:"defer,omitempty"` // of cloud-init only
}

// quoted is a text that would be a number without quotes.
type quoted string

func (q quoted) MarshalYAML() (any, error) {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: string(q)}, nil
}

// block is a text of many lines. One that begins with white space is quoted: the encoder writes some of these in a way that no decoder reads.
type block string

func (b block) MarshalYAML() (any, error) {
	if strings.TrimLeft(string(b), " \t\n") != string(b) {
		return quoted(b).MarshalYAML()
	}
	return string(b), nil
}

type coreos struct {
	Update cloudUpdate `yaml:"update,omitempty"`
	Units  []cloudUnit `yaml:"units,omitempty"`
}

type cloudUpdate struct {
	RebootStrategy quoted `yaml:"reboot_strategy,omitempty"`
	Group          string `yaml:"group,omitempty"`
	Server         string `yaml:"server,omitempty"`
}

type cloudUnit struct {
	Name    string `yaml:"name"`
	Mask    bool   `yaml:"mask,omitempty"`
	Enable  bool   `yaml:"enable,omitempty"`
	Command string `yaml:"command,omitempty"`
	Content block  `yaml:"content,omitempty"`
}

func yamlText(first string, value any) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(first + "\n")
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(value); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

func fileOf(f nodeconfig.File) cloudFile {
	out := cloudFile{Path: f.Path, Owner: f.Owner, Content: block(f.Content)}
	if f.Mode != 0 && f.Mode != 0o644 {
		out.Permissions = quoted(fmt.Sprintf("%04o", f.Mode))
	}
	if !plainText(f.Content) {
		out.Encoding, out.Content = "b64", block(base64.StdEncoding.EncodeToString(f.Content))
	}
	return out
}

// plainText tells whether YAML gives a text back as it is.
func plainText(b []byte) bool {
	return utf8.Valid(b) && !bytes.ContainsFunc(b, func(r rune) bool {
		return r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfeff || r == 0x2028 || r == 0x2029
	})
}

// common reports what neither of the two #cloud-configs can say.
func common(n Node) (lost []Finding, err error) {
	if _, err := nodeconfig.Portable(n.Config); err != nil {
		return nil, err
	}
	for i, a := range n.KernelArgs {
		lost = append(lost, Finding{Field: fmt.Sprintf("kernelArgs[%d]", i), Message: fmt.Sprintf("a #cloud-config cannot set the kernel argument %q; set it where the machine boots from", a)})
	}
	return lost, nil
}

func encodeCloudConfig(n Node) ([]byte, []Finding, error) {
	lost, err := common(n)
	if err != nil {
		return nil, nil, err
	}
	c := n.Config
	out := cloudConfig{Hostname: c.Hostname}
	if c.Hostname != "" {
		out.ManageEtcHosts = "localhost"
	}
	if len(c.SSHKeys) > 0 {
		out.Users = append(out.Users, cloudUser{Name: "root", Keys: c.SSHKeys})
	}
	for _, u := range c.Users {
		one := cloudUser{Name: u.Name, Passwd: u.PasswordHash, Shell: u.Shell, Keys: u.SSHKeys}
		if u.Sudo {
			one.Groups = []string{"sudo"}
		}
		out.Users = append(out.Users, one)
	}
	for _, f := range c.Files {
		file := fileOf(f)
		file.Content = block(escaped(string(file.Content)))
		out.WriteFiles = append(out.WriteFiles, file)
	}
	if c.Timezone != "" {
		lost = append(lost, Finding{Field: "timezone", Message: "a #cloud-config of CoreOS cannot set a time zone; its system runs at UTC"})
	}
	if len(c.Interfaces) > 0 {
		// The same files that the other encoders write.
		ops, err := nodeconfig.Portable(nodeconfig.Config{Hostname: "many", Interfaces: c.Interfaces, Links: c.Links})
		if err != nil {
			return nil, nil, err
		}
		for _, op := range ops {
			if strings.HasPrefix(op.Path, networkFolder) {
				out.CoreOS.Units = append(out.CoreOS.Units, cloudUnit{Name: path.Base(op.Path), Content: block(op.Content)})
			}
		}
	}
	out.CoreOS.Update = cloudUpdate{RebootStrategy: quoted(n.Update.RebootStrategy), Group: n.Update.Group, Server: n.Update.Server}
	for _, u := range c.Units {
		one := cloudUnit{Name: u.Name, Mask: u.Masked, Enable: u.Enabled, Content: block(escaped(u.Content))}
		if u.Enabled {
			one.Command = "start" // CoreOS enables a unit for the next boot only
		}
		out.CoreOS.Units = append(out.CoreOS.Units, one)
	}
	lost = append(lost, unwritten(c.DNS, "dns")...)
	lost = append(lost, unwritten(c.NTP, "ntp")...)
	lost = append(lost, unwritten(c.Hosts, "hosts")...)
	text, err := yamlText(header, out)
	return text, lost, err
}

// escaped keeps CoreOS from replacing what looks like one of its variables.
func escaped(text string) string {
	for name := range (Variables{}).values() {
		text = strings.ReplaceAll(text, name, `\`+name)
	}
	return text
}

// unwritten reports a list that a #cloud-config has no key for.
func unwritten[T any](list []T, field string) []Finding {
	if len(list) == 0 {
		return nil
	}
	return []Finding{{Field: field, Message: "a #cloud-config has no key for it; give the file that it is written to"}}
}

const networkFolder = "/etc/systemd/network/"

// Types of cloud-init's #cloud-config.
type cloudInit struct {
	Hostname string          `yaml:"hostname,omitempty"`
	FQDN     string          `yaml:"fqdn,omitempty"`
	Timezone string          `yaml:"timezone,omitempty"`
	NoRoot   *bool           `yaml:"disable_root,omitempty"`
	Users    []cloudInitUser `yaml:"users,omitempty"`
	NTP      *cloudInitNTP   `yaml:"ntp,omitempty"`
	Files    []cloudFile     `yaml:"write_files,omitempty"`
	RunCmd   [][]string      `yaml:"runcmd,omitempty"`
}

type cloudInitUser struct {
	Name   string   `yaml:"name"`
	Lock   *bool    `yaml:"lock_passwd,omitempty"`
	Passwd string   `yaml:"passwd,omitempty"`
	Sudo   string   `yaml:"sudo,omitempty"`
	Shell  string   `yaml:"shell,omitempty"`
	Keys   []string `yaml:"ssh_authorized_keys,omitempty"`
}

type cloudInitNTP struct {
	Servers []string `yaml:"servers"`
}

func encodeCloudInit(n Node) ([]byte, []Finding, error) {
	lost, err := common(n)
	if err != nil {
		return nil, nil, err
	}
	c := n.Config
	no := false
	out := cloudInit{Hostname: c.Hostname, Timezone: c.Timezone}
	if c.Domain != "" && c.Hostname != "" {
		out.FQDN = c.Hostname + "." + c.Domain
	}
	if len(c.SSHKeys) > 0 {
		out.NoRoot = &no
		out.Users = append(out.Users, cloudInitUser{Name: "root", Keys: c.SSHKeys})
	}
	logins := map[string]bool{}
	for _, u := range c.Users {
		logins[u.Name] = true
		one := cloudInitUser{Name: u.Name, Passwd: u.PasswordHash, Shell: u.Shell, Keys: u.SSHKeys}
		if one.Shell == "" {
			one.Shell = nodeconfig.DefaultShell // cloud-init leaves it to the image: /bin/sh
		}
		if u.PasswordHash != "" {
			one.Lock = &no
		}
		if u.Sudo {
			one.Sudo = "ALL=(ALL:ALL) NOPASSWD:ALL"
		}
		out.Users = append(out.Users, one)
	}
	if len(c.NTP) > 0 {
		out.NTP = &cloudInitNTP{c.NTP}
	}
	for _, f := range c.Files {
		file := fileOf(f)
		user, _, _ := strings.Cut(f.Owner, ":")
		file.Defer = logins[user] // written once the logins are there
		out.Files = append(out.Files, file)
	}
	var commands [][]string
	for _, u := range c.Units {
		if u.Content != "" {
			out.Files = append(out.Files, fileOf(nodeconfig.File{Path: unitFolder + u.Name, Content: []byte(u.Content)}))
		}
		switch {
		case u.Masked:
			commands = append(commands, []string{"systemctl", "mask", "--now", u.Name})
		case u.Enabled:
			commands = append(commands, []string{"systemctl", "enable", "--now", u.Name})
		}
	}
	if len(commands) > 0 {
		out.RunCmd = append([][]string{{"systemctl", "daemon-reload"}}, commands...)
	}
	if len(c.Interfaces) > 0 {
		lost = append(lost, Finding{Field: "interfaces", Message: "cloud-init takes the network from another file, network-config; write that one"})
	}
	if n.Update != (Update{}) {
		lost = append(lost, Finding{Field: "update", Message: "cloud-init knows no updates of update_engine"})
	}
	lost = append(lost, unwritten(c.DNS, "dns")...)
	lost = append(lost, unwritten(c.Hosts, "hosts")...)
	text, err := yamlText(header, out)
	return text, lost, err
}
