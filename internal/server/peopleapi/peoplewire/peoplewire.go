// Package peoplewire is what the command line and the server say to each other beside objects: plans, certificates
// and verifications of clusters, under people's API and its authentication.
package peoplewire

import (
	"encoding/json"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/internal/cluster/kube"
)

// Paths below people's API.
const (
	PathPlan          = "/coldrack/v1/plan"            // POST PlanRequest -> PlanResponse
	PathCertificates  = "/coldrack/v1/certificates/"   // + CLUSTER: POST CertificateRequest -> CertificateResponse
	PathClusters      = "/coldrack/v1/clusters/"       // + CLUSTER/verify[?pods=no]: POST -> a CheckLine for each check as it ends; + CLUSTER/backups: see BackupLine; + CLUSTER/addons/diff: POST AddonDiffRequest -> AddonDiffResponse
	PathServerBackups = "/coldrack/v1/server/backups"  // see Backup
	PathMachines      = "/coldrack/v1/machines"        // GET -> v1alpha1.MachineList, without details; + /NAME/log[?follow=1] -> text
	PathRestored      = "/coldrack/v1/server/restored" // GET -> Restored; POST: confirm it -> Restored
	PathExpiry        = "/coldrack/v1/expiry"          // GET -> []Expiry
	PathUpdates       = "/coldrack/v1/updates"         // see UpdateStatus
	PathPKI           = "/coldrack/v1/pki"             // see PKI
	PathDiscovery     = "/coldrack/v1/etcd-discovery"  // see DiscoveryToken
	PathBoots         = "/coldrack/v1/boots"           // GET -> gate.Counts
	PathNames         = "/coldrack/v1/names"           // GET -> Names
	PathBundles       = "/coldrack/v1/bundles"         // HEAD, POST and PUT: the upload of a bundle; DELETE
	PathImages        = "/coldrack/v1/images"          // see Image
	PathUISession     = "/coldrack/v1/ui/session"      // GET -> UISession; POST: open one for who asks, as a cookie -> UISession
	PathUILogout      = "/coldrack/v1/ui/logout"       // POST: end the session
	PathUILinks       = "/coldrack/v1/ui/links"        // POST -> UILink
)

// Expiry is when certificates of one sort end.
type Expiry struct {
	// Certificate is its sort: people-ca, machine-ca, service-ca, people-api, admin-kubeconfig, token, node-identity, cluster-authority or cluster-node.
	Certificate string `json:"certificate"`
	// Cluster that it belongs to, if any.
	Cluster string `json:"cluster,omitempty"`
	// Name of the one that ends first: an authority, a token or a machine, where there are several of the sort; of a node also which of
	// its certificates it is.
	Name string `json:"name,omitempty"`
	// Until is when it ends.
	Until time.Time `json:"until"`
	// Overdue says why a person must do something, and what, and for which others of the sort, too; empty: it is renewed in time by itself.
	Overdue string `json:"overdue,omitempty"`
	// Soon says what happens to one that ends within ninety days and that no person need see to; empty: it ends later, or is overdue.
	Soon string `json:"soon,omitempty"`
}

// Restored says that the server's own store was restored from a backup, until a person confirms it. All is zero when it was not.
type Restored struct {
	// Backup is its ID.
	Backup string `json:"backup,omitempty"`
	// TakenAt is from when on machines may be missing: when the backup was taken, or an earlier one that was never confirmed.
	TakenAt    time.Time `json:"takenAt,omitzero"`
	RestoredAt time.Time `json:"restoredAt,omitzero"`
	// Withheld are machines that wait for the confirmation, as many as are named; WithheldCount is how many there are.
	Withheld      []Withheld `json:"withheld,omitempty"`
	WithheldCount int        `json:"withheldCount,omitempty"`
	// UnknownNodes report with an identity that this server's authority issued, and there is no Machine of their name.
	UnknownNodes []UnknownNode `json:"unknownNodes,omitempty"`
}

// Withheld is a machine that waits.
type Withheld struct {
	Machine string `json:"machine"`
	// Why says what would happen to it, or why it does not.
	Why string `json:"why"`
}

// UnknownNode is a node whose Machine the server does not have.
type UnknownNode struct {
	// Machine is the name that its identity is for.
	Machine string    `json:"machine"`
	Address string    `json:"address"`
	SeenAt  time.Time `json:"seenAt"`
	// IssuedAt is when its identity was issued. After the backup: its Machine is lost. Before: the Machine was deleted.
	IssuedAt time.Time `json:"issuedAt"`
}

// PlanRequest asks what would happen if objects were applied.
type PlanRequest struct {
	// Objects of the kinds Cluster, MachineGroup, Machine and Subnet, as they would be applied.
	Objects []json.RawMessage `json:"objects"`
	// Details also asks for the contents of new files.
	Details bool `json:"details,omitempty"`
}

// PlanResponse is what would happen.
type PlanResponse struct {
	Clusters []ClusterPlan `json:"clusters"`
	// Refused are objects that the API would not accept. They are left out of the plan.
	Refused []PlanRefusal `json:"refused,omitempty"`
}

