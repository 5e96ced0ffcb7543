package validate

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxUnitFile is how many bytes a unit file may have that is sent to machines.
const MaxUnitFile = 64 << 10

// unitTypes are those that make sense for a unit that is sent to machines: something that is started and stopped.
var unitTypes = []string{"service", "socket", "timer", "path", "mount", "automount"}

// reservedUnits begin the names of units that belong to a machine's system, to Kubernetes or to Coldrack.
var reservedUnits = []string{"coldrack", "systemd-", "kubelet.", "containerd.", "dbus.", "dbus-", "ssh.", "sshd.", "ssh@", "getty@", "user@"}

// SplitUnitName takes a unit's name apart: "web@7.service" is the prefix web, the instance 7 and the type service. template is true
// for "web@.service", a template without an instance.
func SplitUnitName(name string) (prefix, instance, kind string, template bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return name, "", "", false
	}
	prefix, kind = name[:i], name[i+1:]
	before, after, at := strings.Cut(prefix, "@")
	return before, after, kind, at && after == ""
}

// InstanceName is the unit of a template for an instance: of "web@.service" and "7", "web@7.service".
func InstanceName(template, instance string) string {
	prefix, _, kind, _ := SplitUnitName(template)
	return prefix + "@" + instance + "." + kind
}

// PlacedUnitName is the rule for the name of a unit that is sent to machines.
func PlacedUnitName(s string) error {
	prefix, _, kind, _ := SplitUnitName(s)
	switch {
	case len(s) > 200:
		return errors.New("has more than 200 characters")
	case !slices.Contains(unitTypes, kind):
		return fmt.Errorf("is not the name of a unit of type %s, such as web.service", strings.Join(unitTypes, ", "))
	case !IsUnitName(s) || prefix == "" || strings.HasPrefix(s, ".") || strings.HasPrefix(s, "-") || strings.Count(s, "@") > 1:
		return errors.New("is not the name of a systemd unit, such as web.service or web@7.service")
	}
	for _, reserved := range reservedUnits {
		if strings.HasPrefix(s, reserved) {
			return fmt.Errorf("begins with %q, as units of the machine's own system do; take another name", reserved)
		}
	}
	return nil
}

// UnitPattern is the rule for a glob of names of units.
func UnitPattern(s string) error {
	if s == "" || len(s) > 200 || strings.ContainsAny(s, "/ \t\n") {
		return errors.New("is not a pattern of unit names, such as web@*.service")
	}
	if _, err := path.Match(s, ""); err != nil {
		return errors.New("is not a pattern of unit names: a bracket is not closed")
	}
	return nil
}

// UnitOption is one assignment of a unit file.
type UnitOption struct {
	Section, Name, Value string
	Line                 int // where it begins, from 1
}

// ParseUnitFile reads a unit file by the rules of systemd.syntax(7). What systemd would ignore with a warning is an error here.
func ParseUnitFile(text string) ([]UnitOption, error) {
	switch {
	case len(text) > MaxUnitFile:
		return nil, fmt.Errorf("has %d bytes; at most %d are possible", len(text), MaxUnitFile)
	case strings.ContainsRune(text, 0):
		return nil, errors.New("has a zero byte")
	case !utf8.ValidString(text):
		return nil, errors.New("is not UTF-8")
	case strings.Contains(strings.ReplaceAll(text, "\r\n", "\n"), "\r"):
		return nil, errors.New("has a carriage return within a line, at which systemd begins another one")
	}
	var options []UnitOption
	section, joined, begun := "", "", 0
	number := 0
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		number++
		line = strings.TrimRight(line, "\r\n")
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") {
			continue // also between the lines of a value that goes on
		}
		if begun == 0 {
			begun = number
		}
		if before, goesOn := cutContinued(line); goesOn {
			joined += before + " "
			continue
		}
		whole, at := strings.TrimSpace(joined+line), begun
		joined, begun = "", 0
		switch {
		case whole == "":
		case strings.HasPrefix(whole, "["):
			name, closed := strings.CutSuffix(whole[1:], "]")
			if !closed || name == "" || strings.ContainsAny(name, "[]") {
				return nil, fmt.Errorf("line %d: %q is not a section such as [Service]", at, clip(whole))
			}
			section = name
		default:
			name, value, assigns := strings.Cut(whole, "=")
			name = strings.TrimSpace(name)
			switch {
			case !assigns || name == "":
				return nil, fmt.Errorf("line %d: %q is neither a section such as [Service] nor an assignment such as ExecStart=/usr/bin/web", at, clip(whole))
			case section == "":
				return nil, fmt.Errorf("line %d: %s= stands before the first section", at, clip(name))
			}
			options = append(options, UnitOption{Section: section, Name: name, Value: strings.TrimSpace(value), Line: at})
		}
	}
	if strings.TrimSpace(joined) != "" {
		return nil, fmt.Errorf("line %d: the value ends with a backslash, and the file after it", begun)
	}
	return options, nil
}

