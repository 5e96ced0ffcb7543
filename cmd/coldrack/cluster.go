package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/objects"
	"coldrack.dev/internal/cluster/kube"
)

func (a *app) clusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cluster",
		Aliases: []string{"clusters"},
		Short:   "Create and inspect Kubernetes clusters",
		Long: `Create and inspect Kubernetes clusters. The usual way:

  coldrack cluster init --preset small --name lab -o lab.yaml
  coldrack plan -f lab.yaml
  coldrack cluster apply -f lab.yaml
  coldrack cluster watch lab --until Ready
  coldrack kubeconfig lab -w lab.kubeconfig
  coldrack cluster verify lab`,
		RunE: group,
	}
	cmd.AddCommand(a.clusterInitCommand(), a.planCommand(), a.clusterApplyCommand(), a.clusterListCommand(), a.clusterDescribeCommand(),
		a.clusterWatchCommand(), a.clusterScaleCommand(), a.clusterPauseCommand(), a.clusterResumeCommand(), a.clusterAbortCommand(),
		a.clusterHistoryCommand(), a.clusterRotateCommand(), a.clusterVerifyCommand(), a.clusterBackupCommand(), a.clusterBackupsCommand(), a.clusterRestoreCommand())
	return cmd
}

// initOptions are the flags of cluster init.
type initOptions struct {
	preset, plugin, output string
	kube.PresetOptions
}

