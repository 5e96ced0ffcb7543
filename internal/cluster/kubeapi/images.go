package kubeapi

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
