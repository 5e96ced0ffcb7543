package daemon

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"coldrack.dev/internal/server/peopleapi/peoplewire"
	"coldrack.dev/test/netns"
)

// TestUpdates lets a machine ask for an update, and a person why; and starts the server anew.
func TestUpdates(t *testing.T) {
	ns, rack := netns.New(t), netns.New(t)
	netns.Veth(ns, "rack0", rack, "eth0")
	ns.Address("rack0", "10.20.0.2/24")
	rack.Address("eth0", "10.20.0.3/24")
	cfg := testConfig(t)
	cfg.NoBoot, cfg.BootNetns, cfg.UpdatePort, cfg.UpdateFolder = false, ns.Path(), 7082, t.TempDir()
	for name, text := range map[string]string{
		"updates.yaml": `applications: [{id: x, name: x, channels: [{name: stable, board: b, version: "2.0"}], groups: [{name: g, channel: stable, atOnce: "1"}]}]`,
		"b/2.0/p.gz":   "payload",
	} {
		path := filepath.Join(cfg.UpdateFolder, name)
		check(t, os.MkdirAll(filepath.Dir(path), 0o755))
		check(t, os.WriteFile(path, []byte(text), 0o644))
	}
	s := run(t, cfg)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
		err = rack.Do(func() error { conn, err = net.Dial(network, address); return err })
		return conn, err
	}}}
	read := func(response *http.Response, err error) string {
		t.Helper()
		check(t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		check(t, err)
		return string(text)
	}
	ask := func(machine string) string {
		t.Helper()
		return read(client.Post("http://10.20.0.2:7082/v1/update/", "text/xml", strings.NewReader(
			`<request protocol="3.0"><app appid="{X}" version="1.0" track="g" board="b" machineid="`+machine+`"><updatecheck/></app></request>`)))
	}
	if said := ask("m1"); !strings.Contains(said, `codebase="http://10.20.0.2:7082/packages/b/2.0/"`) {
		t.Errorf("the first: %s", said)
	}
	if said := ask("m2"); !strings.Contains(said, `<updatecheck status="noupdate">`) {
		t.Errorf("the second: %s", said)
	}
	if said := read(client.Get("http://10.20.0.2:7082/packages/b/2.0/p.gz")); said != "payload" {
		t.Errorf("the payload: %s", said)
	}
	s.stop()
	s = run(t, cfg)
	person, err := rest.HTTPClientFor(s.rest)
	check(t, err)
	var status peoplewire.UpdateStatus
	check(t, json.Unmarshal([]byte(read(person.Get(s.rest.Host+peoplewire.PathUpdates))), &status))
	if len(status.Instances) != 2 || status.Instances[0].Reason != "granted-before" || status.Instances[1].Reason != "too-many-in-progress" || status.Instances[1].Address != "10.20.0.3" {
		t.Errorf("after a restart: %+v", status)
	}
	if said := read(person.Get(s.rest.Host + metricsPath)); !strings.Contains(said, `coldrack_update_instances{application="x",board="b",group="g",state="in-progress"} 1`) {
		t.Errorf("metrics: %s", said)
	}
}
