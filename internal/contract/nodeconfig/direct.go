package nodeconfig

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"coldrack.dev/internal/contract/validate"
)

// Kind of an operation.
type Kind string

// What Direct asks of whoever applies it. Each makes a state, so that applying twice is applying once.
const (
	MakeDir    Kind = "dir"    // Path with Mode and Owner, and its parents
	WriteFile  Kind = "file"   // Path with Content, Mode and Owner; replaces a link instead of following it
	MakeLink   Kind = "link"   // Path as a symbolic link to Target
	Remove     Kind = "remove" // Path, and all below it; absence is fine
	MakeUser   Kind = "user"   // Login, with its home folder and a group of the same name
	EnableUnit Kind = "enable" // Unit, as its [Install] section says
	MaskUnit   Kind = "mask"   // Unit
)

// Op is one operation on a mounted root file system. Paths are absolute within it.
type Op struct {
	Kind    Kind
	Path    string
	Content []byte
	Mode    uint32
	Owner   string // user:group, names of the target system
	Target  string
	Login   User
	Unit    string
	// Optional makes a unit that the image lacks no failure.
	Optional bool
}

// hostKeys makes the node's SSH host keys on the node: an image is the same on every node, so keys in it
// would be everybody's. RSA takes a slow machine long, and no client of today needs it.
const hostKeys = `[Unit]
Description=Make this node's own SSH host keys
Before=ssh.service sshd.service
ConditionFileIsExecutable=/usr/bin/ssh-keygen

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for t in ecdsa ed25519; do f=/etc/ssh/ssh_host_$${t}_key; test -s $$f || { rm -f $$f; /usr/bin/ssh-keygen -q -t $$t -N "" -C "" -f $$f; }; done'

[Install]
WantedBy=multi-user.target
`

// agentService runs the node agent. It needs root for the identity's folder and for systemctl reboot. In a
// cluster it writes programs (/usr, /opt), what configures them (/etc) and their state (/var/lib, /var/log), which
// are folders that do not exist yet; the rest of the system stays read-only to it. What it starts, systemd starts:
// nothing of that is confined by this unit, or ends with it.
const agentService = `[Unit]
Description=Coldrack node agent
Wants=network-online.target
After=network.target systemd-timesyncd.service

[Service]
Type=notify
NotifyAccess=main
ExecStart=/usr/local/bin/coldrack-agent node
Restart=always
RestartSec=5
TimeoutStartSec=infinity
StateDirectory=coldrack/agent
StateDirectoryMode=0700
ProtectSystem=strict
ReadWritePaths=/etc /usr -/opt /var/lib /var/log
ProtectHome=yes
PrivateTmp=yes
NoNewPrivileges=yes
MemoryMax=128M

[Install]
WantedBy=multi-user.target
`

// Direct encodes c as operations for the debian family. It fails with Problems when c is not valid.
func Direct(c Config) ([]Op, error) {
	if err := Validate(c); err != nil {
		return nil, err
	}
	var d direct
	d.identity(c)
	d.network(c)
	d.clock(c)
	d.ssh(c)
	d.users(c.Users)
	for _, f := range c.Files {
		d.file(f.Path, f.Content, mode(f.Mode), f.Owner)
	}
	d.ops = append(d.ops, Agent()...)
	d.units(c.Units)
	return d.ops, nil
}

// Agent are the operations that have the node agent run. Its program, settings and identity are the installer's.
func Agent() []Op {
	var d direct
	d.file("/etc/systemd/system/"+validate.AgentUnit, []byte(agentService), 0o644, "")
	return append(d.ops, Op{Kind: EnableUnit, Unit: validate.AgentUnit})
}

// Unused are the operations that take from an image what would be the same on every machine.
func Unused() []Op {
	var d direct
	d.unused()
	return d.ops
}

