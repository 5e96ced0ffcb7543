package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// AllCommands lists a command and everything below it, in the order of help.
func AllCommands(c *cobra.Command) []*cobra.Command {
	list := []*cobra.Command{c}
	for _, child := range c.Commands() {
		list = append(list, AllCommands(child)...)
	}
	return list
}

// Reference is Markdown about every command below root, after a preamble.
func Reference(root *cobra.Command, preamble string) string {
	root.InitDefaultCompletionCmd()
	var b strings.Builder
	b.WriteString(preamble)
	for _, c := range AllCommands(root) {
		if c == root || c.Hidden || c.Name() == "help" || c.HasParent() && c.Parent().Name() == "completion" {
			continue
		}
		writeCommand(&b, c)
	}
	return b.String()
}

func writeCommand(b *strings.Builder, c *cobra.Command) {
	fmt.Fprintf(b, "\n### %s\n", c.CommandPath())
	long := strings.TrimSpace(c.Long)
	if c.Name() == "completion" || long == "" {
		long = c.Short + "."
	}
	fmt.Fprintf(b, "%s\n", long)
	fmt.Fprintf(b, "\n```\n%s\n```\n", strings.TrimSpace(c.UseLine()))
	if len(c.Aliases) > 0 {
		fmt.Fprintf(b, "\nAlso: `%s`.\n", strings.Join(c.Aliases, "`, `"))
	}
	if c.Example != "" {
		fmt.Fprintf(b, "\nExamples:\n```\n%s\n```\n", unindent(c.Example))
	}
	rows := flagRows(c)
	if len(rows) > 0 {
		fmt.Fprintf(b, "\n| flag | means |\n|---|---|\n%s\n", strings.Join(rows, "\n"))
	}
}

func flagRows(c *cobra.Command) []string {
	var rows []string
	add := func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		names, usage := flagNames(f)
		if usage != f.Usage {
			usage = fmt.Sprintf("%s (default `%s`)", f.Usage, f.DefValue)
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s |", strings.Join(names, "`, `"), strings.ReplaceAll(usage, "|", `\|`)))
	}
	c.NonInheritedFlags().VisitAll(add)
	c.InheritedFlags().VisitAll(add)
	return rows
}

func unindent(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}
