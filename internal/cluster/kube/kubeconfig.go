package kube

import (
	"encoding/json"
	"fmt"

	"coldrack.dev/api/v1alpha1"
	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"
)

// Kubeconfig is a kubeconfig on a node. The node writes it, because only the node has the key.
type Kubeconfig struct {
	Path    string
	Server  string
	Cluster string
	User    string
	// Certificate is the name of the CertificateRequest that the user proves itself with.
	Certificate string
	// Embed puts certificate and key into the file, where kubeadm looks for them when it checks their
	// expiry. Otherwise the file refers to the files of the certificate, which are read again when they change.
	Embed bool
}

const kubeletClientLink = kubeletDir + "/pki/kubelet-client-current.pem"

// kubeletServerLink leads to the certificate that the kubelet serves with, and that it asks the cluster's API for.
const kubeletServerLink = kubeletDir + "/pki/kubelet-server-current.pem"
const kubeletClientFile = kubeletDir + "/pki/kubelet-client-coldrack.pem"

func (r *renderer) kubeconfigs(n *node) []Kubeconfig {
	local := urlOf(n.primary(), r.apiPort())
	kubeconfig := func(file, server, user, certificate string) Kubeconfig {
		return Kubeconfig{kubernetesDir + "/" + file, server, r.cluster.Name, user, certificate, true}
	}
	// Whatever runs beside an API server uses that one: during an upgrade, through a balancer, it could
	// reach an older one that it is not compatible with.
	kubelet := kubeconfig("kubelet.conf", r.localURL(), nodeUserPrefix+n.Hostname, "kubelet-client")
	kubelet.Embed = false
	if !n.runs(v1alpha1.RoleControlPlane) {
		return []Kubeconfig{kubelet}
	}
	kubelet.Server = local
	return []Kubeconfig{
		kubeconfig("admin.conf", "https://"+r.endpoint(), "kubernetes-admin", "admin"),
		kubeconfig("controller-manager.conf", local, "system:kube-controller-manager", "controller-manager"),
		kubelet,
		kubeconfig("scheduler.conf", local, "system:kube-scheduler", "scheduler"),
	}
}

// Encode writes the kubeconfig. certificate and key are paths when Embed is false, and PEM otherwise.
func (k Kubeconfig) Encode(authority, certificate, key []byte) ([]byte, error) {
	user := clientcmd.AuthInfo{ClientCertificateData: certificate, ClientKeyData: key}
	if !k.Embed {
		user = clientcmd.AuthInfo{ClientCertificate: string(certificate), ClientKey: string(key)}
	}
	return encodeKubeconfig(k.Cluster, k.Server, k.User, authority, user)
}

func encodeKubeconfig(cluster, server, name string, authority []byte, user clientcmd.AuthInfo) ([]byte, error) {
	context := name + "@" + cluster
	config := clientcmd.Config{
		Kind: "Config", APIVersion: "v1", CurrentContext: context,
		Clusters:  []clientcmd.NamedCluster{{Name: cluster, Cluster: clientcmd.Cluster{Server: server, CertificateAuthorityData: authority}}},
		Contexts:  []clientcmd.NamedContext{{Name: context, Context: clientcmd.Context{Cluster: cluster, AuthInfo: name}}},
		AuthInfos: []clientcmd.NamedAuthInfo{{Name: name, AuthInfo: user}},
	}
	encoded, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode kubeconfig of %s: %w", name, err)
	}
	return yaml.JSONToYAML(encoded)
}
