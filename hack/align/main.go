// Command align raises the modules that our programs and those of the newest recipes have in common to one version: the highest that
// one of them wants. Go compiles a package once then, and all programs of a bundle get the same corrections. See docs/adr/0024.
//
//	go run ./hack/align
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/semver"
)

// rounds is how often versions are raised before it is given up: a raised module may itself want higher versions of others.
const rounds = 6

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "align:", err)
		os.Exit(1)
	}
}

func run() error {
	for range rounds {
		raises, err := differences(".")
		if err != nil || len(raises) == 0 {
			return err
		}
		if err := apply(raises); err != nil {
			return err
		}
	}
	return fmt.Errorf("modules still differ after %d rounds; the last lines above say which", rounds)
}

// A raise is a module that the go.mod file in a folder wants lower than another one does.
type raise struct {
	folder, module, from, to string
}

func (r raise) String() string {
	return fmt.Sprintf("%s: %s %s, elsewhere %s", filepath.Join(r.folder, "go.mod"), r.module, r.from, r.to)
}

// differences compares go.mod of the repository at root and of the newest minor release of each of recipes/modules. Modules that a
// file replaces are left out: Kubernetes names its own parts so.
func differences(root string) ([]raise, error) {
	folders, err := newest(root)
	if err != nil {
		return nil, err
	}
	wants := map[string]map[string]string{} // folder -> module -> version
	highest := map[string]string{}
	for _, folder := range folders {
		if wants[folder], err = requirements(filepath.Join(root, folder)); err != nil {
			return nil, err
		}
		for module, version := range wants[folder] {
			if highest[module] == "" || semver.Compare(version, highest[module]) > 0 {
				highest[module] = version
			}
		}
	}
	var raises []raise
	for _, folder := range folders {
		for module, version := range wants[folder] {
			if semver.Compare(version, highest[module]) < 0 {
				raises = append(raises, raise{folder, module, version, highest[module]})
			}
		}
	}
	slices.SortFunc(raises, func(a, b raise) int { return strings.Compare(a.String(), b.String()) })
	return raises, nil
}

// newest is the repository itself and, of each name in recipes/modules, the folder of its highest minor release: an older one is there to
// upgrade from and stays as its makers released it.
func newest(root string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(root, "recipes", "modules", "*", "go.mod"))
	if err != nil {
		return nil, err
	}
	best := map[string]string{} // name without release -> release
	for _, file := range files {
		folder := filepath.Base(filepath.Dir(file))
		name, release := folder, ""
		if i := strings.LastIndexByte(folder, '-'); i >= 0 && semver.IsValid("v"+folder[i+1:]) {
			name, release = folder[:i], "v"+folder[i+1:]
		}
		if old, ok := best[name]; !ok || semver.Compare(release, old) > 0 {
			best[name] = release
		}
	}
	folders := []string{"."}
	for name, release := range best {
		if release != "" {
			name += "-" + release[1:]
		}
		folders = append(folders, filepath.Join("recipes", "modules", name))
	}
	slices.Sort(folders)
	return folders, nil
}

// requirements reads what go.mod in a folder requires: module -> version.
func requirements(folder string) (map[string]string, error) {
	c := exec.Command("go", "mod", "edit", "-json")
	c.Dir = folder
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	var file struct {
		Require []struct{ Path, Version string }
		Replace []struct{ Old struct{ Path string } }
	}
	if err := json.Unmarshal(out, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	wants := map[string]string{}
	for _, r := range file.Require {
		wants[r.Path] = r.Version
	}
	for _, r := range file.Replace {
		delete(wants, r.Old.Path)
	}
	return wants, nil
}

func apply(raises []raise) error {
	byFolder := map[string][]string{}
	for _, r := range raises {
		fmt.Println(r)
		byFolder[r.folder] = append(byFolder[r.folder], "-require="+r.module+"@"+r.to)
	}
	// Not "go get": it refuses a version that another of its arguments raises further.
	for folder, edits := range byFolder {
		for _, args := range [][]string{append([]string{"mod", "edit"}, edits...), {"mod", "tidy"}} {
			c := exec.Command("go", args...)
			c.Dir, c.Stderr = folder, os.Stderr
			if err := c.Run(); err != nil {
				return fmt.Errorf("go %s in %s: %w", strings.Join(args[:2], " "), folder, err)
			}
		}
	}
	return nil
}
