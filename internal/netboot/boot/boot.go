// Package boot decides what a machine that asks for a network boot is told, and why. It is pure: a
// request, what is known of the machine, and a policy go in; a plan with its reason comes out. The
// protocol servers ask it and encode the answer.
package boot

import (
	"fmt"
	"net/netip"
	"time"

	"coldrack.dev/api/v1alpha1"
)

// Platform is the firmware interface that a boot loader runs on.
type Platform string

const (
	PlatformBIOS Platform = "pcbios"
	PlatformUEFI Platform = "efi"
)

// Request is what a boot loader tells of the machine it runs on. Nothing in it is proven.
type Request struct {
	MACs         []string // lower case with colons; the booting interface first
	UUID         string
	Serial       string
	Manufacturer string
	Product      string
	Arch         string // iPXE's ${buildarch}: i386, x86_64, arm64
	Platform     Platform
	Address      netip.Addr
}

// Subject is which of the known machines sent the request, as far as that can be told.
type Subject struct {
	// Machine is nil when nothing that is known matches, or no one machine.
	Machine *v1alpha1.Machine
	// Rivals are the machines that it may be, when what it says of itself contradicts.
	Rivals []*v1alpha1.Machine
}

// Policy is what the server has to offer and how it wants unknown machines treated.
type Policy struct {
	// Netboot is false when no imported bundle holds a discovery image.
	Netboot bool
	// RestoredAt is when the store was restored from a backup, until a person confirms it. Intents from before are not carried out.
	RestoredAt time.Time
}

// Plan is what a machine is told to boot.
type Plan struct {
	Action v1alpha1.BootAction
	// Reason for a person: why this and nothing else.
	Reason string
	// Local is how the firmware gets to the disk, for BootLocalDisk.
	Local LocalMethod
	// Shell: the live system opens a root shell on the console, for BootRescue.
	Shell bool
}

// FromCopy says whether the plan may be carried out when what is known of the machine is how it was at an earlier time. Only the way to
// its own disk may: everything else begins with the store, or would take a machine for a stranger that is none. A machine
// that gets no answer goes on with the boot order of its firmware after a minute.
func (p Plan) FromCopy() bool { return p.Action == v1alpha1.BootLocalDisk }

// LocalMethod is a way from iPXE to the machine's own disk: a small GRUB that finds the disk by its label and
// starts the boot loader on it.
type LocalMethod string

const (
	// LocalBIOS is for BIOS. Leaving iPXE often ends there in a boot loop or a prompt, because many BIOSes do not
	// go on to the next boot device, and iPXE's sanboot would start the first drive, whatever is on it.
	LocalBIOS LocalMethod = "bios"
	// LocalUEFI is for UEFI. Leaving iPXE may end there in the firmware's setup screen, and iPXE's sanboot
	// cannot start a local disk at all.
	LocalUEFI LocalMethod = "uefi"
)

// LocalFile is the name below the boot server of what BootLocalDisk loads.
func (p Plan) LocalFile() string {
	if p.Local == LocalBIOS {
		return fileLocalBIOS
	}
	return fileLocal
}

// Decide returns what the machine that sent the request boots.
//
// The order of the rules is the policy: a rescue comes first, because it touches no disk and an intent can wait; an open intent comes before an
// installed disk, because a person asked for it; an installed disk comes before everything else, because it must not depend on us; and
// whatever remains goes to discovery, which touches no disk. A machine that may be an installed one starts its disk: with
// another's identifiers one could otherwise keep it from its work.
func Decide(request Request, subject Subject, policy Policy) Plan {
	plan := decide(subject, policy.RestoredAt)
	if plan.Action == v1alpha1.BootLocalDisk {
		return LocalDisk(request, plan.Reason)
	}
	return WithKernel(request, policy, plan)
}

// LocalDisk is the way to the machine's own disk.
func LocalDisk(request Request, reason string) Plan {
	if request.Platform == PlatformBIOS {
		return Plan{Action: v1alpha1.BootLocalDisk, Reason: reason, Local: LocalBIOS}
	}
	return Plan{Action: v1alpha1.BootLocalDisk, Reason: reason, Local: LocalUEFI}
}

