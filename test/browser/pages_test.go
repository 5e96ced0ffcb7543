package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/upload"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/imagefile"
	"coldrack.dev/internal/machine/drift"
	"coldrack.dev/internal/server/controlplane"
)

// click presses a button or a link when it is there.
func (b *bench) click(selector string) {
	b.t.Helper()
	b.waits(`document.querySelector(` + quoted(selector) + `) && !document.querySelector(` + quoted(selector) + `).disabled`)
	_, err := value[bool](b.chromium, `(() => { document.querySelector(`+quoted(selector)+`).click(); return true; })()`)
	check(b.t, err)
}

// fits says that nothing sticks out at the side on a phone, dark, and on a wide screen, light. COLDRACK_BROWSER_PICTURES is a folder for
// pictures of what it has looked at.
func (b *bench) fits(path, text string) {
	b.t.Helper()
	for _, l := range []look{{width: 390, height: 844, dark: true}, {width: 1400, height: 900}} {
		check(b.t, b.look(l))
		b.goes(path)
		b.says(text)
		b.waits(`document.documentElement.scrollWidth <= innerWidth`)
		b.pictures(fmt.Sprintf("%s-%d.png", strings.ReplaceAll(strings.TrimPrefix(path, "/ui/"), "/", "-"), l.width))
	}
}

func (b *bench) pictures(name string) {
	b.t.Helper()
	dir := os.Getenv("COLDRACK_BROWSER_PICTURES")
	if dir == "" {
		return
	}
	picture, err := act(b.chromium, chromedp.FullScreenshot(100))
	check(b.t, err)
	check(b.t, os.WriteFile(filepath.Join(dir, name), picture, 0o644))
}

// as logs in with a new token of a role.
func (b *bench) as(group string) {
	b.t.Helper()
	role := strings.TrimPrefix(group, "coldrack:")
	secret, err := controlplane.OpenTokens(controlplane.TokensPath(b.cfg.DataDir)).Create("a-"+role, []string{group}, time.Hour)
	check(b.t, err)
	_, err = value[bool](b.chromium, `fetch("/coldrack/v1/ui/logout", { method: "POST", headers: { "Coldrack-Page": "1" } }).then((r) => r.ok)`)
	check(b.t, err)
	b.goes("/ui/racks")
	b.waits(`document.getElementById("token")`)
	check(b.t, b.write("#token", secret))
	b.presses("Enter")
	b.waits(`document.querySelector("header.top")`)
}

const hostile = `<img src=x onerror="document.title='owned'">` + "\x1b[31m\u202e"

// TestPagesOfAdministrators shares one server and one browser: the audit log, what machines are built of, bundles, images, other DHCP
// servers, the server's backups; and what people with lesser roles are told there.
func TestPagesOfAdministrators(t *testing.T) {
	b := startBench(t, false)
	b.login()
	parent := t
	for _, page := range []struct {
		name string
		test func(*testing.T, *bench)
	}{{"audit", auditPage}, {"hardware", hardwarePage}, {"bundles", bundlesPage}, {"images", imagesPage}, {"backups", backupsPage}, {"network", networkPage}, {"roles", rolesOfPages}} {
		t.Run(page.name, func(t *testing.T) {
			b.t = t
			page.test(t, b)
		})
		b.t = parent
		check(t, b.look(look{width: 1400, height: 900}))
	}
}

