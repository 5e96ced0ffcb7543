package controlplane

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// Groups that give a person or a program a role.
const (
	// GroupAdmin may do everything.
	GroupAdmin = "coldrack:admin"
	// GroupOperator may read every kind but Secrets, and write every kind but Secrets, Addons and Units, but not status, CRDs or tokens.
	GroupOperator = "coldrack:operator"
	// GroupViewer may read every kind but Secrets.
	GroupViewer = "coldrack:viewer"
)

func roleGroups() []string { return []string{GroupAdmin, GroupOperator, GroupViewer} }

type role int

const (
	roleNone role = iota
	roleViewer
	roleOperator
	roleAdmin
)

func (r role) String() string {
	return [...]string{"no role", "role viewer", "role operator", "role admin"}[r]
}

func roleOf(u user.Info) role {
	best := roleNone
	for _, group := range u.GetGroups() {
		switch group {
		case GroupAdmin, user.SystemPrivilegedGroup:
			return roleAdmin
		case GroupOperator:
			best = max(best, roleOperator)
		case GroupViewer:
			best = max(best, roleViewer)
		}
	}
	return best
}

var (
	readVerbs  = []string{"get", "list", "watch"}
	writeVerbs = []string{"create", "update", "patch", "delete", "deletecollection"}
	// healthPaths may be read by everybody, so that a load balancer or a monitor needs no credentials.
	healthPaths = []string{"/healthz", "/livez", "/readyz"}
	// aboutPaths may be read by everybody who is somebody: a client needs them before it can ask anything.
	aboutPaths = []string{"/api", "/apis", "/openapi", "/version"}
	// adminPaths show the server's inside, what it does and where its memory goes, and what people have done.
	adminPaths = []string{"/debug", auditPath}
)

// authorize decides by the group of the user alone; it is an authorizer.AuthorizerFunc. The reason of a refusal is shown to
// the person.
func authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	have, need := roleOf(a.GetUser()), needs(a)
	if have >= need {
		return authorizer.DecisionAllow, "", nil
	}
	// kubectl prefixes this with what was tried and by whom.
	return authorizer.DecisionDeny, fmt.Sprintf("this needs %s, you have %s%s", need, have, why(a)), nil
}

// needs is the least role that a request takes.
func needs(a authorizer.Attributes) role {
	somebody := slices.Contains(a.GetUser().GetGroups(), user.AllAuthenticated)
	if !a.IsResourceRequest() {
		get := a.GetVerb() == "get" || a.GetVerb() == "head"
		switch {
		case under(a.GetPath(), adminPaths...):
			return roleAdmin
		case get && under(a.GetPath(), healthPaths...), get && somebody && under(a.GetPath(), aboutPaths...):
			return roleNone
		case get, a.GetVerb() == "post" && under(a.GetPath(), viewerPostPaths...):
			return roleViewer
		case under(a.GetPath(), aboutPaths...):
			return roleAdmin
		}
		return roleOperator
	}
	switch a.GetAPIGroup() {
	case v1alpha1.Group:
		switch {
		case a.GetResource() == "secrets":
			return roleAdmin
		case slices.Contains(readVerbs, a.GetVerb()):
			return roleViewer
		case a.GetResource() == "addons", a.GetResource() == "units":
			return roleAdmin
		case slices.Contains(writeVerbs, a.GetVerb()) && a.GetSubresource() == "":
			return roleOperator
		}
	case "apiextensions.k8s.io":
		if slices.Contains(readVerbs, a.GetVerb()) {
			return roleViewer
		}
	case "authentication.k8s.io", "authorization.k8s.io":
		if a.GetVerb() == "create" && somebody && strings.HasPrefix(a.GetResource(), "selfsubject") {
			return roleNone
		}
	}
	return roleAdmin
}

// why tells what is special about a request that needs more than its verb suggests.
func why(a authorizer.Attributes) string {
	switch {
	case !a.IsResourceRequest():
		return ""
	case a.GetAPIGroup() == v1alpha1.Group && a.GetResource() == "secrets":
		return "; Secrets are only for admins"
	case a.GetAPIGroup() == v1alpha1.Group && a.GetResource() == "addons":
		return "; what an Addon holds is made with all rights in its cluster"
	case a.GetAPIGroup() == v1alpha1.Group && a.GetResource() == "units" && a.GetSubresource() == "":
		return "; a Unit runs as root on its machines"
	case a.GetAPIGroup() == v1alpha1.Group && a.GetSubresource() == "status":
		return "; status is written by the controllers"
	case a.GetAPIGroup() == "apiextensions.k8s.io":
		return "; the definitions of kinds belong to the server"
	}
	return ""
}

func under(path string, roots ...string) bool {
	return slices.ContainsFunc(roots, func(root string) bool {
		return path == root || strings.HasPrefix(path, root+"/")
	})
}
