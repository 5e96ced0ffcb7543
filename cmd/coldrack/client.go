package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/version"
	"coldrack.dev/internal/cli/objects"
	"coldrack.dev/internal/server/daemon"
)

// addConnectionFlag gives a command, and the commands below it, --kubeconfig.
func (a *app) addConnectionFlag(cmd *cobra.Command) *cobra.Command {
	cmd.PersistentFlags().StringVar(&a.kubeconfig, "kubeconfig", "",
		"kubeconfig of the server [$COLDRACK_KUBECONFIG] (default DATA_DIR/admin.kubeconfig)")
	return cmd
}

// kubeconfigPath finds the kubeconfig: flag, environment, then the one of a server on this machine.
func (a *app) kubeconfigPath() (string, error) {
	if a.kubeconfig != "" {
		return a.kubeconfig, nil
	}
	if path, ok := a.env("COLDRACK_KUBECONFIG"); ok && path != "" {
		return path, nil
	}
	local := daemon.DefaultConfig()
	if dir, ok := a.env("COLDRACK_DATA_DIR"); ok && dir != "" {
		local.DataDir = dir
	}
	path := local.AdminKubeconfig()
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf(`no server is known: %s does not exist
  on the server's machine:  start it with "coldrack serve", which writes that file
  on another machine:       "coldrack kubeconfig" on the server makes one for you;
                            name it with --kubeconfig FILE or COLDRACK_KUBECONFIG=FILE
  for the demo and labs:    COLDRACK_DATA_DIR=FOLDER, the --data-dir of that server`, path)
	}
	return path, nil
}

// connect reads the kubeconfig. It does not talk to the server yet.
func (a *app) connect() (*rest.Config, error) {
	if a.config != nil {
		return a.config, nil
	}
	path, err := a.kubeconfigPath()
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: path}, nil).ClientConfig()
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("kubeconfig %s may not be read by this user: use sudo, or have an administrator make one for you with \"coldrack kubeconfig\"", path)
	case err != nil:
		return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	config.UserAgent = "coldrack/" + version.Get().Version
	// The defaults throttle a person who lists a few hundred machines.
	config.QPS, config.Burst = 200, 400
	// On the server's own machine, packing a list of ten thousand machines takes longer than passing it on.
	if at, err := url.Parse(config.Host); err == nil {
		ip := net.ParseIP(at.Hostname())
		config.DisableCompression = at.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	}
	config.WarningHandler = rest.NewWarningWriter(a.err, rest.WarningWriterOptions{Deduplicate: true})
	a.config = config
	return config, nil
}

// client returns a client for the kinds of Coldrack. It needs no discovery round trips.
func (a *app) client() (client.WithWatch, error) {
	config, err := a.connect()
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	mapper := meta.NewDefaultRESTMapper(nil)
	for gvk := range scheme.AllKnownTypes() {
		if gvk.Group == v1alpha1.Group && !strings.HasSuffix(gvk.Kind, "List") {
			mapper.Add(gvk, meta.RESTScopeRoot)
		}
	}
	return client.NewWithWatch(config, client.Options{Scheme: scheme, Mapper: mapper})
}

// completeMachines offers machine names to the shell.
func (a *app) completeMachines(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), objects.CompletionTimeout)
	defer cancel()
	var list v1alpha1.MachineList
	if err := c.List(ctx, &list); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, m := range list.Items {
		if strings.HasPrefix(m.Name, prefix) {
			names = append(names, fmt.Sprintf("%s\t%s", m.Name, m.Status.Phase))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// objects reaches any kind that the server has.
func (a *app) objects() (*objects.Access, error) {
	config, err := a.connect()
	if err != nil {
		return nil, err
	}
	return objects.New(config)
}
