// Package version tells which build of Coldrack is running.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Version and Commit are set by the linker and by nothing else:
//
//	-ldflags "-X coldrack.dev/internal/base/version.Version=v0.1.0 -X coldrack.dev/internal/base/version.Commit=0123abcd"
//
// A build without them falls back to what the Go toolchain recorded. Readers use Get.
var (
	Version string
	Commit  string
)

// Info describes a build.
type Info struct {
	Version string `json:"version"`
	// Commit is the abbreviated revision, followed by "+dirty" when the tree had changes.
	Commit   string `json:"commit,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Get returns the description of the running binary.
func Get() Info {
	info := Info{
		Version:  Version,
		Commit:   Commit,
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		build = &debug.BuildInfo{}
	}
	if info.Version == "" && build.Main.Version != "(devel)" {
		info.Version = build.Main.Version
	}
	if info.Version == "" {
		info.Version = "devel"
	}
	if info.Commit == "" {
		info.Commit = revision(build.Settings)
	}
	return info
}

// String is one line for a person.
func (i Info) String() string {
	commit := i.Commit
	if commit == "" {
		commit = "unknown commit"
	}
	return fmt.Sprintf("coldrack %s (%s, %s, %s)", i.Version, commit, i.Go, i.Platform)
}

func revision(settings []debug.BuildSetting) string {
	var rev, dirty string
	for _, s := range settings {
		switch s.Key {
		case "vcs.revision":
			rev = s.Value[:min(len(s.Value), 12)]
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "+dirty"
			}
		}
	}
	if rev == "" {
		return ""
	}
	return rev + dirty
}
