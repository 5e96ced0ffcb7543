// Package kubeapi is what the server does at the Kubernetes API of a cluster that it runs: it applies the
// cluster's first objects and keeps them, gives nodes their networks, labels and taints, approves and signs
// certificate requests of kubelets, tells how the nodes are, and verifies a cluster from inside and outside.
//
// A Runner does all of that for one cluster; Options say what is wanted and can be replaced while it runs.
// An API that does not answer is normal: the Runner waits, says so in its State and goes on by itself.
//
// # Rights
//
// The identity of Target.Certificate must be in the group system:masters: the binding that makes
// kubeadm:cluster-admins administrators is itself one of the objects that are applied.
//
// # Operators
//
// Operators have the built-in role edit, by a RoleBinding in each namespace that is neither the cluster's own nor privileged. A
// binding of the whole cluster would make them each service account of kube-system, and with that administrators.
//
// # Nodes that are not ours
//
// A machine that joins by "kubeadm join" becomes a node that no plan has. Its networks come from
// Options.PodCIDRs, and nothing else of it is touched. With the network plugin "routed", pods of such a node
// are not reached from other nodes and do not reach them: only Coldrack's agents keep routes. Plugins that
// tunnel (flannel) reach it.
//
// # Certificate requests
//
// The cluster's authority never leaves the server, so kube-controller-manager signs nothing, and what it
// approves counts for nothing by itself: its approver would let a bootstrap token take over any node's name.
// The rules are in policy.go.
package kubeapi
