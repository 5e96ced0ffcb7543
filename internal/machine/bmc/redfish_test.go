package bmc_test

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coldrack.dev/internal/lab/vbmc"
	"coldrack.dev/internal/machine/bmc"
)

// open visits a server as the conformance suite does.
func (s *redfishServer) open(t *testing.T, change ...func(*bmc.Target)) bmc.Driver {
	t.Helper()
	target := s.target
	for _, c := range change {
		c(&target)
	}
	return (&rig{}).visitAs(t, target, 5*time.Second)
}

// wrong is one way in which a service differs, and what becomes of an action there.
type wrong struct {
	options func(*vbmc.Options)
	handler func(w http.ResponseWriter, r *http.Request, next http.Handler)
	target  func(*bmc.Target)
	begin   bool // the machine is on at first
	do      func(d bmc.Driver, t *testing.T) error
	kind    bmc.Kind
	text    string
	// starts that the machine has made in the end.
	starts int
}

func act(a bmc.Action) func(bmc.Driver, *testing.T) error {
	return func(d bmc.Driver, t *testing.T) error { return d.Do(t.Context(), a) }
}

// edit changes the JSON of answers to GETs whose path ends so.
func edit(suffix string, f func(map[string]any)) func(w http.ResponseWriter, r *http.Request, next http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, suffix) {
			next.ServeHTTP(w, r)
			return
		}
		recorded := httptest.NewRecorder()
		next.ServeHTTP(recorded, r)
		var body map[string]any
		if json.Unmarshal(recorded.Body.Bytes(), &body) == nil {
			f(body)
		}
		for key, values := range recorded.Header() {
			w.Header()[key] = values
		}
		w.WriteHeader(recorded.Code)
		_ = json.NewEncoder(w).Encode(body)
	}
}

func only(when func(*http.Request) bool, answer http.HandlerFunc) func(w http.ResponseWriter, r *http.Request, next http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if when(r) {
			answer(w, r)
			return
		}
		next.ServeHTTP(w, r)
	}
}

func at(method, suffix string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method == method && strings.HasSuffix(r.URL.Path, suffix) }
}

