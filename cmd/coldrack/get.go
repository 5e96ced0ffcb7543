package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"coldrack.dev/internal/cli"
)

// acceptTable asks the server to render objects as rows, falling back to plain objects.
const acceptTable = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"

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
				return usageError("--selector: %w", err)
			}
			g, err := a.generic()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return a.printKinds(g, output)
			}
			mapping, err := g.mappingFor(args[0])
			if err != nil {
				return err
			}
			switch output {
			case "", "wide":
				return a.printServerTable(cmd.Context(), g, mapping, args[1:], selector, output == "wide", noHeaders)
			}
			return a.printObjects(cmd.Context(), g, mapping, args[1:], selector, output)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml", "wide", "name")
	cmd.Flags().StringVarP(&selector, "selector", "l", "", "only objects with these labels")
	cmd.Flags().BoolVar(&noHeaders, "no-headers", false, "print no header line")
	return cmd
}

// mappingFor resolves what a person calls a kind: Machine, machines, mc, machines.coldrack.dev.
func (g *generic) mappingFor(word string) (*meta.RESTMapping, error) {
	word = strings.ToLower(word)
	full, groupResource := schema.ParseResourceArg(word)
	var gvk schema.GroupVersionKind
	var err error
	if full != nil {
		gvk, err = g.mapper.KindFor(*full)
	}
	if full == nil || err != nil {
		gvk, err = g.mapper.KindFor(groupResource.WithVersion(""))
	}
	if meta.IsNoMatchError(err) {
		return nil, notFoundError("the server has no kind %q; `coldrack get` lists what it has", word)
	}
	if err != nil {
		return nil, err
	}
	return g.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
}

func (a *app) printKinds(g *generic, output string) error {
	disco, err := discovery.NewDiscoveryClientForConfig(g.config)
	if err != nil {
		return err
	}
	lists, err := discovery.ServerPreferredResources(disco)
	if err != nil {
		return err
	}
	table := &cli.Table{Header: []string{"KIND", "NAME", "SHORT", "GROUP"}}
	for _, list := range lists {
		for _, r := range list.APIResources {
			if slices.Contains(r.Verbs, "list") {
				table.Add(r.Kind, r.Name, strings.Join(r.ShortNames, ","), list.GroupVersion)
			}
		}
	}
	slices.SortFunc(table.Rows, func(x, y []string) int { return strings.Compare(x[3]+x[0], y[3]+y[0]) })
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

// printServerTable prints the columns that the kind itself defines.
func (a *app) printServerTable(ctx context.Context, g *generic, mapping *meta.RESTMapping, names []string, selector string, wide, noHeaders bool) error {
	httpClient, err := rest.HTTPClientFor(g.config)
	if err != nil {
		return err
	}
	config := rest.CopyConfig(g.config)
	groupVersion := mapping.GroupVersionKind.GroupVersion()
	config.GroupVersion = &groupVersion
	config.APIPath = "/apis"
	if groupVersion.Group == "" {
		config.APIPath = "/api"
	}
	config.NegotiatedSerializer = rawSerializer()
	raw, err := rest.RESTClientForConfigAndClient(config, httpClient)
	if err != nil {
		return err
	}
	var merged *metav1.Table
	for _, name := range orList(names) {
		request := raw.Get().Resource(mapping.Resource.Resource).SetHeader("Accept", acceptTable)
		if name != "" {
			request = request.Name(name)
		} else if selector != "" {
			request = request.Param("labelSelector", selector)
		}
		body, err := request.DoRaw(ctx)
		if err != nil {
			return missingObject(err, mapping, name)
		}
		var table metav1.Table
		if err := json.Unmarshal(body, &table); err != nil {
			return fmt.Errorf("the server's table of %s: %w", mapping.Resource.Resource, err)
		}
		if merged == nil {
			merged = &table
		} else {
			merged.Rows = append(merged.Rows, table.Rows...)
		}
	}
	if len(merged.Rows) == 0 {
		fmt.Fprintf(a.err, "no %s\n", mapping.Resource.Resource)
		return nil
	}
	return serverTable(merged, wide).Print(a.out, !noHeaders)
}

// missingObject says in our words that a named object does not exist; other errors stay as they are.
func missingObject(err error, mapping *meta.RESTMapping, name string) error {
	if name == "" || !apierrors.IsNotFound(err) {
		return err
	}
	return notFoundError("there is no %s %q; `coldrack get %s` lists all", strings.ToLower(mapping.GroupVersionKind.Kind), name, mapping.Resource.Resource)
}

// serverTable keeps the columns that are meant to be seen.
func serverTable(source *metav1.Table, wide bool) *cli.Table {
	table := &cli.Table{}
	var shown []int
	for i, column := range source.ColumnDefinitions {
		if column.Priority == 0 || wide {
			shown = append(shown, i)
			table.Header = append(table.Header, strings.ToUpper(column.Name))
		}
	}
	for _, row := range source.Rows {
		var cells []string
		for _, i := range shown {
			text := ""
			if i < len(row.Cells) && row.Cells[i] != nil {
				text = fmt.Sprint(row.Cells[i])
			}
			cells = append(cells, text)
		}
		table.Rows = append(table.Rows, cells)
	}
	return table
}

func (a *app) printObjects(ctx context.Context, g *generic, mapping *meta.RESTMapping, names []string, selector, output string) error {
	resource := g.dyn.Resource(mapping.Resource)
	list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "v1", "kind": "List"}}
	for _, name := range names {
		object, err := resource.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return missingObject(err, mapping, name)
		}
		list.Items = append(list.Items, *object)
	}
	if len(names) == 0 {
		found, err := resource.List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return err
		}
		list.Items = found.Items
	}
	for i := range list.Items {
		list.Items[i].SetManagedFields(nil)
	}
	if output == "name" {
		for _, item := range list.Items {
			fmt.Fprintf(a.out, "%s/%s\n", mapping.Resource.Resource, item.GetName())
		}
		return nil
	}
	var value any = list.UnstructuredContent()
	if len(names) == 1 {
		value = list.Items[0].Object
	}
	_, err := a.printStructured(output, value)
	return err
}

// completeObjects offers kinds, then names.
func (a *app) completeObjects(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	g, err := a.generic()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	if len(args) == 0 {
		return g.kindNames(prefix), cobra.ShellCompDirectiveNoFileComp
	}
	mapping, err := g.mappingFor(args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return objectNames(ctx, g.dyn.Resource(mapping.Resource), prefix), cobra.ShellCompDirectiveNoFileComp
}

func (g *generic) kindNames(prefix string) []string {
	config := rest.CopyConfig(g.config)
	config.Timeout = completionTimeout
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil
	}
	lists, err := discovery.ServerPreferredResources(disco)
	if err != nil {
		return nil
	}
	var names []string
	for _, list := range lists {
		for _, r := range list.APIResources {
			if strings.HasPrefix(r.Name, prefix) && slices.Contains(r.Verbs, "list") {
				names = append(names, r.Name)
			}
		}
	}
	return names
}

func objectNames(ctx context.Context, resource dynamic.ResourceInterface, prefix string) []string {
	list, err := resource.List(ctx, metav1.ListOptions{TimeoutSeconds: new(int64(completionTimeout / time.Second))})
	if err != nil {
		return nil
	}
	var names []string
	for _, item := range list.Items {
		if strings.HasPrefix(item.GetName(), prefix) {
			names = append(names, item.GetName())
		}
	}
	return names
}

// orList stands a single empty name for "all of them".
func orList(names []string) []string {
	if len(names) == 0 {
		return []string{""}
	}
	return names
}
