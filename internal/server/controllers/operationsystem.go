package controllers

import (
	"context"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/planner"
)

// installsAnew says whether a node is taken to have its operating system installed.
func installsAnew(h *v1alpha1.NodeHand) bool { return planner.PartsOf(h.Parts).System }

// images are those that the machines are to be installed with.
func (o *operation) images(ctx context.Context, machines []v1alpha1.Machine) (map[string]string, error) {
	profiles, images := &v1alpha1.ProfileList{}, &v1alpha1.ImageList{}
	for _, list := range []client.ObjectList{profiles, images} {
		if err := o.Cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("list profiles and images: %w", err)
		}
	}
	wanted, problems := members.ImagesWanted(o.c, o.groups, machines, profiles.Items, images.Items)
	o.blocks = append(o.blocks, problems...)
	return wanted, nil
}

// installAnew writes the intent of a new installation of a node whose image changes, unless a person has written one. The machine gets its
// group's profile with it. It waits until the node's record says that it is its turn.
func (o *operation) installAnew(ctx context.Context, n *v1alpha1.ClusterNode, s planner.Step) error {
	m, ok := o.Fleet.Get(n.Machine)
	if !s.Parts.System || !ok || m.WantedIntent() != nil {
		return nil
	}
	next := m.DeepCopy()
	next.Spec.Intent = &v1alpha1.Intent{Action: v1alpha1.ActionReinstall, ID: fmt.Sprintf("image-%s-%d", o.c.Name, o.at.Unix()), RequestedBy: "Cluster " + o.c.Name}
	if g := o.group(n.Group); g != nil && members.ProfileOf(g, m) != m.Spec.Profile {
		members.GiveProfile(next, g.Spec.Profile)
	}
	defer o.Fleet.Write(m.Name)()
	if err := o.Client.Patch(ctx, next, client.MergeFromWithOptions(m, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("write intent of machine %s: %w", m.Name, err)
	}
	o.Fleet.Put(next)
	return nil
}
