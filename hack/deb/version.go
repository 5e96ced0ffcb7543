package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

var (
	// 1.2.3, what is before it is released, and the commits since.
	release  = regexp.MustCompile(`^v?(\d+(?:\.\d+)+)(?:-([A-Za-z][A-Za-z0-9.-]*?))?(?:-(\d+)-(g[0-9a-f]+))?$`)
	untagged = regexp.MustCompile(`^[0-9a-f]{7,40}$`)
)

// debianVersion is the package's version for what "git describe --tags --always --dirty" says of the sources:
//
//	v1.2.3               1.2.3-1
//	v1.2.3-rc.1          1.2.3~rc.1-1             before 1.2.3
//	v1.2.3-4-g0123abc    1.2.3+4.g0123abc-1       after 1.2.3
//	0123abc              0~git20261201114912.0123abc-1   no tag yet: before every release, and in the order of commits
//
// A tree with changes that are not committed has "+dirty".
func debianVersion(describe string, committed time.Time) (string, error) {
	clean, changed := strings.CutSuffix(describe, "-dirty")
	var version string
	if m := release.FindStringSubmatch(clean); m != nil {
		version = m[1]
		if m[2] != "" {
			version += "~" + strings.ReplaceAll(m[2], "-", ".")
		}
		if m[3] != "" {
			version += "+" + m[3] + "." + m[4]
		}
	} else if untagged.MatchString(clean) {
		version = "0~git" + committed.UTC().Format("20060102150405") + "." + clean
	} else {
		return "", fmt.Errorf("version %q is neither like v1.2.3 nor a commit, and a package needs one that can be ordered; set VERSION=v1.2.3", describe)
	}
	if changed {
		version += "+dirty"
	}
	return version + "-1", nil
}
