package kube

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/install"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	"k8s.io/apiserver/pkg/audit/policy"
	"k8s.io/apiserver/pkg/authentication/cel"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	podsecurity "k8s.io/pod-security-admission/admission/api/load"
)

// TestTheAPIServerReadsItsConfiguration uses the API server's own readers and checks.
func TestTheAPIServerReadsItsConfiguration(t *testing.T) {
	n := render(t, v1alpha1.TopologyLaptop, func(in *Input) {
		in.Cluster.Spec.Security.TokenDiscovery = true
		in.Cluster.Spec.APIServer.Authentication = &runtime.RawExtension{Raw: []byte(
			`{"jwt": [{"issuer": {"url": "https://id.example.org", "audiences": ["rack"]}, "claimMappings": {"username": {"claim": "email", "prefix": ""}}}]}`)}
	}).Nodes["machine-01"]

	loaded, err := policy.LoadPolicyFromBytes([]byte(fileOf(t, n, auditPolicyFile)))
	if err != nil || len(loaded.Rules) < 5 {
		t.Errorf("audit policy: %v", err)
	}

	scheme := runtime.NewScheme()
	install.Install(scheme)
	codecs := serializer.NewCodecFactory(scheme, serializer.EnableStrict)
	decoded, _, err := codecs.UniversalDecoder().Decode([]byte(fileOf(t, n, authenticationFile)), nil, nil)
	if err != nil {
		t.Fatalf("authentication: %v", err)
	}
	compiler := cel.NewDefaultCompiler()
	if errs := validation.ValidateAuthenticationConfiguration(compiler, decoded.(*apiserver.AuthenticationConfiguration), nil); len(errs) > 0 {
		t.Errorf("authentication: %v", errs)
	}

	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	provider, err := admission.ReadAdmissionConfiguration([]string{"PodSecurity"}, write("admission.yaml", fileOf(t, n, admissionFile)), scheme)
	if err != nil {
		t.Fatalf("admission: %v", err)
	}
	reader, err := provider.ConfigFor("PodSecurity")
	if err != nil {
		t.Fatalf("admission: %v", err)
	}
	security, err := podsecurity.LoadFromReader(reader)
	if err != nil || security.Defaults.Enforce != "baseline" || strings.Join(security.Exemptions.Namespaces, ",") != "kube-system" {
		t.Errorf("pod security: %+v, %v", security, err)
	}

	encryption, err := EncryptionConfig([]EncryptionKey{{"key", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := encryptionconfig.LoadEncryptionConfig(t.Context(), write("encryption.yaml", string(encryption)), false, "test"); err != nil {
		t.Errorf("encryption: %v", err)
	}
}

func TestMasqueradeCanBeLoadedAgainAndAgain(t *testing.T) {
	require.Need(t, "netns", "nft")
	dualStack := networkVariants()[1]
	n := render(t, v1alpha1.TopologyDevelopment, dualStack.change).Nodes["machine-02"]
	path := filepath.Join(t.TempDir(), "masquerade.nft")
	if err := os.WriteFile(path, []byte(fileOf(t, n, masqueradeFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	ns := netns.New(t)
	for range 3 {
		ns.Run("nft", "-f", path)
	}
	if rules := ns.Run("nft", "list", "ruleset"); strings.Count(rules, "masquerade") != 2 {
		t.Errorf("want one rule for each family, got\n%s", rules)
	}
}
