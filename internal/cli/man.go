package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// ManPages are the manual pages of a program, by file name: one of the program, and one of each command right below it that
// also describes the commands further down. The date is that of the sources, so that the same sources give the same pages.
func ManPages(root *cobra.Command, date time.Time) map[string]string {
	root.InitDefaultCompletionCmd()
	pages := map[string]string{}
	var verbs []*cobra.Command
	for _, c := range root.Commands() {
		if !c.Hidden && c.Name() != "help" {
			verbs = append(verbs, c)
		}
	}
	title := func(name string) *roff {
		r := &roff{}
		r.line(".TH %s 1 %s %s %s", quoted(strings.ToUpper(name)), quoted(date.UTC().Format(time.DateOnly)), quoted(root.Name()+" "+root.Version), quoted("Coldrack"))
		r.line(`.\" Written by the program itself.`)
		return r
	}
	r := title(root.Name())
	r.name(root.Name(), root.Short)
	r.heading("SYNOPSIS")
	r.bold(root.Name() + " COMMAND [ARGUMENTS] [FLAGS]")
	r.heading("DESCRIPTION")
	r.text(root.Long)
	r.heading("COMMANDS")
	for _, group := range root.Groups() {
		r.subheading(strings.TrimSuffix(group.Title, ":"))
		for _, c := range verbs {
			if c.GroupID == group.ID {
				r.item(root.Name()+"-"+c.Name()+"(1)", c.Short)
			}
		}
	}
	r.flags(root.PersistentFlags())
	pages[root.Name()+".1"] = r.String()
	for _, c := range verbs {
		name := root.Name() + "-" + c.Name()
		r := title(name)
		r.name(name, c.Short)
		for _, sub := range AllCommands(c) {
			if !sub.Hidden {
				r.command(sub, sub == c)
			}
		}
		r.flags(c.InheritedFlags())
		r.heading("SEE ALSO")
		r.bold(root.Name() + "(1)")
		pages[name+".1"] = r.String()
	}
	return pages
}

// roff writes the language of man pages, with the macros of man(7).
type roff struct{ strings.Builder }

func (r *roff) line(format string, args ...any) { fmt.Fprintf(r, format+"\n", args...) }

func (r *roff) heading(text string)    { r.line(".SH %s", quoted(text)) }
func (r *roff) subheading(text string) { r.line(".SS %s", quoted(text)) }
func (r *roff) bold(text string)       { r.line(".PP\n\\fB%s\\fR", escaped(text)) }

func (r *roff) name(name, short string) {
	r.heading("NAME")
	// Indexers of manual pages take a line "NAME \- DESCRIPTION".
	r.line(`%s \- %s`, escaped(name), escaped(short))
}

// text is paragraphs and, where lines are indented, lines as they are.
func (r *roff) text(text string) {
	for paragraph := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if strings.HasPrefix(paragraph, " ") || strings.Contains(paragraph, "\n ") {
			r.verbatim(paragraph)
			continue
		}
		r.line(".PP")
		for l := range strings.SplitSeq(paragraph, "\n") {
			r.line("%s", escaped(l))
		}
	}
}

func (r *roff) verbatim(text string) {
	r.line(".PP\n.nf")
	for l := range strings.SplitSeq(text, "\n") {
		r.line("%s", escaped(l))
	}
	r.line(".fi")
}

func (r *roff) item(name, text string) { r.line(".TP\n\\fB%s\\fR\n%s", escaped(name), escaped(text)) }

func (r *roff) command(c *cobra.Command, top bool) {
	if top {
		r.heading("SYNOPSIS")
	} else {
		r.heading(strings.ToUpper(c.CommandPath()))
	}
	r.bold(strings.TrimSpace(c.UseLine()))
	if top {
		r.heading("DESCRIPTION")
	}
	text := c.Long
	if strings.TrimSpace(text) == "" {
		text = c.Short + "."
	}
	r.text(text)
	if c.Example != "" {
		r.subheading("Examples")
		r.verbatim(unindent(c.Example))
	}
	own := c.NonInheritedFlags()
	if own.HasAvailableFlags() {
		r.subheading("Flags")
		r.flagItems(own)
	}
}

// flags are those that hold for all commands of a page.
func (r *roff) flags(set *pflag.FlagSet) {
	if set.HasAvailableFlags() {
		r.heading("FLAGS OF ALL COMMANDS")
		r.flagItems(set)
	}
}

func (r *roff) flagItems(set *pflag.FlagSet) {
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name, usage := flagNames(f)
		r.item(strings.Join(name, ", "), usage)
	})
}

// flagNames are how a flag is written, the value it takes included, and what it means, its default included.
func flagNames(f *pflag.Flag) (names []string, usage string) {
	long := "--" + f.Name
	switch kind := f.Value.Type(); kind {
	case "bool":
	case "stringArray":
		long += " STRING"
	case "stringSlice":
		long += " LIST"
	default:
		long += " " + strings.ToUpper(kind)
	}
	if f.Shorthand != "" {
		names = append(names, "-"+f.Shorthand)
	}
	switch f.DefValue {
	case "", "false", "[]", "0", "0s":
		return append(names, long), f.Usage
	}
	return append(names, long), fmt.Sprintf("%s (default %s)", f.Usage, f.DefValue)
}

func quoted(text string) string { return `"` + strings.ReplaceAll(escaped(text), `"`, `\(dq`) + `"` }

var roffEscapes = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `'`, `\(aq`, `^`, `\(ha`, `~`, `\(ti`, "`", `\(ga`, "…", `\&...`, "→", `\(->`)

// escaped makes text mean itself to roff, also where a line begins with the dot or the quote of a request.
func escaped(text string) string {
	text = roffEscapes.Replace(text)
	if strings.HasPrefix(text, ".") {
		return `\&` + text
	}
	return text
}
