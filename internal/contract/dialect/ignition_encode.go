package dialect

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/coreos/ignition/v2/config/util"
	v3 "github.com/coreos/ignition/v2/config/v3_5"
	"github.com/coreos/ignition/v2/config/v3_5/types"
	"github.com/vincent-petithory/dataurl"

	"coldrack.dev/internal/contract/nodeconfig"
)

// ignitionVersion is the version of Ignition's specification that is written: the lowest that says it all, because an operating system reads those
// up to its own. Ignition 2.11 reads it, and Flatcar from 3185 on.
const ignitionVersion = "3.3.0"

// updateConf has the settings of update_engine and locksmithd.
const updateConf = "/etc/flatcar/update.conf"

// existingLogin is the login that Flatcar and Fedora CoreOS come with, with a group of its own. Ignition changes existing logins, and
// fails on existing groups.
const existingLogin = "core"

func encodeIgnition(n Node) ([]byte, []Finding, error) {
	ops, err := nodeconfig.Portable(n.Config)
	if err != nil {
		return nil, nil, err
	}
	e := ignitionEncoder{users: map[string]int{}, units: map[string]int{}}
	e.Ignition.Version = ignitionVersion
	// At least a file's permissions are there; the specification has no stable version with more.
	var lost []Finding
	for i, op := range ops {
		if op.Kind == nodeconfig.WriteFile && op.Mode > 0o777 {
			ops[i].Mode &= 0o777
			lost = append(lost, Finding{Field: "files", Message: fmt.Sprintf("the mode %#o of %s: Ignition up to 3.5 drops the set-user-ID, set-group-ID and sticky bits", op.Mode, op.Path)})
		}
	}
	for _, a := range n.KernelArgs {
		e.KernelArguments.ShouldExist = append(e.KernelArguments.ShouldExist, types.KernelArgument(a))
	}
	for _, op := range ops {
		if err := e.add(op); err != nil {
			return nil, nil, err
		}
	}
	if text := n.Update.conf(); text != "" {
		e.file(updateConf, []byte(text), 0o644, "")
	}
	// Optional fields that are not there are left out as a whole: types.Config has them as empty objects.
	raw, err := json.Marshal(e.Config)
	if err != nil {
		return nil, nil, err
	}
	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		return nil, nil, err
	}
	prune(object)
	text, err := json.MarshalIndent(object, "", "  ")
	if err != nil {
		return nil, nil, err
	}
	text = append(text, '\n')
	// The library's own rules have the last word. Whoever is handed this cannot ask us, at the first boot of a machine.
	if _, report, err := v3.ParseCompatibleVersion(text); err != nil {
		return nil, nil, fmt.Errorf("what Ignition would refuse: %w: %s", err, strings.TrimSpace(report.String()))
	}
	return text, lost, nil
}

// prune removes empty objects.
func prune(value any) (empty bool) {
	switch v := value.(type) {
	case map[string]any:
		for key, child := range v {
			if prune(child) {
				delete(v, key)
			}
		}
		return len(v) == 0
	case []any:
		for _, child := range v {
			prune(child)
		}
	}
	return false
}

type ignitionEncoder struct {
	types.Config
	users, units map[string]int // index by name
}