func TestServicesThatDiffer(t *testing.T) {
	second := func(o *vbmc.Options) {
		o.Systems = append(o.Systems, vbmc.System{Name: "2", Machine: &computer{}})
	}
	resets := func(names ...string) func(*vbmc.Options) { return func(o *vbmc.Options) { o.Resets = names } }
	bootNetwork := func(d bmc.Driver, t *testing.T) error {
		if err := d.BootOnce(t.Context(), bmc.Boot{Device: bmc.BootNetwork}); err != nil {
			return err
		}
		return d.Do(t.Context(), bmc.PowerOn)
	}
	accepted := func(task http.HandlerFunc) func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			switch {
			case isReset(r):
				next.ServeHTTP(httptest.NewRecorder(), r)
				w.Header().Set("Location", "/redfish/v1/TaskService/Monitors/7")
				w.WriteHeader(http.StatusAccepted)
			case strings.Contains(r.URL.Path, "/Monitors/"):
				task(w, r)
			default:
				next.ServeHTTP(w, r)
			}
		}
	}
	var asked atomic.Int32
	for name, c := range map[string]wrong{
		"two systems, and none is chosen": {options: second, do: act(bmc.PowerOn), kind: bmc.Misconfigured, text: "it has 2 systems: 1, 2; set spec.bmc.system"},
		"two systems, and one is chosen":  {options: second, target: func(t *bmc.Target) { t.System = "1" }, do: act(bmc.PowerOn), starts: 1},
		"a system that is not there":      {target: func(t *bmc.Target) { t.System = "9" }, do: act(bmc.PowerOn), kind: bmc.Misconfigured, text: `it has no system "9"; it has 1`},
		"resets in an ActionInfo":         {options: func(o *vbmc.Options) { o.ActionInfo = true; o.Resets = []string{"ForceOn", "ForceOff"} }, do: act(bmc.PowerOn), starts: 1},
		"no power cycle: off, then on":    {options: resets("On", "ForceOff"), begin: true, do: act(bmc.PowerCycle), starts: 1},
		"no way to switch off":            {options: resets("On"), begin: true, do: act(bmc.PowerOff), kind: bmc.Unsupported, text: `does not offer "off"; it offers On`},
		"a shutdown never becomes a cut":  {options: resets("On", "ForceOff"), begin: true, do: act(bmc.Shutdown), kind: bmc.Unsupported, text: `does not offer "shutdown"`},
		"it says no reset at all": {handler: edit("/Systems/1", func(body map[string]any) { delete(body, "Actions") }),
			do: act(bmc.PowerOn), starts: 1},
		"no sessions": {handler: only(func(r *http.Request) bool { return strings.Contains(r.URL.Path, "SessionService") }, http.NotFound),
			do: act(bmc.PowerOn), starts: 1},
		"no session is left": {handler: only(at("POST", "/Sessions"), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }),
			do: act(bmc.PowerOn), starts: 1},
		"it works on it": {handler: accepted(func(w http.ResponseWriter, _ *http.Request) {
			if asked.Add(1) < 4 {
				w.WriteHeader(http.StatusAccepted)
				_, _ = w.Write([]byte(`{"TaskState": "Running"}`))
				return
			}
			w.WriteHeader(http.StatusNoContent)
		}), do: act(bmc.PowerOn), starts: 1},
		"it works on it for ever": {handler: accepted(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }),
			do: act(bmc.PowerOn), kind: bmc.Unfinished, text: "its task /redfish/v1/TaskService/Monitors/7 still runs after 2m0s", starts: 1},
		"its task fails": {handler: accepted(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"TaskState": "Exception", "Messages": [{"Message": "The power supply \u001b[31mis missing."}]}`))
		}), do: act(bmc.PowerOn), kind: bmc.Failed, text: "ended as Exception: The power supply ?[31mis missing.", starts: 1},
		"a change needs If-Match": {handler: only(func(r *http.Request) bool { return r.Method == "PATCH" && r.Header.Get("If-Match") == "" },
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPreconditionRequired) }), do: bootNetwork, starts: 1},
		"a weak tag does not fit": {handler: only(func(r *http.Request) bool {
			return r.Method == "PATCH" && strings.HasPrefix(r.Header.Get("If-Match"), "W/")
		},
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPreconditionFailed) }), do: bootNetwork, starts: 1},
		"no tag fits": {handler: only(func(r *http.Request) bool { return r.Method == "PATCH" && r.Header.Get("If-Match") != "*" },
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPreconditionFailed) }), do: bootNetwork, starts: 1},
		"it never takes a change": {handler: only(func(r *http.Request) bool { return r.Method == "PATCH" },
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPreconditionFailed) }), do: bootNetwork, kind: bmc.Failed, text: "HTTP 412"},
		"a device that it cannot boot": {options: func(o *vbmc.Options) { o.Systems[0].UEFI = false },
			do: func(d bmc.Driver, t *testing.T) error { return d.BootOnce(t.Context(), bmc.Boot{Device: bmc.BootHTTP}) }, kind: bmc.Unsupported, text: "it offers None, Pxe, Hdd"},
		"it sends to another host": {handler: only(at("GET", "/Systems"), func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.example/redfish/v1/Systems", http.StatusFound)
		}), do: act(bmc.PowerOn), kind: bmc.Failed, text: "redirect to another host, elsewhere.example"},
		"it sends around in a circle": {handler: only(at("GET", "/Systems"), func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }),
			do: act(bmc.PowerOn), kind: bmc.Failed, text: "more than 3 redirects"},
		"it names a system on another host": {handler: edit("/Systems", func(body map[string]any) {
			body["Members"] = []any{map[string]any{"@odata.id": "https://elsewhere.example/redfish/v1/Systems/1"}}
		}), do: act(bmc.PowerOn), kind: bmc.Failed, text: "is not on this BMC"},
		"it answers without end": {handler: only(at("GET", "/Systems/1"), func(w http.ResponseWriter, r *http.Request) {
			block := bytes.Repeat([]byte(" "), 1<<20)
			for r.Context().Err() == nil {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
		}), do: act(bmc.PowerOn), kind: bmc.Failed, text: "larger than 4 MiB"},
		"it answers with a page": {handler: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { _, _ = w.Write([]byte("<html>")) },
			do: act(bmc.PowerOn), kind: bmc.Failed, text: "is not what Redfish says"},
		"it is something else that speaks JSON": {handler: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { _, _ = w.Write([]byte("{}")) },
			do: act(bmc.PowerOn), kind: bmc.Failed, text: "not as a Redfish service"},
		"it explains itself": {handler: only(isReset, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"error": {"code": "x", "message": "See @Message.ExtendedInfo", "@Message.ExtendedInfo": [{"Message": "The chassis is open."}]}}`))
		}), do: act(bmc.PowerOn), kind: bmc.Failed, text: "HTTP 400: The chassis is open."},
		"another certificate": {target: func(t *bmc.Target) { t.Certificate = "sha256:" + strings.Repeat("0", 64) }, do: act(bmc.PowerOn),
			kind: bmc.Untrusted, text: "and sha256:0000"},
		"a certificate that nobody signed": {target: func(t *bmc.Target) { t.Certificate = "" }, do: act(bmc.PowerOn), kind: bmc.Untrusted, text: "coldrack bmc trust"},
		"any certificate, as was asked for": {target: func(t *bmc.Target) { t.Certificate, t.AnyCertificate = "", true },
			do: act(bmc.PowerOn), starts: 1},
		"an authority that is none": {target: func(t *bmc.Target) { t.Authority = "x" }, do: nil, kind: bmc.Misconfigured, text: "not a PEM certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newRedfishServer(t, c.options)
			s.computer.on = c.begin
			if c.handler != nil {
				s.wrap(c.handler)
			}
			var changes []func(*bmc.Target)
			if c.target != nil {
				changes = append(changes, c.target)
			}
			var err error
			if c.do == nil {
				target := s.target
				c.target(&target)
				_, err = bmc.Open(target, bmc.Options{})
			} else {
				d := s.open(t, changes...)
				err = c.do(d, t)
				d.Close()
			}
			if bmc.KindOf(err) != c.kind || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v (%s), want %s %q", err, bmc.KindOf(err), c.kind, c.text)
			}
			if s.computer.restarts() != c.starts {
				t.Errorf("the machine started %d times, want %d", s.computer.restarts(), c.starts)
			}
			if n := s.service.Sessions(); n != 0 {
				t.Errorf("%d sessions are left", n)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error has the password: %v", err)
			}
		})
	}
}

