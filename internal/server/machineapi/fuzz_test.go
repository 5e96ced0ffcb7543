package machineapi

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
)

// FuzzRequest sends bytes to every route of the API, in the name of whom the route is for. Whatever they are, the answer says what is
// wrong with them: none makes the server fail.
func FuzzRequest(f *testing.F) {
	s := newServer(f)
	session, node := s.installed(wire.Identifiers{MACs: []string{"52:54:00:00:00:01"}, UUID: "00000000-0000-4000-8000-000000000001"}, "intent-1")
	_, err := node.heartbeat()
	check(f, err)
	s.approve(session.name, "intent-2", v1alpha1.ActionInstall)
	routes := s.api.routes()
	nonce := s.boot("52:54:00:00:00:02")
	seeds := map[string][]string{
		wire.PathEnroll: {`{"nonce":"` + nonce + `","identifiers":{"macs":["52:54:00:00:00:02"],"usbMACs":["x"]},"bootMAC":"52:54:00:00:00:02","csr":"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"}`,
			`{"nonce":"` + nonce + `","csr":` + quoted(csr(f, newKey(f))) + `}`},
		wire.PathInventory:   {`{"identifiers":{"macs":["52:54:00:00:00:01"]},"disks":[{"byID":["x"],"sizeBytes":-1}],"nics":[{"mac":"52:54:00:00:00:01","lldp":{}}],"bmc":{}}`},
		wire.PathProgress:    {`{"intentID":"intent-2","steps":[{"name":"preflight","state":"Running","bytesDone":-1,"startedAt":"0001-01-01T00:00:00Z"}]}`},
		wire.PathIdentity:    {`{"intentID":"intent-2","csr":` + quoted(csr(f, newKey(f))) + `}`},
		wire.PathComplete:    {`{"intentID":"intent-2","state":"Failed","message":"no","steps":[{}]}`, `{"intentID":"intent-2","state":"Succeeded","disk":"virtio-1","imageDigest":"sha256:2"}`},
		wire.PathHardware:    {`{"pci":[{"address":"0000:65:00.0","class":"030200","vendor":"10de","device":"20b5","link":{"width":8}}],"memorySlots":[{"sizeBytes":1},{}],"disks":[{"transport":"nvme","health":{}}]}`},
		wire.PathHeartbeat:   {`{"bootID":"b","addresses":["10.0.0.1/24","x"],"interfaces":{"10.0.0.1":"eno1"},"now":"2026-01-01T00:00:00Z"}`},
		wire.PathCertificate: {`{"cluster":"c","name":"kubelet","csr":` + quoted(csr(f, newKey(f))) + `}`},
		wire.PathPhases:      {`{"cluster":"c","version":"v","phases":[{"name":"x","state":"Failed"}],"certificates":{"a":"2026-01-01T00:00:00Z"},"done":true}`},
		wire.PathSwarm:       {`{"blob":"sha256:0000000000000000000000000000000000000000000000000000000000000000","chunks":8,"have":"AQ==","port":7445,"returned":[-1,9],"lost":["x"]}`},
		wire.PathRenew:       {`{"csr":` + quoted(csr(f, newKey(f))) + `}`},
	}
	for i, r := range routes {
		for _, body := range append(seeds[r.path], `{}`, `[`, `null`) {
			f.Add(uint8(i), "version=1&wait=0", []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, query string, body []byte) {
		route := routes[int(which)%len(routes)]
		if route.path == wire.PathAssignment {
			query = "wait=0&" + query // the first one counts: a long poll waits
		}
		r := httptest.NewRequestWithContext(t.Context(), route.method, "https://10.0.0.1:7444"+route.path, bytes.NewReader(body))
		r.URL.RawQuery = query
		switch route.access {
		case sessions, sessionsAndNodes:
			r.TLS = shown(t, session)
		case nodes:
			r.TLS = shown(t, node)
		}
		answer := httptest.NewRecorder()
		s.api.ServeHTTP(answer, r)
		if answer.Code >= http.StatusInternalServerError && answer.Code != http.StatusServiceUnavailable {
			t.Errorf("%s %s?%s: %d %s", route.method, route.path, query, answer.Code, answer.Body)
		}
	})
}

func quoted(text string) string {
	return `"` + string(bytes.ReplaceAll([]byte(text), []byte("\n"), []byte(`\n`))) + `"`
}

// shown is a connection over which an agent has shown its certificate.
func shown(t *testing.T, a *agent) *tls.ConnectionState {
	block, _ := pem.Decode([]byte(a.cert))
	leaf, err := x509.ParseCertificate(block.Bytes)
	check(t, err)
	return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}
}
