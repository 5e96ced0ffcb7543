package nodeconfig_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/test/require"
	"coldrack.dev/test/uml"
)

const networkd = "/usr/lib/systemd/systemd-networkd"

// lacpNode has all on a bond of two ports that speaks LACP with the switch.
func lacpNode() nodeconfig.Config {
	const left, right = "52:54:00:00:00:01", "52:54:00:00:00:02"
	return nodeconfig.Config{Hostname: "n1", Interfaces: []nodeconfig.Interface{{MAC: left}}, Links: &nodeconfig.Links{
		Link: "bond0", Gateway: "10.20.0.1",
		Bonds:     []validate.LinkBond{{Name: "bond0", Mode: validate.BondLACP, Members: []string{left, right}, MTU: 9000, LACPRate: "fast", MAC: right}},
		VLANs:     []validate.LinkVLAN{{Name: "storage", ID: 100, Parent: "bond0", MTU: 8900}},
		Addresses: []validate.LinkAddress{{Link: "bond0", Address: "10.20.0.11/24"}, {Link: "storage", Address: "10.30.0.11/24"}, {Link: "storage", Address: "fd00:30::11/64"}},
		Routes:    []validate.LinkRoute{{To: "10.40.0.0/16", Via: "10.30.0.254"}, {To: "fd00:40::/48", Via: "fe80::1", Link: "storage"}},
	}}
}

// bridgeNode has a bridge on a bond with a stand-by, and an interface that asks a DHCP server of the site.
func bridgeNode() nodeconfig.Config {
	const left, right, third = "52:54:00:00:01:01", "52:54:00:00:01:02", "52:54:00:00:01:03"
	return nodeconfig.Config{Hostname: "n2", Interfaces: []nodeconfig.Interface{{MAC: left}}, Links: &nodeconfig.Links{
		Link: "br0", Gateway: "10.20.0.1",
		Interfaces: []validate.LinkNIC{{NIC: third, DHCP: validate.DHCPBoth}},
		Bonds:      []validate.LinkBond{{Name: "bond0", Mode: validate.BondActiveBackup, Members: []string{left, right}, MTU: 1450, Primary: right, MAC: left}},
		VLANs:      []validate.LinkVLAN{{Name: "storage", ID: 4094, Parent: "br0"}},
		Bridges:    []validate.LinkBridge{{Name: "br0", Members: []string{"bond0"}, MAC: left}},
		Addresses:  []validate.LinkAddress{{Link: "br0", Address: "10.20.0.12/24"}, {Link: "storage", Address: "10.30.0.12/24"}},
	}}
}

