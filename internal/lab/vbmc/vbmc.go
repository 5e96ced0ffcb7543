// Package vbmc is a virtual BMC: it serves as much of Redfish (DSP0266, DSP2046) as clients need to switch virtual machines on
// and off, and to choose what they boot next. One service can have several machines, as the controller of a chassis with blades.
package vbmc

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Device is what a machine boots once, in Redfish's words: None, Pxe, UefiHttp or Hdd.
type Device string

const (
	None     Device = "None"
	Network  Device = "Pxe"
	HTTPBoot Device = "UefiHttp"
	Disk     Device = "Hdd"
)

// Machine is what the BMC switches. Its methods may be called from several goroutines.
type Machine interface {
	On() bool
	// PowerOn starts the machine, from the device if it is not None.
	PowerOn(ctx context.Context, from Device) error
	// PowerOff pulls the plug.
	PowerOff(ctx context.Context) error
	// Shutdown presses the power button.
	Shutdown(ctx context.Context) error
	// Reset presses the reset button.
	Reset(ctx context.Context) error
}

// System is one machine of a service.
type System struct {
	// Name is the last part of its path.
	Name                              string
	Manufacturer, Model, Serial, UUID string
	UEFI                              bool
	MACs                              []string
	Machine                           Machine
}

// Options say what a service is.
type Options struct {
	Username, Password string
	Systems            []System
	// Vendor and Product are how it calls itself. Default Coldrack, Virtual BMC.
	Vendor, Product string
	// ActionInfo lists the resets in a resource of their own instead of in the system.
	ActionInfo bool
	// Resets are the ResetTypes that it offers. Default: On, ForceOff, GracefulShutdown, ForceRestart, PowerCycle.
	Resets []string
}

const (
	root        = "/redfish/v1"
	maxSessions = 16
	maxRequest  = 64 << 10
)

// Service is the HTTP side of a BMC.
type Service struct {
	options Options
	mux     *http.ServeMux

	mu       sync.Mutex
	sessions map[string]string // token → id
	order    []string          // tokens, oldest first
	systems  map[string]*system
}

type system struct {
	System
	boot    Device
	mode    string
	version int
	resets  int
}

// New returns a service over machines.
func New(o Options) *Service {
	if o.Vendor == "" {
		o.Vendor, o.Product = "Coldrack", "Virtual BMC"
	}
	if o.Resets == nil {
		o.Resets = []string{"On", "ForceOff", "GracefulShutdown", "ForceRestart", "PowerCycle"}
	}
	s := &Service{options: o, mux: http.NewServeMux(), sessions: map[string]string{}, systems: map[string]*system{}}
	for _, x := range o.Systems {
		mode := "Legacy"
		if x.UEFI {
			mode = "UEFI"
		}
		s.systems[x.Name] = &system{System: x, boot: None, mode: mode}
	}
	s.routes()
	return s
}

