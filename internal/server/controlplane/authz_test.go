package controlplane

import (
	"context"
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

func TestRoles(t *testing.T) {
	t.Parallel()
	nobody := &user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}
	person := func(groups ...string) user.Info {
		return &user.DefaultInfo{Name: "p", Groups: append(groups, user.AllAuthenticated)}
	}
	var (
		stranger = person()
		viewer   = person(GroupViewer)
		operator = person(GroupOperator)
		admin    = person(GroupAdmin)
		system   = &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.AllAuthenticated, user.SystemPrivilegedGroup}}
	)
	everybody := map[string]user.Info{"nobody": nobody, "stranger": stranger, "viewer": viewer, "operator": operator, "admin": admin, "system": system}
	ours := func(verb, resource string) authorizer.AttributesRecord {
		resource, sub, _ := strings.Cut(resource, "/")
		return authorizer.AttributesRecord{Verb: verb, APIGroup: v1alpha1.Group, Resource: resource, Subresource: sub, ResourceRequest: true}
	}
	foreign := func(verb, group, resource string) authorizer.AttributesRecord {
		return authorizer.AttributesRecord{Verb: verb, APIGroup: group, Resource: resource, ResourceRequest: true}
	}
	path := func(verb, path string) authorizer.AttributesRecord {
		return authorizer.AttributesRecord{Verb: verb, Path: path}
	}
	for name, test := range map[string]struct {
		request authorizer.AttributesRecord
		allowed string
	}{
		"get a machine":                    {ours("get", "machines"), "viewer operator admin system"},
		"list machines":                    {ours("list", "machines"), "viewer operator admin system"},
		"watch subnets":                    {ours("watch", "subnets"), "viewer operator admin system"},
		"read status":                      {ours("get", "machines/status"), "viewer operator admin system"},
		"create a machine":                 {ours("create", "machines"), "operator admin system"},
		"patch a policy":                   {ours("patch", "enrollmentpolicies"), "operator admin system"},
		"read an add-on":                   {ours("get", "addons"), "viewer operator admin system"},
		"write an add-on":                  {ours("create", "addons"), "admin system"},
		"write a reboot group":             {ours("create", "rebootgroups"), "operator admin system"},
		"grant a reboot's lock":            {ours("patch", "rebootgroups/status"), "admin system"},
		"read a unit":                      {ours("list", "units"), "viewer operator admin system"},
		"write a unit":                     {ours("patch", "units"), "admin system"},
		"destroy a unit":                   {ours("delete", "units"), "admin system"},
		"delete an image":                  {ours("delete", "images"), "operator admin system"},
		"delete all machines":              {ours("deletecollection", "machines"), "operator admin system"},
		"write status":                     {ours("patch", "machines/status"), "admin system"},
		"replace status":                   {ours("update", "subnets/status"), "admin system"},
		"read a secret":                    {ours("get", "secrets"), "admin system"},
		"list secrets":                     {ours("list", "secrets"), "admin system"},
		"watch secrets":                    {ours("watch", "secrets"), "admin system"},
		"read a machine's power":           {path("get", "/coldrack/v1/power/m"), "viewer operator admin system"},
		"switch a machine":                 {path("post", "/coldrack/v1/power/m"), "operator admin system"},
		"look for BMCs":                    {path("post", "/coldrack/v1/bmc/scan"), "operator admin system"},
		"write a secret":                   {ours("create", "secrets"), "admin system"},
		"a verb that is not known":         {ours("escalate", "machines"), "admin system"},
		"read a definition":                {foreign("list", "apiextensions.k8s.io", "customresourcedefinitions"), "viewer operator admin system"},
		"delete a definition":              {foreign("delete", "apiextensions.k8s.io", "customresourcedefinitions"), "admin system"},
		"change a definition":              {foreign("patch", "apiextensions.k8s.io", "customresourcedefinitions"), "admin system"},
		"act as somebody else":             {foreign("impersonate", "", "users"), "admin system"},
		"another group":                    {foreign("get", "example.com", "things"), "admin system"},
		"ask who I am":                     {foreign("create", "authentication.k8s.io", "selfsubjectreviews"), "stranger viewer operator admin system"},
		"ask what I may do":                {foreign("create", "authorization.k8s.io", "selfsubjectaccessreviews"), "stranger viewer operator admin system"},
		"ask what somebody else may do":    {foreign("create", "authorization.k8s.io", "subjectaccessreviews"), "admin system"},
		"health":                           {path("get", "/readyz"), "nobody stranger viewer operator admin system"},
		"health of one part":               {path("get", "/livez/etcd"), "nobody stranger viewer operator admin system"},
		"discovery":                        {path("get", "/apis/coldrack.dev"), "stranger viewer operator admin system"},
		"the schema":                       {path("get", "/openapi/v3"), "stranger viewer operator admin system"},
		"a path that only looks like it":   {path("get", "/apisx"), "viewer operator admin system"},
		"profile":                          {path("get", "/debug/pprof/heap"), "admin system"},
		"the audit log":                    {path("get", "/coldrack/v1/audit"), "admin system"},
		"metrics":                          {path("get", "/metrics"), "viewer operator admin system"},
		"a page beside the API":            {path("get", "/ui/"), "viewer operator admin system"},
		"sending something to such a page": {path("post", "/ui/act"), "operator admin system"},
	} {
		t.Run(name, func(t *testing.T) {
			for who, u := range everybody {
				request := test.request
				request.User = u
				decision, reason, err := authorize(context.Background(), request)
				check(t, err)
				want := strings.Contains(" "+test.allowed+" ", " "+who+" ")
				if got := decision == authorizer.DecisionAllow; got != want {
					t.Errorf("%s: allowed %v, want %v", who, got, want)
				}
				if decision != authorizer.DecisionAllow && !strings.Contains(reason, "this needs role ") {
					t.Errorf("%s: reason %q does not say what it takes", who, reason)
				}
			}
		})
	}
}

