package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// unitDirs are where units are looked for, the first that has one wins.
var unitDirs = [...]string{"/etc/systemd/system", "/usr/lib/systemd/system"}

const wantsDir = "/etc/systemd/system/multi-user.target.wants"

// unit is as much of a service's unit (systemd.unit(5), systemd.service(5)) as is carried out here.
type unit struct {
	name   string
	before []string
	after  []string

	oneshot, remain   bool
	pre, exec, reload []string // command lines
	environment       []string
	files             []string // EnvironmentFile
	restart           bool
	restartAfter      time.Duration
	unlimited         bool // StartLimitIntervalSec=0

	// text of all its files, by which a change is seen.
	text string
}

var errNoUnit = errors.New("there is no such unit")

// readUnit reads a unit with its drop-ins.
func readUnit(name string) (*unit, error) {
	u := &unit{name: name, restartAfter: 100 * time.Millisecond}
	var text []byte
	err := error(fs.ErrNotExist)
	for _, dir := range unitDirs {
		if text, err = os.ReadFile(filepath.Join(dir, name)); err == nil {
			break
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoUnit
	} else if err != nil {
		return nil, err
	}
	texts := []string{string(text)}
	dropIns, err := filepath.Glob(filepath.Join(unitDirs[0], name+".d", "*.conf"))
	if err != nil {
		return nil, err
	}
	for _, file := range dropIns {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		texts = append(texts, string(b))
	}
	for _, text := range texts {
		u.read(text)
	}
	u.text = strings.Join(texts, "\x00")
	if len(u.exec) == 0 {
		return nil, fmt.Errorf("%s has no ExecStart", name)
	}
	return u, nil
}

func (u *unit) read(text string) {
	list := func(have *[]string, value string, add ...string) {
		if value == "" { // an empty value takes back what came before
			*have = nil
			return
		}
		*have = append(*have, add...)
	}
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		switch value = strings.TrimSpace(value); key {
		case "Before":
			list(&u.before, value, strings.Fields(value)...)
		case "After":
			list(&u.after, value, strings.Fields(value)...)
		case "Type":
			u.oneshot = value == "oneshot"
		case "RemainAfterExit":
			u.remain = value == "yes"
		case "ExecStartPre":
			list(&u.pre, value, value)
		case "ExecStart":
			list(&u.exec, value, value)
		case "ExecReload":
			list(&u.reload, value, value)
		case "Environment":
			list(&u.environment, value, unquote(value))
		case "EnvironmentFile":
			list(&u.files, value, value)
		case "Restart":
			u.restart = value == "always" || value == "on-failure"
		case "RestartSec":
			if seconds, err := strconv.ParseFloat(value, 64); err == nil {
				u.restartAfter = time.Duration(seconds * float64(time.Second))
			}
		case "StartLimitIntervalSec":
			u.unlimited = value == "0"
		}
	}
}

func unquote(s string) string {
	if len(s) > 1 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

// variables are the unit's environment.
func (u *unit) variables() ([]string, error) {
	variables := slices.Clone(u.environment)
	for _, file := range u.files {
		file, optional := strings.CutPrefix(file, "-")
		b, err := os.ReadFile(file)
		if optional && errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(b)) {
			if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
				variables = append(variables, key+"="+unquote(value))
			}
		}
	}
	return variables, nil
}

// words of a command line: $NAME becomes as many words as its value has. tolerant says that its failure does not
// matter.
func words(line string, variables []string) (command []string, tolerant bool) {
	line, tolerant = strings.CutPrefix(line, "-")
	for _, word := range strings.Fields(line) {
		name, isVariable := strings.CutPrefix(word, "$")
		if !isVariable {
			command = append(command, word)
			continue
		}
		name = strings.Trim(name, "{}")
		for _, v := range slices.Backward(variables) {
			if value, ok := strings.CutPrefix(v, name+"="); ok {
				command = append(command, strings.Fields(value)...)
				break
			}
		}
	}
	return command, tolerant
}

// enabled are the units that start with the machine, each after those that it is to come after.
func enabled() []string {
	links, _ := filepath.Glob(wantsDir + "/*")
	var left, order []string
	after := map[string][]string{}
	for _, link := range links {
		name := filepath.Base(link)
		left = append(left, name)
		if u, err := readUnit(name); err == nil {
			after[name] = append(after[name], u.after...)
			for _, later := range u.before {
				after[later] = append(after[later], name)
			}
		}
	}
	for len(left) > 0 {
		next := slices.IndexFunc(left, func(name string) bool {
			return !slices.ContainsFunc(after[name], func(other string) bool { return other != name && slices.Contains(left, other) })
		})
		next = max(next, 0) // a circle is begun anywhere
		order = append(order, left[next])
		left = slices.Delete(left, next, next+1)
	}
	return order
}