// networkScript lets systemd-networkd carry out two nodes' files beside each other, in namespaces. The interfaces of the node with a bridge
// are like hardware, and its switch is a bridge with a port for each member. The other node's are veth, which have a speed, as LACP
// needs, and lose their carrier with the other end; but they have neither a permanent MAC nor the lack of a kind, so that these two
// lines of its files are rewritten. Its switch speaks LACP.
const networkScript = `
share=` + uml.Share + `
until_() { # what is waited for, then the command
	what=$1; shift
	read now rest </proc/uptime
	end=$((${now%.*} + 120))
	until "$@" >/dev/null 2>&1; do
		read now rest </proc/uptime
		[ ${now%.*} -lt $end ] || { echo "never: $what"; ip -d link; ip addr; ip route; cat /proc/net/bonding/* /run/networkd; exit 1; }
		sleep 0.5
	done
}
networkd() {
	mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp # as its unit has it
	chown -R systemd-network: /run/systemd/netif
	` + networkd + ` >>/run/networkd 2>&1 &
}
reach() { until_ "$node reaches $1" busybox ping -c1 -W1 $1; }
show() { for what in addr route; do ip -d -j $what >$share/$node.$what$1.json; done; ip -6 -d -j route >$share/$node.route6$1.json; }
has() { # a file, and a line of it; a program more costs this kernel more than the shell's own look
	while read -r line; do [ "$line" != "$2" ] || return 0; done <$1
	return 1
}
active() { has /proc/net/bonding/bond0 "Currently Active Slave: $1"; }
ports() { has /proc/net/bonding/bond0 "Number of ports: $1"; }
configured() {
	for link in $*; do
		read index </sys/class/net/$link/ifindex
		has /run/systemd/netif/links/$index ADMIN_STATE=configured || return 1
	done
}
understood() { ! grep -i 'unknown\|invalid\|ignoring assignment\|failed to parse' /run/networkd; }

bridge() {
	node=bridge
	ip -batch - <<-end
		link set vec4 netns $1
		link set vec5 netns $1
		link set vec6 netns $1
	end
	mount --bind $share/bridge /etc/systemd/network
	networkd
	reach 10.20.0.1
	reach 10.30.0.254
	until_ "an address by DHCP" sh -c 'ip addr show dev vec3 | grep 10.50.0.77'
	until_ "the preferred member carries" active vec2
	show
	ip link set vec2 down
	until_ "the other member carries" active vec1
	reach 10.20.0.1
	reach 10.30.0.254
	ip link set vec2 up
	until_ "the preferred member carries again" active vec2
	reach 10.20.0.1
	# Another networkd, as after an update, finds all links by what does not change in a bond.
	kill $!
	wait $!
	rm -r /run/systemd/netif
	networkd
	until_ "the new networkd has looked at all" configured vec1 vec2 vec3 bond0 br0 storage
	reach 10.30.0.254
	show .again
	understood
}

# The switch of the node with a bridge: ports vec4 and vec5, and a network of somebody else's at vec6.
switch() {
	for i in 4 5 6; do until_ "port $i" [ -e /proc/sys/net/ipv4/conf/vec$i ]; done
	ip -batch - <<-end
		link add sw type bridge
		link set vec4 master sw up
		link set vec5 master sw up
		link set sw up
		addr add 10.20.0.1/24 dev sw
		link add link sw name tagged type vlan id 4094
		link set tagged up
		addr add 10.30.0.254/24 dev tagged
		link set vec6 up
		addr add 10.50.0.1/24 dev vec6
	end
	exec dnsmasq -k -p 0 -u root -C /dev/null -l /tmp/leases --interface=vec6 --bind-interfaces --dhcp-range=10.50.0.77,10.50.0.77,1h --dhcp-option=3,10.50.0.1 --log-facility=$share/dnsmasq.log --pid-file=
}

lacp() {
	node=lacp
	mount -t sysfs -o ro sysfs /sys
	mount -t tmpfs tmpfs /run
	mkdir /run/netns
	ip netns add switch
	s="ip -n switch"
	ip -batch - <<-end
		link set lo up
		link add nic1 address 52:54:00:00:00:01 type veth peer name port1 netns switch
		link add nic2 address 52:54:00:00:00:02 type veth peer name port2 netns switch
	end
	$s -batch - <<-end
		link add lag type bond mode 802.3ad miimon 100 lacp_rate fast
		link set port1 master lag
		link set port2 master lag
		link set lag up mtu 9000
		addr add 10.20.0.1/24 dev lag
		link add link lag name tagged type vlan id 100
		link set tagged up
		addr add 10.30.0.254/24 dev tagged
	end
	mkdir /run/files
	cp $share/lacp/* /run/files
	sed -i 's/^PermanentMACAddress=/MACAddress=/; s/^Kind=!\*$/Kind=veth/' /run/files/*.network
	mount --bind /run/files /etc/systemd/network
	networkd
	reach 10.20.0.1
	reach 10.30.0.254
	until_ "both members in one aggregator" ports 2
	until_ "all is configured" configured bond0 storage
	show
	# A cable is pulled.
	$s link set port1 down
	until_ "one member left" ports 1
	reach 10.20.0.1
	reach 10.30.0.254
	$s link set port1 up
	until_ "both members again" ports 2
	# A cable is dead, and both ends keep their carrier: only LACP tells.
	$s link set port2 nomaster up
	until_ "one member left" ports 1
	reach 10.20.0.1
	reach 10.30.0.254
	understood
}

mkdir -p /run/netns
case $1 in
lacp) lacp; exit;;
switch) switch; exit;;
esac
unshare -n sh $share/script.sh switch >$share/switch.log 2>&1 &
switch=$!
unshare -m -n sh $share/script.sh lacp >$share/lacp.log 2>&1 &
other=$!
own=$(readlink /proc/self/ns/net)
until [ "$(readlink /proc/$switch/ns/net)" != $own ]; do sleep 0.2; done
(bridge $switch) || { echo "of the node with a bridge"; cat $share/switch.log; exit 1; }
wait $other || { echo "of the node with LACP"; cat $share/lacp.log; exit 1; }
`

