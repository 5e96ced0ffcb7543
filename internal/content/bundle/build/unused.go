package build

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// unusedLimit is how long the cache keeps what no build has used. A cache that outlives its clone sees recipes come and go.
const unusedLimit = 30 * 24 * time.Hour

// dropUnused removes downloads, packages and products of steps that nobody has used for long. The caller holds the
// cache's lock. What is used again later is fetched or made again.
func dropUnused(cache string, now time.Time) error {
	var errs []error
	for _, pattern := range []string{"downloads/*", "apt/cache/archives/*.deb", "steps/*/*"} {
		found, err := filepath.Glob(filepath.Join(cache, pattern))
		errs = append(errs, err)
		for _, path := range found {
			info, err := os.Lstat(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if now.Sub(changed(info)) > unusedLimit {
				errs = append(errs, os.RemoveAll(path))
			}
		}
	}
	return errors.Join(errs...)
}

// changed is when a file was made, or last marked as used: apt gives packages the time that the mirror tells, so that the
// time of modification says nothing.
func changed(info fs.FileInfo) time.Time {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(s.Ctim.Unix())
	}
	return info.ModTime()
}
