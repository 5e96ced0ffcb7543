// Package uml gives tests a Linux kernel of their own: User-Mode Linux of Debian, which is a program like any other. It
// needs neither root nor virtualization, and has what the kernel of the host may lack, such as bonds and VLANs.
//
// Its root file system is that of the host, read-only, so that it runs the host's programs; a folder of the test is
// writable. Its network interfaces are cables to each other, and have a permanent MAC like hardware.
package uml

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"coldrack.dev/test/require"
)

// Share is where scripts find the test's folder.
const Share = "/tmp/share"

// End is one end of a cable: a network interface of the kernel, vecN.
type End struct {
	Number int
	MAC    string
}

// Cable connects two interfaces. It carries nothing while one of them is down, but both have a carrier: a cable that is pulled
// somewhere behind a media converter.
type Cable [2]End

// prologue makes a small system of the bare kernel. Without udev, systemd's programs take /sys to be a container's when it is read-only.
const prologue = `#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs -o ro sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir ` + Share + ` /tmp/modules
mount -t hostfs -o %s none ` + Share + `
mount -t hostfs -o %s none /tmp/modules
for module in %s; do
	file=$(find /tmp/modules/$(uname -r)/kernel -name $module.ko)
	parameters=
	case $module in bonding) parameters=max_bonds=0;; esac # as systemd's modprobe.d has it
	busybox insmod $file $parameters || echo "cannot load $module"
done
ip link set lo up
sh ` + Share + `/script.sh >` + Share + `/script.log 2>&1
echo $? >` + Share + `/script.exit
busybox poweroff -f
`

// Run boots a kernel with modules, runs script in it by sh, and returns what it printed. It fails the test when the script fails. share is
// a folder of the test; the script finds it at Share.
func Run(t testing.TB, share, script string, modules []string, cables ...Cable) string {
	t.Helper()
	require.Need(t, "linux.uml", "busybox", "ip")
	kernel, err := filepath.Abs(require.Program("linux.uml"))
	check(t, err)
	own, err := os.MkdirTemp("", "uml") // short: the names of sockets have little room
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(own) })
	init := fmt.Sprintf(prologue, share, filepath.Join(filepath.Dir(kernel), "../lib/uml/modules"), strings.Join(modules, " "))
	check(t, os.WriteFile(filepath.Join(own, "init"), []byte(init), 0o755))
	check(t, os.WriteFile(filepath.Join(share, "script.sh"), []byte(script), 0o644))

	args := []string{"mem=256M", "rootfstype=hostfs", "root=/dev/root", "rootflags=/", "ro", "init=" + own + "/init", "uml_dir=" + own + "/", "con=null", "con0=null,fd:1", "quiet"}
	var running sync.WaitGroup
	var sockets []net.Listener
	defer func() {
		for _, s := range sockets {
			s.Close()
		}
		running.Wait()
	}()
	for _, c := range cables {
		var ends [2]net.Listener
		for i, end := range c {
			socket := fmt.Sprintf("%s/%d", own, end.Number)
			ends[i], err = net.Listen("unixpacket", socket)
			check(t, err)
			sockets = append(sockets, ends[i])
			args = append(args, fmt.Sprintf("vec%d:transport=bess,dst=%s,mac=%s", end.Number, socket, end.MAC))
		}
		running.Go(func() { carry(ends) })
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, kernel, args...)
	// All processes of the kernel are children of the first, and in its group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for what is left of it and holds our pipe
	cmd.Env = append(os.Environ(), "HOME="+own)
	console, err := cmd.CombinedOutput()
	printed, _ := os.ReadFile(filepath.Join(share, "script.log"))
	code, _ := os.ReadFile(filepath.Join(share, "script.exit"))
	if strings.TrimSpace(string(code)) != "0" {
		t.Fatalf("the script ended with %q, the kernel with %v\n%s\n%s", strings.TrimSpace(string(code)), err, printed, console)
	}
	return string(printed)
}

// patience is how long a script may take; a bound for what never comes, of which scripts say what it was before.
const patience = 8 * time.Minute

// carry takes frames from one end to the other until both listeners are closed. An interface connects when it goes up.
func carry(ends [2]net.Listener) {
	var mu sync.Mutex
	var plugged [2]net.Conn
	var running sync.WaitGroup
	for i, end := range ends {
		running.Go(func() {
			for {
				conn, err := end.Accept()
				if err != nil {
					break
				}
				mu.Lock()
				plugged[i] = conn
				mu.Unlock()
				frame := make([]byte, 1<<16)
				for {
					n, err := conn.Read(frame)
					if err != nil || n == 0 {
						break
					}
					mu.Lock()
					other := plugged[1-i]
					mu.Unlock()
					if other != nil {
						_, _ = other.Write(frame[:n]) // a frame may be lost, as on any cable
					}
				}
				mu.Lock()
				plugged[i] = nil
				mu.Unlock()
				conn.Close()
			}
		})
	}
	running.Wait()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
