package discovery

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/console"
	"coldrack.dev/internal/agent/identity"
	"coldrack.dev/internal/agent/install"
	"coldrack.dev/internal/agent/inventory"
	"coldrack.dev/internal/agent/live"
	"coldrack.dev/internal/agent/lldp"
	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/content/fetch"
	"coldrack.dev/internal/content/swarm/peer"
	"coldrack.dev/internal/contract/wire"
)

const workDir = "/run/coldrack"

// Start is the installer's whole life after PID 1 has mounted what every program needs. It ends with a
// *Reboot, or an error that is a fault of this program.
func Start(ctx context.Context, con *console.Console, log *slog.Logger, version string) error {
	con.Say("Coldrack agent %s. Nothing is written to any disk before the server says so.", version)
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("read the kernel command line: %w", err)
	}
	args, err := ParseArguments(string(cmdline))
	if err != nil {
		return &Reboot{Reason: "the kernel command line lacks what a boot script of Coldrack puts there: " + strings.ReplaceAll(err.Error(), "\n", "; "), After: refusedDelay}
	}
	if err := os.MkdirAll(workDir, 0o755); err != nil {
		return err
	}
	startDevices(ctx, con)
	network := &Network{Log: log, Console: con, BootMAC: args.MAC, Patience: UsualPatience(), Interfaces: Hardware}
	if err := network.Up(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return network.Keep(ctx) })
	g.Go(func() error { return converse(ctx, g, con, log, version, string(cmdline), args, network) })
	return g.Wait()
}

func converse(ctx context.Context, g *errgroup.Group, con *console.Console, log *slog.Logger, version, cmdline string, args Arguments, network *Network) error {
	agent := "coldrack-agent/" + version
	if err := boottimeClock(ctx, con, args.Boot, agent); err != nil {
		return err
	}
	server, err := client.New(client.Options{Server: args.Server, Pin: args.Pin, Agent: agent})
	if err != nil {
		return &Reboot{Reason: err.Error(), After: refusedDelay}
	}
	refineClock(ctx, con, server)
	if args.Live {
		return stayLive(ctx, con, log, server, args, network.Address())
	}
	neighbours := listen(ctx, g, log)
	collect := func(c inventory.Collector) wire.Inventory {
		inv := c.Collect(args.MAC)
		inv.Address = network.Address()
		neighbours.fill(inv.NICs)
		return inv
	}
	look := func() wire.Inventory { return collect(inventory.Host()) }
	glance := func() wire.Inventory {
		c := inventory.Host()
		c.OpenDisk, c.BMC = nil, nil
		return collect(c)
	}
	installer := &install.Installer{
		Log: log, Server: server,
		Content: fetch.New(args.Boot, agent, func(what string, err error, wait time.Duration) {
			con.Say("cannot fetch %s: %v; trying again in %s", what, err, wait.Round(time.Second))
		}),
		Inventory: look, InUse: install.InUse, Agent: "/proc/self/exe", WorkDir: workDir,
		CommandLine: cmdline, Watch: con.Step, Now: time.Now,
		DiskPatience: time.Minute,
		Settle: func(ctx context.Context) error {
			return settle(ctx, func(err error) { log.Info("still looking for hardware", "err", err) })
		},
		Settings: identity.Settings{Server: args.Server, Pin: args.Pin.String()},
	}
	var shown atomic.Pointer[tls.Certificate]
	installer.Exchange = &peer.Config{
		Log: log, Server: server, Certificate: shown.Load,
		CAs: sync.OnceValue(func() *x509.CertPool { // asked for after enrolment only
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM([]byte(installer.Settings.CA))
			return pool
		}),
	}
	d := &Discovery{
		Log: log, Console: con, Server: withCA{server, &installer.Settings.CA}, Acts: installer, Look: look, Glance: glance,
		Nonce: args.Nonce, BootMAC: args.MAC, Version: version, Sleep: pause,
		Use: func(chain string, key *ecdsa.PrivateKey) error {
			pair, err := client.KeyPair(chain, key)
			if err == nil {
				server.Use(pair)
				shown.Store(&pair)
			}
			return err
		},
	}
	return d.Run(ctx)
}

