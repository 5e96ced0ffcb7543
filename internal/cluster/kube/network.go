package kube

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
)

const (
	cniDir             = "/etc/cni/net.d"
	cniFile            = cniDir + "/10-coldrack.conflist"
	masqueradeFile     = "/etc/coldrack/kubernetes/masquerade.nft"
	masqueradeUnitName = "coldrack-pod-masquerade.service"
	vxlanOverheadIPv4  = 50
	vxlanOverheadIPv6  = 70
)

// cniNetwork is a CNI network configuration list (CNI specification 1.0.0).
type cniNetwork struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Plugins    []any  `json:"plugins"`
}

type cniBridge struct {
	Type        string  `json:"type"`
	Bridge      string  `json:"bridge"`
	IsGateway   bool    `json:"isGateway"`
	HairpinMode bool    `json:"hairpinMode"`
	MTU         int32   `json:"mtu"`
	IPAM        cniIPAM `json:"ipam"`
}

type cniIPAM struct {
	Type   string       `json:"type"`
	Ranges [][]cniRange `json:"ranges"`
	Routes []cniRoute   `json:"routes"`
	// DataDir is on a file system that a reboot empties: no pod survives it, and neither may its address.
	DataDir string `json:"dataDir"`
}

type cniRange struct {
	Subnet string `json:"subnet"`
}

type cniRoute struct {
	Dst string `json:"dst"`
}

type cniPortMap struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	Backend      string          `json:"backend"`
}

// networkFiles connect the node's pods to the node. The bridge has the node's own pod network, which is known
// beforehand, so that pods start before anything of the network has talked to the API.
func (r *renderer) networkFiles(n *node) ([]File, error) {
	plugin := r.cluster.Spec.Network.Plugin
	if plugin == v1alpha1.NetworkNone {
		return nil, nil
	}
	var subnets []string
	for _, pods := range n.PodCIDRs {
		subnets = append(subnets, pods.String())
	}
	config, err := r.podNetwork(subnets)
	if err != nil {
		return nil, err
	}
	files := []File{{Path: cniFile, Mode: modeSecret, Content: config}}
	if plugin == v1alpha1.NetworkRouted {
		files = append(files, File{Path: masqueradeFile, Mode: modePublic, Content: r.masquerade(n)})
	}
	return files, nil
}

// podNetwork is the configuration of a bridge with these subnets, one for each of the cluster's families.
func (r *renderer) podNetwork(subnets []string) ([]byte, error) {
	bridge := cniBridge{Type: "bridge", Bridge: "cni0", IsGateway: true, HairpinMode: true, MTU: r.podMTU(),
		IPAM: cniIPAM{Type: "host-local", DataDir: "/run/cni/ipam"}}
	for i, subnet := range subnets {
		bridge.IPAM.Ranges = append(bridge.IPAM.Ranges, []cniRange{{subnet}})
		everywhere := "0.0.0.0/0"
		if r.podCIDRs[i].Addr().Is6() {
			everywhere = "::/0"
		}
		bridge.IPAM.Routes = append(bridge.IPAM.Routes, cniRoute{everywhere})
	}
	backend := "iptables"
	if r.cluster.Spec.Network.Proxy == v1alpha1.ProxyNFTables {
		backend = "nftables"
	}
	config, err := json.MarshalIndent(cniNetwork{CNIVersion: "1.0.0", Name: "coldrack", Plugins: []any{
		bridge, cniPortMap{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}, Backend: backend},
	}}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the pod network: %w", err)
	}
	return append(config, '\n'), nil
}

func (r *renderer) podMTU() int32 {
	mtu := r.cluster.Spec.Network.MTU
	if r.cluster.Spec.Network.Plugin != v1alpha1.NetworkFlannel {
		return mtu
	}
	if r.podCIDRs[0].Addr().Is6() {
		return mtu - vxlanOverheadIPv6
	}
	return mtu - vxlanOverheadIPv4
}

// routes lead to every other node's pods. With flannel, flanneld keeps its own.
func (r *renderer) routes(n *node) []Route {
	if r.cluster.Spec.Network.Plugin != v1alpha1.NetworkRouted {
		return nil
	}
	var routes []Route
	for _, other := range r.nodes {
		if other == n {
			continue
		}
		for _, pods := range other.PodCIDRs {
			for _, address := range other.Addresses {
				if address.Is4() == pods.Addr().Is4() {
					routes = append(routes, Route{To: pods, Via: address})
					break
				}
			}
		}
	}
	slices.SortFunc(routes, func(a, b Route) int {
		return cmp.Or(a.To.Addr().Compare(b.To.Addr()), cmp.Compare(a.To.Bits(), b.To.Bits()))
	})
	return routes
}

