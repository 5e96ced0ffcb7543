package peopleapi

import (
	"compress/gzip"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func TestMachinesAreListedFromMemory(t *testing.T) {
	known := fleet.New(fleet.Options{})
	m := &v1alpha1.Machine{Status: v1alpha1.MachineStatus{
		Phase: v1alpha1.PhaseReady, Steps: []v1alpha1.Step{{Name: "image"}}, Boots: []v1alpha1.BootRecord{{}},
		Inventory: &v1alpha1.Inventory{System: v1alpha1.SystemInfo{Serial: "S1"}, NICs: []v1alpha1.NIC{{Name: "eth0"}}},
	}}
	m.Name, m.UID, m.ResourceVersion, m.Labels = "node-1", "1", "1", map[string]string{"rack": "r1"}
	known.Put(m)
	ask := func(method string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		MachineList(known).ServeHTTP(w, httptest.NewRequest(method, peoplewire.PathMachines, nil))
		return w
	}
	if w := ask(http.MethodGet); w.Code != http.StatusServiceUnavailable {
		t.Errorf("before the store was read: %d", w.Code)
	}
	known.MarkSynced()
	if w := ask(http.MethodPost); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
	var list v1alpha1.MachineList
	if err := json.Unmarshal(ask(http.MethodGet).Body.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	if list.Kind != "MachineList" || len(list.Items) != 1 {
		t.Fatalf("listed %+v", list)
	}
	got := list.Items[0]
	if got.Name != "node-1" || got.Labels["rack"] != "r1" || got.Status.Phase != v1alpha1.PhaseReady || got.Status.Inventory.System.Serial != "S1" || got.Status.Boots != nil || got.Status.Inventory.NICs != nil || got.Status.Steps != nil {
		t.Errorf("listed %+v", got)
	}
	if kept, _ := known.Get("node-1"); len(kept.Status.Boots) != 1 || len(kept.Status.Steps) != 1 || len(kept.Status.Inventory.NICs) != 1 {
		t.Errorf("what is known has become %+v", kept.Status)
	}

	far := httptest.NewRequest(http.MethodGet, peoplewire.PathMachines, nil)
	far.RemoteAddr = "192.0.2.7:4711"
	far.Header.Set("Accept-Encoding", "gzip, br")
	w := httptest.NewRecorder()
	MachineList(known).ServeHTTP(w, far)
	unpacked, err := gzip.NewReader(w.Body)
	if err != nil || w.Header().Get("Content-Encoding") != "gzip" {
		t.Fatalf("from afar: %v, %v", err, w.Header())
	}
	list = v1alpha1.MachineList{}
	if err := json.NewDecoder(unpacked).Decode(&list); err != nil || len(list.Items) != 1 {
		t.Errorf("from afar: %v, %+v", err, list)
	}
	near := far.Clone(far.Context())
	near.RemoteAddr = "127.0.0.1:4711"
	w = httptest.NewRecorder()
	MachineList(known).ServeHTTP(w, near)
	if w.Header().Get("Content-Encoding") != "" {
		t.Error("on the server's own machine the answer is packed")
	}
}