// stayLive is the live system: it lets people in, until the machine is restarted.
func stayLive(ctx context.Context, con *console.Console, log *slog.Logger, server *client.Client, args Arguments, address string) error {
	var who wire.LiveResponse
	err := retry.Do(ctx, func(err error, wait time.Duration) {
		con.Say("the server does not say who may log in (%v); asking again in %s", err, wait.Round(time.Second))
	}, func(ctx context.Context) error {
		var err error
		who, err = server.Live(ctx, wire.LiveRequest{Nonce: args.Nonce})
		return err
	})
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && !args.Shell:
		return &Reboot{Reason: "the live system has no shell on the console, and nobody may log in: " + err.Error(), After: refusedDelay}
	case err != nil:
		con.Fail("nobody may log in by SSH: %v", err)
	}
	con.Good("live system of %s. No disk is touched; `reboot -f` starts the machine again", cmp.Or(who.Machine, "a machine that the server does not know"))
	if len(who.SSHKeys) > 0 {
		if err := live.Serve(ctx, live.Options{Listen: ":22", Keys: who.SSHKeys, Home: "/root", WorkDir: workDir, Log: log, Tell: func(fingerprint string) {
			con.Good("SSH: root@%s, host key %s", address, fingerprint)
		}}); err != nil {
			con.Fail("SSH: %v", err)
		}
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// withCA keeps the CA that enrolment brings, for the node's settings.
type withCA struct {
	*client.Client
	settings *string
}

func (w withCA) Enroll(ctx context.Context, r wire.EnrollRequest) (wire.EnrollResponse, error) {
	answer, err := w.Client.Enroll(ctx, r)
	if err == nil {
		*w.settings = answer.CA
	}
	return answer, err
}

// boottimeClock waits for the server's time: the first thing that needs the server at all.
func boottimeClock(ctx context.Context, con *console.Console, boot, agent string) error {
	var now time.Time
	err := retry.Do(ctx, func(err error, wait time.Duration) {
		con.Fail("the server is unreachable at %s: %v. Check that coldrack serve runs, that no firewall is between, and the routes; asking again in %s", boot, err, wait.Round(time.Second))
	}, func(ctx context.Context) error {
		var err error
		now, err = plainTime(ctx, boot, agent)
		return err
	})
	if err != nil {
		return err
	}
	off, err := setClock(now)
	switch {
	case err != nil:
		con.Fail("clock: it is %s off and cannot be set: %v", off.Round(time.Second), err)
	case off != 0:
		con.Say("the clock was %s and is set to the server's", offText(off))
	}
	return nil
}

// offText says how far and in which direction a clock was off.
func offText(off time.Duration) string {
	direction := "ahead"
	if off < 0 {
		direction = "behind"
	}
	if d := off.Abs(); d > 48*time.Hour {
		return fmt.Sprintf("%d days %s", d/(24*time.Hour), direction)
	}
	return fmt.Sprintf("%s %s", off.Abs().Round(time.Second), direction)
}

// refineClock sets the clock from the authenticated server. Enrolment follows and reports any trouble.
func refineClock(ctx context.Context, con *console.Console, server *client.Client) {
	sent := time.Now()
	t, err := server.Time(ctx)
	if err != nil {
		return
	}
	if off, err := setClock(t.Now.Add(time.Since(sent) / 2)); err == nil && off != 0 {
		con.Say("the clock was %s and is corrected by the authenticated server", offText(off))
	}
}

// quietly runs a program and shows what it says only in its error.
func quietly(ctx context.Context, limit time.Duration, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// startDevices starts udev and has it load the drivers of all hardware.
func startDevices(ctx context.Context, con *console.Console) {
	con.Say("looking for hardware")
	daemon := "/usr/lib/systemd/systemd-udevd"
	if _, err := os.Stat(daemon); err != nil {
		daemon = "/lib/systemd/systemd-udevd"
	}
	for _, c := range [][]string{
		{daemon, "--daemon"},
		{"udevadm", "trigger", "--type=subsystems", "--action=add"},
		{"udevadm", "trigger", "--type=devices", "--action=add"},
		{"udevadm", "settle", "--timeout=45"},
	} {
		if err := quietly(ctx, time.Minute, c[0], c[1:]...); err != nil {
			con.Say("not all hardware is found yet: %v", err)
		}
	}
	// What nothing asks udev for. Not every kernel has each as a module.
	for _, m := range []string{"af_packet", "ext4", "ipmi_si", "ipmi_devintf"} {
		_ = quietly(ctx, 30*time.Second, "modprobe", "-q", m)
	}
}

// settleLimit is longer than any controller was reported to take for its disks.
const settleLimit = 15 * time.Minute

// settle returns when udev has handled all hardware that the kernel knows of. A busy machine's udev may not answer in time, so
// it is asked again.
func settle(ctx context.Context, tell func(error)) error {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	for {
		err := quietly(ctx, 2*time.Minute, "udevadm", "settle", "--timeout=90")
		switch {
		case err == nil || errors.Is(err, exec.ErrNotFound):
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%w; a disk or its controller may be broken: see this machine's console", err)
		}
		tell(err)
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
}

// neighbours collects what LLDP says, by interface.
type neighbours struct {
	mu    sync.Mutex
	heard map[string]wire.LLDP
}

func (n *neighbours) fill(nics []wire.NIC) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range nics {
		if l, ok := n.heard[nics[i].Name]; ok {
			nics[i].LLDP = &l
		}
	}
}

// listen hears on every interface until ctx ends. Switches speak every 30 seconds, so what is heard comes
// with a later report.
func listen(ctx context.Context, g *errgroup.Group, log *slog.Logger) *neighbours {
	n := &neighbours{heard: map[string]wire.LLDP{}}
	for _, nic := range inventory.Host().NICs("") {
		g.Go(func() error {
			err := lldp.Listen(ctx, nic.Name, func(l wire.LLDP) {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.heard[nic.Name] = l
			})
			if err != nil && ctx.Err() == nil {
				log.Info("LLDP listener failed; switch port unknown", "interface", nic.Name, "err", err)
			}
			return nil
		})
	}
	return n
}
