package kube

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"coldrack.dev/api/v1alpha1"
)

const (
	keepalivedConfig = "/etc/keepalived/keepalived.conf"
	virtualIPUnit    = "keepalived.service"
)

func (r *renderer) carriesVirtualIP(n *node) bool {
	return r.cluster.Spec.Endpoint.VirtualIP != nil && n.runs(v1alpha1.RoleControlPlane)
}

// virtualIPFiles configure keepalived. It asks the machine's own API server alone, so that the address is there
// while the cluster's API as a whole is not. All machines start as backups and do not preempt: the address
// moves only when it must. What follows the other control planes is the same everywhere at once: one that its peers do not know
// would take the address as well. keepalived reads it again without giving the address up.
func (r *renderer) virtualIPFiles(n *node) ([]File, error) {
	if !r.carriesVirtualIP(n) {
		return nil, nil
	}
	vip := r.cluster.Spec.Endpoint.VirtualIP
	address, err := netip.ParseAddr(vip.Address)
	if err != nil {
		return nil, fmt.Errorf("spec.endpoint.virtualIP.address: %w", err)
	}
	if n.Interface == "" {
		return nil, fmt.Errorf("the interface with address %s is not known, and the virtual IP %s needs it; it comes with the machine's inventory", n.primary(), address)
	}
	controlPlanes := r.with(v1alpha1.RoleControlPlane)
	var b bytes.Buffer
	b.WriteString("global_defs {\n\tenable_script_security\n\tscript_user nobody\n}\n\n")
	fmt.Fprintf(&b, "vrrp_script api_server {\n\tscript \"/usr/bin/curl --silent --fail --output /dev/null --max-time 3 --cacert %s/ca.crt %s/livez\"\n"+
		"\tinterval 3\n\ttimeout 5\n\tfall 3\n\trise 2\n}\n\n", pkiDir, urlOf(n.primary(), r.apiPort()))
	fmt.Fprintf(&b, "vrrp_instance api {\n\tstate BACKUP\n\tnopreempt\n\tinterface %s\n\tvirtual_router_id %d\n\tpriority %d\n\tadvert_int 1\n",
		n.Interface, vip.RouterID, 100+len(controlPlanes)-slices.Index(controlPlanes, n))
	fmt.Fprintf(&b, "\tunicast_src_ip %s\n\tunicast_peer {\n", n.primary())
	for _, other := range controlPlanes {
		if other != n {
			fmt.Fprintf(&b, "\t\t%s\n", other.primary())
		}
	}
	fmt.Fprintf(&b, "\t}\n\tvirtual_ipaddress {\n\t\t%s\n\t}\n\ttrack_script {\n\t\tapi_server\n\t}\n}\n",
		netip.PrefixFrom(address, address.BitLen()))
	return []File{{Path: keepalivedConfig, Mode: modePublic, Content: b.Bytes(), Soft: true}}, nil
}
