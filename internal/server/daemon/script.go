package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/netboot/boot"
	"coldrack.dev/internal/netboot/httpboot"
	"coldrack.dev/internal/netboot/quirk"
	"coldrack.dev/internal/server/machineapi"
)

// errStarting is answered until every Machine has been read: a known machine must not be taken for a
// stranger because its server has just started.
var errStarting = errors.New("the server is starting and has not read its machines yet")

// errNoStore is answered while the store is gone to machines that are not known to be installed. They go on with the boot order of
// their firmware after a minute.
var errNoStore = errors.New("the store is not there: only machines that are known to be installed are answered, the others when it is back")

// probeNonce stands in the script of a probe (wire.IsProbe) where a machine's has its nonce: nobody can enrol with it.
const probeNonce = "none"

// booter answers what machines boot. It reads what is in memory and never waits for the store.
type booter struct {
	fleet   *fleet.Fleet
	nonces  *machineapi.Nonces
	content content
	cfg     Config
	reach   *reach
	caPin   string
	// discoveryArgs are the operator's kernel arguments.
	discoveryArgs []string
	log           *slog.Logger
	metrics       *metrics
	bootGate      *bootGate
	menus         *menus
	quirks        *quirk.Table
}

// bootURL is the base URL of boot HTTP at one of this server's addresses.
func (b *booter) bootURL(at netip.Addr) string {
	return "http://" + net.JoinHostPort(at.String(), strconv.Itoa(b.cfg.BootPort))
}

func (b *booter) machineURL(at netip.Addr) string {
	return "https://" + net.JoinHostPort(at.String(), strconv.Itoa(b.cfg.MachinePort))
}

// bootURLFor is bootURL for a machine that has come from remote to this server's address local.
func (b *booter) bootURLFor(local, remote netip.Addr) string {
	return b.bootURL(b.reach.connection(local, remote))
}

// BootScript implements httpboot.Scripts.
func (b *booter) BootScript(_ context.Context, query httpboot.Query) (string, error) {
	request := boot.Request{
		MACs: query.MACs, UUID: query.UUID, Serial: query.Serial,
		Manufacturer: query.Manufacturer, Product: query.Product,
		Arch: query.Arch, Platform: boot.Platform(query.Platform), Address: query.Remote.Addr(),
	}
	return b.script(request, b.reach.connection(query.Local.Addr(), query.Remote.Addr()), &query)
}

// script decides what the machine boots, records the decision, and renders it for iPXE. at is the address by which the machine
// reaches this server. asked may have a choice of the boot menu.
func (b *booter) script(request boot.Request, at netip.Addr, asked *httpboot.Query) (string, error) {
	synced := b.fleet.IsSynced()
	if !synced && !b.fleet.HasCopy() {
		return "", errStarting
	}
	ids := v1alpha1.Identifiers{MACs: request.MACs, UUID: request.UUID, Serial: request.Serial}
	machine, rivals, matched := b.fleet.Lookup(ids)
	kernel, initrd, haveNetboot := b.content.netboot()
	restoredAt, _ := b.fleet.RestoredAt()
	subject, have := boot.Subject{Machine: machine, Rivals: rivals}, boot.Policy{Netboot: haveNetboot, RestoredAt: restoredAt}
	plan := boot.Decide(request, subject, have)
	if !synced {
		if !plan.FromCopy() {
			return "", errNoStore
		}
		plan.Reason += "; as far as is known without the store"
	}
	if machine == nil && matched != "" {
		plan.Reason += " (" + matched + ")"
	}
	if machine == nil && len(request.MACs) == 1 && wire.IsProbe(request.MACs[0]) {
		b.log.Debug("boot script for a probe of the segment", "mac", request.MACs[0], "address", request.Address, "action", string(plan.Action))
		return b.render(plan, told{mac: request.MACs[0], at: at, nonce: probeNonce, kernel: kernel.Digest, initrd: initrd.Digest})
	}
	var claim *v1alpha1.MenuChoice
	if synced {
		answer, err := b.menu(request, asked, at, subject, plan, have)
		if err != nil || answer.script != "" {
			return answer.script, err
		}
		plan, claim = answer.plan, answer.claim
	}
	record := v1alpha1.BootRecord{
		At: metav1.Now(), Action: plan.Action, Reason: plan.Reason,
		Address: request.Address.String(), Firmware: string(request.Platform),
	}
	if len(request.MACs) > 0 {
		record.MAC = request.MACs[0]
	}
	name := b.fleet.Booted(ids, record)
	if claim != nil && !b.menus.claim(name, *claim) {
		return "", errTooManyChoices
	}
	b.metrics.boots.WithLabelValues(string(plan.Action)).Inc()
	b.bootGate.decided(record.MAC, plan.Action)

	nonce := ""
	if loadsKernel(plan.Action) {
		nonce = b.nonces.Issue(machineapi.Binding{Identifiers: ids, Machine: name, Action: plan.Action})
	}
	b.log.Info("boot decision", "machine", name, "mac", record.MAC, "address", record.Address,
		"action", string(plan.Action), "reason", plan.Reason)
	quirks := b.quirks.For(quirk.Client{MAC: record.MAC, Manufacturer: request.Manufacturer, Product: request.Product, Architecture: quirk.NoArchitecture})
	return b.render(plan, told{machine: name, mac: record.MAC, at: at, nonce: nonce, kernel: kernel.Digest, initrd: initrd.Digest, args: quirks.KernelArgs})
}

