package kubeapi

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
)

// Cordon keeps new pods away from a node, or lets them come again. changed is false when it was so already, or when there is
// no such node.
func (c *Connection) Cordon(ctx context.Context, node string, away bool) (changed bool, err error) {
	is, err := c.client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read node %s: %w", node, err)
	case is.Spec.Unschedulable == away:
		return false, nil
	}
	patch := fmt.Appendf(nil, `{"metadata":{"resourceVersion":%q},"spec":{"unschedulable":%t}}`, is.ResourceVersion, away)
	if _, err := c.client.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		what := "uncordon"
		if away {
			what = "cordon"
		}
		return false, fmt.Errorf("%s node %s: %w", what, node, err)
	}
	return true, nil
}

// Drain is how far a node is drained.
type Drain struct {
	// Left are the pods that are to go and are there still, as NAMESPACE/NAME.
	Left []string
	// Held says of pods among them why they do not let themselves be evicted now.
	Held []string
}

// Evict asks every pod of a node to go that does not belong to it: not those of DaemonSets and not static ones. It does not
// wait: it is called again until nothing is left. Pods that nobody would start elsewhere go, too, as those of others do.
func (c *Connection) Evict(ctx context.Context, node string) (d Drain, err error) {
	list, err := c.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String()})
	if err != nil {
		return d, fmt.Errorf("list the pods of node %s: %w", node, err)
	}
	for i := range list.Items {
		pod := &list.Items[i]
		name := pod.Namespace + "/" + pod.Name
		going := pod.DeletionTimestamp != nil
		if !evictable(pod) {
			continue
		}
		d.Left = append(d.Left, name)
		if going {
			continue
		}
		err := c.client.PolicyV1().Evictions(pod.Namespace).Evict(ctx, &policyv1.Eviction{
			ObjectMeta:    metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
			DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}}})
		switch {
		case err == nil:
		case apierrors.IsNotFound(err), apierrors.IsConflict(err):
			d.Left = d.Left[:len(d.Left)-1] // it went, and what has its name now is another one
		case apierrors.IsTooManyRequests(err):
			d.Held = append(d.Held, name+": "+err.Error())
		default:
			d.Held = append(d.Held, fmt.Sprintf("%s: %v", name, err))
		}
	}
	slices.Sort(d.Left)
	slices.Sort(d.Held)
	return d, nil
}

// evictable is true for pods that a drained node has not: those that run or are about to end, and neither belong to a DaemonSet nor are
// static.
func evictable(pod *corev1.Pod) bool {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return false
	}
	return pod.Spec.NodeName != "" && !stays(pod)
}

// stays is true for pods that belong to their node.
func stays(pod *corev1.Pod) bool {
	if _, static := pod.Annotations[corev1.MirrorPodAnnotationKey]; static {
		return true
	}
	owner := metav1.GetControllerOf(pod)
	return owner != nil && owner.Kind == "DaemonSet"
}

// DeleteNode removes a node from the cluster's API. One that is not there is no error.
func (c *Connection) DeleteNode(ctx context.Context, node string) error {
	if err := c.client.CoreV1().Nodes().Delete(ctx, node, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete node %s: %w", node, err)
	}
	return nil
}

// RemoveFormer deletes a Node that was judged by what was seen of it. It does so only while that still holds: a kubelet that has taken the
// Node over since, which keeps its uid, is not registered again before it restarts. removed is false where something else holds, or the
// Node is not there; what was reported of it meanwhile is to be judged anew.
func (c *Connection) RemoveFormer(ctx context.Context, seen NodeState) (removed bool, err error) {
	for range 3 { // others write to the Node all the time
		is, err := c.client.CoreV1().Nodes().Get(ctx, seen.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("read node %s: %w", seen.Name, err)
		}
		if now := stateOf(is); now.UID != seen.UID || now.BootID != seen.BootID || now.Ready != seen.Ready {
			return false, nil
		}
		err = c.client.CoreV1().Nodes().Delete(ctx, seen.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &is.UID, ResourceVersion: &is.ResourceVersion}})
		switch {
		case err == nil:
			return true, nil
		case apierrors.IsNotFound(err):
			return false, nil
		case !apierrors.IsConflict(err):
			return false, fmt.Errorf("delete node %s: %w", seen.Name, err)
		}
	}
	return false, fmt.Errorf("delete node %s: it changes all the time", seen.Name)
}
