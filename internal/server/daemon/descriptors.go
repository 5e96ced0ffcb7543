package daemon

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/netboot/connlimit"
)

// budget divides the process's file descriptors among the servers that need one for each client. At least a quarter is left
// for the store, DHCP and the content: without descriptors, etcd ends the process.
type budget struct {
	bootHTTP  int // connections
	machine   int // connections
	discovery int // connections
	transfers int // of TFTP; up to four times as many run while firmware waits
}

// fewDescriptors is the limit below which a rack of some hundred machines may be too many.
const fewDescriptors = 8192

func budgetOf(descriptors uint64) budget {
	limit := int(min(max(descriptors, 256), 1<<20))
	return budget{bootHTTP: min(limit/8, 4096), machine: min(limit/2, 1<<15), discovery: min(limit/32, 512), transfers: min(limit/32, 1000)}
}

// descriptorBudget is the budget under the limit of this process.
func descriptorBudget(log *slog.Logger) (budget, error) {
	var limit unix.Rlimit // Go has raised it as far as it may
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return budget{}, fmt.Errorf("limit of open files: %w", err)
	}
	b := budgetOf(limit.Cur)
	if limit.Cur < fewDescriptors {
		log.Warn("this process may open few files: a large rack is served slowly; set LimitNOFILE=65536 in the unit, or ulimit -n",
			"limit", limit.Cur, "machineConnections", b.machine, "bootConnections", b.bootHTTP)
	}
	return b, nil
}

// connectionsPerMachine is how many connections one address may have to the machine API. An agent needs one, a node that
// pulls container images some more.
const connectionsPerMachine = 64

// limitMachines bounds the connections to the machine API. Half of the places are for peers that present no certificate of
// ours: machines that enrol, container runtimes, and strangers.
func limitMachines(listener net.Listener, places int) *connlimit.Listener {
	return connlimit.New(listener, connlimit.Options{Max: places, PerClient: connectionsPerMachine, Unproven: places / 2})
}

// provenBy makes a handshake with a client certificate of ours prove its connection (see connlimit).
func provenBy(config *tls.Config) *tls.Config {
	each := config.Clone()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		conn, ok := hello.Conn.(*connlimit.Conn)
		if !ok {
			return nil, nil // the usual one
		}
		own := each.Clone()
		own.VerifyConnection = func(state tls.ConnectionState) error {
			if len(state.VerifiedChains) > 0 {
				conn.Prove()
			}
			return nil
		}
		return own, nil
	}
	return config
}
