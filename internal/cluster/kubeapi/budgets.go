package kubeapi

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"
)

// Budget is a PodDisruptionBudget, as far as it decides about drains.
type Budget struct {
	// Name is NAMESPACE/NAME. For pods that several guard, which the eviction API refuses to evict, it names all of them.
	Name string
	// Allowed evictions at present.
	Allowed int
	// Never is true when none would be allowed even with all pods healthy.
	Never bool
}

// GuardedPod is a pod that a drain would have to evict and a budget guards.
type GuardedPod struct {
	// Name is NAMESPACE/NAME.
	Name, Node, Budget string
}

// Budgets are the PodDisruptionBudgets of the cluster, and the pods that they guard, by name.
func (c *Connection) Budgets(ctx context.Context) (budgets []Budget, pods []GuardedPod, err error) {
	list, err := c.client.PolicyV1().PodDisruptionBudgets(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("list PodDisruptionBudgets: %w", err)
	}
	byNamespace := map[string][]guard{}
	for i := range list.Items {
		b := &list.Items[i]
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil {
			continue // it guards nothing
		}
		byNamespace[b.Namespace] = append(byNamespace[b.Namespace], guard{selector, budgetOf(b)})
		budgets = append(budgets, budgetOf(b))
	}
	for namespace, guards := range byNamespace {
		more, several, err := c.guardedPods(ctx, namespace, guards)
		if err != nil {
			return nil, nil, err
		}
		pods, budgets = append(pods, more...), append(budgets, several...)
	}
	slices.SortFunc(budgets, func(a, b Budget) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(pods, func(a, b GuardedPod) int { return strings.Compare(a.Name, b.Name) })
	return slices.Compact(budgets), pods, nil
}

// guard is a budget with its selector.
type guard struct {
	selector labels.Selector
	budget   Budget
}

func budgetOf(b *policyv1.PodDisruptionBudget) Budget {
	s := b.Status
	return Budget{Name: b.Namespace + "/" + b.Name, Allowed: int(s.DisruptionsAllowed), Never: s.ExpectedPods > 0 && s.DesiredHealthy >= s.ExpectedPods}
}

// guardedPods are the pods of a namespace that budgets guard. For those that several do, it makes a budget of its own.
func (c *Connection) guardedPods(ctx context.Context, namespace string, guards []guard) (pods []GuardedPod, several []Budget, err error) {
	pages := pager.New(pager.SimplePageFunc(func(options metav1.ListOptions) (runtime.Object, error) {
		return c.client.CoreV1().Pods(namespace).List(ctx, options)
	}))
	err = pages.EachListItem(ctx, metav1.ListOptions{}, func(object runtime.Object) error {
		pod, ok := object.(*corev1.Pod)
		if !ok || !evicted(pod) {
			return nil
		}
		var names []string
		for _, g := range guards {
			if g.selector.Matches(labels.Set(pod.Labels)) {
				names = append(names, g.budget.Name)
			}
		}
		if len(names) == 0 {
			return nil
		}
		slices.Sort(names)
		name := strings.Join(names, " and ")
		if len(names) > 1 {
			several = append(several, Budget{Name: name, Never: true})
		}
		pods = append(pods, GuardedPod{Name: namespace + "/" + pod.Name, Node: pod.Spec.NodeName, Budget: name})
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list pods of namespace %s: %w", namespace, err)
	}
	return pods, several, nil
}

// evicted is true for pods that a drain has yet to evict.
func evicted(pod *corev1.Pod) bool { return evictable(pod) && pod.DeletionTimestamp == nil }