func (s *Service) routes() {
	open := func(pattern string, f http.HandlerFunc) { s.mux.HandleFunc(pattern, f) }
	closed := func(pattern string, f http.HandlerFunc) {
		s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if !s.known(r) {
				w.Header().Set("WWW-Authenticate", `Basic realm="Redfish"`)
				fail(w, http.StatusUnauthorized, "Base.1.0.NoValidSession", "There is no valid session established with the implementation.")
				return
			}
			f(w, r)
		})
	}
	of := func(f func(w http.ResponseWriter, r *http.Request, x *system)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			x := s.systems[r.PathValue("system")]
			if x == nil {
				fail(w, http.StatusNotFound, "Base.1.0.ResourceMissingAtURI", "There is no such resource.")
				return
			}
			f(w, r, x)
		}
	}
	open("GET /redfish", func(w http.ResponseWriter, _ *http.Request) { send(w, http.StatusOK, object{"v1": root + "/"}) })
	open("GET /redfish/v1/{$}", s.serveRoot)
	open("GET /redfish/v1", s.serveRoot)
	open("POST /redfish/v1/SessionService/Sessions", s.login)
	closed("GET /redfish/v1/SessionService", func(w http.ResponseWriter, _ *http.Request) {
		send(w, http.StatusOK, object{"@odata.id": root + "/SessionService", "@odata.type": "#SessionService.v1_1_8.SessionService", "Id": "SessionService", "Name": "Session Service",
			"ServiceEnabled": true, "SessionTimeout": 1800, "Sessions": ref(root + "/SessionService/Sessions")})
	})
	closed("GET /redfish/v1/SessionService/Sessions", s.listSessions)
	closed("GET /redfish/v1/SessionService/Sessions/{id}", func(w http.ResponseWriter, r *http.Request) {
		send(w, http.StatusOK, sessionObject(r.PathValue("id")))
	})
	closed("DELETE /redfish/v1/SessionService/Sessions/{id}", s.logout)
	closed("GET /redfish/v1/Systems", func(w http.ResponseWriter, _ *http.Request) {
		var members []string
		for _, x := range s.options.Systems {
			members = append(members, root+"/Systems/"+x.Name)
		}
		send(w, http.StatusOK, list("ComputerSystem", root+"/Systems", members))
	})
	closed("GET /redfish/v1/Systems/{system}", of(s.serveSystem))
	closed("PATCH /redfish/v1/Systems/{system}", of(s.changeSystem))
	closed("POST /redfish/v1/Systems/{system}/Actions/ComputerSystem.Reset", of(s.reset))
	closed("GET /redfish/v1/Systems/{system}/ResetActionInfo", of(func(w http.ResponseWriter, r *http.Request, _ *system) {
		send(w, http.StatusOK, object{"@odata.id": r.URL.Path, "@odata.type": "#ActionInfo.v1_3_0.ActionInfo", "Id": "ResetActionInfo", "Name": "Reset",
			"Parameters": []object{{"Name": "ResetType", "Required": true, "DataType": "String", "AllowableValues": s.options.Resets}}})
	}))
	closed("GET /redfish/v1/Systems/{system}/EthernetInterfaces", of(func(w http.ResponseWriter, r *http.Request, x *system) {
		var members []string
		for i := range x.MACs {
			members = append(members, fmt.Sprintf("%s/%d", r.URL.Path, i+1))
		}
		send(w, http.StatusOK, list("EthernetInterface", r.URL.Path, members))
	}))
	closed("GET /redfish/v1/Systems/{system}/EthernetInterfaces/{nic}", of(func(w http.ResponseWriter, r *http.Request, x *system) {
		for i, mac := range x.MACs {
			if r.PathValue("nic") == fmt.Sprint(i+1) {
				send(w, http.StatusOK, object{"@odata.id": r.URL.Path, "@odata.type": "#EthernetInterface.v1_9_0.EthernetInterface", "Id": fmt.Sprint(i + 1), "Name": fmt.Sprintf("NIC %d", i+1),
					"MACAddress": mac, "PermanentMACAddress": mac, "Status": object{"State": "Enabled", "Health": "OK"}})
				return
			}
		}
		http.NotFound(w, r)
	}))
	closed("GET /redfish/v1/Managers", func(w http.ResponseWriter, _ *http.Request) {
		send(w, http.StatusOK, list("Manager", root+"/Managers", []string{root + "/Managers/bmc"}))
	})
	closed("GET /redfish/v1/Managers/bmc", func(w http.ResponseWriter, _ *http.Request) {
		send(w, http.StatusOK, object{"@odata.id": root + "/Managers/bmc", "@odata.type": "#Manager.v1_19_0.Manager", "Id": "bmc", "Name": "Manager", "ManagerType": "BMC",
			"Model": s.options.Product, "FirmwareVersion": "1.0", "Status": object{"State": "Enabled", "Health": "OK"}})
	})
}

// ServeHTTP implements http.Handler.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("OData-Version", "4.0")
	if trimmed := strings.TrimSuffix(r.URL.Path, "/"); trimmed != r.URL.Path && trimmed != root {
		r.URL.Path = trimmed // both are the same resource (DSP0266, "URIs")
	}
	s.mux.ServeHTTP(w, r)
}

type object map[string]any

func ref(path string) object { return object{"@odata.id": path} }

func list(kind, path string, members []string) object {
	refs := []object{}
	for _, m := range members {
		refs = append(refs, ref(m))
	}
	return object{"@odata.id": path, "@odata.type": fmt.Sprintf("#%sCollection.%sCollection", kind, kind), "Name": kind + " Collection", "Members": refs, "Members@odata.count": len(refs)}
}

func send(w http.ResponseWriter, status int, body object) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func fail(w http.ResponseWriter, status int, id, message string) {
	send(w, status, object{"error": object{"code": id, "message": message, "@Message.ExtendedInfo": []object{{"MessageId": id, "Message": message}}}})
}

