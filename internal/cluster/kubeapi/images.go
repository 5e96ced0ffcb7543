package kubeapi

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/internal/cluster/kube"
)

// NodeImages are the names of images that some node says it has. A node names its 50 largest.
func (c *Connection) NodeImages(ctx context.Context) (map[string]bool, error) {
	nodes, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	have := map[string]bool{}
	for i := range nodes.Items {
		for _, image := range nodes.Items[i].Status.Images {
			for _, name := range image.Names {
				have[name] = true
			}
		}
	}
	return have, nil
}

// workloads are what has pods, or makes some.
func workloads() []string {
	return []string{
		"/api/v1/pods", "/api/v1/podtemplates", "/api/v1/replicationcontrollers",
		"/apis/apps/v1/deployments", "/apis/apps/v1/statefulsets", "/apis/apps/v1/daemonsets", "/apis/apps/v1/replicasets",
		"/apis/batch/v1/jobs", "/apis/batch/v1/cronjobs",
	}
}

// workloadPage is how many objects are asked for at a time.
const workloadPage = "500"

// WorkloadImages are the images of all pods and of everything that makes pods, as they are written there, and of pods also with the
// digest that runs; sorted. Old replica sets count: a deployment may be rolled back to them.
func (c *Connection) WorkloadImages(ctx context.Context) ([]string, error) {
	found := map[string]bool{}
	for _, path := range workloads() {
		for next := ""; ; {
			raw, err := c.client.CoreV1().RESTClient().Get().AbsPath(path).Param("limit", workloadPage).Param("continue", next).DoRaw(ctx)
			if err != nil {
				return nil, fmt.Errorf("cluster %s: list %s: %w", c.target.Cluster, path, err)
			}
			var page struct {
				Metadata metav1.ListMeta `json:"metadata"`
				Items    []any           `json:"items"`
			}
			if err := json.Unmarshal(raw, &page); err != nil {
				return nil, fmt.Errorf("cluster %s: list %s: %w", c.target.Cluster, path, err)
			}
			for _, item := range page.Items {
				for _, image := range kube.ImageReferences(item) {
					found[image] = true
				}
				runningImages(item, found)
			}
			if next = page.Metadata.Continue; next == "" {
				break
			}
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// runningImages adds what a pod's status says its containers run, by digest.
func runningImages(object any, found map[string]bool) {
	fields, _ := object.(map[string]any)
	status, _ := fields["status"].(map[string]any)
	for _, key := range []string{"containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"} {
		list, _ := status[key].([]any)
		for _, item := range list {
			container, _ := item.(map[string]any)
			if image, _ := container["imageID"].(string); image != "" {
				found[image] = true
			}
		}
	}
}
