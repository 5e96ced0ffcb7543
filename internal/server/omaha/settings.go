package omaha

import (
	"crypto/sha1" // update_engine wants one beside SHA-256
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"coldrack.dev/internal/server/omaha/rollout"
)

// SettingsFile, in the folder of updates, says which groups get what. Packages are in folders BOARD/VERSION beside it.
const SettingsFile = "updates.yaml"

// Settings are the content of SettingsFile.
type Settings struct {
	Applications []Application `json:"applications"`
}

// Application is what update_engine updates, mostly one operating system.
type Application struct {
	// ID is the appid of requests; braces and case do not count.
	ID       string         `json:"id"`
	Name     string         `json:"name"`
	Channels []Channel      `json:"channels"`
	Groups   []GroupSetting `json:"groups"`
}

// Channel is the version that groups should have.
type Channel struct {
	Name    string `json:"name"`
	Board   string `json:"board"`
	Version string `json:"version"`
	// Floors are versions that must be passed through.
	Floors []string `json:"floors,omitempty"`
}

// GroupSetting is a group of instances: those whose requests have its track.
type GroupSetting struct {
	Name string `json:"name"`
	// Track in requests, GROUP in update.conf; empty: Name.
	Track   string `json:"track,omitempty"`
	Channel string `json:"channel"`

	Paused        bool          `json:"paused,omitempty"`
	PausedBecause string        `json:"pausedBecause,omitempty"`
	Hours         *HoursSetting `json:"hours,omitempty"`
	SafeMode      bool          `json:"safeMode,omitempty"`
	PerPeriod     string        `json:"perPeriod,omitempty"`
	Period        string        `json:"period,omitempty"`
	AtOnce        string        `json:"atOnce,omitempty"`
	Timeout       string        `json:"timeout,omitempty"`
	StopAfter     int           `json:"stopAfterFailures,omitempty"`
	RetryAfter    string        `json:"retryAfter,omitempty"`
	After         string        `json:"after,omitempty"`
	AfterFor      string        `json:"afterFor,omitempty"`
}

// HoursSetting is when updates begin.
type HoursSetting struct {
	Zone string   `json:"zone"`
	From string   `json:"from"`
	To   string   `json:"to"`
	Days []string `json:"days,omitempty"`
}

// group is a GroupSetting that was understood.
type group struct {
	name, channel string
	policy        rollout.Policy
}

// app is an Application that was understood.
type app struct {
	id, name string
	channels []Channel
	groups   map[string]group // by track
}