func auditPage(t *testing.T, b *bench) {
	ctx := t.Context()
	create := func(i int) error {
		return b.client.Create(ctx, &v1alpha1.EnrollmentPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("policy-%03d", i)}, Spec: v1alpha1.EnrollmentPolicySpec{Match: v1alpha1.MachineMatch{Vendor: "dell*"}}})
	}
	check(t, create(0))
	group := errgroup.Group{}
	group.SetLimit(8)
	for i := range 104 {
		group.Go(func() error { return create(i + 1) })
	}
	check(t, group.Wait())
	if err := b.client.Create(ctx, &v1alpha1.EnrollmentPolicy{ObjectMeta: metav1.ObjectMeta{Name: "policy-007"}}); err == nil {
		t.Fatal("it was created twice")
	}
	if err := b.client.Create(ctx, &v1alpha1.EnrollmentPolicy{ObjectMeta: metav1.ObjectMeta{Name: "policy-bad"}, Spec: v1alpha1.EnrollmentPolicySpec{Match: v1alpha1.MachineMatch{Vendor: hostile}}}); err == nil {
		t.Fatal("a pattern with an open bracket was accepted")
	}
	b.goes("/ui/audit?verb=create&q=enrollmentpolicies/policy-")
	b.waits(`document.querySelectorAll(".records li").length === 100`)
	b.waits(`(() => { const [bad, twice] = [...document.querySelectorAll(".records li.ill")].map((e) => e.innerText); return bad.includes("422") && twice.includes("409") && twice.includes("already exists"); })()`)
	b.click(".records summary")
	b.waits(`document.querySelector(".records pre").textContent.includes("onerror") && document.querySelector(".records pre").textContent.includes("\\u001b")`)
	b.waits(`document.title !== "owned" && !document.querySelector("main img") && document.querySelector(".records pre").textContent.includes("\u27e8U+202E\u27e9")`)
	b.presses("o") // older
	b.waits(`document.querySelectorAll(".records li").length === 7 && document.querySelector(".records li:last-child").innerText.includes("policy-000") && !document.querySelector(".records li.ill")`)
	b.presses("n") // newer again
	b.waits(`document.querySelectorAll(".records li").length === 100`)

	// What comes is shown, if it is looked for.
	check(t, b.client.Delete(ctx, &v1alpha1.EnrollmentPolicy{ObjectMeta: metav1.ObjectMeta{Name: "policy-001"}}))
	check(t, b.client.Create(ctx, &v1alpha1.EnrollmentPolicy{ObjectMeta: metav1.ObjectMeta{Name: "policy-new"}}))
	b.waits(`document.querySelector(".records li").innerText.includes("policy-new") && document.querySelectorAll(".records li").length === 101`)

	check(t, b.write("[name=object]", "policy-001"))
	_, err := value[bool](b.chromium, `(() => { const s = document.querySelector("[name=verb]"); s.value = "delete"; s.dispatchEvent(new Event("change")); return true; })()`)
	check(t, err)
	b.waits(`document.querySelectorAll(".records li").length === 1 && location.search.includes("verb=delete")`)
	check(t, b.write("[name=user]", "nobody-of-that-name"))
	b.says("nothing yet; what comes is shown")
	b.goes("/ui/audit?q=policy-&failed=yes")
	b.waits(`document.querySelectorAll(".records li").length === 2`)
	b.goes("/ui/audit?q=policy-&until=2020-01-01T00:00")
	b.says("nothing yet; what comes is shown")
	b.fits("/ui/audit", "policy-new")
}

// builtOf is hardware with what its digest depends on: marks that JSON escapes, spaces, equal parts, a slow link, numbers.
func builtOf(gpus int32) *v1alpha1.Hardware {
	return &v1alpha1.Hardware{
		ReportedAt: metav1.Now().Rfc3339Copy(), Firmware: v1alpha1.FirmwareVersions{BIOSVersion: "2.19.1", BIOSDate: "03/01/2026", Microcode: "0xd0003d1"},
		Devices: []v1alpha1.PCIDevice{
			{ID: "10de:20b5", Name: "NVIDIA GA100 <A100> & " + hostile, Class: "030200", Kind: v1alpha1.AcceleratorGPU, Count: gpus, Link: &v1alpha1.PCILink{Width: 16, MaxWidth: 16, MaxSpeedMTs: 16000}},
			{ID: "15b3:101d", Name: "ConnectX-6 \u2028 Dx", Class: "020000", Kind: v1alpha1.AcceleratorRDMA, Count: 1, Addresses: []string{"0000:17:00.0"}, NUMANode: new(int32(1)), Link: &v1alpha1.PCILink{Width: 8, SpeedMTs: 2500, MaxWidth: 16, MaxSpeedMTs: 16000}},
			{ID: "144d:a80a", Class: "010802", Count: 2},
			{ID: "8086:1521", Class: "020000", Count: 1}, {ID: "8086:1521", Class: "020000", Count: 3},
		},
		MemoryModules: []v1alpha1.MemoryModule{
			{Slot: "A1", Size: resource.MustParse("16Gi"), Type: "DDR4", ECC: true, SpeedMTs: 2933, MaxSpeedMTs: 3200, Manufacturer: "Samsung", PartNumber: "M393", Serial: "19D2B5F3"},
			{Size: resource.MustParse("17179869184"), PartNumber: "\u00a0X\u0085 "}, {Slot: "\U0001F600"}, {Slot: "\uff5e"},
		},
		EmptyMemorySlots: []string{"B1", "B2"},
		Disks: []v1alpha1.DiskState{
			{Name: "nvme0n1", Model: "P5500", Serial: "S5XX", Size: resource.MustParse("1920383410176"), Health: &v1alpha1.DiskHealth{UsedPercent: 103, SparePercent: 90, Warnings: []string{"spare"}, WrittenBytes: 1 << 50}},
			{Name: "sda", Model: " Virtual ", Size: resource.MustParse("10G")}, {Name: "sdb", Size: resource.MustParse("1.5Gi")},
		},
	}
}

