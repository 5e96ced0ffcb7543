package omaha

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Bounds of a request. One of update_engine has about 1 KiB and 10 elements.
const (
	maxRequest    = 64 << 10
	maxDepth      = 6
	maxElements   = 128
	maxAttributes = 32
	maxApps       = 8
	maxEvents     = 16
	maxValue      = 256
)

// ErrRequest is a request that is not answered.
var ErrRequest = errors.New("not a request of update_engine")

// Request is what update_engine asks.
type Request struct {
	Protocol string
	Apps     []AppRequest
}

// AppRequest is about one application on one machine.
type AppRequest struct {
	ID, Version, Track, Board, MachineID, OEM, BootID string
	Ping, UpdateCheck                                 bool
	Events                                            []Event
}

// Event is what update_engine reports of an update. The codes are those of Omaha.
type Event struct {
	Type, Result    string
	ErrorCode       string
	PreviousVersion string
}

// Parse reads a request. It has no entities but XML's own, no document type, and bounded memory.
func Parse(from io.Reader) (Request, error) {
	limited := &io.LimitedReader{R: from, N: maxRequest + 1}
	decoder := xml.NewDecoder(limited)
	decoder.CharsetReader = func(label string, _ io.Reader) (io.Reader, error) { return nil, fmt.Errorf("charset %.20q", label) }
	var r Request
	bad := func(format string, args ...any) (Request, error) {
		return Request{}, fmt.Errorf("%w: %s", ErrRequest, fmt.Sprintf(format, args...))
	}
	var path []string
	elements := 0
	for {
		token, err := decoder.RawToken()
		switch {
		case limited.N <= 0:
			return bad("more than %d bytes", maxRequest)
		case errors.Is(err, io.EOF):
			if len(path) > 0 || elements == 0 {
				return bad("it ends early")
			}
			return r, nil
		case err != nil:
			return bad("%v", err)
		}
		switch token := token.(type) {
		case xml.Directive:
			return bad("a document type")
		case xml.StartElement:
			elements++
			if len(path) >= maxDepth || elements > maxElements || len(token.Attr) > maxAttributes {
				return bad("more elements, attributes or depth than such a request has")
			}
			path = append(path, token.Name.Local)
			if err := r.take(strings.Join(path, "/"), token); err != nil {
				return bad("%v", err)
			}
		case xml.EndElement:
			if len(path) == 0 || path[len(path)-1] != token.Name.Local {
				return bad("</%.20s> closes nothing", token.Name.Local)
			}
			path = path[:len(path)-1]
		}
	}
}

// take reads one element. Unknown ones are passed over.
func (r *Request) take(path string, element xml.StartElement) error {
	value := map[string]string{}
	for _, a := range element.Attr {
		if len(a.Value) > maxValue || strings.ContainsFunc(a.Value, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			return fmt.Errorf("attribute %.20s is too long or has control characters", a.Name.Local)
		}
		value[a.Name.Local] = a.Value
	}
	var app *AppRequest
	if n := len(r.Apps); n > 0 {
		app = &r.Apps[n-1]
	}
	switch {
	case !strings.HasPrefix(path, "request"):
		return fmt.Errorf("the root is <%.20s>", path)
	case path == "request":
		r.Protocol = value["protocol"]
		if r.Protocol != "3.0" {
			return fmt.Errorf("protocol %.20q, not 3.0", r.Protocol)
		}
	case path == "request/app":
		if len(r.Apps) >= maxApps {
			return fmt.Errorf("more than %d applications", maxApps)
		}
		r.Apps = append(r.Apps, AppRequest{ID: value["appid"], Version: value["version"], Track: value["track"], Board: value["board"],
			MachineID: value["machineid"], OEM: value["oem"], BootID: value["bootid"]})
	case app == nil:
	case path == "request/app/ping":
		app.Ping = true
	case path == "request/app/updatecheck":
		app.UpdateCheck = true
	case path == "request/app/event":
		if len(app.Events) >= maxEvents {
			return fmt.Errorf("more than %d events", maxEvents)
		}
		app.Events = append(app.Events, Event{value["eventtype"], value["eventresult"], value["errorcode"], value["previousversion"]})
	}
	return nil
}

// Response is what update_engine is answered.
type Response struct {
	XMLName  xml.Name      `xml:"response"`
	Protocol string        `xml:"protocol,attr"`
	Server   string        `xml:"server,attr"`
	DayStart dayStart      `xml:"daystart"`
	Apps     []AppResponse `xml:"app"`
}

type dayStart struct {
	Elapsed int `xml:"elapsed_seconds,attr"`
}

// AppResponse answers one application.
type AppResponse struct {
	ID          string       `xml:"appid,attr"`
	Status      string       `xml:"status,attr"`
	Ping        *ok          `xml:"ping"`
	UpdateCheck *UpdateCheck `xml:"updatecheck"`
	Events      []ok         `xml:"event"`
}

type ok struct {
	Status string `xml:"status,attr"`
}

// UpdateCheck has status ok and an update, or noupdate: every other status is an error to update_engine.
type UpdateCheck struct {
	Status   string    `xml:"status,attr"`
	URLs     *urls     `xml:"urls"`
	Manifest *manifest `xml:"manifest"`
}

type urls struct {
	URL []codebase `xml:"url"`
}

type codebase struct {
	Codebase string `xml:"codebase,attr"`
}

type manifest struct {
	Version  string        `xml:"version,attr"`
	Packages []packageLine `xml:"packages>package"`
	Actions  []action      `xml:"actions>action"`
}

type packageLine struct {
	Name     string `xml:"name,attr"`
	SHA1     string `xml:"hash,attr"`
	Size     int64  `xml:"size,attr"`
	Required bool   `xml:"required,attr"`
	SHA256   string `xml:"hash_sha256,attr"`
}

type action struct {
	Event                 string `xml:"event,attr"`
	SHA256                string `xml:"sha256,attr"`
	DisablePayloadBackoff bool   `xml:"DisablePayloadBackoff,attr"`
}

// offer makes an update of a package. update_engine uses the first file only, the payload; scripts of the new system fetch the others by
// their names.
func offer(p Package, base string) *UpdateCheck {
	m := &manifest{Version: p.Version, Actions: []action{{"postinstall", p.Files[0].sha256Base64(), true}}}
	for i, f := range p.Files {
		m.Packages = append(m.Packages, packageLine{f.Name, f.sha1Base64(), f.Size, i == 0, f.SHA256})
	}
	return &UpdateCheck{Status: "ok", URLs: &urls{[]codebase{{base}}}, Manifest: m}
}