// serviceRoutes lead to every service network, whatever carries the pods' traffic. What replaces kube-proxy brings its own
// way to services, which a route of ours might take them from.
func (r *renderer) serviceRoutes(n *node) []ServiceRoute {
	if r.cluster.Spec.Network.Proxy == v1alpha1.ProxyNone {
		return nil
	}
	var routes []ServiceRoute
	for _, services := range r.serviceCIDRs {
		i := slices.IndexFunc(n.Addresses, func(a netip.Addr) bool { return a.Is4() == services.Addr().Is4() })
		if i >= 0 { // checkFamilies has seen an address of every family of pods, and services have the same
			routes = append(routes, ServiceRoute{To: services, Source: n.Addresses[i]})
		}
	}
	return routes
}

// masquerade hides pods behind their node when they talk to the world, which has no route back to them. The
// table is replaced as a whole, so that loading it again changes nothing.
func (r *renderer) masquerade(n *node) []byte {
	var b bytes.Buffer
	b.WriteString("table inet coldrack_pods\ndelete table inet coldrack_pods\ntable inet coldrack_pods {\n" +
		"\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n")
	for i, pods := range n.PodCIDRs {
		family := "ip"
		if pods.Addr().Is6() {
			family = "ip6"
		}
		fmt.Fprintf(&b, "\t\t%s saddr %s %s daddr != %s masquerade\n", family, pods, family, r.podCIDRs[i])
	}
	b.WriteString("\t}\n}\n")
	return b.Bytes()
}

const masqueradeUnit = `[Unit]
Description=hide pods behind their node outside the cluster
Before=kubelet.service
After=nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f ` + masqueradeFile + `
ExecReload=/usr/sbin/nft -f ` + masqueradeFile + `
ExecStop=-/usr/sbin/nft delete table inet coldrack_pods

[Install]
WantedBy=multi-user.target
`

// hostFiles prepare the operating system.
func (r *renderer) hostFiles(*node) ([]File, error) {
	modules := "overlay\nbr_netfilter\nnf_conntrack\n"
	if r.cluster.Spec.Network.Plugin == v1alpha1.NetworkFlannel {
		modules += "vxlan\n"
	}
	settings := []string{
		"net.ipv4.ip_forward = 1",
		"net.bridge.bridge-nf-call-iptables = 1",
		"net.bridge.bridge-nf-call-ip6tables = 1",
		// What the kubelet insists on with protectKernelDefaults.
		"vm.overcommit_memory = 1",
		"vm.panic_on_oom = 0",
		"kernel.panic = 10",
		"kernel.panic_on_oops = 1",
		"kernel.keys.root_maxkeys = 1000000",
		"kernel.keys.root_maxbytes = 25000000",
		// Every watcher of files in every pod shares these.
		"fs.inotify.max_user_instances = 8192",
		"fs.inotify.max_user_watches = 1048576",
	}
	if slices.ContainsFunc(r.podCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		settings = append(settings, "net.ipv6.conf.all.forwarding = 1")
	}
	return []File{
		{Path: "/etc/modules-load.d/kubernetes.conf", Mode: modePublic, Content: []byte(modules)},
		{Path: "/etc/sysctl.d/90-kubernetes.conf", Mode: modePublic, Content: []byte(strings.Join(settings, "\n") + "\n")},
		// systemd-networkd removes routes and rules that it has not made, whenever it is restarted.
		{Path: "/etc/systemd/networkd.conf.d/20-kubernetes.conf", Mode: modePublic,
			Content: []byte("[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n")},
		// systemd gives virtual interfaces a stable MAC after they were made; flannel has already told the other
		// nodes the first one by then, and the bridge's neighbours have learned it.
		{Path: "/etc/systemd/network/10-kubernetes.link", Mode: modePublic,
			Content: []byte("[Match]\nOriginalName=flannel* cni* veth*\n\n[Link]\nMACAddressPolicy=none\n")},
	}, nil
}