// WithKernel is a plan that needs our own kernel, or the refusal that says why there is none.
func WithKernel(request Request, policy Policy, plan Plan) Plan {
	if request.Arch == "arm64" || request.Arch == "arm32" {
		return Plan{Action: v1alpha1.BootRefuse, Reason: fmt.Sprintf("no discovery image for architecture %s", request.Arch)}
	}
	if !policy.Netboot {
		return Plan{Action: v1alpha1.BootRefuse, Reason: "no bundle with a discovery image has been imported; run: coldrack bundle import FILE"}
	}
	return plan
}

func decide(subject Subject, restoredAt time.Time) Plan {
	machine := subject.Machine
	if machine == nil {
		for _, rival := range subject.Rivals {
			if rival.Status.Installed != nil {
				return Plan{Action: v1alpha1.BootLocalDisk, Reason: fmt.Sprintf("the machine may be %s, which is installed, or another with identifiers of it", rival.Name)}
			}
		}
		return Plan{Action: v1alpha1.BootDiscover, Reason: "the machine is not known yet"}
	}
	if rescue := machine.Spec.Rescue; rescue != nil {
		by := rescue.RequestedBy
		if by == "" {
			by = "somebody"
		}
		return Plan{Action: v1alpha1.BootRescue, Reason: fmt.Sprintf("%s asked for the live system; it ends with: coldrack rescue %s --end", by, machine.Name), Shell: rescue.Autologin}
	}
	intent, old := machine.OpenIntent(), ""
	if intent != nil && intent.FromBackup(restoredAt) {
		old = fmt.Sprintf("the %s was asked for before the store was restored, and waits for a person (intent %s)", lower(intent.Action), intent.ID)
	}
	switch {
	case old != "" && machine.Status.Installed != nil:
		return Plan{Action: v1alpha1.BootLocalDisk, Reason: old}
	case old != "":
		return Plan{Action: v1alpha1.BootDiscover, Reason: old}
	case intent != nil:
		switch {
		case intent.Action == v1alpha1.ActionRelease:
			return Plan{Action: v1alpha1.BootRelease, Reason: fmt.Sprintf("release was asked for (intent %s)", intent.ID)}
		case !machine.Spec.Approved && machine.Status.Installed == nil:
			return Plan{Action: v1alpha1.BootDiscover, Reason: "an install was asked for, but the machine is not approved"}
		case !machine.Spec.Approved:
			return Plan{Action: v1alpha1.BootLocalDisk, Reason: "a reinstall was asked for, but the machine is no longer approved: its installed disk stays as it is"}
		default:
			return Plan{Action: v1alpha1.BootInstall, Reason: fmt.Sprintf("%s was asked for (intent %s)", lower(intent.Action), intent.ID)}
		}
	}
	status := machine.Status.Intent
	switch {
	case status != nil && status.State == v1alpha1.IntentFailed && machine.Status.Installed == nil:
		return Plan{Action: v1alpha1.BootDiscover, Reason: fmt.Sprintf("the last %s failed: %s", lower(status.Action), status.Message)}
	case machine.Status.Installed != nil:
		return Plan{Action: v1alpha1.BootLocalDisk, Reason: fmt.Sprintf("%s is installed on %s", machine.Status.Installed.Image, machine.Status.Installed.Disk)}
	case status != nil && status.Action == v1alpha1.ActionRelease && status.State == v1alpha1.IntentSucceeded:
		return Plan{Action: v1alpha1.BootDiscover, Reason: "the machine was released"}
	case !machine.Spec.Approved:
		return Plan{Action: v1alpha1.BootDiscover, Reason: "the machine is not approved"}
	default:
		return Plan{Action: v1alpha1.BootDiscover, Reason: "the machine is approved, and an install will be asked for once its plan is complete"}
	}
}

func lower(action v1alpha1.IntentAction) string {
	switch action {
	case v1alpha1.ActionInstall:
		return "install"
	case v1alpha1.ActionReinstall:
		return "reinstall"
	case v1alpha1.ActionRelease:
		return "release"
	}
	return string(action)
}
