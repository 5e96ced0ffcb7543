package kube

import (
	"slices"

	"coldrack.dev/api/v1alpha1"
)

// ImagesOf are the images that a node with these roles may run when its cluster has the version that its spec says: its static pods,
// what every node runs, and what may be started on any node. everyNode are those of them that are the same on each node.
func ImagesOf(cluster *v1alpha1.Cluster, roles []v1alpha1.Role) (images, everyNode []string, err error) {
	required, err := RequirementsOf(cluster)
	if err != nil {
		return nil, nil, err
	}
	release, err := releaseOf(cluster.Spec.Version)
	if err != nil {
		return nil, nil, err
	}
	others := map[string]bool{release.etcdImage: !slices.Contains(roles, v1alpha1.RoleEtcd)}
	for _, name := range []component{componentAPIServer, componentManager, componentScheduler} {
		others[kubernetesImage(name, cluster.Spec.Version)] = !slices.Contains(roles, v1alpha1.RoleControlPlane)
	}
	return slices.DeleteFunc(required.Images, func(image string) bool { return others[image] }), required.EveryNode, nil
}
