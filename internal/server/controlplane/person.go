package controlplane

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"time"

	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/authentication/user"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
)

const (
	planPath  = "/coldrack/v1/plan"
	auditPath = "/coldrack/v1/audit"
)

// viewerPostPaths are handlers to which viewers may post: what changes nothing, and what itself decides how much each
// role gets.
var viewerPostPaths = []string{planPath, "/coldrack/v1/certificates", "/coldrack/v1/ui"}

// Person is who sent a request to one of Config.Handlers, as the API has authenticated them.
type Person struct {
	Name   string
	Groups []string
	// Role is GroupAdmin, GroupOperator or GroupViewer, the strongest that the person has, or empty.
	Role string
	// Credential is the id of the certificate or token that the person has shown, Until when that ends; zero: never.
	Credential string
	Until      time.Time
	// Vouched is true when the person was not authenticated by that credential now, but named by WithPerson.
	Vouched bool
}

// PersonOf tells who sent a request.
func PersonOf(r *http.Request) Person {
	u, ok := apirequest.UserFrom(r.Context())
	if !ok {
		return Person{}
	}
	_, vouched := r.Context().Value(personKey{}).(Person)
	return personOf(u, vouched)
}

// Holder is who has a token; an error says why it is none.
func (t *Tokens) Holder(ctx context.Context, secret string) (Person, error) {
	response, ok, err := t.AuthenticateToken(ctx, secret)
	switch {
	case err != nil:
		return Person{}, err
	case !ok:
		return Person{}, errors.New("that is no token of this server")
	}
	return personOf(response.User, false), nil
}

func personOf(u user.Info, vouched bool) Person {
	p := Person{Name: u.GetName(), Groups: u.GetGroups(), Credential: firstOf(u.GetExtra()[user.CredentialIDKey]), Vouched: vouched}
	p.Until, _ = time.Parse(time.RFC3339, firstOf(u.GetExtra()[extraUntil]))
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

// extraUntil is when the credential of a user ends, RFC 3339, among what the API knows of the user beside name and groups.
const extraUntil = "coldrack.dev/until"

func extraOf(credential string, until time.Time) map[string][]string {
	extra := map[string][]string{user.CredentialIDKey: {credential}}
	if !until.IsZero() {
		extra[extraUntil] = []string{until.UTC().Format(time.RFC3339)}
	}
	return extra
}

func firstOf(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// certificateHolder is the user that a client certificate names.
var certificateHolder = x509request.UserConversionFunc(func(chain []*x509.Certificate) (*authenticator.Response, bool, error) {
	response, ok, err := x509request.CommonNameUserConversion(chain)
	if !ok || err != nil {
		return nil, false, err
	}
	u := response.User
	response.User = &user.DefaultInfo{
		Name: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups(), Extra: extraOf(firstOf(u.GetExtra()[user.CredentialIDKey]), chain[0].NotAfter),
	}
	return response, true, nil
})

type personKey struct{}

// WithPerson is a request of a person whom Config.Front knows from an earlier request, such as one with a session. It counts only as
// long as the credential stands that the person was known by then.
func WithPerson(r *http.Request, p Person) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), personKey{}, p))
}

// vouched authenticates requests of WithPerson.
type vouched struct {
	tokens *Tokens
	now    func() time.Time
}

// AuthenticateRequest implements authenticator.Request.
func (v vouched) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	p, ok := r.Context().Value(personKey{}).(Person)
	if !ok {
		return nil, false, nil
	}
	if !p.Until.IsZero() && !v.now().Before(p.Until) {
		return nil, false, errors.New("the credential that this session was opened with has ended")
	}
	if hash, ok := strings.CutPrefix(p.Credential, credentialToken); ok {
		if err := v.tokens.stands(hash); err != nil {
			return nil, false, err
		}
	}
	return &authenticator.Response{User: &user.DefaultInfo{Name: p.Name, Groups: p.Groups, Extra: extraOf(p.Credential, p.Until)}}, true, nil
}