// Portable is what of c an image of any family can be told at its first boot: the operations of Direct without those that
// ready an image for being the same on many disks, and without Coldrack's own agent. A Config without a host name is one of many
// machines: what only one machine has is left out, and so is what c does not say.
func Portable(c Config) ([]Op, error) {
	checked := c
	if checked.Hostname == "" {
		checked.Hostname = "many"
	}
	if err := Validate(checked); err != nil {
		return nil, err
	}
	var d direct
	if c.Hostname != "" {
		d.names(c)
	}
	if len(c.Interfaces) > 0 || c.Domain != "" || len(c.DNS) > 0 {
		d.network(c)
	}
	if c.Timezone != "" || c.Hostname != "" || len(c.NTP) > 0 {
		d.clock(c)
	}
	d.keys("/root", "root", c.SSHKeys)
	d.users(c.Users)
	for _, f := range c.Files {
		d.file(f.Path, f.Content, mode(f.Mode), f.Owner)
	}
	d.units(c.Units)
	return d.ops, nil
}

type direct struct{ ops []Op }

func mode(m uint32) uint32 {
	if m == 0 {
		return 0o644
	}
	return m
}

func (d *direct) file(path string, content []byte, mode uint32, owner string) {
	if owner == "" {
		owner = "root:root"
	}
	d.ops = append(d.ops, Op{Kind: WriteFile, Path: path, Content: content, Mode: mode, Owner: owner})
}

func (d *direct) text(path, content string) { d.file(path, []byte(content), 0o644, "") }

func (d *direct) identity(c Config) {
	d.names(c)
	d.unused()
}

func (d *direct) unused() {
	// systemd fills an empty machine-id in at the first boot. What was made while the image was built
	// would be the same on every node.
	d.file("/etc/machine-id", nil, 0o444, "")
	d.ops = append(d.ops,
		Op{Kind: MakeLink, Path: "/var/lib/dbus/machine-id", Target: "/etc/machine-id"},
		Op{Kind: Remove, Path: "/var/lib/systemd/random-seed"})
}

func (d *direct) names(c Config) {
	d.text("/etc/hostname", c.Hostname+"\n")
	names := c.Hostname
	if c.Domain != "" {
		names = c.Hostname + "." + c.Domain + " " + c.Hostname
	}
	self := "127.0.1.1"
	if c.Links != nil {
		if own, ok := selfOf(c.Links); ok {
			self = own.String()
		}
	} else if len(c.Interfaces) > 0 {
		self = netip.MustParsePrefix(c.Interfaces[0].Addresses[0]).Addr().String()
	}
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	fmt.Fprintf(&b, "%s %s\n", self, names)
	for _, h := range c.Hosts {
		fmt.Fprintf(&b, "%s %s\n", h.Address, strings.Join(h.Names, " "))
	}
	d.text("/etc/hosts", b.String())
}

func (d *direct) network(c Config) {
	if c.Links != nil {
		d.ops = append(d.ops, linkFiles(c.Links)...)
	} else {
		d.interfaces(c.Interfaces)
	}
	var b strings.Builder
	if c.Domain != "" {
		fmt.Fprintf(&b, "search %s\n", c.Domain)
	}
	for _, s := range c.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	d.text("/etc/resolv.conf", b.String())
	if len(c.Interfaces) > 0 {
		d.ops = append(d.ops, Op{Kind: EnableUnit, Unit: "systemd-networkd.service"})
	}
}

