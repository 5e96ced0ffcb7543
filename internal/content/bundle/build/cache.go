package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"time"
)

// stepFormat is part of every key; raise it when the code of a step changes what it makes.
const stepFormat = "4"

// Event is one line of progress.
type Event struct {
	Step    string        // for example "image root"
	State   State         //
	Detail  string        // what it is at, or what it made
	Elapsed time.Duration // of this step
	Size    int64         // bytes of what it made, when done
}

// State of a step.
type State string

// The states of a step.
const (
	Started State = "started"
	Running State = "running"
	Cached  State = "cached" // made by an earlier build from the same inputs
	Done    State = "done"
)

// steps runs the parts of a build and keeps what they make, by the hash of their inputs.
type steps struct {
	dir    string // of the cache
	report func(Event)
	begun  time.Time
	name   string
}

// run returns the folder with the products of a step. make fills it when no earlier build did with
// the same inputs; a folder is there whole or not at all.
func (s *steps) run(ctx context.Context, name string, inputs any, make func(ctx context.Context, dir string) error) (string, error) {
	s.name, s.begun = name, time.Now()
	key, err := inputKey(name, inputs)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(s.dir, "steps", name, key)
	if _, err := os.Stat(dir); err == nil {
		now := time.Now()
		_ = os.Chtimes(dir, now, now) // prune goes by the time of last use
		s.event(Cached, "", treeSize(dir))
		return dir, nil
	}
	s.event(Started, "", 0)
	tmp := dir + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	defer func() { _ = os.RemoveAll(tmp) }() // gone already when all went well
	if err := make(ctx, tmp); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	s.prune(name)
	s.event(Done, "", treeSize(dir))
	return dir, nil
}

// detail reports what the step is at.
func (s *steps) detail(format string, args ...any) { s.event(Running, fmt.Sprintf(format, args...), 0) }

func (s *steps) event(state State, detail string, size int64) {
	if s.report != nil {
		s.report(Event{Step: s.name, State: state, Detail: detail, Elapsed: time.Since(s.begun), Size: size})
	}
}

// kept is how many products of a step stay: this recipe's, the one before an edit that is soon undone, and those of another
// clone that shares the cache.
const kept = 4

// prune keeps the products of a step that were used last.
func (s *steps) prune(name string) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "steps", name))
	if err != nil {
		return
	}
	used := map[string]time.Time{}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			used[e.Name()] = info.ModTime()
		}
	}
	sort.Slice(entries, func(i, j int) bool { return used[entries[i].Name()].After(used[entries[j].Name()]) })
	for _, e := range entries[min(kept, len(entries)):] {
		_ = os.RemoveAll(filepath.Join(s.dir, "steps", name, e.Name()))
	}
}

func inputKey(name string, inputs any) (string, error) {
	raw, err := json.Marshal(inputs)
	if err != nil {
		return "", fmt.Errorf("%s: key of the inputs: %w", name, err)
	}
	sum := sha256.Sum256([]byte(stepFormat + "\n" + name + "\n" + string(raw)))
	return hex.EncodeToString(sum[:10]), nil
}

// hashTree is the digest of a folder's names, modes and contents; an empty path has an empty one.
func hashTree(dir string) (string, error) {
	if dir == "" {
		return "", nil
	}
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		var content []byte
		switch {
		case info.Mode().IsRegular():
			content, err = os.ReadFile(path)
		case info.Mode()&fs.ModeSymlink != 0:
			var target string
			target, err = os.Readlink(path)
			content = []byte(target)
		}
		fmt.Fprintf(sum, "%s\x00%v\x00%d\x00", rel, info.Mode(), len(content))
		_, _ = sum.Write(content)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read %s: %w", dir, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func treeSize(dir string) int64 {
	var n int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil
	})
	return n
}
