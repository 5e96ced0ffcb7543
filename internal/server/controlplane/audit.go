package controlplane

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	k8saudit "k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/audit/policy"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/server/audit"
)

// auditPolicy says which requests are recorded, and with what. Every write is: who, what, when, from where, and the answer, with
// what was sent, except where that is or may hold a secret. So is every read of Secrets by people.
func auditPolicy() *auditinternal.Policy {
	ours := func(resources ...string) []auditinternal.GroupResources {
		return []auditinternal.GroupResources{{Group: v1alpha1.Group, Resources: resources}}
	}
	reads := []string{"get", "list", "watch", "head"}
	atEnd := []auditinternal.Stage{auditinternal.StageRequestReceived, auditinternal.StageResponseStarted}
	rules := []auditinternal.PolicyRule{
		// The server itself reads the keys of clusters all the time.
		{Level: auditinternal.LevelNone, Users: []string{user.APIServerUser}, Verbs: reads},
		// Who watches Secrets has them from the start of the answer on.
		{Level: auditinternal.LevelMetadata, Verbs: reads, Resources: ours("secrets"), OmitStages: []auditinternal.Stage{auditinternal.StageRequestReceived}},
		{Level: auditinternal.LevelNone, Verbs: reads},
		// Controllers write progress many times a second; what they do to spec is recorded.
		{Level: auditinternal.LevelNone, Users: []string{user.APIServerUser}, Resources: ours("*/status")},
		{Level: auditinternal.LevelMetadata, Resources: ours("secrets"), OmitStages: atEnd},
		// Profiles may hold password hashes and files of any content.
		{Level: auditinternal.LevelMetadata, Resources: ours("profiles"), OmitStages: atEnd},
		{Level: auditinternal.LevelRequest, Resources: ours("*"), OmitStages: atEnd},
		{Level: auditinternal.LevelNone, Resources: []auditinternal.GroupResources{
			{Group: "authentication.k8s.io"}, {Group: "authorization.k8s.io"}}},
		{Level: auditinternal.LevelMetadata, OmitStages: atEnd},
	}
	// The first rule that matches decides.
	return &auditinternal.Policy{OmitManagedFields: true, Rules: rules}
}

// recorder is the audit backend: it hands records to the log, but bounds those that anybody can cause without changing anything.
type recorder struct {
	log   *audit.Log
	bound *recordBound
	fail  func(error)
}

func newRecorder(log *audit.Log, fail func(error)) *recorder {
	return &recorder{log: log, bound: &recordBound{now: time.Now}, fail: fail}
}

func newPolicyEvaluator() k8saudit.PolicyRuleEvaluator {
	return policy.NewPolicyRuleEvaluator(auditPolicy())
}

var auditEncoder = k8saudit.Codecs.LegacyCodec(auditv1.SchemeGroupVersion)

// ProcessEvents implements audit.Sink.
func (r *recorder) ProcessEvents(events ...*auditinternal.Event) bool {
	kept := true
	for _, event := range events {
		if ownDryRun(event.User.Username, event.RequestURI) {
			continue // a person's plan asks so for each of its objects, and is recorded itself
		}
		pass, leftOut := true, 0
		if source := cheap(event); source != "" {
			pass, leftOut = r.bound.take(source)
		}
		if !pass {
			continue
		}
		if leftOut > 0 {
			noted := *event // it belongs to the request
			noted.Annotations = maps.Clone(event.Annotations)
			if noted.Annotations == nil {
				noted.Annotations = map[string]string{}
			}
			noted.Annotations["audit.coldrack.dev/left-out"] = strconv.Itoa(leftOut)
			event = &noted
		}
		line, err := runtime.Encode(auditEncoder, event)
		if err == nil {
			err = r.log.Keep(bytes.TrimSuffix(line, []byte("\n")))
		}
		if err != nil {
			kept = false
			r.fail(err)
		}
	}
	return kept
}

// Run implements audit.Backend.
func (*recorder) Run(<-chan struct{}) error { return nil }

// Shutdown implements audit.Backend.
func (*recorder) Shutdown() {}

func (*recorder) String() string { return "coldrack" }

// ownDryRun says whether the server itself asked what a change would become, for a person's plan.
func ownDryRun(userName, uri string) bool {
	if userName != user.APIServerUser {
		return false
	}
	u, err := url.ParseRequestURI(uri)
	return err == nil && u.Query().Has("dryRun")
}

