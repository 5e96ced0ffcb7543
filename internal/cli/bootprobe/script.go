package bootprobe

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// ending is how a client's way ends.
type ending string

const (
	endNone   ending = ""             // something failed before
	endKernel ending = "kernel"       // it starts a kernel
	endImage  ending = "image"        // it starts another program, such as the one that starts its disk
	endLocal  ending = "boot order"   // it goes on with its firmware's boot order
	endWaits  ending = "waits"        // it is told to wait and to ask again
	endPerson ending = "person"       // it asks who sits at its console
	endStop   ending = "stop"         // its script is over, and nothing is started
	endLoader ending = "other loader" // it starts a boot loader that is no iPXE
)

// outcome is what a script makes iPXE do, if all that it loads comes.
type outcome struct {
	says    []string
	kernel  string
	initrds []string
	chain   string
	end     ending
}

// longPause in seconds between two questions shows that a machine is told to wait, not that a script is patient.
const longPause = 10

// longestSetting in bytes keeps a script from filling the memory.
const longestSetting = 4096

// mostSteps bounds a script that runs in circles.
const mostSteps = 1000

var setting = regexp.MustCompile(`\$\{([^{}]*)\}`)

// scriptRun is a script under way. It knows what iPXE's scripts for booting use: settings, jumps, comparisons, and what is loaded. Commands that
// it does not know are taken to succeed.
type scriptRun struct {
	outcome
	base     *url.URL
	settings map[string]string
	labels   map[string]int
	lines    []string
	at       int
	paused   bool
	done     bool
}

// runScript carries out a script that was loaded from base.
func runScript(script string, base *url.URL, settings map[string]string) (outcome, error) {
	r := &scriptRun{base: base, settings: map[string]string{}, labels: map[string]int{}, lines: strings.Split(strings.ReplaceAll(script, "\r\n", "\n"), "\n")}
	for k, v := range settings {
		r.settings[k] = v
	}
	for i, line := range r.lines {
		if label, ok := strings.CutPrefix(strings.TrimSpace(line), ":"); ok {
			r.labels[strings.TrimSpace(label)] = i
		}
	}
	for steps := 0; r.at < len(r.lines) && !r.done; steps++ {
		if steps == mostSteps {
			return r.outcome, fmt.Errorf("the script runs in circles")
		}
		line := strings.TrimSpace(r.lines[r.at])
		r.at++
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ":") {
			continue
		}
		ok, err := r.line(line)
		if err != nil {
			return r.outcome, err
		}
		if !ok && !r.done { // a failure that nothing catches ends a script
			r.end, r.done = endStop, true
		}
	}
	if r.end == "" {
		r.end = endStop
	}
	return r.outcome, nil
}

// line carries out commands that are joined by && and ||.
func (r *scriptRun) line(line string) (ok bool, err error) {
	ok = true
	run := true
	var words []string
	flush := func() error {
		if run && len(words) > 0 && !r.done {
			ok, err = r.command(words)
		} else if run {
			ok = true // an empty command: "||" at the end forgives
		}
		words = nil
		return err
	}
	for _, word := range strings.Fields(line) {
		if word != "&&" && word != "||" {
			words = append(words, word)
			continue
		}
		if err := flush(); err != nil || r.done {
			return ok, err
		}
		run = ok == (word == "&&")
	}
	return ok, flush()
}

// operand is the first word of a command that is no flag, and those behind it.
func operand(words []string) (string, []string) {
	for i := 0; i < len(words); i++ {
		switch w := words[i]; {
		case w == "--name" || w == "-n" || w == "--timeout" || w == "-t":
			i++
		case strings.HasPrefix(w, "-"):
		default:
			return w, words[i+1:]
		}
	}
	return "", nil
}

func (r *scriptRun) command(words []string) (ok bool, err error) {
	for i, w := range words {
		words[i] = r.expand(w)
	}
	words = strings.Fields(strings.Join(words, " "))
	if len(words) == 0 {
		return true, nil
	}
	name, rest := words[0], words[1:]
	first, further := operand(rest)
	switch name {
	case "echo":
		if said := text([]byte(strings.Join(rest, " "))); said != "" && len(r.says) < 20 {
			r.says = append(r.says, said)
		}
	case "goto":
		at, known := r.labels[first]
		if !known {
			return false, fmt.Errorf("the script jumps to %q, which it lacks", text([]byte(first)))
		}
		r.at = at
	case "set":
		if value := strings.Join(further, " "); len(value) <= longestSetting {
			r.settings[bare(first)] = value
		}
	case "clear":
		delete(r.settings, bare(first))
	case "isset":
		return first != "", nil
	case "iseq":
		return len(rest) == 2 && rest[0] == rest[1] || len(rest) == 0, nil
	case "sleep":
		seconds := 0
		_, _ = fmt.Sscan(first, &seconds)
		r.paused = r.paused || seconds >= longPause
	case "kernel", "imgselect":
		r.kernel = r.absolute(first)
	case "imgfree":
		r.kernel, r.initrds = "", nil
	case "initrd", "module", "imgfetch":
		if first != "" && len(r.initrds) < 8 {
			r.initrds = append(r.initrds, r.absolute(first))
		}
	case "chain", "imgexec", "boot":
		switch {
		case r.paused:
			r.end = endWaits
		case first != "" && strings.ContainsAny(first, "/."):
			r.chain = r.absolute(first)
		case r.kernel != "":
			r.end = endKernel
		default:
			return false, nil
		}
		r.done = true
	case "exit":
		r.end, r.done = endLocal, true
	case "sanboot", "sanhook":
		r.end, r.done = endLocal, true
	case "shell", "menu", "item", "choose", "prompt", "read", "login", "form", "present":
		r.end, r.done = endPerson, true
	case "reboot", "poweroff":
		r.end, r.done = endStop, true
	}
	return true, nil
}

// absolute is a URL as iPXE resolves it: by that of the script.
func (r *scriptRun) absolute(reference string) string {
	u, err := url.Parse(reference)
	if err != nil || r.base == nil {
		return reference
	}
	return r.base.ResolveReference(u).String()
}

// bare is a setting's name without its type.
func bare(name string) string {
	name, _, _ = strings.Cut(name, ":")
	return name
}

// expand puts in settings. Those of other interfaces than the one that booted do not exist.
func (r *scriptRun) expand(word string) string {
	return setting.ReplaceAllStringFunc(word, func(match string) string {
		name, kind, _ := strings.Cut(match[2:len(match)-1], ":")
		for _, own := range []string{"netX/", "net0/", "net0.dhcp/"} {
			name = strings.TrimPrefix(name, own)
		}
		value := r.settings[name]
		switch kind {
		case "uristring":
			return strings.ReplaceAll(url.QueryEscape(value), "+", "%20")
		case "hexhyp":
			return strings.ReplaceAll(value, ":", "-")
		case "hexraw":
			return strings.ReplaceAll(value, ":", "")
		}
		return value
	})
}

// fromColdrack says whether a script is one of ours: all of them say so first.
func fromColdrack(says []string) bool {
	return slices.ContainsFunc(says, func(s string) bool { return strings.HasPrefix(s, "Coldrack: ") })
}