func hardwarePage(t *testing.T, b *bench) {
	var all []*v1alpha1.Hardware
	for n := range int32(4) {
		all = append(all, builtOf(n*3))
	}
	all = append(all, &v1alpha1.Hardware{})
	content, err := json.Marshal(all)
	check(t, err)
	type told struct {
		Digest            string
		Missing, Degraded []string
	}
	got, err := value[[]told](b.chromium, fmt.Sprintf(`(async () => { const m = await import("/ui/js/hardware.js"), all = %s, out = [];
		for (const one of all) { const parts = m.parts(one), d = m.drifted(m.parts(all[3]), parts); out.push({ Digest: await m.digest(parts), Missing: d.missing, Degraded: d.degraded }); } return out; })()`, content))
	check(t, err)
	accepted := drift.Parts(all[3])
	for i, h := range all {
		parts := drift.Parts(h)
		d := drift.Compare(accepted, parts)
		if got[i].Digest != drift.Digest(parts) || strings.Join(got[i].Missing, "\n") != strings.Join(d.Missing, "\n") || strings.Join(got[i].Degraded, "\n") != strings.Join(d.Degraded, "\n") {
			t.Errorf("hardware %d: the page says %+v, the server %s %+v", i, got[i], drift.Digest(parts), d)
		}
	}

	m := bare(500)
	ready(&m, time.Now().Add(-time.Hour))
	m.Status.Hardware = builtOf(8)
	check(t, seed(t.Context(), b.client, []v1alpha1.Machine{m}))
	b.goes("/ui/machines/" + m.Name)
	b.says("Built of")
	b.waits(`document.body.innerText.includes("1920383410176") || document.body.innerText.includes("103 %")`)
	accept := func() bool {
		found := b.machine(m.Name)
		return found.Status.AcceptedHardware != nil
	}
	for deadline := time.Now().Add(patience); !accept(); {
		if time.Now().After(deadline) {
			t.Fatal("the controller does not accept the hardware of an approved machine")
		}
		b.waits(`true`)
	}
	now := b.machine(m.Name)
	before := now.DeepCopy()
	now.Status.Hardware = builtOf(7)
	check(t, b.client.Status().Patch(t.Context(), now, client.MergeFrom(before)))
	b.says("1 of 8 NVIDIA GA100")
	b.fits("/ui/machines/"+m.Name, "Memory modules")
	b.click("[data-action=accept-hardware]")
	b.waits(`document.querySelector("dialog [value=do]") && !document.querySelector("dialog [value=do]").disabled && document.querySelector("dialog").innerText.includes("1 of 8 NVIDIA GA100")`)
	b.presses("Enter")
	b.waits(`!document.querySelector("dialog") && !document.querySelector("[data-action=accept-hardware]")`)
	b.waits(`!document.body.innerText.includes("1 of 8 NVIDIA GA100") && document.title !== "owned"`)
	if found := b.machine(m.Name); found.Status.AcceptedHardware.Digest != drift.Digest(drift.Parts(now.Status.Hardware)) {
		t.Errorf("accepted %+v", found.Status.AcceptedHardware)
	}
}

// bundleOf packs a bundle of so many bytes and returns where it is.
func bundleOf(t *testing.T, name string, key ed25519.PrivateKey, size int64, image v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	file := func(title string, n int64) bundle.FileSpec {
		path := filepath.Join(dir, title)
		f, err := os.Create(path)
		check(t, err)
		_, err = io.CopyN(f, rand.Reader, n)
		check(t, err)
		check(t, f.Close())
		return bundle.FileSpec{Title: title, Path: path}
	}
	spec := bundle.Spec{Name: name, Created: time.Unix(1_750_000_000, 0), Artifacts: []bundle.ArtifactSpec{
		{Kind: bundle.KindNetboot, Name: "discovery", Config: bundle.NetbootConfig{Name: "discovery", Arch: "amd64", KernelVersion: "6.1.0", AgentVersion: "v0"}, Files: []bundle.FileSpec{file(bundle.FileKernel, size), file(bundle.FileInitrd, 4096)}},
		{Kind: bundle.KindContainer, Name: "registry.k8s.io/pause:3.10", Image: image},
	}}
	out := filepath.Join(dir, name+".tar")
	_, err := bundle.Pack(t.Context(), spec, key, out, nil)
	check(t, err)
	return out
}

