package peopleapi

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/fleet"
)

// MachineList answers GET with all machines (MachineList), as they are known in memory and without the details of
// which a table shows nothing. To read ten thousand from the store takes seconds.
func MachineList(known *fleet.Fleet) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			http.Error(w, "only GET", http.StatusMethodNotAllowed)
			return
		}
		if !known.IsSynced() {
			http.Error(w, "the machines have not been read from the store yet", http.StatusServiceUnavailable)
			return
		}
		machines := known.List()
		list := v1alpha1.MachineList{
			TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "MachineList"},
			Items:    make([]v1alpha1.Machine, 0, len(machines)),
		}
		for _, m := range machines {
			list.Items = append(list.Items, brief(*m))
		}
		w.Header().Set("Content-Type", "application/json")
		var to io.Writer = w
		// On the server's own machine, packing takes longer than passing on.
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") && !fromLoopback(r) {
			w.Header().Set("Content-Encoding", "gzip")
			packed, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level exists
			defer packed.Close()
			to = packed
		}
		_ = json.NewEncoder(to).Encode(list)
	})
}

// brief leaves out what makes a machine large. What m refers to is shared and stays as it is.
func brief(m v1alpha1.Machine) v1alpha1.Machine {
	m.ManagedFields, m.Status.Boots, m.Status.Hardware, m.Status.AcceptedHardware = nil, nil, nil, nil
	if m.Status.Inventory != nil {
		inventory := *m.Status.Inventory
		inventory.NICs = nil
		m.Status.Inventory = &inventory
	}
	switch m.Status.Phase {
	case v1alpha1.PhaseInstalling, v1alpha1.PhaseReleasing, v1alpha1.PhaseFailed, v1alpha1.PhaseLost:
	default:
		m.Status.Steps = nil // of what is over
	}
	if k := m.Status.Kubernetes; k != nil && k.Done {
		settled := *k
		settled.Phases = nil
		m.Status.Kubernetes = &settled
	}
	return m
}

func fromLoopback(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && from.Addr().Unmap().IsLoopback()
}