func (d *direct) interfaces(list []Interface) {
	for i, f := range list {
		mac, _ := net.ParseMAC(f.MAC) // Validate saw it
		var b strings.Builder
		// A VLAN or bridge on top inherits the MAC; only devices without a kind are hardware.
		fmt.Fprintf(&b, "[Match]\nMACAddress=%s\nType=ether\nKind=!*\n\n[Link]\n", mac)
		if f.MTU != 0 {
			fmt.Fprintf(&b, "MTUBytes=%d\n", f.MTU)
		}
		// The first interface is the one that the node is known by; a second cable that is not plugged in
		// must not hold up the boot.
		if i == 0 {
			b.WriteString("RequiredForOnline=yes\n")
		} else {
			b.WriteString("RequiredForOnline=no\n")
		}
		b.WriteString("\n[Network]\nDHCP=no\nIPv6AcceptRA=no\nLLDP=yes\n")
		for _, a := range f.Addresses {
			fmt.Fprintf(&b, "Address=%s\n", a)
		}
		if f.Gateway != "" {
			fmt.Fprintf(&b, "Gateway=%s\n", f.Gateway)
		}
		d.text("/etc/systemd/network/10-coldrack-"+strings.ReplaceAll(mac.String(), ":", "")+".network", b.String())
	}
}

func (d *direct) clock(c Config) {
	tz := c.Timezone
	if tz == "" {
		tz = "UTC"
	}
	d.ops = append(d.ops, Op{Kind: MakeLink, Path: "/etc/localtime", Target: "/usr/share/zoneinfo/" + tz})
	d.text("/etc/timezone", tz+"\n")
	if len(c.NTP) > 0 {
		d.text("/etc/systemd/timesyncd.conf.d/10-coldrack.conf", "[Time]\nNTP="+strings.Join(c.NTP, " ")+"\n")
		d.ops = append(d.ops, Op{Kind: EnableUnit, Unit: "systemd-timesyncd.service", Optional: true})
	}
}

func (d *direct) ssh(c Config) {
	for _, kind := range []string{"rsa", "ecdsa", "ed25519", "dsa"} {
		for _, suffix := range []string{"", ".pub"} {
			d.ops = append(d.ops, Op{Kind: Remove, Path: "/etc/ssh/ssh_host_" + kind + "_key" + suffix})
		}
	}
	d.text("/etc/systemd/system/"+validate.HostKeysUnit, hostKeys)
	d.ops = append(d.ops, Op{Kind: EnableUnit, Unit: validate.HostKeysUnit})
	d.keys("/root", "root", c.SSHKeys)
}

func (d *direct) keys(home, name string, keys []string) {
	if len(keys) == 0 {
		return
	}
	own := name + ":" + name
	d.ops = append(d.ops, Op{Kind: MakeDir, Path: home + "/.ssh", Mode: 0o700, Owner: own})
	d.file(home+"/.ssh/authorized_keys", []byte(strings.Join(keys, "\n")+"\n"), 0o600, own)
}

// DefaultShell is the shell of a login that names none.
const DefaultShell = "/bin/bash"

func (d *direct) users(users []User) {
	var sudoers []string
	for _, u := range users {
		login := u
		if login.Shell == "" {
			login.Shell = DefaultShell
		}
		login.SSHKeys = nil
		d.ops = append(d.ops, Op{Kind: MakeUser, Login: login})
		d.keys("/home/"+u.Name, u.Name, u.SSHKeys)
		if u.Sudo {
			sudoers = append(sudoers, u.Name+" ALL=(ALL:ALL) NOPASSWD:ALL\n")
		}
	}
	if len(sudoers) > 0 {
		slices.Sort(sudoers)
		d.ops = append(d.ops, Op{Kind: MakeDir, Path: "/etc/sudoers.d", Mode: 0o750, Owner: "root:root"})
		d.file("/etc/sudoers.d/90-coldrack", []byte(strings.Join(sudoers, "")), 0o440, "")
	}
}

// units writes all contents before it enables any: one unit's Also= may name another.
func (d *direct) units(units []Unit) {
	for _, u := range units {
		if u.Content != "" {
			d.text("/etc/systemd/system/"+u.Name, u.Content)
		}
	}
	for _, u := range units {
		switch {
		case u.Masked:
			d.ops = append(d.ops, Op{Kind: MaskUnit, Unit: u.Name})
		case u.Enabled:
			d.ops = append(d.ops, Op{Kind: EnableUnit, Unit: u.Name})
		}
	}
}
