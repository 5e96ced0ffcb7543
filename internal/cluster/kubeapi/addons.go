package kubeapi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"coldrack.dev/internal/cluster/kube"
)

// addonInterval is how often addons are looked at that are not ready.
const addonInterval = 5 * time.Second

// lookAtAddons says how everything is that we applied and that controllers must bring to life.
func lookAtAddons(ctx context.Context, client kubernetes.Interface) ([]AddonState, error) {
	options := metav1.ListOptions{LabelSelector: labels.Set{LabelManaged: "true"}.String()}
	daemons, err := client.AppsV1().DaemonSets(metav1.NamespaceAll).List(ctx, options)
	if err != nil {
		return nil, err
	}
	deployments, err := client.AppsV1().Deployments(metav1.NamespaceAll).List(ctx, options)
	if err != nil {
		return nil, err
	}
	addons := []AddonState{}
	add := func(kind string, object metav1.ObjectMeta, observed int64, wanted, ready, updated int32) {
		a := AddonState{Kind: kind, Namespace: object.Namespace, Name: object.Name,
			Ready:   observed >= object.Generation && (wanted > 0 || object.Annotations[kube.AnnotationMayBeEmpty] != "") && ready >= wanted && updated >= wanted,
			Message: fmt.Sprintf("%d of %d ready", ready, wanted)}
		if !a.Ready {
			a.Message += fmt.Sprintf(", %d up to date", updated)
		}
		addons = append(addons, a)
	}
	for _, d := range daemons.Items {
		add("daemonset", d.ObjectMeta, d.Status.ObservedGeneration, d.Status.DesiredNumberScheduled, d.Status.NumberAvailable, d.Status.UpdatedNumberScheduled)
	}
	for _, d := range deployments.Items {
		wanted := int32(1)
		if d.Spec.Replicas != nil {
			wanted = *d.Spec.Replicas
		}
		add("deployment", d.ObjectMeta, d.Status.ObservedGeneration, wanted, d.Status.AvailableReplicas, d.Status.UpdatedReplicas)
	}
	slices.SortFunc(addons, func(a, b AddonState) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Kind, b.Kind))
	})
	return addons, nil
}

// AddonsReady says whether all are; before they were looked at, they are not.
func (s *State) AddonsReady() bool { return allReady(s.Addons) }

func allReady(addons []AddonState) bool {
	return addons != nil && !slices.ContainsFunc(addons, func(a AddonState) bool { return !a.Ready })
}

// followAddons looks at the addons once the objects are applied.
func (r *Runner) followAddons(ctx context.Context, connection *Connection) {
	for ctx.Err() == nil {
		wait := addonInterval
		if r.applied() {
			limited, cancel := context.WithTimeout(ctx, applyTimeout)
			addons, err := lookAtAddons(limited, connection.client)
			cancel()
			if err != nil {
				r.log.Debug("cannot check addons", "cluster", r.options().Target.Cluster, "error", err)
			} else {
				r.change(func(s *State) { s.Addons = addons })
				if allReady(addons) {
					wait = applyInterval
				}
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (r *Runner) applied() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.Objects.Digest == Digest(r.current.Wanted.Objects)
}
