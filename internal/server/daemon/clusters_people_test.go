package daemon

import (
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/server/controlplane"
)

func TestWhatCertificatesARoleMayAskFor(t *testing.T) {
	viewer := controlplane.Person{Name: "vera", Role: GroupViewer}
	operator := controlplane.Person{Name: "otto", Role: GroupOperator}
	admin := controlplane.Person{Name: "ada", Role: GroupAdmin}
	for _, test := range []struct {
		name   string
		person controlplane.Person
		ask    CertificateAsk
		user   string
		groups []string
		ttl    time.Duration
		want   string // part of the refusal
	}{
		{"a viewer looks", viewer, CertificateAsk{}, "vera", []string{"coldrack:viewer"}, 8 * time.Hour, ""},
		{"an operator changes workloads", operator, CertificateAsk{}, "otto", []string{"coldrack:operator"}, 8 * time.Hour, ""},
		{"an operator may only look", operator, CertificateAsk{Groups: []string{"coldrack:viewer"}}, "otto", []string{"coldrack:viewer"}, 8 * time.Hour, ""},
		{"an admin does everything", admin, CertificateAsk{TTL: 3600}, "ada", []string{"kubeadm:cluster-admins"}, time.Hour, ""},
		{"an admin who says so", admin, CertificateAsk{Admin: true}, "ada", []string{"kubeadm:cluster-admins"}, 8 * time.Hour, ""},
		{"an admin for somebody else", admin, CertificateAsk{User: "ci", Groups: []string{"deployers"}, TTL: 30 * 86400}, "ci", []string{"deployers"}, 720 * time.Hour, ""},
		{"an admin breaks glass", admin, CertificateAsk{BreakGlass: true, Reason: "RBAC is gone"}, "ada", []string{"system:masters"}, time.Hour, ""},

		{"a viewer changes nothing", viewer, CertificateAsk{Groups: []string{"coldrack:operator"}}, "", nil, 0, `group "coldrack:operator" needs role admin; you have role viewer`},
		{"a viewer is nobody else", viewer, CertificateAsk{User: "otto"}, "", nil, 0, `a certificate for "otto" needs role admin`},
		{"an operator is no administrator", operator, CertificateAsk{Admin: true}, "", nil, 0, "needs role admin; you have role operator"},
		{"an operator breaks no glass", operator, CertificateAsk{BreakGlass: true, Reason: "x"}, "", nil, 0, "needs role admin"},
		{"an operator joins no other group", operator, CertificateAsk{Groups: []string{"kubeadm:cluster-admins"}}, "", nil, 0, "needs role admin"},
		{"nobody breaks glass without a reason", admin, CertificateAsk{BreakGlass: true, Reason: " "}, "", nil, 0, "needs a reason"},
		{"broken glass does not last", admin, CertificateAsk{BreakGlass: true, Reason: "x", TTL: 7200}, "", nil, 0, "may be at most 1h0m0s"},
		{"an admin is no node", admin, CertificateAsk{User: "system:node:n1", Groups: []string{"system:nodes"}}, "", nil, 0, "belong to the cluster's own parts"},
		{"an admin is no master in passing", admin, CertificateAsk{Groups: []string{"a", "system:masters"}}, "", nil, 0, "--break-glass gives system:masters"},
		{"glass and groups", admin, CertificateAsk{BreakGlass: true, Reason: "x", Groups: []string{"a"}}, "", nil, 0, "exclude each other"},
		{"an operator's does not last for days", operator, CertificateAsk{TTL: 48 * 3600}, "", nil, 0, "may be at most 24h0m0s"},
		{"seconds are too short", admin, CertificateAsk{TTL: 5}, "", nil, 0, "at least 1m"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ask := test.ask
			ttl, err := ask.decide(test.person)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("want a refusal with %q, got %v", test.want, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if ask.User != test.user || !slices.Equal(ask.Groups, test.groups) || ttl != test.ttl {
				t.Errorf("got %s %v for %s", ask.User, ask.Groups, ttl)
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
