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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/machine"
	"coldrack.dev/internal/cli/objects"
)

func (a *app) clusterRotateCommand() *cobra.Command {
	var status, back, hold, goOn bool
	var lifetime time.Duration
	var output string
	cmd := &cobra.Command{
		Use:   "rotate NAME [ca|etcd-ca|front-proxy-ca|service-account|encryption]",
		Short: "Replace one of a cluster's authorities or keys, in stages",
		Long: `Replace one of a cluster's authorities or keys while it runs. Every node first accepts the new one beside the old one; then everything is
made with the new one; then the old one is dropped. Nodes change one after another, as with every change of the cluster, and the next
stage begins when all of them have the present one. Until the old key is dropped, --back leads back.

  ca               certifies API servers, kubelets and people. Kubeconfigs that people have do not know the new one, and pods that read it
                   only when they start neither. With --hold it waits while they are fetched anew (coldrack kubeconfig) and restarted
  etcd-ca          certifies members of etcd and their clients
  front-proxy-ca   certifies API servers towards extension API servers
  service-account  signs tokens of service accounts. The old key is dropped when tokens that it signed have ended; tokens in Secrets
                   are signed anew, and copies of them elsewhere end
  encryption       encrypts Secrets in etcd. All of them are written anew`,
		Example: `  coldrack cluster rotate lab encryption
  coldrack cluster rotate lab ca --hold
  coldrack cluster rotate lab --status
  coldrack cluster rotate lab encryption --back`,
		Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			switch len(args) {
			case 0:
				return a.completeClusters(cmd, args, prefix)
			case 1:
				return keyNames(), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, cluster, err := a.clusterNamed(cmd, args[0])
			if err != nil {
				return err
			}
			if status {
				if done, err := a.printStructured(output, cli.RotationOf(cluster)); done {
					return err
				}
				fmt.Fprint(a.out, cli.RotationText(cluster))
				return nil
			}
			if len(args) < 2 {
				return exit.Usagef("name what is to be rotated: %s; or see how far a rotation is with --status", strings.Join(keyNames(), ", "))
			}
			key := v1alpha1.RotatedKey(args[1])
			if !slices.Contains(v1alpha1.RotatedKeys(), key) {
				return exit.Usagef("%q cannot be rotated; what can be: %s", args[1], strings.Join(keyNames(), ", "))
			}
			what := ""
			for try := 1; ; try++ {
				var want v1alpha1.ClusterRotation
				switch {
				case back:
					want, err = rotationBack(cluster, key)
					what = "goes back to the old one"
				case goOn:
					want, err = rotationOn(cluster, key)
					what = "goes on"
				default:
					want, err = newRotation(cluster, key)
					what = "is rotated"
					if hold {
						want.Before = v1alpha1.RotationSwap
					}
					if lifetime > 0 {
						want.TokenLifetime = &metav1.Duration{Duration: lifetime}
					}
				}
				if err != nil {
					return err
				}
				err = writeRotation(cmd.Context(), c, cluster, want)
				if !apierrors.IsConflict(err) || try == 10 {
					break
				}
				// The server has written meanwhile how far the cluster is: that may change what is possible.
				if cluster, err = getCluster(cmd.Context(), c, cluster.Name); err != nil {
					return err
				}
			}
			if err != nil {
				return fmt.Errorf("cluster %s: %w", cluster.Name, err)
			}
			fmt.Fprintf(a.out, "%s: %s %s; follow it with: coldrack cluster rotate %s --status\n", cluster.Name, key, what, cluster.Name)
			return nil
		},
	}
	cmd.Flags().BoolVar(&status, "status", false, "show how far a rotation is, and change nothing")
	cmd.Flags().BoolVar(&back, "back", false, "go back to the old key; possible until it is dropped")
	cmd.Flags().DurationVar(&lifetime, "token-lifetime", 0, "with service-account: how long to wait for tokens of the old key to end (default 1h10m)")
	cmd.Flags().BoolVar(&hold, "hold", false, "wait for --continue before everything is made with the new key, and before the old one is dropped")
	cmd.Flags().BoolVar(&goOn, "continue", false, "go on with a rotation that is held")
	cmd.MarkFlagsMutuallyExclusive("status", "back", "hold", "continue")
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// writeRotation writes what is wanted of a cluster, if the cluster is as it was read: two people must not begin two rotations.
func writeRotation(ctx context.Context, c client.Client, cluster *v1alpha1.Cluster, want v1alpha1.ClusterRotation) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": cluster.ResourceVersion},
		"spec": map[string]any{"rotation": map[string]any{"key": want.Key, "id": want.ID, "back": want.Back, "before": orNull(want.Before),
			"tokenLifetime": want.TokenLifetime, "requestedBy": want.RequestedBy}}})
	if err != nil {
		return err
	}
	return c.Patch(ctx, cluster.DeepCopy(), client.RawPatch(types.MergePatchType, patch), client.FieldOwner(objects.FieldManager))
}