// A machine whose power is as it was before: only the BMC's own record tells whether it was cycled.
func TestHangUpAfterPowerCycle(t *testing.T) {
	for name, c := range map[string]struct {
		carriedOut, tells bool
		kind              bmc.Kind
	}{
		"carried out, and it tells":     {true, true, ""},
		"carried out, and nobody tells": {true, false, bmc.Uncertain},
		"not carried out":               {false, true, bmc.Uncertain},
	} {
		t.Run(name, func(t *testing.T) {
			s := newRedfishServer(t, nil)
			s.computer.on = true
			if !c.tells {
				s.wrap(edit("/Systems/1", func(body map[string]any) { delete(body, "LastResetTime") }))
			}
			asked := 0
			s.wrap(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if isReset(r) {
					asked++
					if c.carriedOut {
						next.ServeHTTP(httptest.NewRecorder(), r)
					}
					hangUp()
				}
				next.ServeHTTP(w, r)
			})
			err := s.open(t).Do(t.Context(), bmc.PowerCycle)
			if bmc.KindOf(err) != c.kind {
				t.Errorf("%v", err)
			}
			if asked != 1 {
				t.Errorf("it was asked %d times", asked)
			}
		})
	}
}

// Some services have no children until their parent was read, and some forget a session when they restart.
func TestChildrenAndSessionsThatAreForgotten(t *testing.T) {
	s := newRedfishServer(t, nil)
	var parentRead, forgot atomic.Bool
	s.wrap(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/Systems"):
			parentRead.Store(true)
		case strings.HasSuffix(r.URL.Path, "/Systems/1") && r.Method == "GET":
			if !parentRead.Swap(false) { // only the first time after it
				http.NotFound(w, r)
				return
			}
		}
		if forgot.CompareAndSwap(true, false) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
	d := s.open(t)
	if err := d.Do(t.Context(), bmc.PowerOn); err != nil || !s.computer.On() {
		t.Error(err)
	}
	parentRead.Store(true)
	forgot.Store(true)
	if state, err := d.Power(t.Context()); err != nil || state != bmc.On {
		t.Error(state, err)
	}
}

func TestAuthority(t *testing.T) {
	s := newRedfishServer(t, nil)
	authority := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	err := s.open(t, func(t *bmc.Target) { t.Certificate, t.Authority = "", authority }).Do(t.Context(), bmc.PowerOn)
	if err != nil {
		t.Error(err)
	}
}

func TestPasswordsAreNotShown(t *testing.T) {
	target := bmc.Target{Address: "x", Username: "u", Password: "s3cret"}
	text, _ := json.Marshal(target)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "target", target, "password", target.Password)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "target", target, "password", target.Password)
	for _, shown := range []string{string(text), log.String(), fmt.Sprintf("%v %+v %#v %s %q %x", target, target, target, target.Password, target.Password, target.Password)} {
		if strings.Contains(shown, "s3cret") || strings.Contains(shown, fmt.Sprintf("%x", "s3cret")) {
			t.Errorf("the password is in %s", shown)
		}
	}
}
