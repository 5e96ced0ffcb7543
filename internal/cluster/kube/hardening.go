package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"coldrack.dev/api/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiserver "k8s.io/apiserver/pkg/apis/apiserver/v1"
	audit "k8s.io/apiserver/pkg/apis/audit/v1"
	podsecurity "k8s.io/pod-security-admission/admission/api/v1"
	"sigs.k8s.io/yaml"
)

// Files that configure the API server.
const (
	authenticationFile = apiserverDir + "/authentication.yaml"
	admissionFile      = apiserverDir + "/admission.yaml"
	encryptionFile     = apiserverDir + "/encryption.yaml"
	auditPolicyFile    = apiserverDir + "/audit-policy.yaml"
)

const clusterInfoPath = "/api/v1/namespaces/kube-public/configmaps/cluster-info"

// controlPlaneFiles are the files of API servers and etcd that are not certificates.
func (r *renderer) controlPlaneFiles(n *node) ([]File, error) {
	var files []File
	if n.runs(v1alpha1.RoleEtcd) {
		files = append(files, File{Path: etcdDataDir, Mode: modeDir | fs.ModeDir})
	}
	if !n.runs(v1alpha1.RoleControlPlane) {
		return files, nil
	}
	authentication, err := r.authentication()
	if err != nil {
		return nil, err
	}
	admission, err := r.admission()
	if err != nil {
		return nil, err
	}
	policy, err := r.auditPolicy()
	if err != nil {
		return nil, err
	}
	if len(r.in.ServiceAccountKeys) == 0 {
		return nil, errors.New("the public key of service accounts is missing; make the key before rendering")
	}
	return append(files,
		File{Path: auditLogDir, Mode: modeDir | fs.ModeDir},
		File{Path: authenticationFile, Mode: modeSecret, Content: authentication},
		File{Path: admissionFile, Mode: modeSecret, Content: admission},
		File{Path: auditPolicyFile, Mode: modeSecret, Content: policy},
		File{Path: encryptionFile, Mode: modeSecret, Secret: SecretEncryptionConfig},
		File{Path: pkiDir + "/sa.pub", Mode: modeSecret, Content: r.in.ServiceAccountKeys},
		File{Path: pkiDir + "/sa.key", Mode: modeSecret, Secret: SecretServiceAccountKey},
	), nil
}

// authentication lets the unknown ask whether the API server is healthy, and nothing else.
func (r *renderer) authentication() ([]byte, error) {
	config := apiserver.AuthenticationConfiguration{}
	if extra := r.cluster.Spec.APIServer.Authentication; extra != nil && len(extra.Raw) > 0 {
		if err := yaml.UnmarshalStrict(extra.Raw, &config); err != nil {
			return nil, fmt.Errorf("spec.apiServer.authentication: %w", err)
		}
		if config.Anonymous != nil {
			return nil, errors.New("spec.apiServer.authentication: leave anonymous out; spec.security.tokenDiscovery decides it")
		}
	}
	config.TypeMeta = metav1.TypeMeta{APIVersion: "apiserver.config.k8s.io/v1", Kind: "AuthenticationConfiguration"}
	config.Anonymous = &apiserver.AnonymousAuthConfig{Enabled: true}
	paths := []string{"/livez", "/readyz", "/healthz"}
	if r.cluster.Spec.Security.TokenDiscovery {
		paths = append(paths, clusterInfoPath)
	}
	for _, path := range paths {
		config.Anonymous.Conditions = append(config.Anonymous.Conditions, apiserver.AnonymousAuthCondition{Path: path})
	}
	// Not encodeConfig: an empty prefix of a claim is not the same as none.
	return encodeObject(config)
}

// admission confines the pods of every namespace but kube-system.
func (r *renderer) admission() ([]byte, error) {
	level := r.cluster.Spec.Security.PodSecurity
	security, err := json.Marshal(podsecurity.PodSecurityConfiguration{
		TypeMeta: metav1.TypeMeta{APIVersion: "pod-security.admission.config.k8s.io/v1", Kind: "PodSecurityConfiguration"},
		Defaults: podsecurity.PodSecurityDefaults{
			Enforce: level, EnforceVersion: "latest",
			Audit: "restricted", AuditVersion: "latest", Warn: "restricted", WarnVersion: "latest",
		},
		Exemptions: podsecurity.PodSecurityExemptions{Namespaces: []string{metav1.NamespaceSystem}},
	})
	if err != nil {
		return nil, fmt.Errorf("encode pod security: %w", err)
	}
	return encodeConfig(apiserver.AdmissionConfiguration{
		TypeMeta: metav1.TypeMeta{APIVersion: "apiserver.config.k8s.io/v1", Kind: "AdmissionConfiguration"},
		Plugins:  []apiserver.AdmissionPluginConfiguration{{Name: "PodSecurity", Configuration: &runtime.Unknown{Raw: security, ContentType: runtime.ContentTypeJSON}}},
	})
}