// resource of one of our kinds, as the person with this configuration.
func resource(t testing.TB, c *rest.Config, plural string) dynamic.NamespaceableResourceInterface {
	t.Helper()
	client, err := dynamic.NewForConfig(c)
	check(t, err)
	return client.Resource(v1alpha1.GroupVersion.WithResource(plural))
}

func object(kind, name string, fields map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{}}
	for k, v := range fields {
		u.Object[k] = v
	}
	u.SetAPIVersion(v1alpha1.GroupVersion.String())
	u.SetKind(kind)
	u.SetName(name)
	return u
}

func TestWhoMayDoWhatOverTheWire(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	ca := newTestCA(t)
	cfg := testConfig(t, ca)
	c := startTest(t, cfg)
	as := func(groups ...string) *rest.Config { return ca.person(t, c.Address(), "somebody", groups...) }
	machine := object("Machine", "m", map[string]any{"spec": map[string]any{}})
	_, err := resource(t, as(GroupOperator), "machines").Create(ctx, machine, metav1.CreateOptions{})
	check(t, err)
	_, err = resource(t, as(GroupAdmin), "secrets").Create(ctx, object("Secret", "s", nil), metav1.CreateOptions{})
	check(t, err)

	status := func(c *rest.Config) error {
		_, err := resource(t, c, "machines").Patch(ctx, "m", types.MergePatchType, []byte(`{"status":{"phase":"Ready"}}`), metav1.PatchOptions{}, "status")
		return err
	}
	get := func(c *rest.Config, plural, name string) error {
		_, err := resource(t, c, plural).Get(ctx, name, metav1.GetOptions{})
		return err
	}
	token := func(secret string) *rest.Config {
		c := as()
		c.CertData, c.KeyData, c.BearerToken = nil, nil, secret
		return c
	}
	other := newTestCA(t).person(t, c.Address(), "mallory", GroupAdmin)
	other.CAData = ca.pem
	tokens := OpenTokens(TokensPath(cfg.DataDir))
	secret, err := tokens.Create("ci", []string{GroupViewer}, 0)
	check(t, err)

	for name, test := range map[string]struct {
		err  error
		want []string // empty: allowed
	}{
		"an operator reads a machine":            {get(as(GroupOperator), "machines", "m"), nil},
		"an operator reads a secret":             {get(as(GroupOperator), "secrets", "s"), []string{"forbidden", `User "somebody" cannot get resource "secrets"`, "this needs role admin, you have role operator; Secrets are only for admins"}},
		"an admin reads a secret":                {get(as(GroupAdmin), "secrets", "s"), nil},
		"an operator writes status":              {status(as(GroupOperator)), []string{"forbidden", "status is written by the controllers"}},
		"the system writes status":               {status(c.RESTConfig()), nil},
		"somebody without role":                  {get(as("other-group"), "machines", "m"), []string{"forbidden", "this needs role viewer, you have no role"}},
		"somebody without a certificate":         {get(token(""), "machines", "m"), []string{"Unauthorized"}},
		"somebody with a certificate of his own": {get(other, "machines", "m"), []string{"Unauthorized"}},
		"a token reads a machine":                {get(token(secret), "machines", "m"), nil},
		"a viewer's token reads a secret":        {get(token(secret), "secrets", "s"), []string{"forbidden"}},
		"a token that nobody made":               {get(token(tokenPrefix+"00"), "machines", "m"), []string{"Unauthorized"}},
	} {
		t.Run(name, func(t *testing.T) {
			if len(test.want) == 0 {
				check(t, test.err)
				return
			}
			if test.err == nil {
				t.Fatal("allowed")
			}
			for _, want := range test.want {
				if !strings.Contains(test.err.Error(), want) {
					t.Errorf("error %q lacks %q", test.err, want)
				}
			}
		})
	}

	t.Run("a token that is revoked stops working at once", func(t *testing.T) {
		check(t, tokens.Revoke("ci"))
		if err := get(token(secret), "machines", "m"); !apierrors.IsUnauthorized(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a body in protobuf is refused, not tripped over", func(t *testing.T) {
		operator := as(GroupOperator)
		operator.NegotiatedSerializer = basicSerializer()
		client, err := rest.UnversionedRESTClientFor(operator)
		check(t, err)
		err = client.Post().SetHeader("Content-Type", "application/vnd.kubernetes.protobuf").AbsPath("/apis/coldrack.dev/v1alpha1/machines").Body([]byte("k8s")).Do(ctx).Error()
		if !apierrors.IsUnsupportedMediaType(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("health needs no credentials, everything else does", func(t *testing.T) {
		client, err := rest.UnversionedRESTClientFor(&rest.Config{Host: "https://" + c.Address(), TLSClientConfig: rest.TLSClientConfig{CAData: ca.pem},
			ContentConfig: rest.ContentConfig{NegotiatedSerializer: basicSerializer()}})
		check(t, err)
		for _, path := range []string{"/healthz", "/livez", "/readyz"} {
			if out, err := client.Get().AbsPath(path).DoRaw(ctx); err != nil || string(out) != "ok" {
				t.Errorf("%s: %q, %v", path, out, err)
			}
		}
		for _, path := range []string{"/metrics", "/apis", "/version", "/openapi/v2", "/readyz/etcd"} {
			if _, err := client.Get().AbsPath(path).DoRaw(ctx); !apierrors.IsUnauthorized(err) {
				t.Errorf("%s: %v", path, err)
			}
		}
	})
}
