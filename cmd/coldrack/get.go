package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/objects"
)

func (a *app) getCommand() *cobra.Command {
	var (
		output    string
		selector  string
		noHeaders bool
	)
	cmd := &cobra.Command{
		Use:   "get [KIND [NAME...]]",
		Short: "Show objects of any kind; without a kind, list the kinds",
		Example: `  coldrack get
  coldrack get subnets
  coldrack get profile default -o yaml`,
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := labels.Parse(selector); err != nil {
				return exit.Usagef("--selector: %w", err)
			}
			g, err := a.objects()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return a.printKinds(g, output)
			}
			mapping, err := g.Mapping(args[0])
			if err != nil {
				return err
			}
			if output != "" && output != "wide" {
				list, err := g.List(cmd.Context(), mapping, args[1:], selector)
				if err != nil {
					return err
				}
				return a.printObjects(list, mapping.Resource.Resource, len(args) == 2, output)
			}
			table, err := g.Table(cmd.Context(), mapping, args[1:], selector, output == "wide")
			if err != nil {
				return err
			}
			if len(table.Rows) == 0 {
				fmt.Fprintf(a.err, "no %s\n", mapping.Resource.Resource)
				return nil
			}
			return table.Print(a.out, !noHeaders)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml", "wide", "name")
	cmd.Flags().StringVarP(&selector, "selector", "l", "", "only objects with these labels")
	cmd.Flags().BoolVar(&noHeaders, "no-headers", false, "print no header line")
	return cmd
}

func (a *app) printKinds(g *objects.Access, output string) error {
	table, lists, err := g.Kinds()
	if err != nil {
		return err
	}
	if output == "name" {
		for _, row := range table.Rows {
			fmt.Fprintln(a.out, row[1])
		}
		return nil
	}
	if done, err := a.printStructured(output, lists); done {
		return err
	}
	return table.Print(a.out, true)
}

// printObjects prints a list of objects of a kind, or the only one that was named.
func (a *app) printObjects(list *unstructured.UnstructuredList, kind string, one bool, output string) error {
	if output == "name" {
		for _, item := range list.Items {
			fmt.Fprintf(a.out, "%s/%s\n", kind, item.GetName())
		}
		return nil
	}
	var value any = list.UnstructuredContent()
	if one {
		value = list.Items[0].Object
	}
	_, err := a.printStructured(output, value)
	return err
}

// completeObjects offers kinds, then names.
func (a *app) completeObjects(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	g, err := a.objects()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), objects.CompletionTimeout)
	defer cancel()
	if len(args) == 0 {
		return g.KindNames(prefix), cobra.ShellCompDirectiveNoFileComp
	}
	mapping, err := g.Mapping(args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return g.Names(ctx, mapping, prefix), cobra.ShellCompDirectiveNoFileComp
}
