package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"coldrack.dev/internal/server/peopleapi/peoplewire"
	"coldrack.dev/test/netns"
)

// TestEtcdDiscovery makes a token as a person, registers a member as a machine, and starts the server anew.
func TestEtcdDiscovery(t *testing.T) {
	ns, rack := netns.New(t), netns.New(t)
	netns.Veth(ns, "rack0", rack, "eth0")
	ns.Address("rack0", "10.20.0.2/24")
	rack.Address("eth0", "10.20.0.3/24")
	cfg := testConfig(t)
	cfg.NoBoot, cfg.BootNetns, cfg.EtcdDiscoveryPort, cfg.EtcdDiscoveryOpen = false, ns.Path(), 7081, true
	s := run(t, cfg)
	person := func(method, query string, body any) (int, string) {
		t.Helper()
		client, err := rest.HTTPClientFor(s.rest)
		check(t, err)
		text, err := json.Marshal(body)
		check(t, err)
		request, err := http.NewRequest(method, s.rest.Host+peoplewire.PathDiscovery+query, bytes.NewReader(text))
		check(t, err)
		response, err := client.Do(request)
		check(t, err)
		defer response.Body.Close()
		said, err := io.ReadAll(response.Body)
		check(t, err)
		return response.StatusCode, string(said)
	}
	machine := func(method, path string, form url.Values) string {
		t.Helper()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
			err = rack.Do(func() error { conn, err = net.Dial(network, address); return err })
			return conn, err
		}}}
		request, err := http.NewRequest(method, "http://10.20.0.2:7081"+path, strings.NewReader(form.Encode()))
		check(t, err)
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		response, err := client.Do(request)
		check(t, err)
		defer response.Body.Close()
		said, err := io.ReadAll(response.Body)
		check(t, err)
		return fmt.Sprintf("%d %s", response.StatusCode, said)
	}

	for body, want := range map[any]int{
		peoplewire.NewDiscovery{Size: 0}: http.StatusBadRequest, peoplewire.NewDiscovery{Size: 33}: http.StatusBadRequest,
		peoplewire.NewDiscovery{Size: 3, TTL: 1 << 62}: http.StatusBadRequest, "text": http.StatusBadRequest,
	} {
		if status, said := person("POST", "", body); status != want {
			t.Errorf("%v: %d %s", body, status, said)
		}
	}
	status, said := person("POST", "", peoplewire.NewDiscovery{Size: 2})
	var made peoplewire.DiscoveryToken
	check(t, json.Unmarshal([]byte(said), &made))
	if status != http.StatusOK || made.Size != 2 || made.State != peoplewire.DiscoveryForming || strings.Join(made.Endpoints, " ") != "10.20.0.2:7081" {
		t.Fatalf("made: %d %+v", status, made)
	}
	if said := machine("PUT", "/"+made.Token+"/a1?prevExist=false", url.Values{"value": {"m1=http://10.20.0.3:2380"}}); !strings.HasPrefix(said, "201 ") {
		t.Fatalf("a member registers: %s", said)
	}
	if said := machine("GET", "/new?size=5", nil); !strings.HasPrefix(said, "200 http://10.20.0.2:7081/") {
		t.Errorf("a machine makes a token: %s", said)
	}

	s.stop()
	s = run(t, cfg)
	_, said = person("GET", "", nil)
	var all []peoplewire.DiscoveryToken
	check(t, json.Unmarshal([]byte(said), &all))
	i := 0
	if len(all) == 2 && all[1].Token == made.Token {
		i = 1
	}
	if len(all) != 2 || all[i].Token != made.Token || len(all[i].Members) != 1 || all[i].Members[0].Name != "m1" || all[i].Members[0].PeerURLs[0] != "http://10.20.0.3:2380" || all[i].By != made.By {
		t.Fatalf("after a restart: %s", said)
	}
	if status, _ := person("DELETE", "?token="+made.Token, nil); status != http.StatusOK {
		t.Errorf("deleted: %d", status)
	}
	if status, _ := person("DELETE", "?token="+made.Token, nil); status != http.StatusNotFound {
		t.Errorf("deleted twice: %d", status)
	}
	if said := machine("GET", "/"+made.Token+"/_config/size", nil); !strings.HasPrefix(said, "404 ") {
		t.Errorf("a member asks for a deleted token: %s", said)
	}
}
