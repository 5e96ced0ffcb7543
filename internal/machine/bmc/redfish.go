package bmc

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"coldrack.dev/internal/base/termtext"
)

const serviceRootPath = "/redfish/v1/"

// link is how Redfish names another resource.
type link struct {
	ID string `json:"@odata.id"`
}

type serviceRoot struct {
	RedfishVersion string
	Vendor         string
	Product        string
	UUID           string
	Systems        link
	Links          struct{ Sessions link }
}

type collection struct {
	Members []link
}

type computerSystem struct {
	Path string `json:"@odata.id"`
	ETag string `json:"@odata.etag"`

	ID            string `json:"Id"`
	Manufacturer  string
	Model         string
	SerialNumber  string
	UUID          string
	PowerState    string
	LastResetTime string
	Boot          struct {
		Mode    string   `json:"BootSourceOverrideMode"`
		Targets []string `json:"BootSourceOverrideTarget@Redfish.AllowableValues"`
	}
	Actions struct {
		Reset resetAction `json:"#ComputerSystem.Reset"`
	}
	EthernetInterfaces link
	Links              struct{ ManagedBy []link }
}

// resetAction says where resets are asked for, and which ones there are: by AllowableValues, or by an ActionInfo.
type resetAction struct {
	Target    string   `json:"target"`
	Allowable []string `json:"ResetType@Redfish.AllowableValues"`
	Info      string   `json:"@Redfish.ActionInfo"`
}

type actionInfo struct {
	Parameters []struct {
		Name            string
		AllowableValues []string
	}
}

type manager struct {
	Model, FirmwareVersion, Manufacturer string
	EthernetInterfaces                   link
	LogServices                          link
}

type ethernetInterface struct {
	ID                  string `json:"Id"`
	MACAddress          string
	PermanentMACAddress string
}

// redfish is a Driver. It reads the way from the service's root to the machine's ComputerSystem once a visit: some
// services have no children until their parent was read.
type redfish struct {
	*rest
	root    serviceRoot
	systems []string // paths
	path    string   // of the machine's ComputerSystem
	etag    string
}

func openRedfish(t Target, o Options) (*redfish, error) {
	r, err := newREST(t, o)
	if err != nil {
		return nil, err
	}
	return &redfish{rest: r}, nil
}

func (r *redfish) Close() { r.close() }

// readRoot reads what everybody may.
func (r *redfish) readRoot(ctx context.Context) error {
	if r.root.RedfishVersion != "" {
		return nil
	}
	if _, err := r.get(ctx, serviceRootPath, &r.root); err != nil {
		return r.failed("read the service's root", err)
	}
	if r.root.RedfishVersion == "" {
		return &Error{Kind: Failed, Address: r.target.Address, What: "answers, but not as a Redfish service", Remedy: "is spec.bmc.address the BMC's? Older ones speak ipmi only"}
	}
	r.quirks = quirksFor(r.root.Vendor, r.root.Product)
	return nil
}

// sessions is where a session is asked for.
func (r *redfish) sessions() string {
	return cmp.Or(r.root.Links.Sessions.ID, serviceRootPath+"SessionService/Sessions")
}

// find logs in and walks to the machine's system.
func (r *redfish) find(ctx context.Context) error {
	if r.path != "" {
		return nil
	}
	if err := r.readRoot(ctx); err != nil {
		return err
	}
	if err := r.login(ctx, r.sessions()); err != nil {
		return err
	}
	var systems collection
	if _, err := r.get(ctx, cmp.Or(r.root.Systems.ID, serviceRootPath+"Systems"), &systems); err != nil {
		return r.failed("list the systems", err)
	}
	r.systems = nil
	for _, member := range systems.Members[:min(len(systems.Members), maxMembers)] {
		r.systems = append(r.systems, member.ID)
	}
	chosen, err := chooseSystem(r.systems, r.target.System)
	if err != nil {
		return &Error{Kind: Misconfigured, Address: r.target.Address, What: err.Error(), Remedy: "set spec.bmc.system to the machine's"}
	}
	r.path = chosen
	return nil
}

// chooseSystem returns the path of the system that is meant: the only one, or the one whose path ends in wanted.
func chooseSystem(paths []string, wanted string) (string, error) {
	var names []string
	for _, p := range paths {
		name := path.Base(p)
		if wanted != "" && (name == wanted || p == wanted) {
			return p, nil
		}
		names = append(names, termtext.Mark(name, 64))
	}
	switch {
	case len(paths) == 0:
		return "", errors.New("it has no system")
	case wanted != "":
		return "", fmt.Errorf("it has no system %q; it has %s", wanted, strings.Join(names, ", "))
	case len(paths) > 1:
		return "", fmt.Errorf("it has %d systems: %s", len(paths), strings.Join(names, ", "))
	}
	return paths[0], nil
}