// cutContinued takes away the backslash by which a line goes on with the next one. Two backslashes are one that is meant.
func cutContinued(line string) (before string, goesOn bool) {
	n := len(line) - len(strings.TrimRight(line, `\`))
	if n%2 == 0 {
		return line, false
	}
	return line[:len(line)-1], true
}

func clip(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:60], "") + "..."
	}
	return s
}

// PlacedUnitFile is the rule for the text of a unit that is sent to machines: it can be read, and systemd can do something with it. Whether its
// programs are there, only the machine can tell.
func PlacedUnitFile(name, text string) error {
	options, err := ParseUnitFile(text)
	if err != nil {
		return err
	}
	_, _, kind, _ := SplitUnitName(name)
	section := strings.ToUpper(kind[:min(1, len(kind))]) + kind[min(1, len(kind)):]
	own, runs := false, false
	for _, o := range options {
		own = own || o.Section == section
		runs = runs || o.Section == "Service" && (o.Name == "ExecStart" || o.Name == "ExecStop" || o.Name == "SuccessAction") && o.Value != ""
	}
	if !own && kind != "service" {
		return fmt.Errorf("has no section [%s], which a %s unit needs", section, kind)
	}
	if kind == "service" && !runs {
		return errors.New("has no ExecStart= in a section [Service], so there is nothing to run")
	}
	return nil
}

// FleetSection is the section in which fleet's unit files say where they run.
const FleetSection = "X-Fleet"

// FleetOptions is what the [X-Fleet] section of a unit file asks for, with its specifiers replaced.
type FleetOptions struct {
	MachineID, MachineOf string
	Conflicts            []string
	// Metadata are values by key: a machine needs one of the values of each key.
	Metadata map[string][]string
	Global   bool
	Present  bool
}

// Fleet reads the [X-Fleet] section of a unit file for the unit of that name. An option that has no counterpart is an error.
func Fleet(name, text string) (f FleetOptions, err error) {
	options, err := ParseUnitFile(text)
	if err != nil {
		return f, err
	}
	for _, o := range options {
		if o.Section != FleetSection {
			continue
		}
		f.Present = true
		value := expand(name, o.Value)
		// Names of before fleet 0.8 have an X- or X-Condition in front.
		switch key := strings.TrimPrefix(strings.TrimPrefix(o.Name, "X-"), "Condition"); key {
		case "MachineID", "MachineBootID":
			if f.MachineID != "" && f.MachineID != value {
				return f, fmt.Errorf("line %d: a second MachineID=", o.Line)
			}
			f.MachineID = value
		case "MachineOf":
			if f.MachineOf != "" && f.MachineOf != value {
				return f, fmt.Errorf("line %d: a second MachineOf=; a unit follows one other unit", o.Line)
			}
			f.MachineOf = value
		case "Conflicts":
			f.Conflicts = append(f.Conflicts, strings.Fields(value)...)
		case "MachineMetadata":
			for _, pair := range fields(value) {
				k, v, ok := strings.Cut(pair, "=")
				if !ok || k == "" {
					return f, fmt.Errorf("line %d: MachineMetadata=%s is not KEY=VALUE", o.Line, clip(value))
				}
				if f.Metadata == nil {
					f.Metadata = map[string][]string{}
				}
				f.Metadata[k] = append(f.Metadata[k], v)
			}
		case "Global":
			switch strings.ToLower(value) {
			case "true", "yes", "1", "on":
				f.Global = true
			case "false", "no", "0", "off":
			default:
				return f, fmt.Errorf("line %d: Global=%s is neither true nor false", o.Line, clip(value))
			}
		case "Replaces":
			return f, fmt.Errorf("line %d: Replaces= is not supported: stop the unit %s, then start this one", o.Line, clip(value))
		default:
			return f, fmt.Errorf("line %d: %s= is not known in [X-Fleet]; known are MachineID, MachineOf, MachineMetadata, Conflicts and Global", o.Line, clip(o.Name))
		}
	}
	if f.MachineID != "" && (f.MachineOf != "" || len(f.Conflicts) > 0 || f.Global) {
		return f, errors.New("[X-Fleet] has MachineID= beside MachineOf=, Conflicts= or Global=; it stands alone")
	}
	if f.Global && f.MachineOf != "" {
		return f, errors.New("[X-Fleet] has Global= and MachineOf=; one of them is possible")
	}
	return f, nil
}

// fields splits a list of pairs that may stand in quotes.
func fields(value string) (all []string) {
	for _, part := range strings.Fields(value) {
		all = append(all, strings.Trim(part, `"'`))
	}
	return all
}

// expand replaces the specifiers that fleet knew.
func expand(name, value string) string {
	prefix, instance, kind, _ := SplitUnitName(name)
	return strings.NewReplacer("%%", "%", "%n", name, "%N", strings.TrimSuffix(name, "."+kind), "%p", prefix, "%i", instance).Replace(value)
}

// WithoutFleet is a unit file without its [X-Fleet] section, as machines get it. Comments go with what comes after them.
func WithoutFleet(text string) string {
	var out strings.Builder
	inside, raw, joined := false, "", ""
	for line := range strings.Lines(text) {
		content := strings.TrimRight(line, "\r\n")
		if raw == "" && out.Len() == 0 {
			content = strings.TrimPrefix(content, "\ufeff")
		}
		raw += line
		if trimmed := strings.TrimSpace(content); strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") {
			continue
		}
		if before, goesOn := cutContinued(content); goesOn {
			joined += before + " "
			continue
		}
		if whole := strings.TrimSpace(joined + content); strings.HasPrefix(whole, "[") {
			inside = whole == "["+FleetSection+"]"
		}
		if !inside {
			out.WriteString(raw)
		}
		raw, joined = "", ""
	}
	if !inside {
		out.WriteString(raw)
	}
	return out.String()
}
