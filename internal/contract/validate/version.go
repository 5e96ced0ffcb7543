package validate

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Version is a release of Kubernetes (v1.37.2) or etcd (3.7.3).
type Version struct{ Major, Minor, Patch int }

// ParseVersion reads MAJOR.MINOR.PATCH, with or without a v before it.
func ParseVersion(s string) (Version, error) {
	var v Version
	parts := strings.Split(strings.TrimPrefix(s, "v"), ".")
	if len(parts) != 3 {
		return v, fmt.Errorf("%q is not a version such as v1.37.2", s)
	}
	for i, into := range []*int{&v.Major, &v.Minor, &v.Patch} {
		n, err := strconv.ParseUint(parts[i], 10, 16)
		if err != nil {
			return Version{}, fmt.Errorf("%q is not a version such as v1.37.2", s)
		}
		*into = int(n)
	}
	return v, nil
}

// Compare is negative when v is older than other.
func (v Version) Compare(other Version) int {
	return cmp.Or(cmp.Compare(v.Major, other.Major), cmp.Compare(v.Minor, other.Minor), cmp.Compare(v.Patch, other.Patch))
}

// SameMinor reports whether both are patch releases of one minor release.
func (v Version) SameMinor(other Version) bool {
	return v.Major == other.Major && v.Minor == other.Minor
}

// VersionStep says why programs that run the versions runs may not go to version to, and what would make it possible; nil
// when they may. Newer and older patch releases of a minor are allowed, and the next minor release. Kubernetes and etcd
// both support no other step.
func VersionStep(to string, runs ...string) error {
	target, err := ParseVersion(to)
	if err != nil {
		return err
	}
	for _, text := range runs {
		from, err := ParseVersion(text)
		switch {
		case err != nil:
			return err
		case target.Major != from.Major:
			return fmt.Errorf("from %s to %s is another major release, which no release supports; choose one of %d.x", text, to, from.Major)
		case target.Minor < from.Minor:
			return fmt.Errorf("from %s to %s is a downgrade across minor releases: the store may hold what the older release cannot read; "+
				"restore a backup from before the upgrade instead, or stay within %d.%d", text, to, from.Major, from.Minor)
		case target.Minor > from.Minor+1:
			return fmt.Errorf("from %s to %s skips a minor release: go to a patch release of %d.%d first, and wait until every machine runs it",
				text, to, from.Major, from.Minor+1)
		}
	}
	return nil
}
