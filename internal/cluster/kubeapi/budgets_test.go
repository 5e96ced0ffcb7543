package kubeapi

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/internal/cluster/kube"
)

// testBudgets looks at budgets and pods as a drain would meet them. No kube-controller-manager runs here, so that the test
// writes what its controllers would.
func (c *testCluster) testBudgets(t *testing.T) {
	ctx, admin := context.Background(), c.as("admin", kube.GroupBreakGlass)
	c.namespace(t, "budgeted", nil)
	_, err := admin.CoreV1().ServiceAccounts("budgeted").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	check(t, err)
	pod := func(name, node string, change func(*corev1.Pod)) {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": strings.Split(name, "-")[0]}},
			Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "example.org/c:1"}}}}
		if change != nil {
			change(p)
		}
		_, err := admin.CoreV1().Pods("budgeted").Create(ctx, p, metav1.CreateOptions{})
		check(t, err)
	}
	budget := func(name string, allowed, desired, expected int32, apps ...string) {
		b, err := admin.PolicyV1().PodDisruptionBudgets("budgeted").Create(ctx, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: apps}}}}},
			metav1.CreateOptions{})
		check(t, err)
		b.Status = policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: allowed, DesiredHealthy: desired, ExpectedPods: expected, ObservedGeneration: b.Generation}
		_, err = admin.PolicyV1().PodDisruptionBudgets("budgeted").UpdateStatus(ctx, b, metav1.UpdateOptions{})
		check(t, err)
	}
	pod("db-0", "node-01", nil)
	pod("db-1", "node-02", nil)
	pod("web-0", "node-01", nil)
	pod("both-0", "node-02", nil)
	pod("db-waits", "", nil)
	pod("free-0", "node-01", nil)
	pod("web-daemon", "node-01", func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "d", UID: "1", Controller: new(true)}}
	})
	pod("web-done", "node-01", nil)
	done, err := admin.CoreV1().Pods("budgeted").Get(ctx, "web-done", metav1.GetOptions{})
	check(t, err)
	done.Status.Phase = corev1.PodSucceeded
	_, err = admin.CoreV1().Pods("budgeted").UpdateStatus(ctx, done, metav1.UpdateOptions{})
	check(t, err)
	budget("db", 0, 2, 2, "db", "both")
	budget("web", 1, 1, 2, "web", "both")

	budgets, pods, err := c.connect().Budgets(ctx)
	check(t, err)
	if got, want := fmt.Sprint(budgets), "[{budgeted/db 0 true} {budgeted/db and budgeted/web 0 true} {budgeted/web 1 false}]"; got != want {
		t.Errorf("budgets %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(pods), "[{budgeted/both-0 node-02 budgeted/db and budgeted/web} {budgeted/db-0 node-01 budgeted/db} {budgeted/db-1 node-02 budgeted/db} {budgeted/web-0 node-01 budgeted/web}]"; got != want {
		t.Errorf("pods %s, want %s", got, want)
	}
	images, err := c.connect().WorkloadImages(ctx)
	check(t, err)
	if !slices.Contains(images, "example.org/c:1") {
		t.Errorf("images of workloads: %q", images)
	}
	check(t, admin.CoreV1().Namespaces().Delete(ctx, "budgeted", metav1.DeleteOptions{}))
}