func (e *ignitionEncoder) add(op nodeconfig.Op) error {
	switch op.Kind {
	case nodeconfig.WriteFile:
		if name, ok := authorizedKeysOf(op.Path); ok {
			u := e.user(name)
			for key := range strings.Lines(string(op.Content)) {
				u.SSHAuthorizedKeys = append(u.SSHAuthorizedKeys, types.SSHAuthorizedKey(strings.TrimSuffix(key, "\n")))
			}
			return nil
		}
		if unit, ok := strings.CutPrefix(op.Path, unitFolder); ok && !strings.Contains(unit, "/") && op.Mode == 0o644 && op.Owner == "root:root" &&
			utf8.Valid(op.Content) && len(op.Content) > 0 && ignitionUnit(unit) {
			e.unit(unit).Contents = util.StrToPtr(string(op.Content))
			return nil
		}
		e.file(op.Path, op.Content, op.Mode, op.Owner)
	case nodeconfig.MakeDir:
		if _, ok := authorizedKeysOf(op.Path + "/authorized_keys"); !ok {
			dir := types.Directory{Node: node(op.Path, op.Owner)}
			dir.Mode = util.IntToPtr(int(op.Mode))
			dir.Overwrite = nil // one that is there stays
			e.Storage.Directories = append(e.Storage.Directories, dir)
		}
	case nodeconfig.MakeLink:
		e.Storage.Links = append(e.Storage.Links, types.Link{Node: node(op.Path, ""), LinkEmbedded1: types.LinkEmbedded1{Target: util.StrToPtr(op.Target)}})
	case nodeconfig.MakeUser:
		u := e.user(op.Login.Name)
		u.Shell = util.StrToPtr(op.Login.Shell)
		if op.Login.PasswordHash != "" {
			u.PasswordHash = util.StrToPtr(op.Login.PasswordHash)
		}
		if op.Login.Sudo {
			u.Groups = []types.Group{"sudo"}
		}
		// Without it, whether there is a group of the login's name depends on /etc/login.defs of the image, and with it
		// whether files can be owned by one.
		if op.Login.Name != existingLogin {
			e.Passwd.Groups = append(e.Passwd.Groups, types.PasswdGroup{Name: op.Login.Name})
			u.PrimaryGroup = util.StrToPtr(op.Login.Name)
		}
	case nodeconfig.EnableUnit:
		e.unit(op.Unit).Enabled = util.BoolToPtr(true)
	case nodeconfig.MaskUnit:
		e.unit(op.Unit).Mask = util.BoolToPtr(true)
	default:
		return fmt.Errorf("operation %q has no form in Ignition", op.Kind)
	}
	return nil
}

const unitFolder = "/etc/systemd/system/"

// ignitionUnit tells whether Ignition takes a unit of that name.
func ignitionUnit(name string) bool {
	r := types.Unit{Name: name}.Validate(contextOf("name"))
	return !r.IsFatal()
}

// authorizedKeysOf is the login whose keys a file has.
func authorizedKeysOf(file string) (login string, ok bool) {
	folder, ok := strings.CutSuffix(file, "/.ssh/authorized_keys")
	if folder == "/root" {
		return "root", ok
	}
	login, inHome := strings.CutPrefix(folder, "/home/")
	return login, ok && inHome && login != "" && !strings.Contains(login, "/")
}

func node(path, owner string) types.Node {
	n := types.Node{Path: path, Overwrite: util.BoolToPtr(true)}
	if owner != "" && owner != "root:root" {
		user, group, _ := strings.Cut(owner, ":")
		n.User.Name, n.Group.Name = util.StrToPtr(user), util.StrToPtr(group)
	}
	return n
}

func (e *ignitionEncoder) file(path string, content []byte, mode uint32, owner string) {
	f := types.File{Node: node(path, owner)}
	f.Mode = util.IntToPtr(int(mode))
	f.Contents.Source = util.StrToPtr(dataURL(content))
	e.Storage.Files = append(e.Storage.Files, f)
}

// dataURL writes text so that people can read it (RFC 2397), unless that would be longer.
func dataURL(content []byte) string {
	encoded := "data:;base64," + base64.StdEncoding.EncodeToString(content)
	if utf8.Valid(content) {
		if text := "data:," + dataurl.EscapeString(string(content)); len(text) <= len(encoded)+len(content)/2+20 {
			return text
		}
	}
	return encoded
}

func (e *ignitionEncoder) user(name string) *types.PasswdUser {
	i, ok := e.users[name]
	if !ok {
		i = len(e.Passwd.Users)
		e.users[name] = i
		e.Passwd.Users = append(e.Passwd.Users, types.PasswdUser{Name: name})
	}
	return &e.Passwd.Users[i]
}

func (e *ignitionEncoder) unit(name string) *types.Unit {
	i, ok := e.units[name]
	if !ok {
		i = len(e.Systemd.Units)
		e.units[name] = i
		e.Systemd.Units = append(e.Systemd.Units, types.Unit{Name: name})
	}
	return &e.Systemd.Units[i]
}

// conf is the content of update.conf; "" where nothing is set.
func (u Update) conf() string {
	var lines []string
	for key, value := range map[string]string{"GROUP": u.Group, "SERVER": u.Server, "REBOOT_STRATEGY": u.RebootStrategy} {
		if value != "" {
			lines = append(lines, key+"="+value+"\n")
		}
	}
	sort.Strings(lines)
	return strings.Join(lines, "")
}

// parseUpdateConf reads it back; ok is false where it has more than an Update.
func parseUpdateConf(text string) (u Update, ok bool) {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch key {
		case "GROUP":
			u.Group = value
		case "SERVER":
			u.Server = value
		case "REBOOT_STRATEGY":
			u.RebootStrategy = value
		}
	}
	return u, u.conf() == text && text != ""
}