func imageFor(t *testing.T) v1.Image {
	t.Helper()
	image, err := random.Image(20_000, 2)
	check(t, err)
	config, err := image.ConfigFile()
	check(t, err)
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	image, err = mutate.ConfigFile(mutate.ConfigMediaType(mutate.MediaType(image, types.OCIManifestSchema1), types.OCIConfigJSON), config)
	check(t, err)
	return image
}

func bundlesPage(t *testing.T, b *bench) {
	ours, theirs := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize)), ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, ed25519.SeedSize))
	trusted := filepath.Join(b.cfg.DataDir, "trusted-keys")
	check(t, os.MkdirAll(trusted, 0o700))
	check(t, os.WriteFile(filepath.Join(trusted, "ours.pub"), bundle.MarshalPublicKey(ours.Public().(ed25519.PublicKey)), 0o600))
	image := imageFor(t)
	send := func(path string) {
		t.Helper()
		b.waits(`document.querySelector("[name=bundle]") && !document.querySelector("[name=bundle]").disabled`)
		_, err := act(b.chromium, chromedp.SetUploadFiles("[name=bundle]", []string{path}))
		check(t, err)
		b.click("[data-action=upload]")
	}
	uploads := func() (total int64) {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(b.cfg.DataDir, "uploads", "*"))
		check(t, err)
		for _, name := range found {
			if info, err := os.Stat(name); err == nil {
				total += info.Size()
			}
		}
		return total
	}
	b.goes("/ui/content")
	b.says("No bundle yet")

	text := filepath.Join(t.TempDir(), "notes.txt")
	check(t, os.WriteFile(text, bytes.Repeat([]byte("no bundle\n"), 1000), 0o644))
	send(text)
	b.says("This file is no bundle: it is no tar archive.")
	send(bundleOf(t, "theirs", theirs, 100_000, image))
	b.says("trust it on the server's machine: coldrack bundle trust KEY_FILE")
	if n := uploads(); n != 0 {
		t.Errorf("of what nobody trusts, %d bytes were kept", n)
	}
	good := bundleOf(t, "ours", ours, 8<<20, image)
	spoiled := filepath.Join(t.TempDir(), "spoiled.tar")
	content, err := os.ReadFile(good)
	check(t, err)
	content[len(content)-(1<<20)] ^= 1
	check(t, os.WriteFile(spoiled, content, 0o644))
	send(spoiled)
	b.waits(`document.querySelector("main .ill")?.innerText.includes("sha256:")`)

	// A slow link, so that there is time to see it and to change one's mind.
	throttle := func(perSecond float64) {
		t.Helper()
		check(t, call(b.chromium, network.EmulateNetworkConditionsByRule, network.EmulateNetworkConditionsByRuleParams{
			MatchedNetworkConditions: []*network.Conditions{{DownloadThroughput: -1, UploadThroughput: perSecond}}}))
	}
	throttle(1 << 20)
	send(good)
	b.waits(`Number(document.querySelector("main progress")?.value) > 1 << 17`)
	b.says("sending: ")
	b.goesWithin("/ui/network")
	b.says("Other DHCP servers")
	b.goesWithin("/ui/content") // it goes on meanwhile
	b.waits(`Number(document.querySelector("main progress")?.value) > 1 << 20`)
	b.click("[data-action=cancel-upload]")
	b.says("Cancelled. What has arrived is kept")
	throttle(-1)
	has := uploads()
	if has == 0 || has >= int64(len(content)) {
		t.Errorf("after it was cancelled, %d of %d bytes have arrived", has, len(content))
	}
	_, err = value[bool](b.chromium, `(() => { window.offsets = []; const open = XMLHttpRequest.prototype.open; XMLHttpRequest.prototype.open = function (m, p, ...rest) { if (m === "PUT") window.offsets.push(Number(new URL(p, location).searchParams.get("offset"))); return open.call(this, m, p, ...rest); }; return true; })()`)
	check(t, err)
	send(good)
	b.says("ours is imported.")
	b.waits(`window.offsets.length === 1 && window.offsets[0] > 0`)
	b.waits(`[...document.querySelectorAll("details summary")].some((e) => e.innerText.includes("ours"))`)
	b.says("registry.k8s.io/pause:3.10")
	if n := uploads(); n != 0 {
		t.Errorf("after the import, %d bytes are kept beside the store", n)
	}
	b.fits("/ui/content", "registry.k8s.io/pause:3.10")
}

// goesWithin goes to a place as a link does, so that the page stays loaded.
func (b *bench) goesWithin(path string) {
	b.t.Helper()
	_, err := value[bool](b.chromium, `(() => { document.querySelector('nav a[href="`+path+`"]').click(); return true; })()`)
	check(b.t, err)
}

