package controlplane

import (
	"net/http"

	"k8s.io/apiserver/pkg/audit"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
)

const planPath = "/coldrack/v1/plan"

// viewerPostPaths are handlers to which viewers may post: what changes nothing, and what itself decides how much each
// role gets.
var viewerPostPaths = []string{planPath, "/coldrack/v1/certificates"}

// Person is who sent a request to one of Config.Handlers, as the API has authenticated them.
type Person struct {
	Name   string
	Groups []string
	// Role is GroupAdmin, GroupOperator or GroupViewer, the strongest that the person has, or empty.
	Role string
}

// PersonOf tells who sent a request.
func PersonOf(r *http.Request) Person {
	u, ok := apirequest.UserFrom(r.Context())
	if !ok {
		return Person{}
	}
	p := Person{Name: u.GetName(), Groups: u.GetGroups()}
	switch roleOf(u) {
	case roleAdmin:
		p.Role = GroupAdmin
	case roleOperator:
		p.Role = GroupOperator
	case roleViewer:
		p.Role = GroupViewer
	}
	return p
}

// Remark adds a line to the audit log's record of a request to one of Config.Handlers. Keys are unique for each
// request and have a domain, as in coldrack.dev/reason.
func Remark(r *http.Request, key, value string) {
	audit.AddAuditAnnotation(r.Context(), key, value)
}