// auditPolicy records who changed what. What is read constantly by the cluster itself is left out, and
// secrets and tokens never appear with their content.
func (r *renderer) auditPolicy() ([]byte, error) {
	if own := r.cluster.Spec.Security.AuditPolicy; own != nil && len(own.Raw) > 0 {
		var policy audit.Policy
		if err := yaml.UnmarshalStrict(own.Raw, &policy); err != nil {
			return nil, fmt.Errorf("spec.security.auditPolicy: %w", err)
		}
		if len(policy.Rules) == 0 {
			return nil, errors.New("spec.security.auditPolicy: has no rules, so that nothing would be recorded")
		}
		policy.TypeMeta = metav1.TypeMeta{APIVersion: "audit.k8s.io/v1", Kind: "Policy"}
		return encodeConfig(policy)
	}
	resources := func(group string, names ...string) audit.GroupResources {
		return audit.GroupResources{Group: group, Resources: names}
	}
	read := []string{"get", "list", "watch"}
	return encodeConfig(audit.Policy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "audit.k8s.io/v1", Kind: "Policy"},
		OmitStages: []audit.Stage{audit.StageRequestReceived},
		Rules: []audit.PolicyRule{
			{Level: audit.LevelNone, NonResourceURLs: []string{"/healthz*", "/livez*", "/readyz*", "/version", "/openapi/*"}},
			{Level: audit.LevelNone, Resources: []audit.GroupResources{resources("", "events"), resources("events.k8s.io", "events")}},
			{Level: audit.LevelNone, Resources: []audit.GroupResources{resources("coordination.k8s.io", "leases")},
				UserGroups: []string{"system:nodes", "system:serviceaccounts:kube-system"}},
			{Level: audit.LevelMetadata, Resources: []audit.GroupResources{
				resources("", "secrets", "serviceaccounts/token"), resources("authentication.k8s.io", "tokenreviews")}},
			{Level: audit.LevelNone, Verbs: read,
				UserGroups: []string{"system:nodes", "system:serviceaccounts:kube-system"}},
			{Level: audit.LevelNone, Verbs: read, Users: []string{
				"system:kube-controller-manager", "system:kube-scheduler", "system:apiserver"}},
			{Level: audit.LevelMetadata, Verbs: read},
			{Level: audit.LevelMetadata, UserGroups: []string{"system:nodes"}},
			{Level: audit.LevelRequest, Resources: []audit.GroupResources{
				resources("rbac.authorization.k8s.io"), resources("certificates.k8s.io"), resources("admissionregistration.k8s.io")}},
			{Level: audit.LevelMetadata},
		},
	})
}

// EncryptionKey encrypts Secrets in etcd.
type EncryptionKey struct {
	Name string
	// Secret is 32 random bytes in base64.
	Secret string
}

// EncryptionConfig is the content of SecretEncryptionConfig. The first key encrypts; all of them decrypt,
// and what was written before there was a key can still be read.
func EncryptionConfig(keys []EncryptionKey) ([]byte, error) {
	if len(keys) == 0 {
		return nil, errors.New("no key to encrypt Secrets with")
	}
	box := &apiserver.SecretboxConfiguration{}
	for _, key := range keys {
		box.Keys = append(box.Keys, apiserver.Key{Name: key.Name, Secret: key.Secret})
	}
	// Not encodeConfig: the identity provider is an empty object.
	return encodeObject(apiserver.EncryptionConfiguration{
		TypeMeta: metav1.TypeMeta{APIVersion: "apiserver.config.k8s.io/v1", Kind: "EncryptionConfiguration"},
		Resources: []apiserver.ResourceConfiguration{{
			Resources: []string{string(corev1.ResourceSecrets)},
			Providers: []apiserver.ProviderConfiguration{{Secretbox: box}, {Identity: &apiserver.IdentityConfiguration{}}},
		}},
	})
}