func keyNames() []string {
	var names []string
	for _, key := range v1alpha1.RotatedKeys() {
		names = append(names, string(key))
	}
	return names
}

// newRotation is what begins one, unless something is in its way that a person should know of at once. The server looks, too.
func newRotation(c *v1alpha1.Cluster, key v1alpha1.RotatedKey) (want v1alpha1.ClusterRotation, err error) {
	if is := c.Status.OpenRotation(); is != nil {
		return want, exit.Refusedf("cluster %s: the rotation of %s is in stage %s since %s; only one key is rotated at a time: wait for it (coldrack cluster rotate %s --status)%s",
			c.Name, is.Key, is.Stage, is.Since.UTC().Format(time.RFC3339), c.Name, orBack(c.Name, is))
	}
	if wanted := c.WantedRotation(); wanted != nil && !wanted.Back {
		return want, exit.Refusedf("cluster %s: the rotation of %s is wanted and has not begun; see why: coldrack cluster rotate %s --status", c.Name, wanted.Key, c.Name)
	}
	for _, n := range c.Status.Nodes {
		switch {
		case n.Hand != nil:
			return want, exit.Refusedf("cluster %s: node %s is in hand for an operation (%s); wait until it has ended (coldrack cluster watch %s), or abort it", c.Name, n.Machine, n.Hand.Operation, c.Name)
		case !n.Ready:
			return want, exit.Refusedf("cluster %s: node %s is not ready, and every node must take the new key; bring it back, or release its machine", c.Name, n.Machine)
		}
	}
	return v1alpha1.ClusterRotation{Key: key, ID: string(uuid.NewUUID()), RequestedBy: machine.Requester()}, nil
}

func orBack(name string, is *v1alpha1.RotationStatus) string {
	if !is.Stage.Reversible() {
		return ""
	}
	return fmt.Sprintf(", or take it back (coldrack cluster rotate %s %s --back)", name, is.Key)
}

// rotationBack is what takes the one back that is wanted.
func rotationBack(c *v1alpha1.Cluster, key v1alpha1.RotatedKey) (want v1alpha1.ClusterRotation, err error) {
	is, wanted := c.Status.OpenRotation(), c.WantedRotation()
	switch {
	case wanted == nil || wanted.Key != key:
		return want, exit.Refusedf("cluster %s: %s is not being rotated, so there is nothing to take back; to replace the present key, rotate it once more", c.Name, key)
	case is != nil && is.ID == wanted.ID && is.Stage == v1alpha1.RotationDrop:
		return want, exit.Refusedf("cluster %s: the old %s is being dropped since %s, which has no way back; rotate it once more when that has ended", c.Name, key, is.Since.UTC().Format(time.RFC3339))
	}
	want = *wanted
	want.Back = true
	return want, nil
}

// rotationOn is what has a rotation go on that is held: to where everything is made with the new key, and from there to its end.
func rotationOn(c *v1alpha1.Cluster, key v1alpha1.RotatedKey) (want v1alpha1.ClusterRotation, err error) {
	wanted := c.WantedRotation()
	if wanted == nil || wanted.Key != key || wanted.Before == "" {
		return want, exit.Refusedf("cluster %s: no rotation of %s is held; see: coldrack cluster rotate %s --status", c.Name, key, c.Name)
	}
	want = *wanted
	if is := c.Status.OpenRotation(); want.Before == v1alpha1.RotationSwap && (is == nil || is.ID != want.ID || is.Stage != v1alpha1.RotationSwap) {
		want.Before = v1alpha1.RotationDrop
	} else {
		want.Before = ""
	}
	return want, nil
}

// orNull makes a merge patch remove what is empty.
func orNull(stage v1alpha1.RotationStage) any {
	if stage == "" {
		return nil
	}
	return stage
}