// system reads the machine's ComputerSystem.
func (r *redfish) system(ctx context.Context) (*computerSystem, error) {
	if err := r.find(ctx); err != nil {
		return nil, err
	}
	s := &computerSystem{}
	a, err := r.get(ctx, r.path, s)
	if statusOf(err) == http.StatusUnauthorized && r.token != "" {
		// A BMC that was restarted has forgotten the session.
		r.token = ""
		if err := r.login(ctx, r.sessions()); err != nil {
			return nil, err
		}
		a, err = r.get(ctx, r.path, s)
	}
	if statusOf(err) == http.StatusNotFound {
		// Read the parent again: some services forget their children.
		var parent collection
		if _, parentErr := r.get(ctx, path.Dir(strings.TrimSuffix(r.path, "/")), &parent); parentErr == nil {
			a, err = r.get(ctx, r.path, s)
		}
	}
	if err != nil {
		return nil, r.failed("read the system", err)
	}
	r.etag = cmp.Or(a.header.Get("ETag"), s.ETag)
	r.quirks = quirksFor(r.root.Vendor, r.root.Product, s.Manufacturer, s.Model)
	return s, nil
}

func (s *computerSystem) state() State {
	switch state := State(s.PowerState); state {
	case On, Off, PoweringOn, PoweringOff:
		return state
	case "Paused":
		return On
	}
	return Unknown
}

func (r *redfish) Power(ctx context.Context) (State, error) {
	s, err := r.system(ctx)
	if err != nil {
		return Unknown, err
	}
	return s.state(), nil
}

// offered are the reset types of the machine, or nil where it does not say.
func (r *redfish) offered(ctx context.Context, s *computerSystem) ([]string, error) {
	reset := s.Actions.Reset
	offered := reset.Allowable
	if len(offered) == 0 && reset.Info != "" {
		var info actionInfo
		if _, err := r.get(ctx, reset.Info, &info); err != nil {
			return nil, r.failed("read which resets there are", err)
		}
		for _, p := range info.Parameters {
			if p.Name == "ResetType" {
				offered = p.AllowableValues
			}
		}
	}
	return r.quirks.resets(offered), nil
}

func (r *redfish) Do(ctx context.Context, a Action) error {
	s, err := r.system(ctx)
	if err != nil {
		return err
	}
	offered, err := r.offered(ctx, s)
	if err != nil {
		return err
	}
	steps, err := redfishRequests().steps(a, s.state(), offered)
	if err != nil {
		return &Error{Kind: Unsupported, Address: r.target.Address, What: "cannot do this", Cause: err}
	}
	target := cmp.Or(s.Actions.Reset.Target, strings.TrimSuffix(r.path, "/")+"/Actions/ComputerSystem.Reset")
	for _, step := range steps {
		if err := r.reset(ctx, target, step, s); err != nil {
			return err
		}
	}
	return nil
}

// reset asks for one reset and waits until the power shows it. It is asked for once: nobody wants it twice.
func (r *redfish) reset(ctx context.Context, target string, next step, before *computerSystem) error {
	what := "asked for " + next.request
	a, err := r.once(ctx, http.MethodPost, target, map[string]string{"ResetType": next.request}, nil)
	broken := false
	switch status := statusOf(err); {
	case err == nil && a.status == http.StatusAccepted:
		if err := r.finish(ctx, a, what); err != nil {
			return err
		}
	case status == http.StatusConflict:
		// Dell and others answer so when it is so already.
		if now, readErr := r.Power(ctx); readErr == nil && now == next.until && before.state() != next.until {
			return nil
		}
		return r.failed(what, err)
	case status != 0:
		return r.failed(what, err)
	case err != nil && r.failed(what, err).Kind != Unreachable:
		return r.failed(what, err)
	case err != nil:
		broken = true
	}
	limit := r.options.Settle
	if next.until == Off && next.request != "ForceOff" {
		limit = r.options.Shutdown
	}
	now, lost := r.awaitPower(ctx, next.until, limit)
	switch {
	case lost != nil:
		return lost
	case now != next.until:
		remedy := "look at the machine's console"
		if next.until == Off && limit == r.options.Shutdown {
			remedy = "the operating system did not end; cut its power: coldrack power off --hard"
		}
		return &Error{Kind: Unfinished, Address: r.target.Address, What: fmt.Sprintf("%s, and the power is still %s after %s", what, now, limit), Remedy: remedy}
	case broken && before.state() == next.until && !r.wasReset(ctx, before):
		return &Error{Kind: Uncertain, Address: r.target.Address, What: what, Cause: fmt.Errorf("%w (%w); the power is %s, as before", errSent, err, now),
			Remedy: "look whether the machine has restarted before you ask again"}
	}
	before.PowerState = string(now)
	return nil
}

