package kubeapi

import (
	"context"
	"testing"
	"time"

	authorization "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"coldrack.dev/internal/cluster/kube"
)

// testPeople asks the API server itself what the groups in people's certificates may do.
func (c *testCluster) testPeople(t *testing.T) {
	ctx := context.Background()
	// No kube-controller-manager runs here, which puts the rules of the built-in roles together.
	roles := c.as("admin", kube.GroupBreakGlass).RbacV1().ClusterRoles()
	for name, parts := range map[string][]string{"view": {"system:aggregate-to-view"}, "edit": {"system:aggregate-to-edit", "system:aggregate-to-view"}} {
		role, err := roles.Get(ctx, name, metav1.GetOptions{})
		check(t, err)
		role.Rules = nil
		for _, part := range parts {
			from, err := roles.Get(ctx, part, metav1.GetOptions{})
			check(t, err)
			role.Rules = append(role.Rules, from.Rules...)
		}
		_, err = roles.Update(ctx, role, metav1.UpdateOptions{})
		check(t, err)
	}
	admin := c.as("admin", kube.GroupBreakGlass)
	// A namespace that is there before Coldrack looks, and bindings that must not be.
	c.namespace(t, "shop", nil)
	c.namespace(t, "kube-flannel", nil)
	stray := operatorsBinding(metav1.NamespaceSystem)
	_, err := admin.RbacV1().RoleBindings(metav1.NamespaceSystem).Create(ctx, stray, metav1.CreateOptions{})
	check(t, err)
	c.run(t, nil)
	c.awaitBinding(t, "shop", true)
	c.awaitBinding(t, metav1.NamespaceSystem, false)
	may := func(group, verb, apiGroup, resource, namespace string) bool {
		t.Helper()
		review, err := c.as("somebody", group).AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorization.SelfSubjectAccessReview{
			Spec: authorization.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorization.ResourceAttributes{
				Verb: verb, Group: apiGroup, Resource: resource, Namespace: namespace}},
		}, metav1.CreateOptions{})
		check(t, err)
		return review.Status.Allowed
	}
	for _, test := range []struct {
		what, verb, group, resource, namespace string
		viewer, operator, admin                bool
	}{
		{"look at pods", "list", "", "pods", "default", true, true, true},
		{"look at nodes", "list", "", "nodes", "", true, true, true},
		{"look at namespaces", "watch", "", "namespaces", "", true, true, true},
		{"look at pods of the cluster itself", "list", "", "pods", "kube-system", true, true, true},
		{"make a deployment", "create", "apps", "deployments", "default", false, true, true},
		{"make a deployment elsewhere", "create", "apps", "deployments", "shop", false, true, true},
		{"make a deployment in kube-system", "create", "apps", "deployments", "kube-system", false, false, true},
		{"run a program in kube-system", "create", "", "pods/exec", "kube-system", false, false, true},
		{"read a Secret of kube-system", "get", "", "secrets", "kube-system", false, false, true},
		{"get a token of kube-system", "create", "", "serviceaccounts/token", "kube-system", false, false, true},
		{"be a service account of kube-system", "impersonate", "", "serviceaccounts", "kube-system", false, false, true},
		{"change what every client reads", "update", "", "configmaps", "kube-public", false, false, true},
		{"keep nodes alive that are not", "update", "coordination.k8s.io", "leases", "kube-node-lease", false, false, true},
		{"make a pod where the network's are", "create", "", "pods", "kube-flannel", false, false, true},
		{"read a Secret", "get", "", "secrets", "default", false, true, true},
		{"drain a node", "patch", "", "nodes", "", false, false, true},
		{"make a namespace", "create", "", "namespaces", "", false, false, true},
		{"give themselves a role", "create", "rbac.authorization.k8s.io", "clusterrolebindings", "", false, false, true},
	} {
		for _, as := range []struct {
			group string
			want  bool
		}{
			{kube.GroupViewer, test.viewer}, {kube.GroupOperator, test.operator}, {kube.GroupAdmin, test.admin},
			{kube.GroupBreakGlass, true}, {"somebody-elses", false},
		} {
			if got := may(as.group, test.verb, test.group, test.resource, test.namespace); got != as.want {
				t.Errorf("group %s may %s: %t, want %t", as.group, test.what, got, as.want)
			}
		}
	}
	c.testNoWayToRoot(t)
	c.testBindingsFollowNamespaces(t)
}

