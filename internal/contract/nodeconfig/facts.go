package nodeconfig

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"
)

// FactsVersion is the version of ImageFacts that this code writes and checks by.
const FactsVersion = 1

// Range of the numbers that people's logins have, as Debian's adduser has it. Accounts with other numbers are the
// system's own.
const (
	FirstLoginID = 1000
	LastLoginID  = 59999
)

// ImageFacts is what one image has of what a Config can depend on. The bundle builder writes them beside the image, so
// that the server finds out before a disk is wiped what the installer would find out after it. All lists are sorted.
type ImageFacts struct {
	Version int `json:"version"`
	// Users and Groups are the numbers of the accounts and groups, by name.
	Users  map[string]int `json:"users"`
	Groups map[string]int `json:"groups"`
	// Timezones are the names below /usr/share/zoneinfo.
	Timezones []string `json:"timezones"`
	// Units are the names of the unit files, and MaskedUnits those that cannot be enabled.
	Units       []string `json:"units"`
	MaskedUnits []string `json:"maskedUnits,omitempty"`
	// Programs are the names of the executable files, by folder. Where /bin is a link to /usr/bin, it is not listed.
	Programs map[string][]string `json:"programs"`
}

// unitFolders are where a unit file can lie, the strongest first.
var unitFolders = []string{"/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// UnitFolders are where the installer looks for unit files, the strongest first.
func UnitFolders() []string { return slices.Clone(unitFolders) }

// Check reports what of a valid Config the image of that name cannot satisfy, as Problems, or nil. Nil facts, those of an
// older builder, and those of a version that is not known say nothing; then it is left to the installer.
func (f *ImageFacts) Check(c Config, image string) error {
	if f == nil || f.Version != FactsVersion {
		return nil
	}
	k := factsCheck{ImageFacts: f, image: image}
	if tz := c.Timezone; tz != "" && tz != "UTC" && !has(f.Timezones, tz) {
		k.add("timezone", "%q is not a time zone of image %s; choose another, or add tzdata or tzdata-legacy to the image's packages", tz, image)
	}
	if len(c.Interfaces) > 0 {
		k.unit("interfaces", "systemd-networkd.service", c)
	}
	k.users(c.Users)
	k.owners(c)
	for i, u := range c.Units {
		if u.Enabled {
			k.unit(fmt.Sprintf("units[%d].name", i), u.Name, c)
		}
	}
	if len(k.problems) == 0 {
		return nil
	}
	return k.problems
}

type factsCheck struct {
	*ImageFacts
	image string
	report
}

func has(sorted []string, s string) bool {
	_, found := slices.BinarySearch(sorted, s)
	return found
}

func (k *factsCheck) users(users []User) {
	for i, u := range users {
		at := fmt.Sprintf("users[%d]", i)
		id, exists := k.Users[u.Name]
		_, group := k.Groups[u.Name]
		switch {
		case exists && (id < FirstLoginID || id > LastLoginID):
			k.add(at+".name", "%q is a system account of image %s (number %d); choose another name", u.Name, k.image, id)
		case !exists && group:
			k.add(at+".name", "%q is a group of image %s; choose another name", u.Name, k.image)
		}
		if u.Sudo && !k.program("/usr/bin/sudo") {
			k.add(at+".sudo", "image %s has no sudo; add its package to the image, or leave sudo out", k.image)
		}
		if shell := cmp.Or(u.Shell, DefaultShell); !k.program(shell) {
			k.add(at+".shell", "%s is not in image %s; choose another, or add its package to the image", shell, k.image)
		}
	}
}

// program says whether an image may have an executable file. In folders that are not listed it may.
func (k *factsCheck) program(file string) bool {
	folder, name := path.Split(file)
	folder = strings.TrimSuffix(folder, "/")
	names, listed := k.Programs[folder]
	if !listed && (folder == "/bin" || folder == "/sbin") {
		names, listed = k.Programs["/usr"+folder]
	}
	return !listed || has(names, name)
}

// owners checks the owners of files, which are of the image or logins of the Config with a group of the same name.
func (k *factsCheck) owners(c Config) {
	login := func(name string) bool {
		return slices.ContainsFunc(c.Users, func(u User) bool { return u.Name == name })
	}
	for i, f := range c.Files {
		user, group, ok := strings.Cut(f.Owner, ":")
		if !ok || f.Owner == "root:root" {
			continue
		}
		for _, one := range []struct {
			what, name string
			known      map[string]int
		}{{"user", user, k.Users}, {"group", group, k.Groups}} {
			if _, known := one.known[one.name]; !known && !login(one.name) {
				k.add(fmt.Sprintf("files[%d].owner", i), "%q: image %s has no %s %s, and users has none; choose another, or add it to users", f.Owner, k.image, one.what, one.name)
			}
		}
	}
}

// unit checks that a unit that is to be enabled has a file: of the image, of its own content, or of the Config's files.
func (k *factsCheck) unit(at, name string, c Config) {
	file := UnitFile(name)
	written := slices.ContainsFunc(c.Units, func(u Unit) bool { return u.Name == file && u.Content != "" })
	// What the image masks, only a file in the first folder brings back.
	for i, folder := range unitFolders {
		if i > 0 && has(k.MaskedUnits, file) {
			break
		}
		written = written || slices.ContainsFunc(c.Files, func(f File) bool { return f.Path == path.Join(folder, file) })
	}
	switch {
	case written:
	case has(k.MaskedUnits, file):
		k.add(at, "%s is masked in image %s and cannot be enabled; give it content, or do not enable it", file, k.image)
	case !has(k.Units, file):
		k.add(at, "image %s has no unit file %s to enable; give it content, or add its package to the image", k.image, file)
	}
}