// read decodes a request, or answers that it cannot.
func read(w http.ResponseWriter, r *http.Request, into any) bool {
	if err := json.NewDecoder(io.LimitReader(r.Body, maxRequest)).Decode(into); err != nil {
		fail(w, http.StatusBadRequest, "Base.1.0.MalformedJSON", "The request body is not JSON.")
		return false
	}
	return true
}

func (s *Service) serveRoot(w http.ResponseWriter, _ *http.Request) {
	send(w, http.StatusOK, object{
		"@odata.id": root + "/", "@odata.type": "#ServiceRoot.v1_15_0.ServiceRoot", "Id": "RootService", "Name": "Root Service", "RedfishVersion": "1.15.0",
		"Vendor": s.options.Vendor, "Product": s.options.Product,
		"Systems": ref(root + "/Systems"), "Managers": ref(root + "/Managers"), "SessionService": ref(root + "/SessionService"),
		"Links": object{"Sessions": ref(root + "/SessionService/Sessions")},
	})
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func (s *Service) known(r *http.Request) bool {
	if token := r.Header.Get("X-Auth-Token"); token != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.sessions[token] != ""
	}
	name, password, ok := r.BasicAuth()
	return ok && same(name, s.options.Username) && same(password, s.options.Password)
}

func (s *Service) login(w http.ResponseWriter, r *http.Request) {
	var body struct{ UserName, Password string }
	if !read(w, r, &body) {
		return
	}
	if !same(body.UserName, s.options.Username) || !same(body.Password, s.options.Password) {
		fail(w, http.StatusUnauthorized, "Base.1.0.ResourceAtUriUnauthorized", "The user name or the password is wrong.")
		return
	}
	token, id := random(), random()[:8]
	s.mu.Lock()
	if len(s.order) == maxSessions {
		delete(s.sessions, s.order[0])
		s.order = s.order[1:]
	}
	s.sessions[token] = id
	s.order = append(s.order, token)
	s.mu.Unlock()
	w.Header().Set("X-Auth-Token", token)
	w.Header().Set("Location", root+"/SessionService/Sessions/"+id)
	send(w, http.StatusCreated, sessionObject(id))
}

func random() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

func sessionObject(id string) object {
	return object{"@odata.id": root + "/SessionService/Sessions/" + id, "@odata.type": "#Session.v1_5_0.Session", "Id": id, "Name": "Session"}
}

func (s *Service) listSessions(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	var members []string
	for _, token := range s.order {
		members = append(members, root+"/SessionService/Sessions/"+s.sessions[token])
	}
	s.mu.Unlock()
	send(w, http.StatusOK, list("Session", root+"/SessionService/Sessions", members))
}

func (s *Service) logout(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.order = slices.DeleteFunc(s.order, func(token string) bool {
		gone := s.sessions[token] == r.PathValue("id")
		if gone {
			delete(s.sessions, token)
		}
		return gone
	})
	s.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

// Sessions counts those that have not ended.
func (s *Service) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.order)
}

func (x *system) etag() string { return fmt.Sprintf(`W/"%d"`, x.version) }

func (s *Service) serveSystem(w http.ResponseWriter, r *http.Request, x *system) {
	state := "Off"
	if x.Machine.On() {
		state = "On"
	}
	reset := object{"target": r.URL.Path + "/Actions/ComputerSystem.Reset"}
	if s.options.ActionInfo {
		reset["@Redfish.ActionInfo"] = r.URL.Path + "/ResetActionInfo"
	} else {
		reset["ResetType@Redfish.AllowableValues"] = s.options.Resets
	}
	targets := []Device{None, Network, Disk}
	if x.UEFI {
		targets = append(targets, HTTPBoot)
	}
	s.mu.Lock()
	enabled := "Disabled"
	if x.boot != None {
		enabled = "Once"
	}
	boot := object{"BootSourceOverrideEnabled": enabled, "BootSourceOverrideTarget": x.boot, "BootSourceOverrideTarget@Redfish.AllowableValues": targets,
		"BootSourceOverrideMode": x.mode, "BootSourceOverrideMode@Redfish.AllowableValues": []string{x.mode}}
	tag, resets := x.etag(), x.resets
	s.mu.Unlock()
	w.Header().Set("ETag", tag)
	send(w, http.StatusOK, object{
		"@odata.id": r.URL.Path, "@odata.type": "#ComputerSystem.v1_20_0.ComputerSystem", "@odata.etag": tag, "Id": x.Name, "Name": x.Name, "SystemType": "Virtual",
		"Manufacturer": x.Manufacturer, "Model": x.Model, "SerialNumber": x.Serial, "UUID": x.UUID, "PowerState": state,
		// There is no clock in the count of resets; clients only compare it.
		"LastResetTime": fmt.Sprintf("1970-01-01T%02d:%02d:%02dZ", resets/3600%24, resets/60%60, resets%60),
		"Boot":          boot, "Actions": object{"#ComputerSystem.Reset": reset},
		"EthernetInterfaces": ref(r.URL.Path + "/EthernetInterfaces"), "Status": object{"State": "Enabled", "Health": "OK"},
		"Links": object{"ManagedBy": []object{ref(root + "/Managers/bmc")}, "Chassis": []object{}},
	})
}