// cheap says who caused a record of a request that changed nothing, or, for a stranger at the boot segment, a Machine that appeared by
// itself; empty for every other record. Those that are cheap to cause could wash out the rest.
func cheap(event *auditinternal.Event) string {
	address := ""
	if len(event.SourceIPs) > 0 {
		address = event.SourceIPs[0]
	}
	code := 0
	if event.ResponseStatus != nil {
		code = int(event.ResponseStatus.Code)
	}
	path, query, _ := strings.Cut(event.RequestURI, "?")
	ref := event.ObjectRef
	switch {
	case event.User.Username == user.APIServerUser && ref != nil && ref.APIGroup == v1alpha1.Group && ref.Resource == "machines" &&
		(event.Verb == "create" || event.Verb == "delete"):
		return event.User.Username
	case code >= 400 && code < 500, code == http.StatusServiceUnavailable, path == planPath, strings.Contains(query, "dryRun="):
		return event.User.Username + " " + address
	}
	return ""
}

// Limits of recordBound, records in a minute.
const (
	cheapOfOne   = 60
	cheapOfAll   = 300
	maxSources   = 1000
	othersSource = "others"
)

// recordBound counts cheap records by who caused them, and lets so many a minute pass.
type recordBound struct {
	now func() time.Time

	mu      sync.Mutex
	since   time.Time
	all     int
	of      map[string]int
	leftOut map[string]int
}

// take says whether a record passes, and how many of that source did not since the last that passed.
func (b *recordBound) take(source string) (pass bool, leftOut int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := b.now(); now.Sub(b.since) >= time.Minute {
		b.since, b.all, b.of = now, 0, map[string]int{}
	}
	if b.leftOut == nil {
		b.leftOut = map[string]int{}
	}
	if _, known := b.of[source]; !known && len(b.of) >= maxSources {
		source = othersSource
	}
	if b.of[source] >= cheapOfOne || b.all >= cheapOfAll {
		if _, known := b.leftOut[source]; !known && len(b.leftOut) >= maxSources {
			source = othersSource
		}
		b.leftOut[source]++
		return false, 0
	}
	b.of[source]++
	b.all++
	leftOut = b.leftOut[source]
	delete(b.leftOut, source)
	return true, leftOut
}

// onlyRecorded refuses requests whose record could not be kept, before they change anything. The server's own definitions of kinds are
// written all the same, because nothing starts without them.
func (c *ControlPlane) onlyRecorded(api http.Handler, serializer runtime.NegotiatedSerializer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !recorded(r) {
			api.ServeHTTP(w, r)
			return
		}
		err := c.audit.Ready()
		if err == nil {
			api.ServeHTTP(w, r)
			return
		}
		c.notRecorded(err)
		text := fmt.Sprintf("refused, because no record of it could be kept: %v; make room or repair the folder on the server (coldrack serve --audit-failure=continue goes on without records)", err)
		if strings.HasPrefix(r.URL.Path, "/apis/") {
			responsewriters.ErrorNegotiated(apierrors.NewServiceUnavailable(text), serializer, v1alpha1.GroupVersion, w, r)
			return
		}
		http.Error(w, text, http.StatusServiceUnavailable)
	})
}

// recorded says whether a request is one of which a record must be kept.
func recorded(r *http.Request) bool {
	context := k8saudit.AuditContextFrom(r.Context())
	if context == nil || !context.Enabled() || r.URL.Path == planPath {
		return false
	}
	person, _ := apirequest.UserFrom(r.Context())
	if person == nil || person.GetName() != user.APIServerUser {
		return true
	}
	info, _ := apirequest.RequestInfoFrom(r.Context())
	definition := info != nil && info.APIGroup == "apiextensions.k8s.io"
	return !definition && !r.URL.Query().Has("dryRun")
}

// notRecorded says once a minute that records cannot be kept.
func (c *ControlPlane) notRecorded(err error) {
	c.auditMu.Lock()
	defer c.auditMu.Unlock()
	if now := time.Now(); now.Sub(c.auditSaid) > time.Minute {
		c.auditSaid = now
		consequence := "writes are refused until it can"
		if c.auditContinue {
			consequence = "writes go on, as --audit-failure says"
		}
		c.log.Error("the audit log cannot be kept; "+consequence, "err", err)
	}
}

// auditHealth is what /readyz says of the audit log.
type auditHealth struct{ log *audit.Log }

// Name implements healthz.HealthChecker.
func (auditHealth) Name() string { return "audit-log" }

// Check implements healthz.HealthChecker.
func (h auditHealth) Check(*http.Request) error { return h.log.Ready() }
