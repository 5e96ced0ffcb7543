package peopleapi

import (
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func TestWhatCertificatesARoleMayAskFor(t *testing.T) {
	viewer := controlplane.Person{Name: "vera", Role: controlplane.GroupViewer}
	operator := controlplane.Person{Name: "otto", Role: controlplane.GroupOperator}
	admin := controlplane.Person{Name: "ada", Role: controlplane.GroupAdmin}
	for _, test := range []struct {
		name    string
		person  controlplane.Person
		request peoplewire.CertificateRequest
		user    string
		groups  []string
		ttl     time.Duration
		want    string // part of the refusal
	}{
		{"a viewer looks", viewer, peoplewire.CertificateRequest{}, "vera", []string{"coldrack:viewer"}, 8 * time.Hour, ""},
		{"an operator changes workloads", operator, peoplewire.CertificateRequest{}, "otto", []string{"coldrack:operator"}, 8 * time.Hour, ""},
		{"an operator may only look", operator, peoplewire.CertificateRequest{Groups: []string{"coldrack:viewer"}}, "otto", []string{"coldrack:viewer"}, 8 * time.Hour, ""},
		{"an admin does everything", admin, peoplewire.CertificateRequest{TTL: 3600}, "ada", []string{"kubeadm:cluster-admins"}, time.Hour, ""},
		{"an admin who says so", admin, peoplewire.CertificateRequest{Admin: true}, "ada", []string{"kubeadm:cluster-admins"}, 8 * time.Hour, ""},
		{"an admin for somebody else", admin, peoplewire.CertificateRequest{User: "ci", Groups: []string{"deployers"}, TTL: 30 * 86400}, "ci", []string{"deployers"}, 720 * time.Hour, ""},
		{"an admin breaks glass", admin, peoplewire.CertificateRequest{BreakGlass: true, Reason: "RBAC is gone"}, "ada", []string{"system:masters"}, time.Hour, ""},

		{"a viewer changes nothing", viewer, peoplewire.CertificateRequest{Groups: []string{"coldrack:operator"}}, "", nil, 0, `group "coldrack:operator" needs role admin; you have role viewer`},
		{"a viewer is nobody else", viewer, peoplewire.CertificateRequest{User: "otto"}, "", nil, 0, `a certificate for "otto" needs role admin`},
		{"an operator is no administrator", operator, peoplewire.CertificateRequest{Admin: true}, "", nil, 0, "needs role admin; you have role operator"},
		{"an operator breaks no glass", operator, peoplewire.CertificateRequest{BreakGlass: true, Reason: "x"}, "", nil, 0, "needs role admin"},
		{"an operator joins no other group", operator, peoplewire.CertificateRequest{Groups: []string{"kubeadm:cluster-admins"}}, "", nil, 0, "needs role admin"},
		{"nobody breaks glass without a reason", admin, peoplewire.CertificateRequest{BreakGlass: true, Reason: " "}, "", nil, 0, "needs a reason"},
		{"broken glass does not last", admin, peoplewire.CertificateRequest{BreakGlass: true, Reason: "x", TTL: 7200}, "", nil, 0, "may be at most 1h0m0s"},
		{"an admin is no node", admin, peoplewire.CertificateRequest{User: "system:node:n1", Groups: []string{"system:nodes"}}, "", nil, 0, "belong to the cluster's own parts"},
		{"an admin is no master in passing", admin, peoplewire.CertificateRequest{Groups: []string{"a", "system:masters"}}, "", nil, 0, "--break-glass gives system:masters"},
		{"glass and groups", admin, peoplewire.CertificateRequest{BreakGlass: true, Reason: "x", Groups: []string{"a"}}, "", nil, 0, "exclude each other"},
		{"an operator's does not last for days", operator, peoplewire.CertificateRequest{TTL: 48 * 3600}, "", nil, 0, "may be at most 24h0m0s"},
		{"seconds are too short", admin, peoplewire.CertificateRequest{TTL: 5}, "", nil, 0, "at least 1m"},
	} {
		t.Run(test.name, func(t *testing.T) {
			request := test.request
			ttl, err := decide(&request, test.person)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("want a refusal with %q, got %v", test.want, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if request.User != test.user || !slices.Equal(request.Groups, test.groups) || ttl != test.ttl {
				t.Errorf("got %s %v for %s", request.User, request.Groups, ttl)
			}
		})
	}
}

func TestACertificateIsForWhoeverHasTheKey(t *testing.T) {
	for _, csr := range []string{"", "-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n", "-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n"} {
		if _, err := publicKeyOf(csr); err == nil {
			t.Errorf("%q was taken", csr)
		}
	}
}
