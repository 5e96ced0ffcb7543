package rack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/discovery"
	"coldrack.dev/internal/agent/identity"
	"coldrack.dev/internal/agent/target"
	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/contract/wire"
)

// agentName is what the rack's installer says that it is.
const agentName = "coldrack-agent/rack"

// netboot boots a machine from the network, over the real boot listener and machine API, and returns when it is to boot from its disk: at
// once when it is told so, and else when an install has ended. A release wipes the disk, and the machine goes on waiting. The disk is a folder,
// so there is nothing to partition and no image to write; the node's configuration and identity are real.
func (m *Machine) netboot(ctx context.Context) error {
	for {
		line, err := m.askBoot(ctx)
		if err != nil || line == "" {
			return err
		}
		if err := m.readdress(m.discovery); err != nil {
			return err
		}
		err = m.session(ctx, line)
		if client.Code(err) == "" {
			return errors.Join(err, m.readdress(m.address))
		}
		// What the server refuses ends the boot, and another one follows: a server that was restarted knows the nonces of none before.
		m.r.t.Logf("%s boots again: %v", m.name, err)
		if pause(ctx, time.Second); ctx.Err() != nil {
			return err
		}
	}
}

// readdress gives the machine's interface another address.
func (m *Machine) readdress(address string) error {
	for _, args := range [][]string{{"addr", "flush", "dev", "eth0"}, {"addr", "add", address + segmentBits, "dev", "eth0"}} {
		if out, err := m.ns.Try(context.Background(), append([]string{"ip"}, args...)...); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// session is what the discovery system does, until a system is installed.
func (m *Machine) session(ctx context.Context, line string) error {
	args, err := discovery.ParseArguments(line)
	if err != nil {
		return fmt.Errorf("kernel command line %q: %w", line, err)
	}
	server, err := client.New(client.Options{Server: args.Server, Pin: args.Pin, Agent: agentName, Dial: dial(m.ns)})
	if err != nil {
		return err
	}
	defer server.Close()
	ids := wire.Identifiers{MACs: []string{m.mac}, UUID: m.uuid, Serial: m.name}
	key, csr, err := client.NewKey("discovery")
	if err != nil {
		return err
	}
	enrolled, err := again(ctx, func(ctx context.Context) (wire.EnrollResponse, error) {
		return server.Enroll(ctx, wire.EnrollRequest{Nonce: args.Nonce, Identifiers: ids, BootMAC: args.MAC, CSR: csr, AgentVersion: agentName})
	})
	if err != nil {
		return fmt.Errorf("enrol: %w", err)
	}
	pair, err := client.KeyPair(enrolled.Certificate, key)
	if err != nil {
		return err
	}
	server.Use(pair)
	if _, err := again(ctx, func(ctx context.Context) (wire.Empty, error) {
		return wire.Empty{}, server.Inventory(ctx, m.inventory(ids))
	}); err != nil {
		return fmt.Errorf("report the inventory: %w", err)
	}
	version := ""
	for {
		next, err := again(ctx, func(ctx context.Context) (wire.Assignment, error) {
			return server.Assignment(ctx, version, 10*time.Second)
		})
		switch {
		case err != nil:
			return fmt.Errorf("ask what to do: %w", err)
		case next.Action == wire.ActionInstall && next.Plan != nil:
			return m.carryOut(ctx, server, args, next.Plan)
		case next.Action == wire.ActionRelease && next.Release != nil && next.Version != version:
			if err := m.wipe(ctx, server, next.Release); err != nil {
				return err
			}
		}
		version = next.Version
		pause(ctx, 100*time.Millisecond)
	}
}

// wipe carries a release out.
func (m *Machine) wipe(ctx context.Context, server *client.Client, plan *wire.ReleasePlan) error {
	steps := stepsOf(wire.ReleaseSteps())
	progress, err := again(ctx, func(ctx context.Context) (wire.ProgressResponse, error) {
		return server.Progress(ctx, wire.Progress{IntentID: plan.IntentID, Steps: steps})
	})
	if err != nil || progress.Cancel {
		return err
	}
	if err := m.emptyDisk(); err != nil {
		return err
	}
	_, err = again(ctx, func(ctx context.Context) (wire.Empty, error) {
		return wire.Empty{}, server.Complete(ctx, wire.Complete{IntentID: plan.IntentID, State: wire.StateSucceeded, Steps: steps})
	})
	return err
}

// emptyDisk leaves nothing of what was there.
func (m *Machine) emptyDisk() error {
	return errors.Join(os.RemoveAll(m.disk), os.MkdirAll(m.disk, 0o755))
}

func stepsOf(names []string) []wire.Step {
	var steps []wire.Step
	for _, name := range names {
		now := time.Now().UTC()
		steps = append(steps, wire.Step{Name: name, State: wire.StateSucceeded, StartedAt: &now, FinishedAt: &now})
	}
	return steps
}

// again calls the server until it answers, as an agent does.
func again[T any](ctx context.Context, call func(context.Context) (T, error)) (answer T, err error) {
	err = retry.Do(ctx, nil, func(ctx context.Context) (err error) {
		answer, err = call(ctx)
		return err
	})
	return answer, err
}

// askBoot asks what to boot, as iPXE does, and returns the kernel's command line; empty when that is the machine's disk.
func (m *Machine) askBoot(ctx context.Context) (string, error) {
	ask := url.Values{"mac": {strings.ReplaceAll(m.mac, ":", "-")}, "uuid": {m.uuid}, "serial": {m.name}, "manufacturer": {"Coldrack"},
		"product": {"rack"}, "arch": {"x86_64"}, "platform": {"efi"}, "ip": {m.discovery}}
	from := &http.Client{Transport: &http.Transport{DialContext: dial(m.ns), DisableKeepAlives: true}, Timeout: 30 * time.Second}
	for ctx.Err() == nil {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+serverAddress+":7080/boot/ipxe?"+ask.Encode(), nil)
		if err != nil {
			return "", err
		}
		if answer, err := from.Do(request); err == nil {
			text, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK && strings.Contains(string(text), ": LocalDisk: ") {
				return "", nil
			}
			for line := range strings.Lines(string(text)) {
				if strings.HasPrefix(strings.TrimSpace(line), "kernel ") {
					line, _, _ = strings.Cut(strings.TrimSpace(line), " ||")
					return line, nil
				}
			}
		}
		// The server is away, or has nothing to boot yet.
		pause(ctx, 200*time.Millisecond)
	}
	return "", context.Cause(ctx)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (m *Machine) inventory(ids wire.Identifiers) wire.Inventory {
	return wire.Inventory{Identifiers: ids, System: wire.System{Vendor: "Coldrack", Product: "rack", Serial: m.name, UUID: m.uuid},
		CPU: wire.CPU{Sockets: 1, Cores: 4, Threads: 4}, MemoryBytes: 8 << 30, Firmware: "UEFI", Address: m.discovery,
		Disks: []wire.Disk{{Name: "vda", ByID: []string{"virtio-" + m.name}, SizeBytes: 100 << 30, Transport: "virtio"}},
		NICs:  []wire.NIC{{Name: "eth0", MAC: m.mac, Link: true, Boot: true}}}
}

// carryOut does what is left of an install when there is no disk: configuration, identity, and what is reported.
func (m *Machine) carryOut(ctx context.Context, server *client.Client, args discovery.Arguments, plan *wire.InstallPlan) error {
	steps := stepsOf(wire.InstallSteps())
	last := &steps[len(steps)-1]
	last.State, last.FinishedAt = wire.StateRunning, nil
	progress, err := again(ctx, func(ctx context.Context) (wire.ProgressResponse, error) {
		return server.Progress(ctx, wire.Progress{IntentID: plan.IntentID, Steps: steps})
	})
	if err != nil || progress.Cancel {
		return errors.Join(fmt.Errorf("the install was cancelled: %v", progress.Cancel), err)
	}
	key, csr, err := client.NewKey(plan.Machine)
	if err != nil {
		return err
	}
	answer, err := again(ctx, func(ctx context.Context) (wire.IdentityResponse, error) {
		return server.Identity(ctx, wire.IdentityRequest{IntentID: plan.IntentID, CSR: csr})
	})
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	pem, err := identity.Encode(key, answer.Certificate)
	if err != nil {
		return err
	}
	settings, err := identity.Settings{Machine: plan.Machine, Server: args.Server, Pin: args.Pin.String(), CA: answer.CA}.Encode()
	if err != nil {
		return err
	}
	if err := m.emptyDisk(); err != nil {
		return err
	}
	if err := m.writeDisk(plan.Config, settings, pem); err != nil {
		return err
	}
	_, err = again(ctx, func(ctx context.Context) (wire.Empty, error) {
		return wire.Empty{}, server.Complete(ctx, wire.Complete{IntentID: plan.IntentID, State: wire.StateSucceeded, Disk: "virtio-" + m.name,
			ImageDigest: plan.Image.Digest, Steps: steps})
	})
	return err
}

// systemFiles are what the image has that a node's configuration builds on.
var systemFiles = map[string]string{
	"/etc/passwd":     "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
	"/etc/group":      "root:x:0:\nsudo:x:27:\nnogroup:x:65534:\n",
	"/etc/shadow":     "root:*:1:0:99999:7:::\nnobody:*:1:0:99999:7:::\n",
	"/etc/gshadow":    "root:*::\nsudo:*::\nnogroup:*::\n",
	"/etc/os-release": "PRETTY_NAME=\"a machine of the rack\"\n",
}

// systemLinks are its links: libraries and tools are the host's, and what is played is one program.
var systemLinks = map[string]string{
	"/bin": "usr/bin", "/sbin": "usr/sbin", "/lib": "usr/lib", "/lib64": "usr/lib64",
	"/usr/lib": "/host/usr/lib", "/usr/lib64": "/host/usr/lib64", "/usr/share": "/host/usr/share",
	"/usr/bin/sh": "/host/usr/bin/sh", "/usr/bin/curl": "/host/usr/bin/curl", "/usr/bin/cp": "/host/usr/bin/cp", "/usr/sbin/nft": "/host/usr/sbin/nft",
	"/usr/sbin/keepalived": "/host/usr/sbin/keepalived",
	"/usr/bin/systemctl":   "/rack/machine", "/usr/bin/journalctl": "/rack/machine", "/usr/sbin/modprobe": "/rack/machine",
}

// writeDisk makes the installed system.
func (m *Machine) writeDisk(config nodeconfig.Config, settings, pem []byte) error {
	for path, text := range systemFiles {
		file := filepath.Join(m.disk, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			return err
		}
	}
	for path, to := range systemLinks {
		link := filepath.Join(m.disk, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(to, link)); err != nil {
			return err
		}
	}
	agent := filepath.Join(m.disk, "/usr/local/bin/coldrack-agent")
	if err := errors.Join(os.MkdirAll(filepath.Dir(agent), 0o755), os.Symlink("/programs/rack/coldrack-agent", agent)); err != nil {
		return err
	}
	ops, err := nodeconfig.Direct(config)
	if err != nil {
		return err
	}
	system, err := target.Open(m.disk, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer system.Close()
	own := []nodeconfig.Op{
		{Kind: nodeconfig.WriteFile, Path: identity.SettingsFile, Content: settings, Mode: 0o644},
		{Kind: nodeconfig.MakeDir, Path: identity.Dir, Mode: 0o700},
		{Kind: nodeconfig.WriteFile, Path: filepath.Join(identity.Dir, identity.NodeFile), Content: pem, Mode: 0o600},
	}
	for _, op := range ops {
		// Of the system's own units there are none here.
		if op.Kind != nodeconfig.EnableUnit || op.Unit == validate.AgentUnit {
			own = append(own, op)
		}
	}
	return system.Apply(own)
}
