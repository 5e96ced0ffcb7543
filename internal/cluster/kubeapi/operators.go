package kubeapi

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/internal/cluster/kube"
)

const (
	// LabelOperators on a Namespace with the value "none" keeps operators out of it.
	LabelOperators = "coldrack.dev/operators"

	levelPrivileged = "privileged"
	// operatorsRole is the built-in role that operators have in a namespace.
	operatorsRole = "edit"
)

// operatorsKeptOut says why operators may not change what runs in a namespace, or "". Whoever may edit a namespace is each of
// its service accounts, reads its Secrets, and runs pods as its pod security allows: in the namespaces of the cluster itself, and
// where pods may be privileged, that is root on the nodes. level is the pod security of namespaces without a label.
func operatorsKeptOut(namespace *corev1.Namespace, level string) string {
	switch own := namespace.Labels[levelLabel]; {
	case namespace.DeletionTimestamp != nil:
		return "it is being deleted"
	case strings.HasPrefix(namespace.Name, "kube-"):
		return "it belongs to the cluster itself"
	case strings.HasPrefix(namespace.Name, "coldrack-"):
		return "it belongs to Coldrack"
	case namespace.Labels[LabelOperators] == "none":
		return "label " + LabelOperators + "=none says so"
	case own == levelPrivileged && level != levelPrivileged:
		return "its pods may be privileged"
	}
	return ""
}

// operatorsBinding makes operators what they are in one namespace.
func operatorsBinding(namespace string) *rbac.RoleBinding {
	return &rbac.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: kube.GroupOperator},
		Subjects:   []rbac.Subject{{APIGroup: rbac.GroupName, Kind: rbac.GroupKind, Name: kube.GroupOperator}},
		RoleRef:    rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: operatorsRole},
	}
}

// reconcileNamespace binds operators in a namespace that they may change, and nowhere else.
func (w *work) reconcileNamespace(ctx context.Context, name string) error {
	namespace := stored[corev1.Namespace](w.namespaceStore, name)
	if namespace == nil {
		return nil
	}
	wanted := operatorsBinding(name)
	has := stored[rbac.RoleBinding](w.bindingStore, name+"/"+wanted.Name)
	keptOut := operatorsKeptOut(namespace, w.runner.options().Wanted.PodSecurity)
	right := has != nil && has.RoleRef == wanted.RoleRef && reflect.DeepEqual(has.Subjects, wanted.Subjects)
	if right == (keptOut == "") && (has != nil) == right {
		return nil
	}
	bindings := w.connection.client.RbacV1().RoleBindings(name)
	if has != nil {
		// A binding's role cannot be changed. The uid: not one that somebody has put right meanwhile.
		options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &has.UID}}
		if err := bindings.Delete(ctx, wanted.Name, options); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("namespace %s: remove operators' binding: %w", name, err)
		}
	}
	if keptOut != "" {
		w.runner.log.Info("operators may not change this namespace", "cluster", w.connection.target.Cluster, "namespace", name, "reason", keptOut)
		return nil
	}
	_, err := bindings.Create(ctx, wanted, metav1.CreateOptions{FieldManager: FieldManager})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("namespace %s: bind operators: %w", name, err)
	}
	return nil
}
