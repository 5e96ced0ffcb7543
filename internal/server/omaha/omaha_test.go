package omaha

import (
	"bytes"
	"crypto/sha1" // as update_engine wants it
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const appID = "e96281a6-d1af-4bde-9a0a-97b76e56dc57"

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type rig struct {
	t       testing.TB
	dir     string
	service *Service
	now     time.Time
}

func newRig(t testing.TB, group string, versions ...string) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), now: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)}
	last := versions[len(versions)-1]
	floors := strings.Join(versions[:len(versions)-1], ", ")
	r.write("updates.yaml", fmt.Sprintf("applications:\n- id: %q\n  name: flatcar\n  channels:\n  - {name: stable, board: amd64-usr, version: %s, floors: [%s]}\n  groups:\n  - {name: production, channel: stable%s}\n", appID, last, floors, group))
	for _, v := range versions {
		r.write("amd64-usr/"+v+"/flatcar_production_update.gz", "payload "+v)
		r.write("amd64-usr/"+v+"/oem-qemu.gz", "oem "+v)
	}
	r.open()
	return r
}

func (r *rig) write(name, text string) {
	path := filepath.Join(r.dir, name)
	check(r.t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(r.t, os.WriteFile(path, []byte(text), 0o644))
}

func (r *rig) open() {
	r.t.Helper()
	s, err := Open(r.dir, filepath.Join(r.dir, "instances.json"), slog.New(slog.DiscardHandler))
	check(r.t, err)
	s.now = func() time.Time { return r.now }
	if len(s.problems) > 0 {
		r.t.Fatal(s.problems)
	}
	r.service = s
}

func (r *rig) post(body string) (int, string) {
	request := httptest.NewRequest("POST", "http://updates.example:7082/v1/update/", strings.NewReader(body))
	answer := httptest.NewRecorder()
	r.service.ServeHTTP(answer, request)
	return answer.Code, answer.Body.String()
}

// says is a request with what is within its application.
func says(machine, version, within string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>
<request protocol="3.0" version="update_engine-0.4.10" updaterversion="update_engine-0.4.10" installsource="scheduler" ismachine="1">
<os version="Chateau" platform="CoreOS" sp="` + version + `_x86_64"></os>
<app appid="{` + appID + `}" version="` + version + `" track="production" bootid="{b}" oem="qemu" oemversion="1" alephversion="` + version + `" machineid="` + machine + `" machinealias="" lang="en-US" board="amd64-usr" hardware_class="" delta_okay="false" >
` + within + `
</app>
</request>`
}

const checks = `<ping active="1"></ping><updatecheck></updatecheck><event eventtype="3" eventresult="2" previousversion="0.0.0.0"></event>`

func event(kind, result string) string {
	return `<event eventtype="` + kind + `" eventresult="` + result + `" errorcode="37"></event>`
}

// TestAnUpdate is one machine's update, from its first check until it runs the new version.
func TestAnUpdate(t *testing.T) {
	r := newRig(t, "", "4230.2.1")
	code, got := r.post(says("m1", "4081.2.0", checks))
	payload, oem := []byte("payload 4230.2.1"), []byte("oem 4230.2.1")
	p1, p2, o1, o2 := sha1.Sum(payload), sha256.Sum256(payload), sha1.Sum(oem), sha256.Sum256(oem)
	b64 := base64.StdEncoding.EncodeToString
	want := `<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<response protocol="3.0" server="coldrack"><daystart elapsed_seconds="43200"></daystart><app appid="{` + appID + `}" status="ok"><ping status="ok"></ping>` +
		`<updatecheck status="ok"><urls><url codebase="http://updates.example:7082/packages/amd64-usr/4230.2.1/"></url></urls><manifest version="4230.2.1"><packages>` +
		`<package name="flatcar_production_update.gz" hash="` + b64(p1[:]) + `" size="16" required="true" hash_sha256="` + hex.EncodeToString(p2[:]) + `"></package>` +
		`<package name="oem-qemu.gz" hash="` + b64(o1[:]) + `" size="12" required="false" hash_sha256="` + hex.EncodeToString(o2[:]) + `"></package></packages>` +
		`<actions><action event="postinstall" sha256="` + b64(p2[:]) + `" DisablePayloadBackoff="true"></action></actions></manifest></updatecheck><event status="ok"></event></app></response>`
	if code != 200 || got != want {
		t.Fatalf("%d\n got %s\nwant %s", code, got, want)
	}
	answer := httptest.NewRecorder()
	r.service.ServeHTTP(answer, httptest.NewRequest("GET", "/packages/amd64-usr/4230.2.1/flatcar_production_update.gz", nil))
	if answer.Body.String() != string(payload) {
		t.Errorf("the payload: %d %s", answer.Code, answer.Body)
	}
	for _, e := range []string{event("13", "1"), event("14", "1"), event("3", "1")} {
		if code, got := r.post(says("m1", "4081.2.0", e)); code != 200 || strings.Contains(got, "updatecheck") || strings.Contains(got, "<ping") || !strings.Contains(got, `<event status="ok">`) {
			t.Errorf("%s: %d %s", e, code, got)
		}
	}
	for _, version := range []string{"4081.2.0", "4230.2.1"} { // before the reboot, and after it
		if _, got := r.post(says("m1", version, checks)); !strings.Contains(got, `<updatecheck status="noupdate"></updatecheck>`) {
			t.Errorf("at %s: %s", version, got)
		}
	}
	r.service.keep()
	r.open()
	i := r.service.instances[appID+" m1"]
	var history []string
	for _, h := range i.History {
		history = append(history, h.What)
	}
	if got, want := strings.Join(history, "; "), "granted 4230.2.1; downloads 4230.2.1; has downloaded 4230.2.1; has installed 4230.2.1 and waits for a reboot; runs 4230.2.1, before 4081.2.0; updated to 4230.2.1"; got != want {
		t.Errorf("history\n got %s\nwant %s", got, want)
	}
}

func TestGroupsKeepTheirPace(t *testing.T) {
	offered := func(got string) bool { return strings.Contains(got, `<updatecheck status="ok">`) }
	r := newRig(t, ", atOnce: '1', timeout: 1h, stopAfterFailures: 2, retryAfter: 24h", "4100.0.0", "4230.2.1")
	_, got := r.post(says("m1", "4081.2.0", checks))
	if !offered(got) || !strings.Contains(got, `<manifest version="4100.0.0">`) {
		t.Errorf("the floor is not offered: %s", got)
	}
	if _, got := r.post(says("m2", "4081.2.0", checks)); offered(got) {
		t.Errorf("a second one at once: %s", got)
	}
	r.post(says("m1", "4081.2.0", event("3", "0")))
	if _, got := r.post(says("m1", "4081.2.0", checks)); offered(got) {
		t.Errorf("one that failed gets it again at once: %s", got)
	}
	if _, got := r.post(says("m2", "4081.2.0", checks)); !offered(got) {
		t.Errorf("the second waits for one that failed: %s", got)
	}
	r.now = r.now.Add(61 * time.Minute) // the second is silent
	if _, got := r.post(says("m3", "4081.2.0", checks)); offered(got) {
		t.Errorf("two failed, and a third gets it: %s", got)
	}
	status := r.service.Status()
	if m3 := status.Instances[2]; m3.ID != "m3" || m3.Reason != "stopped-by-failures" || m3.Group != "production" {
		t.Errorf("why: %+v", m3)
	}
	if g := status.Groups[0]; g.Instances != 3 || g.Failed != 2 || g.InProgress != 0 || g.UpToDate != 0 || g.Version != "4230.2.1" {
		t.Errorf("the group: %+v", g)
	}
	if n := r.service.Retry("production"); n != 2 {
		t.Errorf("%d may try again", n)
	}
	if _, got := r.post(says("m3", "4081.2.0", checks)); !offered(got) {
		t.Errorf("after the retry: %s", got)
	}
	if !r.service.Forget("m1") || r.service.Forget("m1") {
		t.Error("m1 was not forgotten once")
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	r := newRig(t, "", "4230.2.1")
	for name, body := range map[string]string{
		"nothing":             "",
		"no XML":              "hello",
		"another root":        `<x/>`,
		"another protocol":    `<request protocol="2.0"></request>`,
		"cut off":             says("m", "1", checks)[:400],
		"a document type":     `<!DOCTYPE x [<!ENTITY a "aaaa">]><request protocol="3.0"></request>`,
		"an entity":           says("&a;", "1", checks),
		"another charset":     `<?xml version="1.0" encoding="UTF-7"?><request protocol="3.0"></request>`,
		"large":               says("m", "1", strings.Repeat(" ", 1<<20)),
		"deep":                says("m", "1", strings.Repeat("<a>", 10)+strings.Repeat("</a>", 10)),
		"many elements":       says("m", "1", strings.Repeat("<a/>", 1000)),
		"many events":         says("m", "1", strings.Repeat(event("3", "2"), 100)),
		"a long value":        says(strings.Repeat("m", 1000), "1", checks),
		"control characters":  says("m&#10;x", "1", checks),
		"elements that cross": `<request protocol="3.0"><app></request></app>`,
	} {
		if code, got := r.post(body); code != 400 {
			t.Errorf("%s: %d %.200s", name, code, got)
		}
	}
	if n := len(r.service.instances); n != 0 {
		t.Errorf("%d instances were made", n)
	}
	if _, got := r.post(strings.ReplaceAll(says("m", "1", checks), appID, "other")); !strings.Contains(got, `status="error-unknownApplication"`) {
		t.Errorf("another application: %s", got)
	}
	for _, path := range []string{"/packages/amd64-usr/4230.2.1/../../updates.yaml", "/packages/../updates.yaml", "/packages/amd64-usr/4230.2.1/", "/packages//4230.2.1/x", "/packages/amd64-usr/9/flatcar_production_update.gz"} {
		answer := httptest.NewRecorder()
		r.service.ServeHTTP(answer, httptest.NewRequest("GET", path, nil))
		if answer.Code != 404 {
			t.Errorf("%s: %d", path, answer.Code)
		}
	}
}

func TestSettingsThatAreRefused(t *testing.T) {
	r := newRig(t, "", "4230.2.1")
	for text, want := range map[string]string{
		"applications: [{id: x, groups: [{name: a, channel: none}]}]":                                                      `applications[0].groups[0].channel: "none"`,
		"applications: [{id: x, channels: [{name: s, board: ../x, version: '1'}]}]":                                        "applications[0].channels[0]",
		"applications: [{id: x, groups: [{name: a, channel: s, perPeriod: 0%}]}]":                                          "perPeriod",
		"applications: [{id: x, groups: [{name: a, channel: s, hours: {zone: Mars, from: '9', to: '25:00', days: [X]}}]}]": "hours.zone",
		"applications: [{id: x, groups: [{name: a, channel: s, after: a}]}]":                                               "groups[0].after",
		"applications: [{id: x, colour: red}]":                                                                             "colour",
	} {
		r.write("updates.yaml", text)
		r.service.reload()
		if len(r.service.problems) != 1 || !strings.Contains(r.service.problems[0], want) {
			t.Errorf("%s: %q", text, r.service.problems)
		}
	}
	if _, got := r.post(says("m1", "4081.2.0", checks)); !strings.Contains(got, `<updatecheck status="ok">`) {
		t.Errorf("bad settings took the good ones away: %s", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(says("m", "1", checks)))
	f.Add([]byte(`<!DOCTYPE x><request protocol="3.0"/>`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := Parse(bytes.NewReader(text))
		if err == nil && (r.Protocol != "3.0" || len(r.Apps) > maxApps) {
			t.Errorf("%q: %+v", text, r)
		}
	})
}

// BenchmarkCheck is one check in a group of 10,000: every 45 minutes each, there are 3.7 of them a second.
func BenchmarkCheck(b *testing.B) {
	r := newRig(b, ", atOnce: '1'", "4230.2.1")
	for i := range 10_000 {
		r.post(says(fmt.Sprintf("m%d", i), "4230.2.1", checks))
	}
	body := says("m5000", "4081.2.0", checks)
	for b.Loop() {
		request := httptest.NewRequest("POST", "/v1/update", strings.NewReader(body))
		answer := httptest.NewRecorder()
		r.service.ServeHTTP(answer, request)
		_, _ = io.Copy(io.Discard, answer.Body)
	}
}
