package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/contract/manifest"
)

func (a *app) deleteCommand() *cobra.Command {
	var (
		files         []string
		ignoreMissing bool
	)
	cmd := &cobra.Command{
		Use:   "delete KIND NAME... | -f FILE|FOLDER|-",
		Short: "Remove objects",
		Long: `Remove objects from the server. Removing a Machine wipes nothing: its disks keep what is on
them, and the machine is unknown when it boots the next time. To wipe it first, use "coldrack release".`,
		ValidArgsFunction: a.completeObjects,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(files) == 0) == (len(args) == 0) {
				return exit.Usagef("name either KIND NAME... or -f FILE")
			}
			if len(args) == 1 {
				return exit.Usagef("name the %s to remove", args[0])
			}
			documents, err := a.readIfAny(files)
			if err != nil {
				return err
			}
			g, err := a.objects()
			if err != nil {
				return err
			}
			remove := func(resource dynamic.ResourceInterface, kind, name string) error {
				return a.remove(cmd.Context(), resource, kind, name, ignoreMissing)
			}
			var errs []error
			for _, d := range documents {
				resource, err := g.ResourceFor(d.Object)
				if err == nil {
					err = remove(resource, strings.ToLower(d.Object.GetKind()), d.Object.GetName())
				}
				if err != nil {
					errs = append(errs, explainFor(d, err))
				}
			}
			if len(args) > 0 {
				mapping, err := g.Mapping(args[0])
				if err != nil {
					return err
				}
				for _, name := range args[1:] {
					errs = append(errs, remove(g.Resource(mapping), strings.ToLower(mapping.GroupVersionKind.Kind), name))
				}
			}
			return errors.Join(errs...)
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder or - that names the objects; may be repeated")
	cmd.Flags().BoolVar(&ignoreMissing, "ignore-not-found", false, "succeed when an object is gone already")
	return cmd
}

func (a *app) readIfAny(files []string) ([]*manifest.Document, error) {
	if len(files) == 0 {
		return nil, nil
	}
	return a.readManifests(files)
}

func (a *app) remove(ctx context.Context, resource dynamic.ResourceInterface, kind, name string, ignoreMissing bool) error {
	err := resource.Delete(ctx, name, metav1.DeleteOptions{})
	switch {
	case apierrors.IsNotFound(err) && ignoreMissing:
		return nil
	case apierrors.IsNotFound(err):
		return exit.NotFoundf("there is no %s %q", kind, name)
	case err != nil:
		return err
	}
	fmt.Fprintf(a.out, "%s/%s deleted\n", kind, name)
	return nil
}
