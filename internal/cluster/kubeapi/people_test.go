package kubeapi

import (
	"context"
	"testing"

	authorization "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
		{"make a deployment", "create", "apps", "deployments", "default", false, true, true},
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
}
