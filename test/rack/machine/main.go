// Command machine is what runs in a machine of the rack beside the real agent: as PID 1 it makes the machine's file
// system and starts its units, and it stands in for systemctl, journalctl, containerd, ctr and the kubelet. Its role is the name
// that it is started by, or its first argument.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if name == "machine" && len(args) > 0 {
		// A program of a bundle is a script with this one as its interpreter: the kernel passes the rest of the first
		// line as one argument, and then the script's path.
		name, args = args[0], args[1:]
	}
	role, version, _ := strings.Cut(name, " ")
	var err error
	switch role {
	case "boot":
		err = boot(args)
	case "systemctl":
		err = systemctl(args)
	case "journalctl":
		err = journalctl(args)
	case "containerd":
		err = containerd()
	case "ctr":
		err = ctr(args[1:])
	case "kubelet":
		err = kubelet(version, args[1:])
	case "modprobe":
	default:
		err = fmt.Errorf("there is no role %q", role)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
		os.Exit(1)
	}
}

// runtimeSocket is what a kubelet looks for; here it only says that the unit runs.
const runtimeSocket = "/run/containerd/containerd.sock"

// containerd does nothing for as long as it runs: the kubelet of this machine starts programs itself.
func containerd() error {
	if err := os.MkdirAll(filepath.Dir(runtimeSocket), 0o711); err != nil {
		return err
	}
	if err := os.WriteFile(runtimeSocket, nil, 0o600); err != nil {
		return err
	}
	defer os.Remove(runtimeSocket)
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	<-end
	return nil
}
