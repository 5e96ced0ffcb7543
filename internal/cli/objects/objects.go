// Package objects reaches objects of any kind that the server has, by what a person calls the kind.
package objects

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
)

// CompletionTimeout bounds how long a shell waits for names.
const CompletionTimeout = 2 * time.Second

// acceptTable asks the server to render objects as rows, falling back to plain objects.
const acceptTable = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"

// Access reaches any kind that the server has.
type Access struct {
	config *rest.Config
	dyn    dynamic.Interface
	mapper meta.RESTMapper
}

// New does not talk to the server yet.
func New(config *rest.Config) (*Access, error) {
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	cached := memory.NewMemCacheClient(disco)
	mapper := restmapper.NewShortcutExpander(restmapper.NewDeferredDiscoveryRESTMapper(cached), cached, nil)
	return &Access{config: config, dyn: dyn, mapper: mapper}, nil
}

// Mapping resolves what a person calls a kind: Machine, machines, mc, machines.coldrack.dev.
func (g *Access) Mapping(word string) (*meta.RESTMapping, error) {
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
		return nil, exit.NotFoundf("the server has no kind %q; `coldrack get` lists what it has", word)
	}
	if err != nil {
		return nil, err
	}
	return g.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
}

// Resource reaches the objects of a kind.
func (g *Access) Resource(mapping *meta.RESTMapping) dynamic.ResourceInterface {
	return g.dyn.Resource(mapping.Resource)
}

// ResourceFor finds where objects of this kind live.
func (g *Access) ResourceFor(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := object.GroupVersionKind()
	mapping, err := g.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) {
		return nil, exit.NotFoundf("the server has no kind %s in %s; `coldrack get` lists what it has", gvk.Kind, gvk.GroupVersion())
	}
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		namespace := object.GetNamespace()
		if namespace == "" {
			namespace = metav1.NamespaceDefault
		}
		return g.dyn.Resource(mapping.Resource).Namespace(namespace), nil
	}
	return g.dyn.Resource(mapping.Resource), nil
}

// Kinds are the preferred versions of all kinds that can be listed, as a table and as the server says it.
func (g *Access) Kinds() (*cli.Table, []*metav1.APIResourceList, error) {
	lists, err := preferred(g.config)
	if err != nil {
		return nil, nil, err
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
	return table, lists, nil
}

func preferred(config *rest.Config) ([]*metav1.APIResourceList, error) {
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	return discovery.ServerPreferredResources(client)
}

// Table has the columns that the kind itself defines, of all objects or of those that are named.
func (g *Access) Table(ctx context.Context, mapping *meta.RESTMapping, names []string, selector string, wide bool) (*cli.Table, error) {
	httpClient, err := rest.HTTPClientFor(g.config)
	if err != nil {
		return nil, err
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
		return nil, err
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
			return nil, missingObject(err, mapping, name)
		}
		var table metav1.Table
		if err := json.Unmarshal(body, &table); err != nil {
			return nil, fmt.Errorf("the server's table of %s: %w", mapping.Resource.Resource, err)
		}
		if merged == nil {
			merged = &table
		} else {
			merged.Rows = append(merged.Rows, table.Rows...)
		}
	}
	return serverTable(merged, wide), nil
}

// missingObject says in our words that a named object does not exist; other errors stay as they are.
func missingObject(err error, mapping *meta.RESTMapping, name string) error {
	if name == "" || !apierrors.IsNotFound(err) {
		return err
	}
	return exit.NotFoundf("there is no %s %q; `coldrack get %s` lists all", strings.ToLower(mapping.GroupVersionKind.Kind), name, mapping.Resource.Resource)
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

// List reads the named objects, or all that have these labels, without their managed fields.
func (g *Access) List(ctx context.Context, mapping *meta.RESTMapping, names []string, selector string) (*unstructured.UnstructuredList, error) {
	resource := g.Resource(mapping)
	list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "v1", "kind": "List"}}
	for _, name := range names {
		object, err := resource.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, missingObject(err, mapping, name)
		}
		list.Items = append(list.Items, *object)
	}
	if len(names) == 0 {
		found, err := resource.List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return nil, err
		}
		list.Items = found.Items
	}
	for i := range list.Items {
		list.Items[i].SetManagedFields(nil)
	}
	return list, nil
}

// KindNames are the plural names of kinds that begin with prefix, for a shell.
func (g *Access) KindNames(prefix string) []string {
	config := rest.CopyConfig(g.config)
	config.Timeout = CompletionTimeout
	lists, err := preferred(config)
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

// Names are the names of a kind's objects that begin with prefix, for a shell.
func (g *Access) Names(ctx context.Context, mapping *meta.RESTMapping, prefix string) []string {
	list, err := g.Resource(mapping).List(ctx, metav1.ListOptions{TimeoutSeconds: new(int64(CompletionTimeout / time.Second))})
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

// RawClient is for paths that hold no objects.
func RawClient(config *rest.Config) (*rest.RESTClient, error) {
	config = rest.CopyConfig(config)
	config.GroupVersion = &schema.GroupVersion{}
	config.NegotiatedSerializer = rawSerializer()
	return rest.UnversionedRESTClientFor(config)
}

// rawSerializer is for requests whose bodies are read as they come.
func rawSerializer() runtime.NegotiatedSerializer {
	return serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()
}
