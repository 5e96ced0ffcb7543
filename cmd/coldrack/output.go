package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// addOutputFlag defines -o and refuses formats that are not among the given ones.
func addOutputFlag(cmd *cobra.Command, output *string, formats ...string) {
	cmd.Flags().VarP(&choice{value: output, allowed: formats}, "output", "o", "output format: "+strings.Join(formats, ", "))
	// The only error is a flag that does not exist, and it was defined in the line above.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
}

// choice is a flag that takes one of a few words.
type choice struct {
	value   *string
	allowed []string
}

func (c *choice) String() string { return *c.value }
func (c *choice) Type() string   { return "format" }
func (c *choice) Set(text string) error {
	if !slices.Contains(c.allowed, text) {
		return fmt.Errorf("must be one of %s", strings.Join(c.allowed, ", "))
	}
	*c.value = text
	return nil
}

// printStructured writes value as JSON or YAML; done is false when the format is for people.
func (a *app) printStructured(format string, value any) (done bool, err error) {
	switch format {
	case "json":
		text, err := json.MarshalIndent(value, "", "  ")
		if err != nil {
			return true, err
		}
		_, err = fmt.Fprintf(a.out, "%s\n", text)
		return true, err
	case "yaml":
		text, err := yaml.Marshal(value)
		if err != nil {
			return true, err
		}
		_, err = a.out.Write(text)
		return true, err
	}
	return false, nil
}