func (a *app) clusterInitCommand() *cobra.Command {
	o := initOptions{}
	cmd := &cobra.Command{
		Use:   "init --preset PRESET --name NAME",
		Short: "Write a commented cluster manifest to start from",
		Long: `Write a Cluster and its MachineGroups as commented YAML, to be read, changed and applied. No server is asked.

Presets:
  laptop       one machine that is everything
  small        3 or 5 machines, each with etcd, control plane and workloads
  development  one machine with etcd and control plane, any number of workers
  production   3 or 5 machines with etcd, 2 or more with the control plane, workers in groups`,
		Example: `  coldrack cluster init --preset development --name dev --workers 2 -o dev.yaml
  coldrack cluster init --preset production --name prod --etcd 5 --control-planes 3 --workers 20 --vip 10.20.0.5 > prod.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := o.yaml(cmd)
			if err != nil {
				return err
			}
			if o.output == "" {
				_, err = a.out.Write(text)
				return err
			}
			if err := writeNew(o.output, text, 0o644); err != nil {
				return err
			}
			file := o.output
			fmt.Fprintf(a.err, "wrote %s; see what it would do with: coldrack plan -f %s\n", file, file)
			return nil
		},
	}
	cmd.Flags().StringVar(&o.preset, "preset", "", "architecture: laptop, small, development or production")
	cmd.Flags().StringVar(&o.Name, "name", "", "name of the cluster")
	cmd.Flags().StringVar(&o.Version, "version", "", "version of Kubernetes (default "+kube.DefaultVersion()+")")
	cmd.Flags().IntVar(&o.Servers, "etcd", 0, "machines with etcd: 3 or 5 (presets small and production)")
	cmd.Flags().IntVar(&o.ControlPlanes, "control-planes", 0, "machines with the control plane, 2 or more (preset production)")
	cmd.Flags().IntVar(&o.Workers, "workers", -1, "machines for workloads only (presets development and production; default: the preset's)")
	cmd.Flags().StringVar(&o.VirtualIP, "vip", "", "address of the API that one of the control-plane machines carries at any time")
	cmd.Flags().StringVar(&o.Host, "host", "", "DNS name or address at which people reach the API")
	cmd.Flags().StringVar(&o.plugin, "plugin", "", "network of the pods: routed (no encapsulation), flannel (VXLAN) or none (default routed)")
	cmd.Flags().StringVar(&o.PodCIDR, "pod-cidr", "", "addresses of pods (default 10.244.0.0/16)")
	cmd.Flags().StringVar(&o.ServiceCIDR, "service-cidr", "", "addresses of services (default 10.96.0.0/16)")
	cmd.Flags().StringVar(&o.Profile, "profile", "", "Profile to install the machines with (default: each machine's own)")
	cmd.Flags().BoolVar(&o.Pools, "pools", false, "each group takes machines with its pool's label only (coldrack.dev/pool; preset production always does)")
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "write to this new file instead of standard output")
	_ = cmd.RegisterFlagCompletionFunc("preset", cobra.FixedCompletions(presetNames(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("version", cobra.FixedCompletions(kube.KnownVersions(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("plugin", cobra.FixedCompletions([]string{"routed", "flannel", "none"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func presetNames() []string {
	var names []string
	for _, p := range kube.Presets() {
		names = append(names, string(p))
	}
	return names
}

// yaml is the file, if what it asks for can work.
func (o *initOptions) yaml(cmd *cobra.Command) ([]byte, error) {
	switch {
	case o.preset == "":
		return nil, exit.Usagef("--preset is missing; there are %s", strings.Join(presetNames(), ", "))
	case o.Name == "":
		return nil, exit.Usagef("--name is missing: the cluster's name")
	}
	preset := v1alpha1.Topology(o.preset)
	for _, f := range []struct {
		flag    string
		presets []v1alpha1.Topology
	}{
		{"etcd", []v1alpha1.Topology{v1alpha1.TopologySmall, v1alpha1.TopologyProduction}},
		{"control-planes", []v1alpha1.Topology{v1alpha1.TopologyProduction}},
		{"workers", []v1alpha1.Topology{v1alpha1.TopologyDevelopment, v1alpha1.TopologyProduction}},
	} {
		fits := false
		for _, p := range f.presets {
			fits = fits || p == preset
		}
		if cmd.Flags().Changed(f.flag) && !fits {
			return nil, exit.Usagef("--%s does not apply to preset %s; `coldrack cluster init --help` says what each preset is", f.flag, o.preset)
		}
	}
	for flag, value := range map[string]int{"etcd": o.Servers, "control-planes": o.ControlPlanes} {
		if cmd.Flags().Changed(flag) && value < 1 {
			return nil, exit.Usagef("--%s %d: must be a number of machines", flag, value)
		}
	}
	if cmd.Flags().Changed("workers") && o.Workers < 0 {
		return nil, exit.Usagef("--workers %d: must not be negative", o.Workers)
	}
	o.Plugin = v1alpha1.NetworkPlugin(o.plugin)
	switch o.Plugin {
	case "", v1alpha1.NetworkRouted, v1alpha1.NetworkFlannel, v1alpha1.NetworkNone:
	default:
		return nil, exit.Usagef("--plugin %q: must be routed, flannel or none", o.plugin)
	}
	cluster, groups, err := kube.Preset(preset, o.PresetOptions)
	if err != nil {
		return nil, exit.Usagef("%w", err)
	}
	var problems []string
	for _, err := range v1alpha1.ValidateCluster(cluster, v1alpha1.ClusterFacts{Groups: groups}) {
		// A missing endpoint is a line that the file shows and a person fills in.
		if err.Type != field.ErrorTypeRequired || err.Field != "spec.endpoint" {
			problems = append(problems, err.Error())
		}
	}
	if len(problems) > 0 {
		return nil, exit.Usagef("this cluster would be invalid:\n  %s", strings.Join(problems, "\n  "))
	}
	return kube.PresetYAML(preset, o.PresetOptions)
}

// writeNew writes a file that must not exist.
func writeNew(path string, content []byte, mode fs.FileMode) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return exit.Refusedf("%s exists already and is not overwritten; remove it, or choose another name", path)
	}
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	return errors.Join(err, file.Close())
}

func getCluster(ctx context.Context, c client.Client, name string) (*v1alpha1.Cluster, error) {
	cluster := &v1alpha1.Cluster{}
	err := c.Get(ctx, client.ObjectKey{Name: name}, cluster)
	if apierrors.IsNotFound(err) {
		return nil, noSuchCluster(name)
	}
	if err != nil {
		return nil, fmt.Errorf("get cluster %s: %w", name, err)
	}
	return cluster, nil
}

// clusterNamed is a client, and the cluster that a command is for.
func (a *app) clusterNamed(cmd *cobra.Command, name string) (client.Client, *v1alpha1.Cluster, error) {
	c, err := a.client()
	if err != nil {
		return nil, nil, err
	}
	cluster, err := getCluster(cmd.Context(), c, name)
	return c, cluster, err
}

func noSuchCluster(name string) error {
	return exit.NotFoundf("there is no cluster %q; `coldrack cluster ls` lists them", name)
}

// completeClusters offers cluster names to the shell.
func (a *app) completeClusters(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), objects.CompletionTimeout)
	defer cancel()
	var list v1alpha1.ClusterList
	if err := c.List(ctx, &list); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for i := range list.Items {
		if strings.HasPrefix(list.Items[i].Name, prefix) {
			names = append(names, fmt.Sprintf("%s\t%s", list.Items[i].Name, cli.ClusterPhaseOf(&list.Items[i])))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) clusterListCommand() *cobra.Command {
	var (
		output    string
		noHeaders bool
	)
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List clusters with their phase and nodes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			var list v1alpha1.ClusterList
			if err := c.List(cmd.Context(), &list); err != nil {
				return fmt.Errorf("list clusters: %w", err)
			}
			for i := range list.Items {
				stampCluster(&list.Items[i])
			}
			list.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "ClusterList"}
			if done, err := a.printStructured(output, list); done {
				return err
			}
			if output == "name" {
				for _, c := range list.Items {
					fmt.Fprintln(a.out, c.Name)
				}
				return nil
			}
			if len(list.Items) == 0 {
				fmt.Fprintln(a.err, "there is no cluster; `coldrack cluster init --help` tells how to begin one")
				return nil
			}
			return cli.ClusterTable(list.Items, a.now()).Print(a.out, !noHeaders)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml", "name")
	cmd.Flags().BoolVar(&noHeaders, "no-headers", false, "print no header line")
	return cmd
}

// stampCluster sets what a typed client leaves out and every reader of JSON expects.
func stampCluster(c *v1alpha1.Cluster) {
	c.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Cluster"}
	c.ManagedFields = nil
}

func (a *app) clusterDescribeCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:               "describe NAME",
		Short:             "Show a cluster with its groups, nodes and steps",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, cluster, err := a.clusterNamed(cmd, args[0])
			if err != nil {
				return err
			}
			stampCluster(cluster)
			if done, err := a.printStructured(output, cluster); done {
				return err
			}
			var groups v1alpha1.MachineGroupList
			var machines v1alpha1.MachineList
			if err := errors.Join(c.List(cmd.Context(), &groups), c.List(cmd.Context(), &machines)); err != nil {
				return err
			}
			fmt.Fprint(a.out, cli.DescribeCluster(cli.NewClusterView(cluster, groups.Items, machines.Items), a.now()))
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) clusterPauseCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pause NAME",
		Short: "Pause Coldrack's changes to a cluster; workloads keep running",
		Long: `Pause Coldrack's changes to a cluster: nodes finish their current phase and start no other, no further step begins, and the
server applies nothing. Workloads keep running.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, cluster, err := a.clusterNamed(cmd, args[0])
			if err != nil {
				return err
			}
			if cluster.Spec.Paused {
				fmt.Fprintf(a.out, "%s: was paused already\n", cluster.Name)
				return nil
			}
			patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"paused":true}}`))
			if err := c.Patch(cmd.Context(), cluster, patch, client.FieldOwner(objects.FieldManager)); err != nil {
				return fmt.Errorf("cluster %s: %w", cluster.Name, err)
			}
			fmt.Fprintf(a.out, "%s: paused\n", cluster.Name)
			return nil
		},
	}
	return a.addConnectionFlag(cmd)
}
