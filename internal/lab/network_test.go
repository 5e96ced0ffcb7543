package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/netns"
	"coldrack.dev/internal/lab"
	"coldrack.dev/test/require"
)

// labName is one that no other test, nor a person on this host, uses.
func labName(purpose string) string { return fmt.Sprintf("t%d-%s", os.Getpid(), purpose) }

func create(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	// Also when Create fails half-way.
	t.Cleanup(func() {
		if err := lab.Down(context.Background(), o.Dir, o.Name, false); err != nil {
			t.Error(err)
		}
	})
	l, err := lab.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func isMounted(path string) bool {
	var stat unix.Statfs_t
	return unix.Statfs(path, &stat) == nil && stat.Type == unix.NSFS_MAGIC
}

func TestANetworkThatReachesNothing(t *testing.T) {
	require.Need(t, "netns")
	o := lab.Options{Dir: filepath.Join(t.TempDir(), "lab"), Name: labName("net")}
	l := create(t, o)

	if got, want := l.Namespace(), "coldrack-"+o.Name; got != want {
		t.Errorf("namespace is %q, want %q", got, want)
	}
	if got := l.ServerAddress().String(); got != "10.77.0.1" {
		t.Errorf("server address is %s", got)
	}
	err := l.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, link := range links {
			a := link.Attrs()
			if a.NetNsID != -1 {
				t.Errorf("%s has its other end in another namespace", a.Name)
			}
			if up := a.Flags&net.FlagUp != 0; up && a.Name != "lo" && a.Name != "lab0" {
				t.Errorf("%s is up and is neither loopback nor bridge", a.Name)
			}
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, route := range routes {
			if route.Dst == nil || route.Dst.String() != "10.77.0.0/24" {
				t.Errorf("there is a route to %v", route.Dst)
			}
		}
		lo, err := net.InterfaceByName("lo")
		if err != nil {
			return err
		}
		if lo.Flags&net.FlagUp == 0 {
			t.Error("loopback is down")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := net.InterfaceByName("lab0"); err == nil {
		t.Error("the host has the lab's bridge")
	}

	// A server opens its sockets inside and is noticed.
	if served, err := l.Served(); err != nil || served {
		t.Errorf("served before there is a server: %v, %v", served, err)
	}
	conn, err := netns.ListenPacket(t.Context(), l.Namespace(), "udp4", "0.0.0.0:67")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if served, err := l.Served(); err != nil || !served {
		t.Errorf("the server is not noticed: %v, %v", served, err)
	}

	for range 2 { // the second finds nothing to do
		if err := lab.Down(t.Context(), o.Dir, o.Name, false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(netns.Path(l.Namespace())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the namespace is still there: %v", err)
	}
	if _, err := os.Stat(o.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

func TestAStartThatWasInterruptedGoesOn(t *testing.T) {
	require.Need(t, "netns", "qemu")
	o := lab.Options{Dir: filepath.Join(t.TempDir(), "lab"), Name: labName("again"), Accelerator: lab.TCG, Firmware: lab.BIOS, Disks: []lab.Size{lab.MiB}}
	// What a restart of the host leaves: a name without a namespace, a machine without its last file.
	if err := os.MkdirAll(filepath.Join(o.Dir, o.Name+"-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(netns.Path("coldrack-"+o.Name), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	l := create(t, o)
	if !isMounted(netns.Path(l.Namespace())) {
		t.Fatal("there is no namespace")
	}
	if n := len(l.Machines()); n != 0 {
		t.Errorf("%d machines before there shall be any", n)
	}

	o.Machines = 2
	l = create(t, o)
	marked := []byte("what the first installation wrote")
	if err := os.WriteFile(l.Machine(1).DiskPath(0), marked, 0o600); err != nil {
		t.Fatal(err)
	}
	// More machines of another kind leave the first ones alone; fewer take none away.
	o.Machines, o.CPUs = 3, 1
	create(t, o)
	o.Machines = 1
	create(t, o)
	l, err := lab.Open(o.Dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(l.Machines()); n != 3 {
		t.Errorf("there are %d machines, want 3", n)
	}
	if got := []int{l.Machine(1).Spec().CPUs, l.Machine(3).Spec().CPUs}; !slices.Equal(got, []int{2, 1}) {
		t.Errorf("first and third machine have %v CPUs", got)
	}
	if got, _ := os.ReadFile(l.Machine(1).DiskPath(0)); string(got) != string(marked) {
		t.Errorf("the first machine's disk was written to: %q", got)
	}

	if err := lab.Down(t.Context(), o.Dir, o.Name, true); err != nil {
		t.Fatal(err)
	}
	if isMounted(netns.Path(l.Namespace())) {
		t.Error("the namespace is still there")
	}
	l = create(t, o)
	if got, _ := os.ReadFile(l.Machine(1).DiskPath(0)); string(got) != string(marked) {
		t.Errorf("the disk that was to be kept holds %q", got)
	}
	o.Subnet = netip.MustParsePrefix("10.78.0.0/24")
	if _, err := lab.Create(t.Context(), o); err == nil || !strings.Contains(err.Error(), "has the subnet 10.77.0.0/24") {
		t.Errorf("another subnet for a lab that exists: %v", err)
	}
}

func TestSomebodyElsesNamespaceIsLeftAlone(t *testing.T) {
	require.Need(t, "netns")
	theirs := lab.Options{Dir: filepath.Join(t.TempDir(), "theirs"), Name: labName("mine")}
	l := create(t, theirs)
	ours := lab.Options{Dir: filepath.Join(t.TempDir(), "ours"), Name: theirs.Name}
	if _, err := lab.Create(t.Context(), ours); err == nil || !strings.Contains(err.Error(), "belongs to somebody else") {
		t.Errorf("a second lab of the same name: %v", err)
	}
	if err := lab.Down(t.Context(), ours.Dir, ours.Name, false); err != nil {
		t.Error(err)
	}
	if err := l.Do(func() error { _, err := net.InterfaceByName(l.Bridge()); return err }); err != nil {
		t.Errorf("taking the second lab down harmed the first: %v", err)
	}
}

func TestAFolderKeepsWhatIsNotTheLabs(t *testing.T) {
	require.Need(t, "netns")
	o := lab.Options{Dir: t.TempDir(), Name: labName("keep")}
	create(t, o)
	notes := filepath.Join(o.Dir, "notes.txt")
	if err := os.WriteFile(notes, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := lab.Down(t.Context(), o.Dir, o.Name, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(notes); err != nil {
		t.Error(err)
	}
	if _, err := lab.Open(o.Dir, nil); !errors.Is(err, lab.ErrNotFound) {
		t.Errorf("open a lab that is gone: %v", err)
	}
}

// TestOnlyItsOwnProcess shows that a machine is neither found in, nor powered off at the expense of, a
// process that merely has the number in its pid file.
func TestOnlyItsOwnProcess(t *testing.T) {
	require.Need(t, "netns", "qemu")
	o := lab.Options{Dir: filepath.Join(t.TempDir(), "lab"), Name: labName("pid"), Machines: 1, Accelerator: lab.TCG, Firmware: lab.BIOS}
	l := create(t, o)
	m := l.Machine(1)
	pidPath := filepath.Join(filepath.Dir(m.ConsoleLog()), "qemu.pid")

	start := func(args ...string) *exec.Cmd {
		command := exec.Command("sh", append([]string{"-c", "read x; :"}, args...)...)
		stdin, err := command.StdinPipe() // held open: it waits until it is killed
		if err != nil {
			t.Fatal(err)
		}
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			stdin.Close()
			_ = command.Wait()
		})
		return command
	}
	stranger := start()
	if err := os.WriteFile(pidPath, []byte(strconv.Itoa(stranger.Process.Pid)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if m.State() != lab.Off {
		t.Error("a stranger's process is taken for the machine")
	}
	if err := m.PowerOff(t.Context()); err != nil {
		t.Error(err)
	}
	if err := m.Reset(t.Context()); !errors.Is(err, lab.ErrOff) {
		t.Errorf("reset of a machine that is off: %v", err)
	}
	if _, err := m.Usage(); !errors.Is(err, lab.ErrOff) {
		t.Errorf("usage of a machine that is off: %v", err)
	}
	if err := stranger.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the stranger did not survive: %v", err)
	}

	// A process of the lab whose pid file is lost goes when the lab goes.
	lost := start("-pidfile", pidPath)
	if err := os.Remove(pidPath); err != nil {
		t.Fatal(err)
	}
	if err := lab.Down(t.Context(), o.Dir, o.Name, false); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := lost.Wait(); !errors.As(err, &exit) || exit.Sys().(interface{ Signaled() bool }).Signaled() == false {
		t.Errorf("the lost process was not killed: %v", err)
	}
	if err := stranger.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the stranger did not survive: %v", err)
	}
}
