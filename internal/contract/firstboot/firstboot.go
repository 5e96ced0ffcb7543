// Package firstboot says what a whole-disk image is told at its first boot, so that it becomes one machine: the files of cloud-init's
// datasource NoCloud, or an Ignition config. It is pure. What an image's family cannot be told is an error, never left out: it would show only
// after the disk was overwritten.
package firstboot

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"coldrack.dev/internal/contract/dialect"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/contract/wire"
)

// Families of whole-disk images.
const (
	CloudInit = "cloud-init"
	Flatcar   = "flatcar"
	FCOS      = "fcos"
)

// Whole tells whether images of a family are whole disks.
func Whole(family string) bool { return family == CloudInit || family == Flatcar || family == FCOS }

// Node is one machine.
type Node struct {
	// IntentID of the install: cloud-init does its work once for each.
	IntentID string
	Config   nodeconfig.Config
	// KernelArgs and Console as in a Profile.
	KernelArgs, Console []string
}

// Make says what an image of a family is told.
func Make(family string, n Node) (*wire.FirstBoot, error) {
	if err := nodeconfig.Validate(n.Config); err != nil {
		return nil, err
	}
	switch family {
	case CloudInit:
		seed, err := noCloud(n)
		if err != nil {
			return nil, fmt.Errorf("an image of family cloud-init %w", err)
		}
		return &wire.FirstBoot{NoCloud: seed}, nil
	case Flatcar:
		config, err := ignition(n, "/opt/bin")
		if err != nil {
			return nil, fmt.Errorf("an image of family flatcar %w", err)
		}
		return &wire.FirstBoot{Ignition: &wire.Ignition{Config: config, Partition: "OEM", Path: "/config.ign", Agent: "/coldrack"}}, nil
	case FCOS:
		n, err := networkManager(n)
		if err != nil {
			return nil, fmt.Errorf("an image of family fcos %w", err)
		}
		config, err := ignition(n, "/usr/local/bin")
		if err != nil {
			return nil, fmt.Errorf("an image of family fcos %w", err)
		}
		return &wire.FirstBoot{Ignition: &wire.Ignition{Config: config, Partition: "boot", Path: "/ignition/config.ign", Agent: "/coldrack"}}, nil
	}
	return nil, fmt.Errorf("images of family %q are no whole disks", family)
}

var errLinks = errors.New("gets one interface with its addresses; bonds, VLANs, bridges, and further interfaces and routes of the machine's network are for images of family debian and flatcar")

// lost says what could not be told.
func lost(findings []dialect.Finding) error {
	if len(findings) == 0 {
		return nil
	}
	var all []string
	for _, f := range findings {
		all = append(all, f.String())
	}
	return fmt.Errorf("cannot be told: %s", strings.Join(all, "; "))
}

func noCloud(n Node) (*wire.NoCloud, error) {
	c := n.Config
	switch {
	case c.Links != nil:
		return nil, errLinks
	case len(n.KernelArgs) > 0:
		return nil, fmt.Errorf("has its own kernel arguments: remove kernelArgs %q from the profile", n.KernelArgs)
	case len(n.Console) > 0:
		return nil, fmt.Errorf("has its own console: remove console %q from the profile", n.Console)
	}
	network, err := netplan(c)
	if err != nil {
		return nil, err
	}
	c.Interfaces, c.DNS = nil, nil
	user, left, err := dialect.Encode(dialect.CloudInit, dialect.Node{Config: c})
	if err == nil {
		err = lost(left)
	}
	if err != nil {
		return nil, err
	}
	meta, err := json.Marshal(map[string]string{"instance-id": "coldrack-" + n.IntentID, "local-hostname": c.Hostname})
	if err != nil {
		return nil, err
	}
	return &wire.NoCloud{UserData: user, MetaData: append(meta, '\n'), NetworkConfig: network}, nil
}