func imagesPage(t *testing.T, b *bench) {
	dir, err := layout.Write(t.TempDir(), empty.Index)
	check(t, err)
	check(t, dir.AppendImage(imageFor(t), layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "example.com/tool:v1"})))
	file, err := imagefile.Read(string(dir))
	check(t, err)
	defer file.Close()
	sender, err := upload.NewImageSender(b.config, io.Discard, time.Now)
	check(t, err)
	_, err = sender.Send(t.Context(), file.Images[0], "example.com/tool:v1")
	check(t, err)
	b.goes("/ui/content")
	b.click(`[data-action=pin][data-image="example.com/tool:v1"]`)
	b.says("example.com/tool:v1 is pinned")
	b.waits(`document.activeElement.dataset.action === "unpin"`)
	b.presses("Enter")
	b.says("example.com/tool:v1 is not pinned any more")
	b.waits(`document.querySelector('[data-action=pin][data-image="example.com/tool:v1"]')`)
	b.click("[data-action=image-users]")
	b.says("could be freed")
	b.waits(`[...document.querySelectorAll("tr")].some((r) => r.innerText.includes("example.com/tool:v1") && r.innerText.includes("used "))`) // within a day
	b.waits(`[...document.querySelectorAll("tr")].some((r) => r.innerText.includes("registry.k8s.io/pause:3.10") && r.innerText.includes("its bundle has it"))`)
}

// backupsPage takes a backup of the server's own store, for real.
func backupsPage(t *testing.T, b *bench) {
	b.goes("/ui/health")
	b.says("There is no backup yet.")
	b.click("[data-action=backup]")
	b.waits(`document.querySelector("[data-restore]")`)
	b.waits(`/: \d+ keys, /.test(document.body.innerText) && document.body.innerText.includes("asked for by admin")`)
	b.click("[data-restore]")
	b.says("coldrack server restore")
	b.fits("/ui/health", "Each of them was restored on trial")
}

// networkPage shows what a server with DHCP would tell.
func networkPage(t *testing.T, b *bench) {
	check(t, b.client.Create(t.Context(), &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "rack"}, Spec: v1alpha1.SubnetSpec{CIDR: "10.20.0.0/16", DHCP: v1alpha1.DHCPServer, Discovery: "10.20.200.1-10.20.200.100"}}))
	b.goes("/ui/network")
	b.says("None was noticed since the server started.")
	_, err := value[bool](b.chromium, `(() => { const real = window.fetch; window.fetch = async (path, options) => { const answer = await real(path, options);
		return String(path).includes("/metrics") ? new Response(await answer.text() + `+quoted(`coldrack_dhcp_pool_addresses{state="leased",subnet="rack"} 40
coldrack_dhcp_pool_addresses{state="held",subnet="rack"} 5
coldrack_dhcp_pool_addresses{state="quarantined",subnet="rack"} 1
coldrack_dhcp_pool_addresses{state="free",subnet="rack"} 54
coldrack_dhcp_foreign_server_seen_timestamp_seconds{interface="eno1",server="10.20.0.66"} 1.7e+09
`)+`) : answer; }; return true; })()`)
	check(t, err)
	b.goesWithin("/ui/racks")
	b.waits(`location.pathname === "/ui/racks"`)
	b.goesWithin("/ui/network")
	b.says("54 of 100 addresses for discovery are free")
	b.waits(`(() => { const width = (e) => document.querySelector(".gauge .use-" + e).getBoundingClientRect().width; return Math.abs(width("leased") / width("held") - 8) < .5 && width("quarantined") > 0; })()`)
	b.waits(`document.querySelector("main").innerText.includes("10.20.0.66") && document.querySelector("main").innerText.includes("eno1")`)
}

// rolesOfPages: what one may not do is not there, or the page says why.
func rolesOfPages(t *testing.T, b *bench) {
	b.as(controlplane.GroupOperator)
	b.goes("/ui/audit")
	b.says("Who did what is for administrators to read; you have role operator.")
	b.goes("/ui/content")
	b.waits(`document.querySelector("[data-action=upload]") && document.querySelector("[data-action=pin]")`)
	b.as(controlplane.GroupViewer)
	b.goes("/ui/audit")
	b.says("you have role viewer")
	for path, text := range map[string]string{
		"/ui/content": "To pin images needs role operator; you have role viewer.", "/ui/health": "To take a backup needs role operator; you have role viewer.", "/ui/machines/node-00500": "Built of",
	} {
		b.goes(path)
		b.says(text)
		b.waits(`!document.querySelector("main [data-action]")`)
	}
}
