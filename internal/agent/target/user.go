package target

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"coldrack.dev/internal/contract/nodeconfig"
)

// db is one of passwd(5), group(5), shadow(5) or gshadow(5).
type db struct {
	file  string
	lines [][]string
}

func (t *Target) readDB(file string) (*db, error) {
	b, err := t.root.ReadFile(rel(file))
	if err != nil {
		return nil, err
	}
	d := &db{file: file}
	for line := range strings.SplitSeq(strings.TrimRight(string(b), "\n"), "\n") {
		d.lines = append(d.lines, strings.Split(line, ":"))
	}
	return d, nil
}

func (d *db) find(name string) int {
	return slices.IndexFunc(d.lines, func(f []string) bool { return f[0] == name })
}

// set replaces or adds the line of fields[0].
func (d *db) set(fields ...string) {
	if i := d.find(fields[0]); i >= 0 {
		d.lines[i] = fields
		return
	}
	d.lines = append(d.lines, fields)
}

// ids are all numbers in the third field.
func (d *db) ids() map[int]bool {
	out := map[int]bool{}
	for _, f := range d.lines {
		if len(f) > 2 {
			if n, err := strconv.Atoi(f[2]); err == nil {
				out[n] = true
			}
		}
	}
	return out
}

// member adds name to the last field of a group's line.
func (d *db) member(group, name string) bool {
	i := d.find(group)
	if i < 0 {
		return false
	}
	last := len(d.lines[i]) - 1
	members := strings.FieldsFunc(d.lines[i][last], func(r rune) bool { return r == ',' })
	if !slices.Contains(members, name) {
		d.lines[i][last] = strings.Join(append(members, name), ",")
	}
	return true
}

// writeDB keeps mode and owner: shadow must stay unreadable to all but its group.
func (t *Target) writeDB(d *db) error {
	var b strings.Builder
	for _, f := range d.lines {
		b.WriteString(strings.Join(f, ":") + "\n")
	}
	mode, owner := uint32(0o644), "root:root"
	if path.Base(d.file) == "shadow" || path.Base(d.file) == "gshadow" {
		mode = 0o600
		if _, err := t.id("/etc/group", "shadow"); err == nil {
			mode, owner = 0o640, "root:shadow"
		}
	}
	return t.WriteFile(d.file, []byte(b.String()), mode, owner)
}

// user makes a login with a group of its own and a home folder, or brings an existing one up to date.
func (t *Target) user(u nodeconfig.User) error {
	dbs := map[string]*db{}
	for _, name := range []string{"passwd", "group", "shadow", "gshadow"} {
		d, err := t.readDB("/etc/" + name)
		if err != nil && (name != "gshadow" || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
		dbs[name] = d // nil: the image has no gshadow
	}
	id, err := pickID(dbs["passwd"], dbs["group"], u.Name)
	if err != nil {
		return err
	}
	number, home := strconv.Itoa(id), "/home/"+u.Name
	if u.Shell != "" && !t.Exists(u.Shell) {
		return fmt.Errorf("the image has no shell %s", u.Shell)
	}
	password := u.PasswordHash
	if password == "" {
		password = "!" // no password opens it; keys do
	}
	dbs["passwd"].set(u.Name, "x", number, number, "", home, u.Shell)
	// The last change is left empty, which turns password aging off: the build's clock means nothing here.
	dbs["shadow"].set(u.Name, password, "", "0", "99999", "7", "", "", "")
	if dbs["group"].find(u.Name) < 0 {
		dbs["group"].set(u.Name, "x", number, "")
	}
	if g := dbs["gshadow"]; g != nil && g.find(u.Name) < 0 {
		g.set(u.Name, "!", "", "")
	}
	if u.Sudo && dbs["group"].member("sudo", u.Name) && dbs["gshadow"] != nil {
		dbs["gshadow"].member("sudo", u.Name)
	}
	for _, name := range []string{"group", "gshadow", "passwd", "shadow"} {
		if dbs[name] == nil {
			continue
		}
		if err := t.writeDB(dbs[name]); err != nil {
			return err
		}
	}
	own := u.Name + ":" + u.Name
	if err := t.makeDir(home, 0o700, own); err != nil {
		return err
	}
	return t.skeleton(home, own)
}

func pickID(passwd, group *db, name string) (int, error) {
	if i := passwd.find(name); i >= 0 && len(passwd.lines[i]) >= 7 {
		id, err := strconv.Atoi(passwd.lines[i][2])
		if err != nil || id < nodeconfig.FirstLoginID || id > nodeconfig.LastLoginID {
			return 0, fmt.Errorf("%q is a system account of the image (number %s); choose another name", name, passwd.lines[i][2])
		}
		return id, nil
	}
	if group.find(name) >= 0 {
		return 0, fmt.Errorf("%q is a group of the image; choose another name", name)
	}
	uids, gids := passwd.ids(), group.ids()
	for id := nodeconfig.FirstLoginID; id <= nodeconfig.LastLoginID; id++ {
		if !uids[id] && !gids[id] {
			return id, nil
		}
	}
	return 0, errors.New("no number is free for another login")
}

// skeleton copies the plain files of /etc/skel that the home folder lacks.
func (t *Target) skeleton(home, own string) error {
	for _, name := range t.Glob("/etc/skel", "*") {
		b, err := t.root.ReadFile("etc/skel/" + name)
		if err != nil {
			continue // a folder or a link: not worth a failed install
		}
		if _, err := t.root.Lstat(rel(home + "/" + name)); err == nil {
			continue
		}
		if err := t.WriteFile(home+"/"+name, b, 0o644, own); err != nil {
			return err
		}
	}
	return nil
}