// netplan is cloud-init's network-config of version 2, in JSON, which is YAML. Interfaces get names of ours: cloud-init's renderers for
// networkd and ifupdown go by the name.
func netplan(c nodeconfig.Config) ([]byte, error) {
	type route struct {
		To  string `json:"to"`
		Via string `json:"via"`
	}
	type servers struct {
		Addresses []string `json:"addresses,omitempty"`
		Search    []string `json:"search,omitempty"`
	}
	type ethernet struct {
		Match       map[string]string `json:"match"`
		SetName     string            `json:"set-name"`
		DHCP4       bool              `json:"dhcp4"`
		Addresses   []string          `json:"addresses"`
		Routes      []route           `json:"routes,omitempty"`
		NameServers *servers          `json:"nameservers,omitempty"`
		MTU         int               `json:"mtu,omitempty"`
	}
	ethernets := map[string]ethernet{}
	for i, nic := range c.Interfaces {
		e := ethernet{Match: map[string]string{"macaddress": strings.ToLower(nic.MAC)}, SetName: fmt.Sprintf("lan%d", i), Addresses: nic.Addresses, MTU: nic.MTU}
		if nic.Gateway != "" {
			gateway, err := netip.ParseAddr(nic.Gateway)
			if err != nil {
				return nil, err
			}
			to := "0.0.0.0/0"
			if gateway.Is6() {
				to = "::/0"
			}
			e.Routes = []route{{to, nic.Gateway}}
		}
		if i == 0 && (len(c.DNS) > 0 || c.Domain != "") {
			e.NameServers = &servers{Addresses: c.DNS}
			if c.Domain != "" {
				e.NameServers.Search = []string{c.Domain}
			}
		}
		ethernets[e.SetName] = e
	}
	text, err := json.MarshalIndent(map[string]any{"version": 2, "ethernets": ethernets}, "", "  ")
	return append(text, '\n'), err
}

// networkManager turns interfaces into connections of NetworkManager, which Fedora CoreOS has instead of systemd-networkd.
func networkManager(n Node) (Node, error) {
	c := n.Config
	if c.Links != nil {
		return n, errLinks
	}
	c.Files = slices.Clone(c.Files)
	for i, nic := range c.Interfaces {
		name := fmt.Sprintf("coldrack-lan%d", i)
		var b strings.Builder
		fmt.Fprintf(&b, "[connection]\nid=%s\ntype=ethernet\n\n[ethernet]\nmac-address=%s\n", name, strings.ToUpper(nic.MAC))
		if nic.MTU > 0 {
			fmt.Fprintf(&b, "mtu=%d\n", nic.MTU)
		}
		for _, family := range []struct {
			section string
			is4     bool
		}{{"ipv4", true}, {"ipv6", false}} {
			fmt.Fprintf(&b, "\n[%s]\n", family.section)
			number := 0
			for _, text := range nic.Addresses {
				prefix, err := netip.ParsePrefix(text)
				if err != nil {
					return n, err
				}
				if prefix.Addr().Is4() == family.is4 {
					number++
					fmt.Fprintf(&b, "address%d=%s\n", number, prefix)
				}
			}
			if number == 0 {
				b.WriteString("method=disabled\n")
				continue
			}
			b.WriteString("method=manual\n")
			if gateway, err := netip.ParseAddr(nic.Gateway); err == nil && gateway.Is4() == family.is4 {
				fmt.Fprintf(&b, "gateway=%s\n", gateway)
			}
			var dns []string
			for _, s := range c.DNS {
				if a, err := netip.ParseAddr(s); err == nil && a.Is4() == family.is4 {
					dns = append(dns, s)
				}
			}
			if i == 0 && len(dns) > 0 {
				fmt.Fprintf(&b, "dns=%s;\n", strings.Join(dns, ";"))
			}
			if i == 0 && c.Domain != "" {
				fmt.Fprintf(&b, "dns-search=%s;\n", c.Domain)
			}
		}
		c.Files = append(c.Files, nodeconfig.File{Path: "/etc/NetworkManager/system-connections/" + name + ".nmconnection", Content: []byte(b.String()), Mode: 0o600})
	}
	// Else they would be written into resolv.conf, which is NetworkManager's.
	c.Interfaces, c.DNS, c.Domain = nil, nil, ""
	n.Config = c
	return n, nil
}

