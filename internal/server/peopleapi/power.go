package peopleapi

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"coldrack.dev/internal/machine/bmc"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
	"coldrack.dev/internal/server/power"
)

// Power switches machines. It is *power.Service.
type Power interface {
	Power(ctx context.Context, machine string) (power.Result, error)
	Do(ctx context.Context, machine string, action bmc.Action, boot *bmc.Boot) (power.Result, error)
	Probe(ctx context.Context, machine string, anyCertificate bool) (bmc.Probe, error)
	Look(ctx context.Context, address string) (bmc.Found, bool)
	Scan(ctx context.Context, network netip.Prefix, secret string, tell func(bmc.Found)) error
}

// PowerAPI answers people's requests about machines' power and BMCs.
type PowerAPI struct {
	log   *slog.Logger
	power atomic.Pointer[Power]
}

// NewPowerAPI returns an API that answers 503 until Open is called.
func NewPowerAPI(log *slog.Logger) *PowerAPI { return &PowerAPI{log: log.With("part", "power")} }

// Open begins to answer.
func (a *PowerAPI) Open(p Power) { a.power.Store(&p) }

// Handlers by path. Who may only read reads the power by GET; everything else is a POST, which operators may send.
func (a *PowerAPI) Handlers() map[string]http.Handler {
	return map[string]http.Handler{
		peoplewire.PathPower:    Limit{AtOnce: 128, Each: 64}.Around(http.HandlerFunc(a.servePower)),
		peoplewire.PathBMCProbe: Limit{AtOnce: 16, Each: 8}.Around(http.HandlerFunc(a.serveProbe)),
		peoplewire.PathBMCScan:  Limit{AtOnce: 2, Each: 1}.Around(http.HandlerFunc(a.serveScan)),
	}
}

// Limits of one request.
const (
	lookLimit   = time.Minute
	actionLimit = 10 * time.Minute // an operating system has five to end
)

// ready is the service, or nil after an answer that it is not there yet.
func (a *PowerAPI) ready(w http.ResponseWriter) Power {
	p := a.power.Load()
	if p == nil {
		http.Error(w, "the server is starting; try again in a moment", http.StatusServiceUnavailable)
		return nil
	}
	return *p
}

// fail answers with what a BMC's failure means to the caller.
func (a *PowerAPI) fail(w http.ResponseWriter, r *http.Request, err error) {
	controlplane.Remark(r, "power.coldrack.dev/failed", string(bmc.KindOf(err)))
	http.Error(w, err.Error(), statusOf(err))
}