func (s *Service) changeSystem(w http.ResponseWriter, r *http.Request, x *system) {
	var body struct {
		Boot struct {
			Enabled string `json:"BootSourceOverrideEnabled"`
			Target  Device `json:"BootSourceOverrideTarget"`
			Mode    string `json:"BootSourceOverrideMode"`
		}
	}
	if !read(w, r, &body) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := body.Boot
	switch tag := r.Header.Get("If-Match"); {
	case tag != "" && tag != "*" && strings.TrimPrefix(tag, "W/") != strings.TrimPrefix(x.etag(), "W/"):
		fail(w, http.StatusPreconditionFailed, "Base.1.0.PreconditionFailed", "The resource was changed since it was read.")
		return
	case b.Enabled == "Continuous":
		fail(w, http.StatusBadRequest, "Base.1.0.PropertyValueNotInList", "The boot source can be chosen for one boot only.")
		return
	case b.Target != "" && !slices.Contains([]Device{None, Network, Disk}, b.Target) && (b.Target != HTTPBoot || !x.UEFI):
		fail(w, http.StatusBadRequest, "Base.1.0.PropertyValueNotInList", "The machine has no such boot source.")
		return
	case b.Mode != "" && b.Mode != x.mode:
		fail(w, http.StatusBadRequest, "Base.1.0.PropertyValueNotInList", "The machine's firmware has only the mode "+x.mode+".")
		return
	}
	switch {
	case b.Enabled == "Disabled":
		x.boot = None
	case b.Target != "":
		x.boot = b.Target
	}
	x.version++
	w.WriteHeader(http.StatusNoContent)
}

func (s *Service) reset(w http.ResponseWriter, r *http.Request, x *system) {
	var body struct{ ResetType string }
	if !read(w, r, &body) {
		return
	}
	if !slices.Contains(s.options.Resets, body.ResetType) {
		fail(w, http.StatusBadRequest, "Base.1.0.ActionParameterNotSupported", "The machine cannot do "+body.ResetType+".")
		return
	}
	// What was begun is finished, also when the client goes.
	if err := s.do(context.WithoutCancel(r.Context()), x, body.ResetType); err != nil {
		fail(w, http.StatusInternalServerError, "Base.1.0.InternalError", err.Error())
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Service) do(ctx context.Context, x *system, kind string) error {
	start := func() error {
		s.mu.Lock()
		from := x.boot
		x.boot = None
		x.version++
		x.resets++
		s.mu.Unlock()
		return x.Machine.PowerOn(ctx, from)
	}
	again := func() error {
		if err := x.Machine.PowerOff(ctx); err != nil {
			return err
		}
		return start()
	}
	on := x.Machine.On()
	switch kind {
	case "On", "ForceOn":
		if on {
			return nil
		}
		return start()
	case "ForceOff":
		return x.Machine.PowerOff(ctx)
	case "GracefulShutdown":
		if !on {
			return nil
		}
		return x.Machine.Shutdown(ctx)
	case "PowerCycle":
		return again()
	}
	s.mu.Lock()
	chosen := x.boot != None
	s.mu.Unlock()
	if !on || chosen {
		return again() // the boot order of a machine that runs cannot be changed
	}
	s.mu.Lock()
	x.resets++
	s.mu.Unlock()
	return x.Machine.Reset(ctx)
}
