package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/supply"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/diskimage"
)

// clusterBundle is what goes into a bundle for a cluster; tests take things out.
type clusterBundle struct {
	images   []string
	programs []kube.Program
	packages []string
}

func wholeClusterBundle(t *testing.T) clusterBundle {
	t.Helper()
	cluster, _, err := kube.Preset(v1alpha1.TopologySmall, kube.PresetOptions{Name: "lab", Version: "v1.37.2"})
	if err != nil {
		t.Fatal(err)
	}
	required, err := kube.RequirementsOf(cluster)
	if err != nil {
		t.Fatal(err)
	}
	programs := slices.DeleteFunc(required.Programs, func(p kube.Program) bool { return p.Name == "runc" })
	return clusterBundle{
		images: append(slices.Clone(required.Images), supply.ProbeImage), programs: programs,
		packages: append([]string{"runc"}, required.Packages...),
	}
}

// pack writes a signed bundle and returns its path; the public key lies beside it as bundle.pub.
func (c clusterBundle) pack(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := func(title string, content []byte) bundle.FileSpec {
		path := filepath.Join(dir, title)
		must(os.WriteFile(path, content, 0o600))
		return bundle.FileSpec{Title: title, Path: path}
	}
	raw := bytes.Repeat([]byte{1}, 1<<20)
	var chunks bytes.Buffer
	index, err := diskimage.Encode(t.Context(), bytes.NewReader(raw), int64(len(raw)), &chunks)
	must(err)
	encoded, err := json.Marshal(index)
	must(err)
	loaders := []bundle.FileSpec{}
	for _, title := range []string{bundle.FileUndionly, bundle.FileIPXE, bundle.FileSNPOnly, bundle.FileLocal, bundle.FileLocalPC,
		bundle.FileBootImg, bundle.FileCoreImg, bundle.FileShim, bundle.FileGRUB} {
		loaders = append(loaders, file(title, []byte(title)))
	}
	spec := bundle.Spec{Name: "site", Created: time.Unix(1_750_000_000, 0), Artifacts: []bundle.ArtifactSpec{
		{Kind: bundle.KindImage, Name: "debian-12", Config: bundle.ImageConfig{
			Name: "debian-12", Family: "debian", Version: "12", Arch: "amd64", KernelVersion: "6.1", RootFS: "ext4", Size: int64(len(raw)),
		}, Files: []bundle.FileSpec{file(bundle.FileImageIndex, encoded), file(bundle.FileImageChunks, chunks.Bytes())}},
		{Kind: bundle.KindNetboot, Name: "discovery", Config: bundle.NetbootConfig{Name: "discovery", Arch: "amd64", KernelVersion: "6.1", AgentVersion: "v0"},
			Files: []bundle.FileSpec{file(bundle.FileKernel, []byte("k")), file(bundle.FileInitrd, []byte("i"))}},
		{Kind: bundle.KindBootloaders, Name: "amd64", Config: bundle.BootloadersConfig{Name: "amd64", Arch: "amd64"}, Files: loaders},
		{Kind: bundle.KindSBOM, Name: "site", Config: bundle.SBOMConfig{Name: "site", Format: "SPDX-2.3"}, Files: []bundle.FileSpec{file(bundle.FileSBOM, c.spdx(t))}},
	}}
	config := bundle.ProgramsConfig{Name: "kubernetes", Kubernetes: "v1.37.2"}
	programs := bundle.ArtifactSpec{Kind: bundle.KindPrograms, Name: "kubernetes"}
	encoder, err := zstd.NewWriter(nil)
	must(err)
	for _, p := range c.programs {
		content := []byte(p.Name)
		hash, _, err := v1.SHA256(bytes.NewReader(content))
		must(err)
		config.Programs = append(config.Programs, bundle.ProgramFile{Name: p.Name, Path: p.Path, Version: p.Version, Digest: hash.String(), Size: int64(len(content)), File: p.Name + ".zst"})
		programs.Files = append(programs.Files, file(p.Name+".zst", encoder.EncodeAll(content, nil)))
	}
	programs.Config = config
	spec.Artifacts = append(spec.Artifacts, programs)
	for _, reference := range c.images {
		image, err := mutate.ConfigFile(mutate.MediaType(empty.Image, types.OCIManifestSchema1), &v1.ConfigFile{OS: "linux", Architecture: "amd64"})
		must(err)
		image, err = mutate.AppendLayers(mutate.ConfigMediaType(image, types.OCIConfigJSON), static.NewLayer([]byte(reference), types.OCIUncompressedLayer))
		must(err)
		spec.Artifacts = append(spec.Artifacts, bundle.ArtifactSpec{Kind: bundle.KindContainer, Name: reference, Image: image})
	}
	key, _, err := bundle.LoadOrCreateKey(filepath.Join(dir, "bundle.key"))
	must(err)
	out := filepath.Join(dir, "site.bundle.tar")
	_, err = bundle.Pack(t.Context(), spec, key, out, nil)
	must(err)
	return out
}

