package build

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"coldrack.dev/internal/base/rootfs"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/validate"
)

// maxFacts keeps the facts far below what a reader takes for an image's config, in bytes of JSON. Those of a Debian image
// take about 30 KiB.
const maxFacts = 256 << 10

// imageFacts reads from an image's tree what the settings of a machine can depend on.
func imageFacts(dir string) (*nodeconfig.ImageFacts, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	facts := &nodeconfig.ImageFacts{Version: nodeconfig.FactsVersion}
	var errs [5]error
	facts.Users, errs[0] = accountNumbers(root, "etc/passwd")
	facts.Groups, errs[1] = accountNumbers(root, "etc/group")
	facts.Timezones, errs[2] = timezones(root)
	facts.Units, facts.MaskedUnits, errs[3] = unitFiles(root)
	facts.Programs, errs[4] = programs(root)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("facts of the image: %w", err)
	}
	if text, err := json.Marshal(facts); err != nil || len(text) > maxFacts {
		return nil, errors.Join(err, fmt.Errorf("facts of the image: they take %d bytes, at most %d are kept; install fewer packages", len(text), maxFacts))
	}
	return facts, nil
}

// accountNumbers reads the third field of passwd(5) or group(5).
func accountNumbers(root *os.Root, file string) (map[string]int, error) {
	text, err := rootfs.ReadFile(root, file)
	if err != nil {
		return nil, err
	}
	numbers := map[string]int{}
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) < 3 {
			continue
		}
		if numbers[f[0]], err = strconv.Atoi(f[2]); err != nil {
			return nil, fmt.Errorf("%s: %s has the number %q", file, f[0], f[2])
		}
	}
	return numbers, nil
}

// timezones are the names below /usr/share/zoneinfo that lead to data of a zone (RFC 8536). Its folders posix and right
// have all zones again.
func timezones(root *os.Root) ([]string, error) {
	folder, _, err := rootfs.Resolve(root, "usr/share/zoneinfo")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var zones []string
	err = fs.WalkDir(root.FS(), folder, func(file string, entry fs.DirEntry, err error) error {
		name := strings.TrimPrefix(file, folder+"/")
		switch {
		case err != nil:
			return err
		case name == "posix" || name == "right":
			if entry.IsDir() {
				return fs.SkipDir
			}
		case name == "localtime" || name == "posixrules" || entry.IsDir() || validate.Timezone(name) != nil:
		case isZone(root, file):
			zones = append(zones, name)
		}
		return nil
	})
	slices.Sort(zones)
	return zones, err
}

func isZone(root *os.Root, name string) bool {
	f, err := rootfs.Open(root, name)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	magic := make([]byte, 4)
	_, err = io.ReadFull(f, magic)
	return err == nil && string(magic) == "TZif"
}

// list is the content of a folder, or nothing where there is none; at is its path without links.
func list(root *os.Root, folder string) (at string, entries []fs.DirEntry, err error) {
	at, _, err = rootfs.Resolve(root, folder)
	if err == nil {
		entries, err = fs.ReadDir(root.FS(), at)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, nil
	}
	return at, entries, err
}

// regular says whether a name leads to a regular file, and with which mode.
func regular(root *os.Root, name string) (fs.FileMode, bool) {
	target, _, err := rootfs.Resolve(root, name)
	if err != nil {
		return 0, false
	}
	info, err := root.Lstat(target)
	if err != nil {
		return 0, false
	}
	return info.Mode(), info.Mode().IsRegular()
}

// unitFiles are the names of the unit files, and of those that are links to /dev/null. Of several files of a unit the one in
// the strongest folder counts.
func unitFiles(root *os.Root) (units, masked []string, err error) {
	seen := map[string]bool{}
	for _, folder := range nodeconfig.UnitFolders() {
		at, entries, err := list(root, folder)
		if err != nil {
			return nil, nil, err
		}
		for _, entry := range entries {
			name := entry.Name()
			if seen[name] || !validate.IsUnitName(name) {
				continue
			}
			file := path.Join(at, name)
			if to, err := root.Readlink(file); err == nil && to == os.DevNull {
				masked, seen[name] = append(masked, name), true
			} else if _, ok := regular(root, file); ok {
				units, seen[name] = append(units, name), true
			}
		}
	}
	slices.Sort(units)
	slices.Sort(masked)
	return units, masked, nil
}

// programs are the names of the executable files, by folder. A folder that is a link to another of them is left out.
func programs(root *os.Root) (map[string][]string, error) {
	found := map[string][]string{}
	for _, folder := range []string{"/usr/bin", "/usr/sbin", "/bin", "/sbin"} {
		at, entries, err := list(root, folder)
		if err != nil {
			return nil, err
		}
		if at == "" || (strings.Count(folder, "/") == 1 && "/"+at == "/usr"+folder) {
			continue
		}
		names := []string{}
		for _, entry := range entries {
			if mode, ok := regular(root, path.Join(at, entry.Name())); ok && mode&0o111 != 0 {
				names = append(names, entry.Name())
			}
		}
		slices.Sort(names)
		found[folder] = names
	}
	return found, nil
}