// loadsKernel says whether an action starts the discovery system.
func loadsKernel(action v1alpha1.BootAction) bool {
	switch action {
	case v1alpha1.BootDiscover, v1alpha1.BootInstall, v1alpha1.BootRelease, v1alpha1.BootRescue:
		return true
	}
	return false
}

// told is what a machine is told beside its plan.
type told struct {
	machine, mac   string // its name and the MAC that it boots with, as far as they are known
	at             netip.Addr
	nonce          string
	kernel, initrd string   // digests
	args           []string // kernel arguments for its quirks
}

// render makes the script of a plan.
func (b *booter) render(plan boot.Plan, t told) (string, error) {
	target := boot.Target{Machine: t.machine, LocalURL: b.bootURL(t.at) + "/" + plan.LocalFile(), RetryURL: b.bootURL(t.at) + "/boot.ipxe"}
	if loadsKernel(plan.Action) {
		target.KernelURL = b.contentURL(t.at, t.kernel)
		target.InitrdURL = b.contentURL(t.at, t.initrd)
		target.Args = []string{
			wire.ArgServer + "=" + b.machineURL(t.at),
			wire.ArgBoot + "=" + b.bootURL(t.at),
			wire.ArgCA + "=" + b.caPin,
			wire.ArgNonce + "=" + t.nonce,
		}
		if plan.Action == v1alpha1.BootRescue {
			target.Args = append(target.Args, wire.ArgLive+"=1")
			if plan.Shell {
				target.Args = append(target.Args, wire.ArgDebug+"=shell")
			}
		}
		if t.mac != "" {
			target.Args = append(target.Args, wire.ArgMAC+"="+t.mac)
		}
		target.Args = slices.Concat(target.Args, consoleArgs(), t.args, b.discoveryArgs)
	}
	return boot.Script(plan, target)
}

// consoleArgs make the discovery system talk on the screen and on the first serial port, which is where
// serial-over-LAN usually is. The serial one comes last, so that it is the kernel's primary console; the
// kernel itself only says what went wrong, since a serial line is slow. A kernel that cannot go on, for want of
// memory before the agent could say so, starts the machine again after a minute: it asks anew and is seen.
func consoleArgs() []string {
	return []string{"console=tty0", "console=ttyS0,115200", "quiet", "loglevel=4", "panic=60"}
}

func (b *booter) contentURL(at netip.Addr, blob string) string {
	return b.bootURL(at) + "/content/sha256/" + digest.Hex(blob)
}

// OpenBlob implements httpboot.Content.
func (b *booter) OpenBlob(_ context.Context, sha256 string) (httpboot.File, error) {
	file, _, err := b.content.store.Open("sha256:" + sha256)
	if errors.Is(err, bundle.ErrNotFound) {
		return nil, fs.ErrNotExist
	}
	return file, err
}