// placeAgent copies the agent, its settings and its identity from the partition where the installer left them. It may be cut off anywhere and run again: the identity goes last.
const placeAgent = `#!/bin/sh
# Written by Coldrack: puts its node agent in place.
set -eu
for place in ${1:-/oem /usr/share/oem /boot}; do
    [ -x "$place/coldrack/coldrack-agent" ] && break
done
from="$place/coldrack"
root="${2:-}"
mkdir -p "$root@PROGRAMS@" "$root/etc/coldrack" "$root/var/lib/coldrack/agent"
chmod 0700 "$root/var/lib/coldrack/agent"
cp "$from/coldrack-agent" "$root@PROGRAMS@/.coldrack-agent.part"
chmod 0755 "$root@PROGRAMS@/.coldrack-agent.part"
mv "$root@PROGRAMS@/.coldrack-agent.part" "$root@PROGRAMS@/coldrack-agent"
cp "$from/agent.json" "$root/etc/coldrack/agent.json"
(umask 077; cat "$from/node.pem" > "$root/var/lib/coldrack/agent/.node.pem.part")
if command -v restorecon >/dev/null 2>&1; then
    restorecon "$root@PROGRAMS@/coldrack-agent" || true
fi
sync
mv "$root/var/lib/coldrack/agent/.node.pem.part" "$root/var/lib/coldrack/agent/node.pem"
sync
# The key has one place from now on.
rm -f "$from/node.pem" 2>/dev/null || { mount -o remount,rw "$place" && rm -f "$from/node.pem"; mount -o remount,ro "$place"; }
`

const placeUnit = `[Unit]
Description=Put Coldrack's node agent in place
ConditionPathExists=!/var/lib/coldrack/agent/node.pem

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /etc/coldrack/place-agent.sh

[Install]
WantedBy=multi-user.target
`

// agentUnit runs an agent that reports, and changes nothing of the system.
const agentUnit = `[Unit]
Description=Coldrack node agent
Wants=network-online.target
Requires=coldrack-place-agent.service
After=coldrack-place-agent.service network.target

[Service]
Type=notify
NotifyAccess=main
ExecStart=@PROGRAMS@/coldrack-agent node
Restart=always
RestartSec=5
TimeoutStartSec=infinity
StateDirectory=coldrack/agent
StateDirectoryMode=0700
ProtectSystem=full
ProtectHome=yes
PrivateTmp=yes
NoNewPrivileges=yes
MemoryMax=128M

[Install]
WantedBy=multi-user.target
`

// ignition is a config that also puts the agent in place, as a program in a folder that the family can write to.
func ignition(n Node, programs string) ([]byte, error) {
	args := slices.Clone(n.KernelArgs)
	for _, c := range n.Console {
		args = append(args, "console="+c)
	}
	text, left, err := dialect.Encode(dialect.Ignition, dialect.Node{Config: n.Config, KernelArgs: args})
	if err == nil {
		err = lost(left)
	}
	if err != nil {
		return nil, err
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, err
	}
	here := strings.NewReplacer("@PROGRAMS@", programs)
	appendTo(config, "storage", "files", map[string]any{
		"path": "/etc/coldrack/place-agent.sh", "mode": 0o755, "overwrite": true,
		"contents": map[string]any{"source": "data:;base64," + base64.StdEncoding.EncodeToString([]byte(here.Replace(placeAgent)))},
	})
	appendTo(config, "systemd", "units", map[string]any{"name": "coldrack-place-agent.service", "enabled": true, "contents": placeUnit})
	appendTo(config, "systemd", "units", map[string]any{"name": validate.AgentUnit, "enabled": true, "contents": here.Replace(agentUnit)})
	text, err = json.MarshalIndent(config, "", "  ")
	return append(text, '\n'), err
}

func appendTo(config map[string]any, section, list string, item any) {
	in, _ := config[section].(map[string]any)
	if in == nil {
		in = map[string]any{}
	}
	items, _ := in[list].([]any)
	in[list] = append(items, item)
	config[section] = in
}