// ClusterPlan is what would happen to one cluster.
type ClusterPlan struct {
	kube.Preview `json:",inline"`
	// Forecast is nil for a cluster that has no nodes yet: all of its machines start at once.
	Forecast *Forecast `json:"forecast,omitempty"`
}

// Forecast is the steps by which a cluster that runs comes to what is wanted, one after the other, as if each succeeded.
type Forecast struct {
	Steps []ForecastStep `json:"steps,omitempty"`
	// Takes is about how long all of them take, as a Go duration.
	Takes string `json:"takes,omitempty"`
	// EndsAt are what keeps it from what is wanted after these steps, each with what would help.
	EndsAt []ForecastBlock `json:"endsAt,omitempty"`
	// Waits are under way already, and not foretold.
	Waits []string `json:"waits,omitempty"`
	// NextWindow is when the first maintenance window opens that a step waits for.
	NextWindow *time.Time `json:"nextWindow,omitempty"`
	// Notes say what the forecast rests on.
	Notes []string `json:"notes,omitempty"`
}

// ForecastStep is one step.
type ForecastStep struct {
	// After is when it begins, from the beginning, and Takes about how long it takes, as Go durations.
	After string `json:"after"`
	Takes string `json:"takes"`
	// Step is its kind, such as take, drain, change or give-back; Operation is why it is done, such as upgrade.
	Step      string `json:"step"`
	Operation string `json:"operation"`
	Machine   string `json:"machine,omitempty"`
	Group     string `json:"group,omitempty"`
	// To is the machine that a leader or a virtual IP moves to.
	To     string `json:"to,omitempty"`
	Reason string `json:"reason"`
	// Disruption is what people could notice; Outage is true when API or store do not answer meanwhile.
	Disruption string `json:"disruption,omitempty"`
	Outage     bool   `json:"outage,omitempty"`
	// CarriedOut is false for what this version of Coldrack only foretells.
	CarriedOut bool `json:"carriedOut"`
}

// ForecastBlock is why something is not done.
type ForecastBlock struct {
	Machine string `json:"machine,omitempty"`
	Reason  string `json:"reason"`
	Remedy  string `json:"remedy"`
}

// PlanRefusal is an object that would not be accepted.
type PlanRefusal struct {
	// Object is its place in PlanRequest.Objects.
	Object int           `json:"object"`
	Status metav1.Status `json:"status"`
}

// CertificateRequest asks for a client certificate of a cluster. The key stays with the person.
type CertificateRequest struct {
	// CSR is a PKCS #10 request, PEM. Only its key is used.
	CSR string `json:"csr"`
	// User that the cluster will see; empty: the person's own name.
	User string `json:"user,omitempty"`
	// Groups that the cluster will see; empty: those that belong to the person's role.
	Groups []string `json:"groups,omitempty"`
	// TTL in seconds; 0: the server's default.
	TTL int64 `json:"ttl,omitempty"`
	// Admin asks for the cluster's administrators' group, BreakGlass for the group that RBAC does not apply to,
	// which needs a Reason.
	Admin      bool   `json:"admin,omitempty"`
	BreakGlass bool   `json:"breakGlass,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

// CertificateResponse is the certificate with the rest of a kubeconfig.
type CertificateResponse struct {
	Cluster string `json:"cluster"`
	// Server is the URL of the cluster's API.
	Server string `json:"server"`
	// Authority is the PEM certificate that the API is verified with.
	Authority   string    `json:"authority"`
	Certificate string    `json:"certificate"`
	User        string    `json:"user"`
	Groups      []string  `json:"groups"`
	ExpiresAt   time.Time `json:"expiresAt"`
}

// CheckLine is one line of the answer to a verification. The last one has Done or Error.
type CheckLine struct {
	Check *Check `json:"check,omitempty"`
	Done  bool   `json:"done,omitempty"`
	Error string `json:"error,omitempty"`
}

// Check is the result of one check of a cluster.
type Check struct {
	// Name of the kind of check, for example "pod to pod".
	Name string `json:"name"`
	// Target is a node, an address or an object.
	Target string `json:"target"`
	OK     bool   `json:"ok"`
	// Detail says what was found, and for a failure where to look.
	Detail   string        `json:"detail"`
	Duration time.Duration `json:"duration"`
}

// UISession is who looks at the web pages.
type UISession struct {
	User string `json:"user"`
	// Role is viewer, operator or admin.
	Role string `json:"role"`
	// Until is when the session ends, or the certificate where there is none; zero: never.
	Until time.Time `json:"until,omitzero"`
	// Session is true for a session that can be ended, false for a browser that shows a certificate each time.
	Session bool `json:"session"`
}

// UILink opens one session of the person who asked for it.
type UILink struct {
	// Path below the server's address. What is behind its # never reaches a log.
	Path  string    `json:"path"`
	Until time.Time `json:"until"`
}
