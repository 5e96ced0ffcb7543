package bmc_test

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"coldrack.dev/internal/lab/vbmc"
	"coldrack.dev/internal/machine/bmc"
)

// computer is a machine that keeps what was done to it.
type computer struct {
	mu     sync.Mutex
	on     bool
	starts int
	from   vbmc.Device
	stuck  atomic.Bool
}

func (c *computer) change(f func()) error {
	if c.stuck.Load() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	return nil
}

func (c *computer) On() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.on
}

func (c *computer) PowerOn(_ context.Context, from vbmc.Device) error {
	return c.change(func() { c.on, c.from, c.starts = true, from, c.starts+1 })
}
func (c *computer) PowerOff(context.Context) error { return c.change(func() { c.on = false }) }
func (c *computer) Shutdown(context.Context) error { return c.change(func() { c.on = false }) }
func (c *computer) Reset(context.Context) error    { return c.change(func() { c.starts++ }) }

func (c *computer) restarts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.starts
}

// redfishServer is the lab's BMC behind a handler that can be changed.
type redfishServer struct {
	*httptest.Server
	service  *vbmc.Service
	computer *computer
	handler  atomic.Pointer[http.HandlerFunc]
	target   bmc.Target
}

// wrap puts a fault before the service.
func (s *redfishServer) wrap(f func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	next := http.Handler(*s.handler.Load())
	wrapped := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f(w, r, next) })
	s.handler.Store(&wrapped)
}

func newRedfishServer(t *testing.T, change func(*vbmc.Options)) *redfishServer {
	t.Helper()
	s := &redfishServer{computer: &computer{}}
	o := vbmc.Options{Username: "operator", Password: "s3cret", Systems: []vbmc.System{{
		Name: "1", Manufacturer: "Maker", Model: "Model 7", Serial: "SN-0042", UUID: "12345678-9ABC-DEF0-1234-56789ABCDEF0", UEFI: true,
		MACs: []string{"52:54:00:00:00:01", "52:54:00:00:00:02"}, Machine: s.computer}}}
	if change != nil {
		change(&o)
	}
	s.service = vbmc.New(o)
	first := http.HandlerFunc(s.service.ServeHTTP)
	s.handler.Store(&first)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*s.handler.Load())(w, r) }))
	s.Server.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	s.target = bmc.Target{Address: s.Listener.Addr().String(), Protocol: bmc.Redfish, Certificate: bmc.Fingerprint(s.Certificate()), Username: "operator", Password: "s3cret"}
	return s
}

func isReset(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "ComputerSystem.Reset") }

// hangUp ends a connection without an answer.
func hangUp() { panic(http.ErrAbortHandler) }

func redfishRig(t *testing.T) *rig {
	s := newRedfishServer(t, nil)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) }) // before the server's Close, which waits for its handlers
	r := &rig{}
	*r = rig{
		target: s.target, on: s.computer.On, restarts: s.computer.restarts,
		set: func(on bool) { s.computer.mu.Lock(); s.computer.on = on; s.computer.mu.Unlock() },
		boots: func() bmc.Device {
			// It is told at the next start.
			_ = s.computer.PowerOff(t.Context())
			d := r.visit(t)
			if err := d.Do(t.Context(), bmc.PowerOn); err != nil {
				t.Fatal(err)
			}
			s.computer.mu.Lock()
			defer s.computer.mu.Unlock()
			return map[vbmc.Device]bmc.Device{vbmc.Network: bmc.BootNetwork, vbmc.Disk: bmc.BootDisk}[s.computer.from]
		},
		fault: fault{
			silent: func() {
				s.wrap(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
					select {
					case <-r.Context().Done():
					case <-release:
					}
					hangUp() // an end without it is an empty answer, which may be read before the time is over
				})
			},
			gone: s.Close,
			deaf: func() {
				s.wrap(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if isReset(r) {
						next.ServeHTTP(httptest.NewRecorder(), r)
						hangUp()
					}
					next.ServeHTTP(w, r)
				})
			},
			stuck: func() { s.computer.stuck.Store(true) },
			without: func(string) {
				s.wrap(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if strings.Contains(r.URL.Path, "EthernetInterfaces") || strings.Contains(r.URL.Path, "Managers") || strings.Contains(r.URL.Path, "SessionService") {
						http.NotFound(w, r)
						return
					}
					answer := httptest.NewRecorder()
					next.ServeHTTP(answer, r)
					body := answer.Body.String()
					for _, property := range []string{"SerialNumber", "UUID", "Model", "Manufacturer", "LastResetTime"} {
						body = strings.ReplaceAll(body, `"`+property+`"`, `"Oem`+property+`"`)
					}
					for key, values := range answer.Header() {
						w.Header()[key] = values
					}
					w.WriteHeader(answer.Code)
					_, _ = w.Write([]byte(body))
				})
			},
		},
	}
	return r
}
