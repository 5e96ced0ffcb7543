package nodecert

import (
	"encoding/json"
	"fmt"
	"slices"

	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/contract/wire"
)

// kubeconfig is the file format of kubectl, as JSON, which is YAML. Byte slices are base64 in it, as the format
// wants them.
type kubeconfig struct {
	APIVersion     string              `json:"apiVersion"`
	Kind           string              `json:"kind"`
	Clusters       []kubeconfigCluster `json:"clusters"`
	Contexts       []kubeconfigContext `json:"contexts"`
	CurrentContext string              `json:"current-context"`
	Users          []kubeconfigUser    `json:"users"`
}

type kubeconfigCluster struct {
	Name    string `json:"name"`
	Cluster struct {
		Server    string `json:"server"`
		Authority []byte `json:"certificate-authority-data"`
	} `json:"cluster"`
}

type kubeconfigContext struct {
	Name    string `json:"name"`
	Context struct {
		Cluster string `json:"cluster"`
		User    string `json:"user"`
	} `json:"context"`
}

type kubeconfigUser struct {
	Name string         `json:"name"`
	User kubeconfigAuth `json:"user"`
}

type kubeconfigAuth struct {
	CertificateFile string `json:"client-certificate,omitempty"`
	KeyFile         string `json:"client-key,omitempty"`
	Certificate     []byte `json:"client-certificate-data,omitempty"`
	Key             []byte `json:"client-key-data,omitempty"`
}

// Kubeconfig is the file k around the certificate that is on the disk.
func Kubeconfig(d nodefile.Disk, plan *wire.NodePlan, k wire.NodeKubeconfig) ([]byte, error) {
	i := slices.IndexFunc(plan.Certificates, func(c wire.NodeCertificate) bool { return c.Name == k.Certificate })
	if i < 0 {
		return nil, fmt.Errorf("kubeconfig %s: there is no certificate %q", k.Path, k.Certificate)
	}
	certificate, key := Source(plan, plan.Certificates[i])
	auth := kubeconfigAuth{CertificateFile: certificate, KeyFile: key}
	if k.Embed {
		auth = kubeconfigAuth{}
		for _, part := range []struct {
			path string
			into *[]byte
		}{{certificate, &auth.Certificate}, {key, &auth.Key}} {
			b, err := d.Read(part.path)
			if err != nil {
				return nil, fmt.Errorf("kubeconfig %s needs certificate %s: %w", k.Path, k.Certificate, err)
			}
			*part.into = b
		}
	}
	name := k.User + "@" + k.Cluster
	config := kubeconfig{APIVersion: "v1", Kind: "Config", CurrentContext: name, Users: []kubeconfigUser{{k.User, auth}}}
	cluster, context := kubeconfigCluster{Name: k.Cluster}, kubeconfigContext{Name: name}
	cluster.Cluster.Server, cluster.Cluster.Authority = k.Server, []byte(k.Authority)
	context.Context.Cluster, context.Context.User = k.Cluster, k.User
	config.Clusters, config.Contexts = []kubeconfigCluster{cluster}, []kubeconfigContext{context}
	b, err := json.MarshalIndent(config, "", "  ")
	return append(b, '\n'), err
}