// awaitPower waits until the power is as wanted, by a connection that works.
func (r *redfish) awaitPower(ctx context.Context, wanted State, limit time.Duration) (State, error) {
	now, err := settled(ctx, r, r.options, wanted, limit)
	if err == nil && ctx.Err() != nil && now != wanted {
		err = &Error{Kind: Unfinished, Address: r.target.Address, What: fmt.Sprintf("the power is still %s", now), Cause: context.Cause(ctx)}
	}
	return now, err
}

// wasReset says whether the system has restarted since before was read, as far as it tells.
func (r *redfish) wasReset(ctx context.Context, before *computerSystem) bool {
	s, err := r.system(ctx)
	return err == nil && before.LastResetTime != "" && s.LastResetTime != before.LastResetTime
}

// finish waits until the service has carried out what it accepted (202, DSP0266, "Asynchronous operations"), for a bounded time.
// A service that names no task is taken at its word: the power shows the rest.
func (r *redfish) finish(ctx context.Context, a answer, what string) error {
	var body link
	_ = json.Unmarshal(a.body, &body)
	monitor := cmp.Or(a.header.Get("Location"), body.ID)
	if monitor == "" {
		return nil
	}
	for waited := time.Duration(0); waited < r.options.Task; {
		pause := retryAfter(a.header)
		if err := r.options.Wait(ctx, pause); err != nil {
			return r.failed(what, err)
		}
		waited += pause
		var err error
		a, err = r.once(ctx, http.MethodGet, monitor, nil, nil)
		var task struct {
			TaskState string
			Messages  []struct{ Message string }
		}
		_ = json.Unmarshal(a.body, &task)
		switch {
		case statusOf(err) == http.StatusNotFound, statusOf(err) == http.StatusGone:
			return nil // a monitor is there until its answer was read
		case err != nil && r.failed(what, err).Kind == Unreachable:
			continue
		case err != nil:
			return r.failed(what, err)
		case slices.Contains([]string{"Exception", "Killed", "Cancelled"}, task.TaskState):
			said := ""
			for _, m := range task.Messages {
				said = termtext.Mark(m.Message, maxText)
			}
			return &Error{Kind: Failed, Address: r.target.Address, What: what, Cause: fmt.Errorf("its task ended as %s: %s", task.TaskState, said)}
		case a.status == http.StatusAccepted, slices.Contains([]string{"New", "Starting", "Running", "Pending", "Service"}, task.TaskState):
			continue
		}
		return nil
	}
	return &Error{Kind: Unfinished, Address: r.target.Address, What: fmt.Sprintf("%s, and its task %s still runs after %s", what, termtext.Mark(monitor, maxText), r.options.Task),
		Remedy: "look at the BMC's tasks; a BMC that hangs may need to be restarted"}
}

// retryAfter is when the service wants to be asked again, within reason.
func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil {
		return glance
	}
	return min(max(time.Duration(seconds)*time.Second, time.Second), 15*time.Second)
}

// bootTargets are the names that Redfish has for devices.
func bootTargets() map[Device]string {
	return map[Device]string{BootNetwork: "Pxe", BootHTTP: "UefiHttp", BootDisk: "Hdd"}
}

func (r *redfish) BootOnce(ctx context.Context, b Boot) error {
	s, err := r.system(ctx)
	if err != nil {
		return err
	}
	name := bootTargets()[b.Device]
	if targets := s.Boot.Targets; name == "" || len(targets) > 0 && !slices.Contains(targets, name) {
		return &Error{Kind: Unsupported, Address: r.target.Address, What: fmt.Sprintf("cannot boot %q once", b.Device), Cause: fmt.Errorf("it offers %s", termtext.Mark(strings.Join(targets, ", "), maxText))}
	}
	boot := map[string]string{"BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": name}
	switch mode := map[Firmware]string{BIOS: "Legacy", UEFI: "UEFI"}[b.Firmware]; {
	case mode != "" && s.Boot.Mode != "" && (mode != s.Boot.Mode || r.quirks.BootMode == modeAlways):
		boot["BootSourceOverrideMode"] = mode
	case r.quirks.BootMode == modeAlways && s.Boot.Mode != "":
		boot["BootSourceOverrideMode"] = s.Boot.Mode
	}
	if err := r.patch(ctx, map[string]any{"Boot": boot}); err != nil {
		return r.failed(fmt.Sprintf("choose %s for the next boot", b.Device), err)
	}
	return nil
}