// testNoWayToRoot does what would make an operator an administrator.
func (c *testCluster) testNoWayToRoot(t *testing.T) {
	ctx := context.Background()
	operator := c.as("otto", kube.GroupOperator)
	privileged := true
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "root"}, Spec: corev1.PodSpec{HostPID: true,
		Containers: []corev1.Container{{Name: "root", Image: "x", SecurityContext: &corev1.SecurityContext{Privileged: &privileged}}}}}
	for _, namespace := range []string{metav1.NamespaceSystem, "shop"} {
		if _, err := operator.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("a privileged pod in %s: %v", namespace, err)
		}
	}
	certificate := c.authorities[kube.AuthorityKubernetes].client(t, "otto", kube.GroupOperator)
	as := c.withConfig(certificate, func(config *rest.Config) {
		config.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:kube-system:clusterrole-aggregation-controller"}
	})
	if _, err := as.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("as a service account of kube-system: %v", err)
	}
	label := []byte(`{"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}`)
	if _, err := operator.CoreV1().Namespaces().Patch(ctx, "shop", "application/merge-patch+json", label, metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a label that lets pods be privileged: %v", err)
	}
}

// testBindingsFollowNamespaces changes namespaces while the Runner works.
func (c *testCluster) testBindingsFollowNamespaces(t *testing.T) {
	ctx := context.Background()
	admin := c.as("admin", kube.GroupBreakGlass)
	c.namespace(t, "storage", map[string]string{levelLabel: "privileged"})
	c.namespace(t, "payroll", map[string]string{LabelOperators: "none"})
	c.namespace(t, "team", nil)
	c.awaitBinding(t, "team", true)
	for _, namespace := range []string{"storage", "payroll"} {
		c.awaitBinding(t, namespace, false)
	}
	label := func(namespace, labels string) {
		_, err := admin.CoreV1().Namespaces().Patch(ctx, namespace, "application/merge-patch+json", []byte(`{"metadata": {"labels": `+labels+`}}`), metav1.PatchOptions{})
		check(t, err)
	}
	label("payroll", `{"coldrack.dev/operators": null}`)
	c.awaitBinding(t, "payroll", true)
	label("team", `{"pod-security.kubernetes.io/enforce": "privileged"}`)
	c.awaitBinding(t, "team", false)
	check(t, admin.RbacV1().RoleBindings("shop").Delete(ctx, kube.GroupOperator, metav1.DeleteOptions{}))
	c.awaitBinding(t, "shop", true)
	// Somebody makes more of it.
	check(t, admin.RbacV1().RoleBindings("shop").Delete(ctx, kube.GroupOperator, metav1.DeleteOptions{}))
	other := operatorsBinding("shop")
	other.RoleRef.Name = "cluster-admin"
	if _, err := admin.RbacV1().RoleBindings("shop").Create(ctx, other, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	c.awaitBinding(t, "shop", true)
}

// namespace makes one. No other test may have its name: nothing here removes a namespace that was deleted.
func (c *testCluster) namespace(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	_, err := c.as("admin", kube.GroupBreakGlass).CoreV1().Namespaces().Create(context.Background(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
	check(t, err)
}

// awaitBinding waits until operators are bound as they should be in a namespace, or not at all.
func (c *testCluster) awaitBinding(t *testing.T, namespace string, bound bool) {
	t.Helper()
	bindings := c.as("admin", kube.GroupBreakGlass).RbacV1().RoleBindings(namespace)
	var last *rbac.RoleBinding
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		binding, err := bindings.Get(context.Background(), kube.GroupOperator, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) && !bound:
			return
		case err == nil && bound && binding.RoleRef.Name == operatorsRole:
			return
		}
		last = binding
	}
	t.Errorf("operators' binding in namespace %s is %v, want one: %t", namespace, last, bound)
}
