package house

// floor is how high a package stands. Imports go down, or stay on their floor where the table says so.
type floor int

const (
	ground  floor = iota // the vocabulary, and small packages without product knowledge
	stores               // content and machine
	engines              // netboot and cluster
	parties              // agent and server
	front                // lab, cli and the commands
)

var floorNames = []string{"ground", "content and machine", "netboot and cluster", "agent and server", "lab, cli and cmd"}

// room is one package of the product: the wing that it belongs to, its floor, and the packages of the product that it
// may import beside the open ones. Names are paths without "internal/".
type room struct {
	name  string
	wing  string
	floor floor
	may   []string
}

// open are small packages of the ground that every package may import, except the pure ones (see rules).
var open = []string{"base/digest", "base/durable", "base/liblog", "base/netns", "base/retry", "base/rootfs", "base/termtext", "contract/validate", "base/version"}

// shared is the one package that the pure ones may import, too: the rules for values, which import none of ours.
const shared = module + "internal/contract/validate"

func may(names ...string) []string { return names }

// rooms is the whole house. A package that is not listed, an import that is not listed, and an entry that nothing uses
// fail the test.
var rooms = []room{
	{"base/digest", "base", ground, nil},
	{"base/durable", "base", ground, nil},
	{"base/liblog", "base", ground, nil},
	{"base/netns", "base", ground, nil},
	{"base/objectstore", "base", ground, nil},
	{"base/pki", "base", ground, nil},
	{"base/retry", "base", ground, nil},
	{"base/rootfs", "base", ground, nil},
	{"base/termtext", "base", ground, nil},
	{"base/version", "base", ground, nil},
	{"contract/dialect", "contract", ground, may("contract/nodeconfig", "contract/manifest/yamlerr")},
	{"contract/firstboot", "contract", ground, may("contract/dialect", "contract/nodeconfig", "contract/wire")},
	{"contract/manifest", "contract", ground, may("contract/manifest/yamlerr")},
	{"contract/manifest/yamlerr", "contract", ground, nil},
	{"contract/nodeconfig", "contract", ground, nil},
	{"contract/pattern", "contract", ground, nil},
	{"contract/validate", "contract", ground, nil},
	{"contract/wire", "contract", ground, may("contract/nodeconfig")},
	{"api/v1alpha1", "api", ground, nil},

	{"content/diskimage", "content", stores, nil},
	{"content/diskfile", "content", stores, nil},
	{"content/bundle", "content", stores, may("content/diskimage", "contract/nodeconfig")},
	{"content/bundle/build", "content", stores, may("content/bundle", "content/diskfile", "content/diskimage", "content/diskboot", "contract/nodeconfig")},
	{"content/fetch", "content", stores, may("content/diskimage", "contract/wire")},
	{"content/imagefile", "content", stores, may("content/imagestore")},
	{"content/imagestore", "content", stores, nil},
	{"content/registry", "content", stores, may("content/imagestore")},
	{"content/swarm", "content", stores, nil},
	{"content/swarm/kit", "content", stores, may("content/diskimage")},
	{"content/swarm/peer", "content", stores, may("content/diskimage", "content/swarm", "contract/wire")},
	{"content/swarm/nodecache", "content", stores, may("content/diskimage", "content/swarm", "content/swarm/kit", "content/swarm/peer", "contract/wire")},
	{"content/diskboot", "content", stores, nil},
	{"machine/bmc", "machine", stores, may("contract/pattern")},
	{"machine/identify", "machine", stores, may("api/v1alpha1")},
	{"machine/enroll", "machine", stores, may("api/v1alpha1", "machine/identify", "contract/pattern")},
	{"machine/drift", "machine", stores, may("api/v1alpha1")},
	{"machine/fleet", "machine", stores, may("api/v1alpha1", "machine/identify", "contract/wire")},
	{"machine/expect", "machine", stores, may("api/v1alpha1")},
	{"machine/units", "machine", stores, may("contract/wire")},
	{"machine/racksheet", "machine", stores, may("api/v1alpha1", "machine/identify")},
	{"machine/lifecycle", "machine", stores, may("api/v1alpha1", "machine/drift", "machine/enroll", "machine/expect", "machine/fleet", "machine/identify", "contract/wire")},

	{"netboot/boot", "netboot", engines, may("api/v1alpha1")},
	{"netboot/connlimit", "netboot", engines, nil},
	{"netboot/dhcp", "netboot", engines, may("netboot/lease", "netboot/netif", "netboot/ratelimit")},
	{"netboot/dhcp6", "netboot", engines, may("netboot/lease", "netboot/netif", "netboot/ratelimit")},
	{"netboot/dns", "netboot", engines, may("netboot/connlimit", "netboot/ratelimit")},
	{"netboot/filename", "netboot", engines, nil},
	{"netboot/gate", "netboot", engines, nil},
	{"netboot/httpboot", "netboot", engines, may("netboot/connlimit", "netboot/filename")},
	{"netboot/lease", "netboot", engines, nil},
	{"netboot/menu", "netboot", engines, may("api/v1alpha1", "netboot/boot")},
	{"netboot/netif", "netboot", engines, nil},
	{"netboot/pktinfo", "netboot", engines, nil},
	{"netboot/quirk", "netboot", engines, may("contract/manifest/yamlerr", "contract/pattern")},
	{"netboot/radv", "netboot", engines, nil},
	{"netboot/ratelimit", "netboot", engines, nil},
	{"netboot/sntp", "netboot", engines, may("netboot/pktinfo", "netboot/ratelimit")},
	{"netboot/tftp", "netboot", engines, may("netboot/filename", "netboot/pktinfo")},
	{"cluster/kube", "cluster", engines, may("api/v1alpha1")},
	{"cluster/addon", "cluster", engines, may("contract/manifest", "api/v1alpha1")},
	{"cluster/kubeapi", "cluster", engines, may("api/v1alpha1", "cluster/addon", "cluster/kube", "cluster/kubeapi/pkcs10")},
	{"cluster/kubeapi/pkcs10", "cluster", engines, nil},
	{"cluster/planner", "cluster", engines, nil},
	{"cluster/etcd", "cluster", engines, nil},
	{"cluster/backup", "cluster", engines, may("base/objectstore")},
	{"cluster/etcddata", "cluster", engines, nil},
	{"cluster/loadbalancer", "cluster", engines, may("api/v1alpha1")},
	{"cluster/loadbalancer/bgp", "cluster", engines, nil},
	{"cluster/loadbalancer/segment", "cluster", engines, nil},
	{"cluster/loadbalancer/speaker", "cluster", engines, may("cluster/loadbalancer")},
	{"cluster/loadbalancer/node", "cluster", engines, may("api/v1alpha1", "cluster/loadbalancer", "cluster/loadbalancer/bgp", "cluster/loadbalancer/segment", "cluster/loadbalancer/speaker")},
	{"cluster/supply", "cluster", engines, may("api/v1alpha1", "cluster/kube", "content/bundle", "contract/manifest", "contract/manifest/yamlerr", "cluster/addon")},
	{"cluster/members", "cluster", engines, may("api/v1alpha1", "cluster/kube", "cluster/planner", "contract/wire")},
	{"cluster/rebootlock", "cluster", engines, may("api/v1alpha1", "cluster/members", "cluster/planner")},

	{"agent/balancer", "agent", parties, may("contract/wire")},
	{"agent/bringup", "agent", parties, may("agent/nodecert", "agent/nodefile", "agent/systemd", "content/fetch", "contract/wire")},
	{"agent/client", "agent", parties, may("content/swarm/kit", "contract/wire")},
	{"agent/console", "agent", parties, may("agent/journal", "agent/probe", "contract/wire")},
	{"agent/containerd", "agent", parties, may("contract/wire")},
	{"agent/discovery", "agent", parties, may("agent/client", "agent/console", "agent/identity", "agent/install", "agent/inventory", "agent/live", "agent/lldp", "content/fetch", "content/swarm/peer", "contract/wire")},
	{"agent/fat", "agent", parties, nil},
	{"agent/gpt", "agent", parties, nil},
	{"agent/identity", "agent", parties, may("agent/client")},
	{"agent/install", "agent", parties, may("agent/client", "agent/fat", "agent/gpt", "agent/identity", "agent/journal", "agent/probe", "agent/target", "content/diskimage", "content/fetch", "content/swarm/peer", "content/diskboot", "contract/nodeconfig", "contract/pattern", "contract/wire")},
	{"agent/inventory", "agent", parties, may("agent/probe", "agent/smbios", "contract/wire")},
	{"agent/journal", "agent", parties, nil},
	{"agent/live", "agent", parties, nil},
	{"agent/lldp", "agent", parties, may("contract/wire")},
	{"agent/node", "agent", parties, may("agent/balancer", "agent/bringup", "agent/client", "agent/containerd", "agent/identity", "agent/inventory", "agent/journal", "agent/routes", "agent/systemd", "agent/units", "content/fetch", "content/swarm/nodecache", "content/swarm/peer", "contract/wire")},
	{"agent/nodecert", "agent", parties, may("agent/client", "agent/nodefile", "contract/wire")},
	{"agent/nodefile", "agent", parties, may("contract/wire")},
	{"agent/pid1", "agent", parties, may("agent/console", "agent/discovery")},
	{"agent/probe", "agent", parties, may("agent/gpt")},
	{"agent/routes", "agent", parties, may("contract/wire")},
	{"agent/smbios", "agent", parties, nil},
	{"agent/systemd", "agent", parties, nil},
	{"agent/units", "agent", parties, may("agent/client", "agent/nodefile", "agent/systemd", "contract/wire")},
	{"agent/target", "agent", parties, may("contract/nodeconfig")},

	{"server/audit", "server", parties, nil},
	{"server/backups", "server", parties, may("api/v1alpha1", "base/objectstore", "cluster/backup", "cluster/etcd", "cluster/etcddata", "cluster/members")},
	{"server/certs", "server", parties, may("base/pki", "netboot/ratelimit")},
	{"server/certs/acme", "server", parties, may("base/pki", "netboot/ratelimit", "server/certs")},
	{"server/etcddiscovery", "server", parties, nil},
	{"server/omaha", "server", parties, may("server/omaha/rollout", "server/peopleapi/peoplewire")},
	{"server/omaha/rollout", "server", parties, nil},
	{"server/controllers", "server", parties, may("contract/wire", "api/v1alpha1", "cluster/etcd", "cluster/kube", "cluster/kubeapi", "cluster/members", "cluster/planner", "cluster/rebootlock", "machine/enroll", "machine/units", "machine/fleet", "machine/identify", "machine/lifecycle", "cluster/addon")},
	{"server/controlplane", "server", parties, may("api/v1alpha1", "cluster/etcd", "server/audit")},
	{"server/machineapi", "server", parties, may("api/v1alpha1", "cluster/members", "content/swarm", "content/swarm/kit", "machine/units", "machine/fleet", "machine/identify", "contract/firstboot", "contract/nodeconfig", "base/pki", "contract/wire")},
	{"server/power", "server", parties, may("api/v1alpha1", "machine/bmc")},
	{"server/peopleapi", "server", parties, may("api/v1alpha1", "machine/bmc", "server/power", "server/backups", "cluster/backup", "cluster/kube", "cluster/kubeapi", "cluster/members", "cluster/planner", "content/bundle", "machine/fleet", "server/controlplane", "server/peopleapi/peoplewire", "cluster/addon", "cluster/supply")},
	{"server/peopleapi/credentials", "server", parties, may("base/pki", "server/controlplane")},
	{"server/peopleapi/peoplewire", "server", parties, may("cluster/kube")},
	{"server/daemon", "server", parties, may("api/v1alpha1", "base/objectstore", "machine/bmc", "server/power", "server/backups", "cluster/backup", "cluster/etcd", "cluster/etcddata", "cluster/kube", "cluster/members", "cluster/rebootlock", "content/bundle", "content/diskimage", "content/imagestore", "content/registry", "content/swarm", "content/swarm/kit", "machine/enroll", "machine/units", "machine/fleet", "machine/identify", "contract/nodeconfig", "contract/manifest", "netboot/boot", "netboot/connlimit", "netboot/dhcp", "netboot/dhcp6", "netboot/dns", "netboot/gate", "netboot/httpboot", "netboot/netif", "netboot/quirk", "netboot/radv", "netboot/sntp", "netboot/tftp", "base/pki", "server/audit", "server/certs", "server/certs/acme", "server/controllers", "server/controlplane", "server/etcddiscovery", "server/machineapi", "server/omaha", "server/peopleapi", "server/peopleapi/credentials", "server/peopleapi/peoplewire", "server/ui", "contract/wire", "cluster/supply", "netboot/menu")},
	{"server/ui", "server", parties, may("server/controlplane", "server/peopleapi/peoplewire")},

	{"lab", "lab", front, may("lab/vbmc")},
	{"lab/vbmc", "lab", front, nil},
	{"lab/rehearse", "lab", front, may("agent/client", "agent/discovery", "api/v1alpha1", "content/bundle", "content/diskimage", "contract/manifest", "contract/wire")},
	{"cli", "cli", front, may("api/v1alpha1", "cli/exit", "cluster/kube", "content/bundle", "content/bundle/build", "server/peopleapi/peoplewire")},
	{"cli/csrfile", "cli", front, nil},
	{"cli/exit", "cli", front, nil},
	{"cli/follow", "cli", front, may("api/v1alpha1", "cli", "cli/exit", "lab/rehearse", "netboot/gate")},
	{"cli/labs", "cli", front, may("cli", "cli/exit", "lab")},
	{"cli/machine", "cli", front, may("api/v1alpha1", "cli", "cli/exit", "cli/objects", "machine/drift", "machine/racksheet", "netboot/boot")},
	{"cli/nodefile", "cli", front, may("api/v1alpha1", "contract/dialect", "contract/manifest", "contract/nodeconfig")},
	{"cli/objects", "cli", front, may("cli", "cli/exit", "contract/manifest")},
	{"cli/power", "cli", front, may("api/v1alpha1", "cli", "machine/racksheet", "server/peopleapi/peoplewire")},
	{"cli/request", "cli", front, may("cli/exit")},
	{"cli/upload", "cli", front, may("cli", "content/bundle", "content/imagefile", "server/peopleapi/peoplewire")},
	{"cli/doctor", "cli", front, may("api/v1alpha1", "netboot/boot", "netboot/dhcp", "server/peopleapi/peoplewire")},
	{"cli/bootprobe", "cli", front, may("contract/wire", "netboot/dhcp")},
	{"cli/capture", "cli", front, may("netboot/boot")},
	{"cli/settings", "cli", front, may("contract/manifest/yamlerr")},
	{"cmd/coldrack", "cmd", front, may("api/v1alpha1", "cli", "cli/bootprobe", "cli/capture", "cli/csrfile", "cli/doctor", "cli/exit", "cli/follow", "cli/labs", "cli/machine", "cli/objects", "cli/power", "cli/request", "cli/settings", "cli/upload", "cluster/etcddata", "cluster/kube", "cluster/supply", "content/bundle", "content/bundle/build", "content/imagefile", "lab", "lab/rehearse", "contract/manifest", "machine/expect", "machine/racksheet", "netboot/dns", "netboot/gate", "netboot/sntp", "server/audit", "server/controlplane", "server/daemon", "server/peopleapi/credentials", "server/peopleapi/peoplewire", "cluster/addon", "cli/nodefile", "contract/dialect", "contract/nodeconfig")},
	{"cmd/coldrack-agent", "cmd", front, may("agent/console", "agent/discovery", "agent/inventory", "agent/node", "agent/pid1")},
	{"cmd/coldrack-loadbalancer", "cmd", front, may("cluster/loadbalancer/node")},
	{"cmd/coldrack-probe", "cmd", front, nil},
}