func statusOf(err error) int {
	var refused *refusal
	switch {
	case errors.As(err, &refused):
		return refused.status
	case errors.Is(err, power.ErrNotFound):
		return http.StatusNotFound
	}
	switch bmc.KindOf(err) {
	case bmc.Misconfigured, bmc.Unsupported, bmc.Waiting:
		return http.StatusConflict
	case bmc.Unreachable, bmc.Unfinished:
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// servePower answers GET and POST /coldrack/v1/power/MACHINE.
func (a *PowerAPI) servePower(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, peoplewire.PathPower)
	if name == "" || strings.Contains(name, "/") {
		http.NotFound(w, r)
		return
	}
	p := a.ready(w)
	if p == nil {
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	var result power.Result
	var err error
	switch r.Method {
	case http.MethodGet:
		ctx, cancel := context.WithTimeout(r.Context(), lookLimit)
		defer cancel()
		result, err = p.Power(ctx, name)
	case http.MethodPost:
		result, err = a.act(r, p, name)
	default:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "only GET and POST", http.StatusMethodNotAllowed)
		return
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(peoplewire.PowerResponse{Machine: name, Was: string(result.Was), State: string(result.State)})
}

func (a *PowerAPI) act(r *http.Request, p Power, name string) (power.Result, error) {
	var request peoplewire.PowerRequest
	if err := readRequest(r, &request); err != nil {
		return power.Result{}, err
	}
	action := bmc.Action(request.Action)
	if !slices.Contains(bmc.Actions(), action) {
		return power.Result{}, refuse(http.StatusBadRequest, "action %q: want one of %v", request.Action, bmc.Actions())
	}
	var boot *bmc.Boot
	if request.Boot != "" {
		if !slices.Contains([]bmc.Device{bmc.BootNetwork, bmc.BootHTTP, bmc.BootDisk}, bmc.Device(request.Boot)) || action == bmc.PowerOff || action == bmc.Shutdown {
			return power.Result{}, refuse(http.StatusBadRequest, "boot %q: want network, http or disk, with an action after which the machine runs", request.Boot)
		}
		boot = &bmc.Boot{Device: bmc.Device(request.Boot), Firmware: bmc.Firmware(request.Firmware)}
	}
	person := controlplane.PersonOf(r)
	for key, value := range map[string]string{"machine": name, "action": request.Action, "boot": request.Boot, "reason": request.Reason} {
		if value != "" {
			controlplane.Remark(r, "power.coldrack.dev/"+key, value)
		}
	}
	// What was begun is finished, also when the person goes: a machine must not stay off between the two halves of a cycle.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), actionLimit)
	defer cancel()
	result, err := p.Do(ctx, name, action, boot)
	a.log.Info("power action asked for", "machine", name, "action", request.Action, "by", person.Name, "power", string(result.State), "failed", err != nil)
	return result, err
}

// serveProbe answers POST /coldrack/v1/bmc/probe.
func (a *PowerAPI) serveProbe(w http.ResponseWriter, r *http.Request) {
	p := a.ready(w)
	if p == nil {
		return
	}
	var request peoplewire.ProbeRequest
	if !a.read(w, r, &request) {
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	ctx, cancel := context.WithTimeout(r.Context(), lookLimit)
	defer cancel()
	var found bmc.Found
	switch {
	case (request.Machine == "") == (request.Address == ""):
		http.Error(w, "name a machine or an address", http.StatusBadRequest)
		return
	case request.Address != "":
		var ok bool
		if found, ok = p.Look(ctx, request.Address); !ok {
			http.Error(w, request.Address+": no BMC answers there, by Redfish or by IPMI, as seen from the server", http.StatusGatewayTimeout)
			return
		}
	default:
		probe, err := p.Probe(ctx, request.Machine, request.AnyCertificate)
		if err != nil && probe.Certificate == "" {
			a.fail(w, r, err)
			return
		}
		found = bmc.Found{Protocol: probe.Protocol, Probe: probe}
		if err != nil {
			found.Problem = err.Error()
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(foundOnWire(found))
}

func (a *PowerAPI) read(w http.ResponseWriter, r *http.Request, into any) bool {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "only POST", http.StatusMethodNotAllowed)
		return false
	}
	if err := readRequest(r, into); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

// serveScan answers POST /coldrack/v1/bmc/scan with a JSON line for each BMC as it is found.
func (a *PowerAPI) serveScan(w http.ResponseWriter, r *http.Request) {
	p := a.ready(w)
	if p == nil {
		return
	}
	var request peoplewire.ScanRequest
	if !a.read(w, r, &request) {
		return
	}
	network, err := netip.ParsePrefix(request.Network)
	switch {
	case err != nil:
		http.Error(w, "network: want an address and a length, such as 10.0.9.0/24", http.StatusBadRequest)
		return
	case request.CredentialsSecret != "" && controlplane.PersonOf(r).Role != controlplane.GroupAdmin:
		http.Error(w, "a scan with credentials gives the password to whoever answers: this needs role admin", http.StatusForbidden)
		return
	}
	controlplane.Remark(r, "bmc.coldrack.dev/network", network.String())
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Time{})
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(w)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	begun := false
	err = p.Scan(ctx, network, request.CredentialsSecret, func(found bmc.Found) {
		begun = true
		line := foundOnWire(found)
		if lines.Encode(peoplewire.ScanLine{Found: &line}) != nil || control.Flush() != nil {
			cancel()
		}
	})
	switch {
	case err != nil && !begun:
		http.Error(w, err.Error(), statusOf(err))
	case err != nil:
		_ = lines.Encode(peoplewire.ScanLine{Error: err.Error()})
	default:
		_ = lines.Encode(peoplewire.ScanLine{Done: true})
	}
}

func foundOnWire(f bmc.Found) peoplewire.BMC {
	p := f.Probe
	out := peoplewire.BMC{
		Address: f.Address, Protocol: string(p.Protocol), Version: p.Version, Vendor: p.Vendor, Model: p.Model, Firmware: p.Firmware, System: p.System, Systems: p.Systems,
		Quirks: p.Quirks, Certificate: p.Certificate, Problem: f.Problem, Manufacturer: p.Inventory.Manufacturer, Product: p.Inventory.Model,
		Serial: p.Inventory.Serial, UUID: p.Inventory.UUID, MACs: p.Inventory.MACs, BMCMAC: p.Inventory.BMCMAC,
	}
	if p.Power != bmc.Unknown {
		out.Power = string(p.Power)
	}
	for _, action := range p.Actions {
		out.Actions = append(out.Actions, string(action))
	}
	for _, device := range p.Devices {
		out.Boots = append(out.Boots, string(device))
	}
	if p.EventLog >= 0 {
		out.EventLog = &p.EventLog
	}
	return out
}