// readSettings reads the file of a folder.
func readSettings(dir string) (map[string]app, error) {
	file := filepath.Join(dir, SettingsFile)
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var s Settings
	if err := yaml.UnmarshalStrict(text, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	apps, err := s.understand()
	if err != nil {
		return nil, fmt.Errorf("%s:\n%w", file, err)
	}
	return apps, nil
}

func normalID(id string) string { return strings.ToLower(strings.Trim(id, "{}")) }

// plainName is what becomes a part of a path or a label.
var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$`)

func (s Settings) understand() (map[string]app, error) {
	var errs []error
	apps := map[string]app{}
	for n, a := range s.Applications {
		at := fmt.Sprintf("applications[%d]", n)
		bad := func(field, format string, args ...any) {
			errs = append(errs, fmt.Errorf("%s.%s: %s", at, field, fmt.Sprintf(format, args...)))
		}
		made := app{normalID(a.ID), a.Name, a.Channels, map[string]group{}}
		if made.id == "" || apps[made.id].id != "" {
			bad("id", "%q: must be the appid of requests, and another for each application", a.ID)
		}
		channels := map[string]bool{}
		for i, c := range a.Channels {
			if !plainName.MatchString(c.Name) || !plainName.MatchString(c.Board) || !plainName.MatchString(c.Version) {
				bad(fmt.Sprintf("channels[%d]", i), "needs a name, a board such as amd64-usr, and a version, of letters, digits and ._+-")
			}
			if channels[c.Name+" "+c.Board] {
				bad(fmt.Sprintf("channels[%d]", i), "there is another %s for %s", c.Name, c.Board)
			}
			channels[c.Name+" "+c.Board], channels[c.Name] = true, true
			for _, f := range c.Floors {
				if !plainName.MatchString(f) || rollout.Compare(f, c.Version) > 0 {
					bad(fmt.Sprintf("channels[%d].floors", i), "%q: must be a version below %s", f, c.Version)
				}
			}
		}
		names := map[string]bool{}
		for i, g := range a.Groups {
			field := fmt.Sprintf("groups[%d]", i)
			track := g.Track
			if track == "" {
				track = g.Name
			}
			if !plainName.MatchString(g.Name) || names[g.Name] {
				bad(field+".name", "%q: must be a name of its own, of letters, digits and ._+-", g.Name)
			}
			names[g.Name] = true
			if _, taken := made.groups[track]; taken {
				bad(field+".track", "%q belongs to another group", track)
			}
			if !channels[g.Channel] {
				bad(field+".channel", "%q: there is no such channel", g.Channel)
			}
			policy, err := g.policy()
			if err != nil {
				bad(field, "%v", err)
			}
			made.groups[track] = group{g.Name, g.Channel, policy}
		}
		for i, g := range a.Groups {
			if g.After != "" && (!names[g.After] || g.After == g.Name) {
				bad(fmt.Sprintf("groups[%d].after", i), "%q: must be another group of this application", g.After)
			}
		}
		apps[made.id] = made
	}
	return apps, errors.Join(errs...)
}

func (g GroupSetting) policy() (p rollout.Policy, err error) {
	var errs []error
	limit := func(field, text string) rollout.Limit {
		l, err := rollout.ParseLimit(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
		return l
	}
	period := func(field, text string, otherwise time.Duration) time.Duration {
		if text == "" {
			return otherwise
		}
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			errs = append(errs, fmt.Errorf("%s: %q: must be a duration, for example 1h", field, text))
		}
		return d
	}
	p = rollout.Policy{
		Paused: g.Paused, Why: g.PausedBecause, Safe: g.SafeMode, StopAfter: g.StopAfter, After: g.After,
		PerPeriod: limit("perPeriod", g.PerPeriod), AtOnce: limit("atOnce", g.AtOnce), Period: period("period", g.Period, time.Hour),
		Timeout: period("timeout", g.Timeout, 0), RetryAfter: period("retryAfter", g.RetryAfter, time.Hour), CanaryFor: period("afterFor", g.AfterFor, 0),
	}
	if g.Hours != nil {
		h := rollout.Hours{}
		minute := func(field, text string) int {
			at, err := time.Parse("15:04", text)
			if err != nil {
				errs = append(errs, fmt.Errorf("hours.%s: %q: must be a time of the day, for example 09:00", field, text))
			}
			return at.Hour()*60 + at.Minute()
		}
		h.From, h.To = minute("from", g.Hours.From), minute("to", g.Hours.To)
		if h.Zone, err = time.LoadLocation(g.Hours.Zone); err != nil || g.Hours.Zone == "" {
			errs = append(errs, fmt.Errorf("hours.zone: %q: must be a time zone, for example Europe/Berlin or UTC", g.Hours.Zone))
		}
		for _, d := range g.Hours.Days {
			day := slices.IndexFunc(weekdays, func(w string) bool { return strings.EqualFold(w, d) })
			if day < 0 {
				errs = append(errs, fmt.Errorf("hours.days: %q: must be one of %s", d, strings.Join(weekdays, ", ")))
			}
			h.Days = append(h.Days, time.Weekday(day))
		}
		p.Hours = &h
	}
	return p, errors.Join(errs...)
}

var weekdays = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

// Package is a version for a board.
type Package struct {
	Board, Version string
	// Files begin with the payload.
	Files []File
}

// File of a package.
type File struct {
	Name string
	Size int64
	// SHA1 and SHA256 in hexadecimal.
	SHA1, SHA256 string

	modified time.Time
}

func (f File) sha1Base64() string   { return base64OfHex(f.SHA1) }
func (f File) sha256Base64() string { return base64OfHex(f.SHA256) }

func base64OfHex(text string) string {
	raw, _ := hex.DecodeString(text) // we made it
	return base64.StdEncoding.EncodeToString(raw)
}

// readPackage reads the folder BOARD/VERSION of a folder of updates. The payload is the file whose name ends in update.gz, or the only
// one. Files that are as they were in before are not read again.
func readPackage(dir, board, version string, before Package) (Package, error) {
	p := Package{Board: board, Version: version}
	folder := filepath.Join(dir, board, version)
	entries, err := os.ReadDir(folder)
	if err != nil {
		return p, err
	}
	payload := -1
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return p, err
		}
		if !info.Mode().IsRegular() || !plainName.MatchString(e.Name()) {
			continue
		}
		f := File{Name: e.Name(), Size: info.Size(), modified: info.ModTime()}
		i := slices.IndexFunc(before.Files, func(o File) bool { return o.Name == f.Name && o.Size == f.Size && o.modified.Equal(f.modified) })
		if i >= 0 {
			f = before.Files[i]
		} else if err := f.read(folder); err != nil {
			return p, err
		}
		if strings.HasSuffix(f.Name, "update.gz") {
			if payload >= 0 {
				return p, fmt.Errorf("%s: two payloads, %s and %s; leave one", folder, p.Files[payload].Name, f.Name)
			}
			payload = len(p.Files)
		}
		p.Files = append(p.Files, f)
	}
	if payload < 0 && len(p.Files) == 1 {
		payload = 0
	}
	if payload < 0 {
		return p, fmt.Errorf("%s: no payload, the file whose name ends in update.gz", folder)
	}
	if p.Files[payload].Size == 0 {
		return p, fmt.Errorf("%s/%s is empty", folder, p.Files[payload].Name)
	}
	p.Files[0], p.Files[payload] = p.Files[payload], p.Files[0]
	return p, nil
}

func (f *File) read(folder string) error {
	file, err := os.Open(filepath.Join(folder, f.Name))
	if err != nil {
		return err
	}
	defer file.Close()
	short, long := sha1.New(), sha256.New()
	if f.Size, err = io.Copy(io.MultiWriter(short, long), file); err != nil {
		return fmt.Errorf("%s: %w", file.Name(), err)
	}
	f.SHA1, f.SHA256 = hex.EncodeToString(short.Sum(nil)), hex.EncodeToString(long.Sum(nil))
	return nil
}
