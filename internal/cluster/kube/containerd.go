package kube

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

const (
	containerdConfig = "/etc/containerd/config.toml"
	certsDir         = "/etc/containerd/certs.d"
	registryCA       = certsDir + "/coldrack-ca.crt"
)

// containerdFile is the part of containerd's configuration, version 4, that differs from its defaults.
type containerdFile struct {
	Version  int            `toml:"version"`
	OOMScore int            `toml:"oom_score"`
	Plugins  map[string]any `toml:"plugins"`
}

type criRuntime struct {
	Containerd struct {
		DefaultRuntime string                 `toml:"default_runtime_name"`
		Runtimes       map[string]runtimeSpec `toml:"runtimes"`
	} `toml:"containerd"`
	CNI struct {
		// Files of version 3 and newer take no bin_dir, without saying so.
		BinDirs []string `toml:"bin_dirs"`
		ConfDir string   `toml:"conf_dir"`
	} `toml:"cni"`
	// StatsPeriod between two looks at what each container uses. The kubelet looks every ten seconds; containerd's
	// own choice of one second costs a node with many small containers more than they do.
	StatsPeriod string `toml:"stats_collect_period"`
}

type runtimeSpec struct {
	Type    string `toml:"runtime_type"`
	Options struct {
		SystemdCgroup bool `toml:"SystemdCgroup"`
	} `toml:"options"`
}

type criImages struct {
	PinnedImages map[string]string `toml:"pinned_images"`
	// SyncFS has a layer's files written to the disk before the image counts as there. Without it, power that is lost within half a minute
	// of a pull leaves empty files behind, and pods that fail with "exec format error" until somebody removes the image.
	SyncFS   bool `toml:"image_pull_with_sync_fs"`
	Registry struct {
		ConfigPath string `toml:"config_path"`
	} `toml:"registry"`
}

func (r *renderer) containerdFiles(n *node) ([]File, error) {
	runtimes := criRuntime{StatsPeriod: "10s"}
	runtimes.Containerd.DefaultRuntime = "runc"
	runc := runtimeSpec{Type: "io.containerd.runc.v2"}
	runc.Options.SystemdCgroup = true
	runtimes.Containerd.Runtimes = map[string]runtimeSpec{"runc": runc}
	runtimes.CNI.BinDirs, runtimes.CNI.ConfDir = []string{"/opt/cni/bin"}, cniDir
	images := criImages{PinnedImages: map[string]string{"sandbox": n.release.pauseImage}, SyncFS: true}
	images.Registry.ConfigPath = certsDir
	config, err := toml.Marshal(containerdFile{
		Version: 4, OOMScore: -999,
		Plugins: map[string]any{"io.containerd.cri.v1.runtime": runtimes, "io.containerd.cri.v1.images": images},
	})
	if err != nil {
		return nil, fmt.Errorf("encode containerd's configuration: %w", err)
	}
	files := []File{
		{Path: containerdConfig, Mode: modePublic, Content: config},
		{Path: certsDir, Mode: 0o755 | fs.ModeDir},
	}
	mirrors, err := r.mirrors(n)
	for i := range mirrors {
		mirrors[i].Soft = true // read at each pull
	}
	return append(files, mirrors...), err
}

// mirror is a place that images are pulled from (hosts.toml of containerd).
type mirror struct {
	Capabilities []string `toml:"capabilities"`
	CA           string   `toml:"ca,omitempty"`
}

// full capabilities: to say which digest a tag stands for, and to give what a digest names.
func full() []string { return []string{"pull", "resolve"} }

// usualRegistries are those that manifests name most.
var usualRegistries = [...]string{"docker.io", "gcr.io", "ghcr.io", "quay.io", "registry.k8s.io"}

// mirrors tell containerd to ask Coldrack's content store first, whatever registry an image names, so that
// unmodified manifests work without the internet.
func (r *renderer) mirrors(n *node) ([]File, error) {
	var files []File
	store := r.in.Registry
	if store != nil && len(store.CA) > 0 {
		files = append(files, File{Path: registryCA, Mode: modePublic, Content: store.CA})
	}
	hosts := slices.Clone(usualRegistries[:])
	endpoints, authorities := map[string][]string{}, map[string]string{}
	for _, own := range r.cluster.Spec.Registries {
		hosts = append(hosts, own.Host)
		endpoints[own.Host] = own.Endpoints
		if own.CA != "" {
			authorities[own.Host] = certsDir + "/" + own.Host + "/ca.crt"
			files = append(files, File{Path: authorities[own.Host], Mode: modePublic, Content: []byte(own.CA)})
		}
	}
	slices.Sort(hosts)
	for _, host := range append(slices.Compact(hosts), "_default") {
		var content bytes.Buffer
		if host != "_default" {
			fmt.Fprintf(&content, "server = %q\n", upstream(host))
		}
		if store != nil && store.Local != "" {
			// What a tag means only the store says.
			if err := writeMirror(&content, store.Local, mirror{Capabilities: []string{"pull"}}); err != nil {
				return nil, err
			}
		}
		if store != nil {
			ca := ""
			if len(store.CA) > 0 {
				ca = registryCA
			}
			if err := writeMirror(&content, cmp.Or(n.RegistryURL, store.URL), mirror{Capabilities: full(), CA: ca}); err != nil {
				return nil, err
			}
		}
		for _, endpoint := range endpoints[host] {
			if err := writeMirror(&content, endpoint, mirror{Capabilities: full(), CA: authorities[host]}); err != nil {
				return nil, err
			}
		}
		if !strings.Contains(content.String(), "[host") {
			continue
		}
		files = append(files, File{Path: certsDir + "/" + host + "/hosts.toml", Mode: modePublic, Content: content.Bytes()})
	}
	return files, nil
}

// writeMirror appends one host. containerd tries hosts in the order of the file, which encoding a map would lose.
func writeMirror(content *bytes.Buffer, url string, m mirror) error {
	encoded, err := toml.Marshal(map[string]map[string]mirror{"host": {url: m}})
	if err != nil {
		return fmt.Errorf("encode registry mirror %s: %w", url, err)
	}
	// The bare table [host] may stand only once in a file; without it the tables below mean the same.
	content.WriteByte('\n')
	content.Write(bytes.TrimPrefix(encoded, []byte("[host]\n")))
	return nil
}

// upstream is where a registry really is: Docker's has another name than its images.
func upstream(host string) string {
	if host == "docker.io" {
		return "https://registry-1.docker.io"
	}
	return "https://" + host
}

const containerdUnit = `[Unit]
Description=containerd: the container runtime
After=network.target local-fs.target

[Service]
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/local/bin/containerd
Type=notify
Delegate=yes
KillMode=process
Restart=always
RestartSec=2
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
`