// What systemd-networkd makes of the files is what was asked for: modes, members, tags, sizes, addresses, routes. A member can go.
func TestNetworkdMakesLinks(t *testing.T) {
	if os.Getenv("COLDRACK_E2E_NETWORKS") == "" {
		t.Skip("emulates a kernel; run: make e2e-networks")
	}
	require.Need(t, networkd, "dnsmasq", "unshare")
	share := t.TempDir()
	for name, c := range map[string]nodeconfig.Config{"lacp": lacpNode(), "bridge": bridgeNode()} {
		ops, err := nodeconfig.Direct(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(share, name), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, op := range ops {
			if op.Kind == nodeconfig.WriteFile && filepath.Dir(op.Path) == "/etc/systemd/network" {
				if err := os.WriteFile(filepath.Join(share, name, filepath.Base(op.Path)), op.Content, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	uml.Run(t, share, networkScript, []string{"crc-ccitt", "ipv6", "bonding", "veth", "llc", "stp", "bridge", "garp", "mrp", "8021q"},
		cable(1, 4), cable(2, 5), cable(3, 6))

	n := look(t, share, "lacp", "")
	bond := n.link("bond0", "bond")
	n.is("mode of the bond", bond.LinkInfo.Data["mode"], "802.3ad")
	n.is("rate", bond.LinkInfo.Data["ad_lacp_rate"], "fast")
	n.is("hash policy", bond.LinkInfo.Data["xmit_hash_policy"], "layer2+3")
	n.is("look at carriers", bond.LinkInfo.Data["miimon"], 100.0)
	n.is("MAC of the bond", bond.Address, "52:54:00:00:00:02")
	for _, link := range []string{"nic1", "nic2", "bond0"} {
		n.is("MTU of "+link, n.link(link, "").MTU, 9000)
	}
	n.is("master of nic1", n.link("nic1", "").Master, "bond0")
	n.is("master of nic2", n.link("nic2", "").Master, "bond0")
	vlan := n.link("storage", "vlan")
	n.is("tag", vlan.LinkInfo.Data["id"], 100.0)
	n.is("parent of the VLAN", vlan.Link, "bond0")
	n.is("MTU of the VLAN", vlan.MTU, 8900)
	n.has("bond0", "10.20.0.11/24")
	n.has("storage", "10.30.0.11/24", "fd00:30::11/64")
	n.has("nic1")
	n.route("default", "10.20.0.1", "bond0")
	n.route("10.40.0.0/16", "10.30.0.254", "storage")
	n.route("fd00:40::/48", "fe80::1", "storage")

	for _, run := range []string{"", ".again"} {
		n := look(t, share, "bridge", run)
		bond := n.link("bond0", "bond")
		n.is("mode of the bond", bond.LinkInfo.Data["mode"], "active-backup")
		n.is("preferred member", bond.LinkInfo.Data["primary"], "vec2")
		n.is("master of the bond", bond.Master, "br0")
		n.is("master of vec1", n.link("vec1", "").Master, "bond0")
		n.is("master of vec2", n.link("vec2", "").Master, "bond0")
		n.is("MAC of the bridge", n.link("br0", "bridge").Address, "52:54:00:00:01:01")
		for _, link := range []string{"vec1", "vec2", "bond0", "br0", "storage"} {
			n.is("MTU of "+link, n.link(link, "").MTU, 1450)
		}
		n.is("tag", n.link("storage", "vlan").LinkInfo.Data["id"], 4094.0)
		n.is("parent of the VLAN", n.link("storage", "vlan").Link, "br0")
		n.has("br0", "10.20.0.12/24")
		n.has("bond0")
		n.has("vec3", "10.50.0.77/24")
		n.route("default", "10.20.0.1", "br0") // and not the one that the DHCP server told
	}
}

// cable connects an interface of the node with a port of its switch.
func cable(nic, port int) uml.Cable {
	mac := func(n int) string { return fmt.Sprintf("52:54:00:00:01:%02d", n) }
	return uml.Cable{{Number: nic, MAC: mac(nic)}, {Number: port, MAC: mac(port)}}
}

// node is what ip tells of a node's network.
type node struct {
	t      *testing.T
	name   string
	links  []ipLink
	routes []ipRoute
}

type ipLink struct {
	Name     string `json:"ifname"`
	Link     string `json:"link"`
	Address  string `json:"address"`
	Master   string `json:"master"`
	MTU      int    `json:"mtu"`
	LinkInfo struct {
		Kind string         `json:"info_kind"`
		Data map[string]any `json:"info_data"`
	} `json:"linkinfo"`
	Addresses []struct {
		Local  string `json:"local"`
		Prefix int    `json:"prefixlen"`
		Scope  string `json:"scope"`
	} `json:"addr_info"`
}

type ipRoute struct {
	To  string `json:"dst"`
	Via string `json:"gateway"`
	Dev string `json:"dev"`
}

func look(t *testing.T, share, name, run string) node {
	t.Helper()
	n := node{t: t, name: name + run}
	read := func(what string, into any) {
		text, err := os.ReadFile(filepath.Join(share, name+"."+what+run+".json"))
		if err == nil {
			err = json.Unmarshal(text, into)
		}
		if err != nil {
			t.Fatalf("%s %s: %v", name, what, err)
		}
	}
	var six []ipRoute
	read("addr", &n.links) // everything that link tells, too
	read("route", &n.routes)
	read("route6", &six)
	n.routes = append(n.routes, six...)
	return n
}

func (n node) is(what string, got, want any) {
	n.t.Helper()
	if got != want {
		n.t.Errorf("%s: %s is %v, want %v", n.name, what, got, want)
	}
}

func (n node) link(name, kind string) ipLink {
	n.t.Helper()
	for _, l := range n.links {
		if l.Name == name {
			if kind != "" && l.LinkInfo.Kind != kind {
				n.t.Errorf("%s: %s is a %q, want a %s", n.name, name, l.LinkInfo.Kind, kind)
			}
			return l
		}
	}
	n.t.Errorf("%s: there is no link %s", n.name, name)
	return ipLink{}
}

// has checks all addresses of a link but those that every link makes for itself.
func (n node) has(link string, want ...string) {
	n.t.Helper()
	got := map[string]bool{}
	for _, a := range n.link(link, "").Addresses {
		if a.Scope == "global" {
			text, _ := json.Marshal(a.Prefix)
			got[a.Local+"/"+string(text)] = true
		}
	}
	if have := slices.Sorted(maps.Keys(got)); !slices.Equal(have, slices.Sorted(slices.Values(want))) {
		n.t.Errorf("%s: %s has %s, want %s", n.name, link, strings.Join(have, " "), strings.Join(want, " "))
	}
}

func (n node) route(to, via, dev string) {
	n.t.Helper()
	var found []ipRoute
	for _, r := range n.routes {
		if r.To == to {
			found = append(found, r)
		}
	}
	if want := (ipRoute{to, via, dev}); len(found) != 1 || found[0] != want {
		n.t.Errorf("%s: routes to %s are %v, want %v alone", n.name, to, found, want)
	}
}
