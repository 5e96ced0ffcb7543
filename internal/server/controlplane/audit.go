package controlplane

import (
	"io"
	"os"
	"path/filepath"

	"coldrack.dev/api/v1alpha1"
	"gopkg.in/natefinch/lumberjack.v2"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/audit/policy"
	"k8s.io/apiserver/pkg/authentication/user"
	auditlog "k8s.io/apiserver/plugin/pkg/audit/log"
)

// The audit log is kept in files of 64 MiB, ten of them.
const (
	auditFileMiB = 64
	auditFiles   = 10
)

// newAudit opens the audit log. Every write is recorded before it is answered: who, what, when, from where, and the
// answer, with what was sent, except where that is or may hold a secret.
func newAudit(name string) (audit.Backend, audit.PolicyRuleEvaluator, io.Closer, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, nil, nil, err
	}
	out := &lumberjack.Logger{Filename: name, MaxSize: auditFileMiB, MaxBackups: auditFiles - 1}
	// Nothing opens the file before the first event, so that a folder without permission would show only then.
	if _, err := out.Write(nil); err != nil {
		return nil, nil, nil, err
	}
	return auditlog.NewBackend(out, auditlog.FormatJson, auditv1.SchemeGroupVersion),
		policy.NewPolicyRuleEvaluator(auditPolicy()), out, nil
}

func auditPolicy() *auditinternal.Policy {
	ours := func(resources ...string) []auditinternal.GroupResources {
		return []auditinternal.GroupResources{{Group: v1alpha1.Group, Resources: resources}}
	}
	return &auditinternal.Policy{
		OmitStages:        []auditinternal.Stage{auditinternal.StageRequestReceived, auditinternal.StageResponseStarted},
		OmitManagedFields: true,
		// The first rule that matches decides.
		Rules: []auditinternal.PolicyRule{
			{Level: auditinternal.LevelNone, Verbs: []string{"get", "list", "watch", "head"}},
			// Controllers write progress many times a second; what they do to spec is recorded.
			{Level: auditinternal.LevelNone, Users: []string{user.APIServerUser}, Resources: ours("*/status")},
			{Level: auditinternal.LevelMetadata, Resources: ours("secrets")},
			// Profiles may hold password hashes and files of any content.
			{Level: auditinternal.LevelMetadata, Resources: ours("profiles")},
			{Level: auditinternal.LevelRequest, Resources: ours("*")},
			{Level: auditinternal.LevelNone, Resources: []auditinternal.GroupResources{
				{Group: "authentication.k8s.io"}, {Group: "authorization.k8s.io"}}},
			{Level: auditinternal.LevelMetadata},
		},
	}
}