// ban is something that a package must not reach, directly or through others, or not import where direct says so.
type ban struct {
	from, to string
	direct   bool
	why      string
}

// Both ends are prefixes of import paths, without "coldrack.dev/"; "product" is all of ours.
var bans = []ban{
	{"api/", product, false, "the vocabulary knows nothing of how it is carried out"},
	{"internal/contract/validate", product, false, "the rules for values are pure and stand below everything"},
	{"internal/contract/validate", "k8s.io/", false, "the agent uses it"},
	{"internal/netboot/boot", "internal/", false, "the boot decision is pure"},
	{"internal/netboot/boot", "net/http", true, "the boot decision is pure"},
	{"internal/netboot/menu", "net/http", true, "what a choice at the console may do is decided by pure code"},
	{"internal/contract/nodeconfig", product, false, "node configuration is pure data"},
	{"internal/contract/nodeconfig", "k8s.io/", false, "the agent uses it"},
	{"internal/contract/dialect", "k8s.io/", false, "what other tools write is read without the API's machinery"},
	{"cmd/coldrack-agent", "internal/contract/dialect", false, "a dialect's libraries would be loaded over the network by every machine"},
	{"internal/content/diskimage", "k8s.io/", false, "the agent uses it"},
	{"internal/content/swarm$", product, false, "who fetches what from whom is decided by pure code, which the simulation runs, too"},
	{"internal/content/swarm$", "net", true, "who fetches what from whom is decided by pure code"},
	{"internal/content/swarm/kit", "net", true, "what a kit holds is computed by pure code"},
	{"internal/netboot/gate", product, false, "whose turn it is is decided by pure code"},
	{"internal/netboot/quirk", "net", true, "what firmware needs is decided by pure code"},
	{"internal/netboot/quirk", "api/", false, "what firmware needs is decided by pure code"},
	{"internal/netboot/gate", "net", true, "whose turn it is is decided by pure code"},
	{"internal/netboot/sntp", "api/", false, "protocol servers have no product knowledge"},
	{"internal/netboot/dns", "api/", false, "protocol servers have no product knowledge"},
	{"internal/netboot/ratelimit", product, false, "who is answered how often is decided by pure code"},
	{"internal/netboot/ratelimit", "net", true, "who is answered how often is decided by pure code"},
	{"internal/netboot/dhcp", "api/", false, "protocol servers have no product knowledge"},
	{"internal/netboot/dhcp6", "api/", false, "protocol servers have no product knowledge"},
	{"internal/netboot/tftp", "api/", false, "protocol servers have no product knowledge"},
	{"internal/netboot/filename", product, false, "protocol servers have no product knowledge"},
	{"internal/netboot/httpboot", "api/", false, "protocol servers have no product knowledge"},
	{"internal/content/registry", "api/", false, "protocol servers have no product knowledge"},
	{"internal/cluster/kube$", "internal/", false, "what a cluster needs on each machine is rendered by a pure function"},
	{"internal/cluster/addon", "net/http", true, "what is applied, removed and healthy is decided by pure code"},
	{"internal/cluster/loadbalancer$", "net/http", true, "who gets which address, and who answers for it, is decided by pure code"},
	{"internal/cluster/loadbalancer/", "internal/server/", false, "it runs in a cluster, and goes on without the server"},
	{"internal/cluster/planner", product, false, "what is taken away, and when, is decided by a pure function"},
	{"internal/cluster/planner", "net", true, "what is taken away, and when, is decided by a pure function"},
	{"internal/cluster/planner", "k8s.io/", false, "what is taken away, and when, is decided by a pure function"},
	{"internal/machine/units", "net", true, "which machine runs which unit is decided by pure code"},
	{"internal/machine/units", "k8s.io/", false, "which machine runs which unit is decided by pure code"},
	{"internal/machine/racksheet", "net/http", true, "what a sheet means is decided by pure code"},
	{"internal/contract/wire", "k8s.io/", false, "the agent uses it; it must stay small"},
	{"internal/base/digest", "k8s.io/", false, "the agent uses it; it must stay small"},
	{"internal/base/durable", "k8s.io/", false, "the agent uses it; it must stay small"},
	{"cmd/coldrack-agent", "k8s.io/", false, "no Kubernetes API machinery in the agent: it is loaded over the network by every machine"},
	{"cmd/coldrack-agent", "sigs.k8s.io/", false, "no Kubernetes API machinery in the agent"},
	{"cmd/coldrack-agent", "go.etcd.io/", false, "no store in the agent"},
	{"cmd/coldrack$", "github.com/osrg/gobgp", false, "routers are told by nodes; the server has no use for its size"},
	{"cmd/coldrack-agent", "github.com/osrg/gobgp", false, "routers are told by a pod of the node; the agent stays small"},
	{"cmd/coldrack-agent", "internal/machine/bmc", false, "only the server reaches BMCs, and their protocols would make the agent large"},
	{"internal/machine/bmc", "api/", false, "the drivers have no product knowledge"},
	{"cmd/coldrack-agent", "api/", false, "the agent speaks only internal/contract/wire"},
	{"internal/agent/", "internal/server/", false, "the agent reaches neither the control plane nor the controllers"},
	{"cmd/coldrack-probe", "internal/", false, "the probe is pulled by nodes of any cluster; it stays small"},
	{"internal/server/omaha/rollout", product, false, "who gets an update now is decided by a pure function"},
	{"internal/server/omaha/rollout", "net", true, "who gets an update now is decided by a pure function"},
	{"internal/server/machineapi", "internal/server/controlplane", false, "machines never reach people's API"},
	{"internal/server/peopleapi/peoplewire", "internal/server/", false, "the command line imports it; it must stay small"},
	{"internal/server/controllers", "internal/server/controlplane", false, "controllers take a rest.Config, so that any Kubernetes API serves"},
	{"internal/lab/", "internal/server/", false, "a rehearsal meets the server as machines do: over the network"},
}