// spdx is a bill of materials as the bundle builder writes it.
func (c clusterBundle) spdx(t *testing.T) []byte {
	t.Helper()
	type object = map[string]any
	packages := []object{{"SPDXID": "SPDXRef-image", "name": "image/debian-12"}, {"SPDXID": "SPDXRef-netboot", "name": "netboot/discovery"}}
	var relations []object
	add := func(id, name, within string) {
		packages = append(packages, object{"SPDXID": id, "name": name, "externalRefs": []object{{"referenceLocator": "pkg:deb/debian/" + name + "@1"}}})
		relations = append(relations, object{"spdxElementId": within, "relationshipType": "CONTAINS", "relatedSpdxElement": id})
	}
	for i, name := range c.packages {
		add(fmt.Sprintf("SPDXRef-%d", i), name, "SPDXRef-image")
	}
	add("SPDXRef-other", "keepalived", "SPDXRef-netboot") // elsewhere, it is of no use to a node
	text, err := json.Marshal(object{"packages": packages, "relationships": relations})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// coldrack runs the program in this process.
func coldrack(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	env := map[string]string{"COLDRACK_DATA_DIR": t.TempDir()}
	a := &app{in: strings.NewReader(""), out: &stdout, err: &stderr, now: time.Now, env: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
	root := a.rootCommand()
	root.SetArgs(args)
	err = root.ExecuteContext(t.Context())
	return stdout.String(), err
}

func writeTemp(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func without(list []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == name })
}

const workload = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  template:
    spec:
      initContainers: [{name: i, image: busybox}]
      containers: [{name: c, image: "quay.io/team/web:1.2"}]
---
apiVersion: v1
kind: List
items: []
`

func TestBundleVerifyForACluster(t *testing.T) {
	whole := wholeClusterBundle(t)
	for name, test := range map[string]struct {
		bundle    func(*clusterBundle)
		cluster   func(string) string
		manifests string
		missing   []string // "kind name"
		advice    string
	}{
		"everything is there": {},
		"no pause image, which air-gapped clusters usually lack": {
			bundle:  func(c *clusterBundle) { c.images = without(c.images, "registry.k8s.io/pause:3.10.2") },
			missing: []string{"image registry.k8s.io/pause:3.10.2"}, advice: "Kubernetes v1.37.2: build a bundle with the recipe of that version",
		},
		"another version of Kubernetes": {
			cluster: func(s string) string { return strings.ReplaceAll(s, "v1.37.2", "v1.37.1") },
			missing: []string{"image registry.k8s.io/kube-apiserver:v1.37.1", "image registry.k8s.io/kube-controller-manager:v1.37.1",
				"image registry.k8s.io/kube-proxy:v1.37.1", "image registry.k8s.io/kube-scheduler:v1.37.1", "program containerd",
				"program containerd-shim-runc-v2", "program cni-bridge", "program cni-host-local", "program cni-loopback", "program cni-portmap", "program kubelet"},
			advice: "these have v1.37.2",
		},
		"a virtual IP needs a package": {
			cluster: func(s string) string {
				return strings.Replace(s, "  network:", "  endpoint: {virtualIP: {address: 10.20.0.5}}\n  network:", 1)
			},
			missing: []string{"package curl", "package keepalived"}, advice: "add it to image.packages",
		},
		"a Profile with an image that is nowhere": {
			cluster: func(s string) string {
				return strings.ReplaceAll(s, "  # profile: NAME installs", "  profile: own\n  # profile: NAME installs") +
					"---\napiVersion: coldrack.dev/v1alpha1\nkind: Profile\nmetadata: {name: own}\nspec: {image: own-13}\n"
			},
			missing: []string{"os image own-13", "package conntrack", "package iptables", "package kmod", "package nftables", "program runc"},
		},
		"workloads": {
			manifests: workload, missing: []string{"image docker.io/library/busybox:latest", "image quay.io/team/web:1.2"},
			advice: "image quay.io/team/web:1.2: add it to the containers of a recipe",
		},
		"workloads with a registry of the site": {
			manifests: workload, missing: []string{"image docker.io/library/busybox:latest"},
			cluster: func(s string) string {
				return strings.Replace(s, "  network:", "  registries: [{host: quay.io, endpoints: [\"https://registry.example\"]}]\n  network:", 1)
			},
		},
		"an add-on's image": {
			cluster: func(s string) string {
				return s + "---\napiVersion: coldrack.dev/v1alpha1\nkind: Addon\nmetadata: {name: web}\nspec:\n  cluster: lab\n  files:\n  - name: pod.yaml\n    content: |\n" +
					"      apiVersion: v1\n      kind: Pod\n      metadata: {name: web}\n      spec: {containers: [{name: web, image: 'quay.io/team/web:1.2'}]}\n"
			},
			missing: []string{"image quay.io/team/web:1.2"}, advice: "image quay.io/team/web:1.2: add it to the containers of a recipe",
		},
		"workloads that are in the bundle": {
			manifests: workload,
			bundle: func(c *clusterBundle) {
				c.images = append(slices.Clone(c.images), "docker.io/library/busybox:latest", "quay.io/team/web:1.2")
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			content := whole
			if test.bundle != nil {
				test.bundle(&content)
			}
			archive := content.pack(t)
			text, err := kube.PresetYAML(v1alpha1.TopologySmall, kube.PresetOptions{Name: "lab", Version: "v1.37.2"})
			if err != nil {
				t.Fatal(err)
			}
			yaml := string(text)
			if test.cluster != nil {
				changed := test.cluster(yaml)
				if changed == yaml {
					t.Fatal("the cluster's file is the same")
				}
				yaml = changed
			}
			args := []string{"bundle", "verify", "-f", writeTemp(t, "cluster.yaml", yaml), archive, "--trust", filepath.Join(filepath.Dir(archive), "bundle.pub")}
			if test.manifests != "" {
				args = append(args, "--manifests", filepath.Dir(writeTemp(t, "web.yaml", test.manifests)))
			}

			out, err := coldrack(t, append(args, "-o", "json")...)
			var report struct {
				Missing int
				Needs   []kube.Need
			}
			if decodeErr := json.Unmarshal([]byte(out), &report); decodeErr != nil {
				t.Fatalf("%v: %s: %v", decodeErr, out, err)
			}
			var missing []string
			for _, need := range report.Needs {
				if need.For == "" {
					t.Errorf("nobody needs %+v", need)
				}
				if need.Found == "" {
					missing = append(missing, need.Kind+" "+need.Name)
				}
			}
			slices.Sort(missing)
			slices.Sort(test.missing)
			if !slices.Equal(missing, test.missing) || report.Missing != len(missing) {
				t.Errorf("missing are\n%q, want\n%q", missing, test.missing)
			}
			if wantCode := min(len(test.missing), 1); exit.CodeOf(err) != wantCode {
				t.Errorf("exit code %d, want %d: %v", exit.CodeOf(err), wantCode, err)
			}

			out, err = coldrack(t, args...)
			if len(test.missing) == 0 {
				if err != nil || !strings.Contains(out, "everything that lab needs is in bundle "+archive) {
					t.Errorf("%v\n%s", err, out)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.advice) || strings.Count(out, "MISSING") != len(missing) {
				t.Errorf("advice is %v, want %q\n%s", err, test.advice, out)
			}
		})
	}
}

func TestBundleVerifyOfWhatIsImported(t *testing.T) {
	archive := wholeClusterBundle(t).pack(t)
	dir := t.TempDir()
	if out, err := coldrack(t, "bundle", "import", archive, "--offline", "--data-dir", dir, "--trust", filepath.Join(filepath.Dir(archive), "bundle.pub")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := kube.PresetYAML(v1alpha1.TopologySmall, kube.PresetOptions{Name: "lab", Version: "v1.37.2"})
	if err != nil {
		t.Fatal(err)
	}
	out, err := coldrack(t, "bundle", "verify", "-f", writeTemp(t, "cluster.yaml", string(text)), "--data-dir", dir)
	if err != nil || !strings.Contains(out, "everything that lab needs is in the content of this server") {
		t.Errorf("%v\n%s", err, out)
	}
	for name, test := range map[string]struct {
		yaml, want string
	}{
		"no cluster":       {"apiVersion: coldrack.dev/v1alpha1\nkind: Profile\nmetadata: {name: x}\nspec: {image: y}\n", "there is no Cluster"},
		"an invalid one":   {strings.Replace(string(text), "replicas: 3", "replicas: 2", 1), "cluster lab"},
		"an unknown field": {strings.Replace(string(text), "  version:", "  versoin: x\n  version:", 1), "versoin"},
	} {
		if out, err := coldrack(t, "bundle", "verify", "-f", writeTemp(t, "cluster.yaml", test.yaml), "--data-dir", dir); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if _, err := coldrack(t, "bundle", "verify"); exit.CodeOf(err) != exit.Usage {
		t.Errorf("no arguments: %v", err)
	}
}
