package kube

import (
	"fmt"
	"net/netip"
	"testing"

	"coldrack.dev/api/v1alpha1"
)

// testInput is a preset with machines, in the state in which a controller would render it.
func testInput(t *testing.T, preset v1alpha1.Topology, version string, change ...func(*Input)) Input {
	t.Helper()
	options := PresetOptions{Name: "rack", Version: version, Workers: -1}
	if preset == v1alpha1.TopologyProduction {
		options.VirtualIP = "10.20.0.5"
	}
	cluster, groups, err := Preset(preset, options)
	if err != nil {
		t.Fatal(err)
	}
	in := Input{
		Cluster: cluster, Groups: groups,
		Authorities: map[Authority][]byte{
			AuthorityKubernetes: []byte("certificate of the authority ca\n"),
			AuthorityEtcd:       []byte("certificate of the authority etcd-ca\n"),
			AuthorityFrontProxy: []byte("certificate of the authority front-proxy-ca\n"),
		},
		Issuers:         map[Authority]string{AuthorityKubernetes: "first-ca", AuthorityEtcd: "first-etcd-ca", AuthorityFrontProxy: "first-front-proxy-ca"},
		AuthorityNumber: 1, EncryptionKeys: []string{"coldrack-1"},
		ServiceAccountKeys: []byte("public key of service accounts\n"),
		Registry:           &Registry{URL: "https://10.20.0.1:8443", CA: []byte("certificate of the content store\n")},
	}
	number := 0
	for _, g := range groups {
		for range g.WantedReplicas() {
			number++
			in.Machines = append(in.Machines, Machine{
				Name: fmt.Sprintf("machine-%02d", number), Hostname: fmt.Sprintf("node-%02d", number), Group: g.Name,
				Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 20, 0, byte(10 + number)})}, Interface: "enp1s0", Memory: 8 << 30,
			})
		}
	}
	for _, f := range change {
		f(&in)
	}
	in.Machines, err = Assign(in.Cluster, in.Groups, in.Machines, nil)
	if err != nil {
		t.Fatal(err)
	}
	return in
}
