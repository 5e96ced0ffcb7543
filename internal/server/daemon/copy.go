package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/machine/fleet"
)

// copyFile, in the data folder, has what boot services need of the machines and subnets, as they were when the store was last there.
const copyFile = "boot-copy.json"

// copyEvery is the shortest time between two writes of the copy.
const copyEvery = 10 * time.Second

// bootCopy is the content of copyFile.
type bootCopy struct {
	Written  time.Time          `json:"written"`
	Machines []v1alpha1.Machine `json:"machines"`
	Subnets  []v1alpha1.Subnet  `json:"subnets"`
}

// copyKeeper keeps the copy while the store is there, and hands it out when it is not there yet.
type copyKeeper struct {
	file    string
	fleet   *fleet.Fleet
	subnets *dhcpSubnets
	log     *slog.Logger

	changes uint64
	last    []byte // what was written, but for the time
}

// restore takes in the copy, and says whether there is one.
func (k *copyKeeper) restore() bool {
	text, err := os.ReadFile(k.file)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	var known bootCopy
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	if err != nil {
		k.log.Error("the copy of machines and subnets cannot be read: no machine is answered before the store is there", "file", k.file, "err", err)
		return false
	}
	machines := make([]*v1alpha1.Machine, len(known.Machines))
	for i := range known.Machines {
		machines[i] = &known.Machines[i]
	}
	k.fleet.Restore(machines)
	k.subnets.SetSubnets(known.Subnets)
	k.log.Info("installed machines are answered from a copy until the store is there", "machines", len(machines), "subnets", len(known.Subnets), "written", known.Written)
	return true
}

// run writes the copy when something has changed, until ctx ends.
func (k *copyKeeper) run(ctx context.Context) error {
	tick := time.NewTicker(copyEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if err := k.keep(); err != nil {
			k.log.Error("the copy of machines and subnets, for a start without the store, is not up to date", "file", k.file, "err", err)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// keep writes the copy unless it is as it was, or the store is not there.
func (k *copyKeeper) keep() error {
	changes, subnets := k.fleet.Changes(), k.subnets.current()
	if !k.fleet.IsSynced() {
		return nil
	}
	known := bootCopy{Machines: []v1alpha1.Machine{}, Subnets: []v1alpha1.Subnet{}}
	for _, subnet := range subnets {
		known.Subnets = append(known.Subnets, v1alpha1.Subnet{TypeMeta: subnet.TypeMeta, ObjectMeta: copyMeta(&subnet.ObjectMeta), Spec: subnet.Spec})
	}
	encoded, err := json.Marshal(known.Subnets)
	if err != nil {
		return err
	}
	if k.last != nil && changes == k.changes && bytes.HasPrefix(k.last, encoded) {
		return nil
	}
	for _, m := range k.fleet.List() {
		if !fleet.IsStranger(m) {
			known.Machines = append(known.Machines, copyOf(m))
		}
	}
	machines, err := json.Marshal(known.Machines)
	if err != nil {
		return err
	}
	// Machines are written to for much that is not in the copy.
	if encoded = append(encoded, machines...); bytes.Equal(encoded, k.last) {
		k.changes = changes
		return nil
	}
	known.Written = time.Now().UTC().Truncate(time.Second)
	text, err := json.Marshal(known)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(k.file, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write it: %w", err)
	}
	k.changes, k.last = changes, encoded
	return nil
}

func copyMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion, Generation: m.Generation, CreationTimestamp: m.CreationTimestamp}
}

// copyOf has what tells a machine from others, its address, and what decides that it starts its disk. Nothing of it is secret.
func copyOf(m *v1alpha1.Machine) v1alpha1.Machine {
	c := v1alpha1.Machine{
		ObjectMeta: copyMeta(&m.ObjectMeta),
		Spec: v1alpha1.MachineSpec{
			Identifiers: m.Spec.Identifiers, Approved: m.Spec.Approved, Hostname: m.Spec.Hostname, Network: m.Spec.Network, Intent: m.Spec.Intent,
		},
		Status: v1alpha1.MachineStatus{
			Intent: m.Status.Intent, PastIntents: m.Status.PastIntents, Installed: m.Status.Installed, Identity: m.Status.Identity,
		},
	}
	// With versions, every change of anything else would be news.
	c.ResourceVersion, c.Generation = "", 0
	if by := m.Annotations[v1alpha1.AnnotationDiscoveredBy]; by != "" {
		c.Annotations = map[string]string{v1alpha1.AnnotationDiscoveredBy: by}
	}
	if inventory := m.Status.Inventory; inventory != nil {
		c.Status.Inventory = &v1alpha1.Inventory{System: v1alpha1.SystemInfo{UUID: inventory.System.UUID, Serial: inventory.System.Serial}, BMC: inventory.BMC}
		for _, nic := range inventory.NICs {
			c.Status.Inventory.NICs = append(c.Status.Inventory.NICs, v1alpha1.NIC{Name: nic.Name, MAC: nic.MAC, Bus: nic.Bus, Boot: nic.Boot})
		}
	}
	return c
}