// patch changes the system if it still is as it was read. Services differ in what they make of an ETag: if it does not fit,
// the system is read once more, and the tag is then tried without its mark of weakness.
func (r *redfish) patch(ctx context.Context, body any) error {
	var err error
	for attempt := range 3 {
		header := http.Header{}
		if tag := r.quirks.etag(r.etag, attempt); tag != "" {
			header.Set("If-Match", tag)
		}
		var a answer
		a, err = r.once(ctx, http.MethodPatch, r.path, body, header)
		if err == nil && a.status == http.StatusAccepted {
			return r.finish(ctx, a, "change the system")
		}
		if status := statusOf(err); status != http.StatusPreconditionFailed && status != http.StatusPreconditionRequired {
			return err
		}
		if _, readErr := r.system(ctx); readErr != nil {
			return readErr
		}
	}
	return err
}

func (r *redfish) Inventory(ctx context.Context) (Inventory, error) {
	s, err := r.system(ctx)
	if err != nil {
		return Inventory{}, err
	}
	return r.inventoryOf(ctx, s)
}

func (r *redfish) inventoryOf(ctx context.Context, s *computerSystem) (Inventory, error) {
	text := func(s string) string { return termtext.Line(s, 128) }
	inv := Inventory{Manufacturer: text(s.Manufacturer), Model: text(s.Model), Serial: text(s.SerialNumber), UUID: strings.ToLower(text(s.UUID))}
	var err error
	if inv.MACs, err = r.macs(ctx, s.EthernetInterfaces.ID); err != nil {
		return inv, r.failed("read the machine's interfaces", err)
	}
	for _, by := range s.Links.ManagedBy[:min(len(s.Links.ManagedBy), 1)] {
		var m manager
		if _, err := r.get(ctx, by.ID, &m); err != nil {
			break // what the BMC says of itself is not needed
		}
		if own, err := r.macs(ctx, m.EthernetInterfaces.ID); err == nil && len(own) > 0 {
			inv.BMCMAC = own[0]
		}
	}
	return inv, nil
}

// macs are the addresses of a collection of interfaces, in the order of their names. Services may list them in any order.
func (r *redfish) macs(ctx context.Context, at string) ([]string, error) {
	if at == "" {
		return nil, nil
	}
	var list collection
	if _, err := r.get(ctx, at, &list); err != nil {
		if statusOf(err) == http.StatusNotFound {
			return nil, nil
		}
		return nil, err
	}
	members := list.Members[:min(len(list.Members), maxMembers)]
	slices.SortStableFunc(members, func(a, b link) int { return compareNatural(path.Base(a.ID), path.Base(b.ID)) })
	var macs []string
	for _, member := range members {
		var nic ethernetInterface
		if _, err := r.get(ctx, member.ID, &nic); err != nil {
			return macs, err
		}
		if mac, ok := macOf(cmp.Or(nic.PermanentMACAddress, nic.MACAddress)); ok && !slices.Contains(macs, mac) {
			macs = append(macs, mac)
		}
	}
	return macs, nil
}

func (r *redfish) Probe(ctx context.Context) (Probe, error) {
	p := Probe{Protocol: Redfish, EventLog: -1, Power: Unknown}
	if err := r.readRoot(ctx); err != nil {
		p.Certificate = r.certificate
		return p, err
	}
	text := func(s string) string { return termtext.Line(s, 128) }
	p.Certificate = r.certificate
	p.Version, p.Vendor, p.Model = text(r.root.RedfishVersion), text(r.root.Vendor), text(r.root.Product)
	if r.target.Username == "" {
		return p, nil // more is told only to those who log in
	}
	s, err := r.system(ctx)
	for _, member := range r.systems {
		p.Systems = append(p.Systems, text(path.Base(member)))
	}
	if err != nil {
		return p, err
	}
	p.System, p.Power, p.Quirks = text(path.Base(r.path)), s.state(), r.quirks.Names
	p.Vendor = cmp.Or(p.Vendor, text(s.Manufacturer))
	offered, err := r.offered(ctx, s)
	if err != nil {
		return p, err
	}
	p.Actions = redfishRequests().offers(offered)
	for _, device := range []Device{BootNetwork, BootHTTP, BootDisk} {
		if len(s.Boot.Targets) == 0 || slices.Contains(s.Boot.Targets, bootTargets()[device]) {
			p.Devices = append(p.Devices, device)
		}
	}
	if len(s.Links.ManagedBy) > 0 {
		var m manager
		if _, err := r.get(ctx, s.Links.ManagedBy[0].ID, &m); err == nil {
			p.Model, p.Firmware = cmp.Or(text(m.Model), p.Model), text(m.FirmwareVersion)
		}
	}
	p.Inventory, err = r.inventoryOf(ctx, s)
	return p, err
}
