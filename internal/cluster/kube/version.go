package kube

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"coldrack.dev/api/v1alpha1"
)

// release is what goes with one minor release of Kubernetes.
type release struct {
	// latest patch release that this table was checked against.
	latest string
	// Images of the newest patch releases that go with it; kubeadm names the oldest that do.
	etcdImage    string
	coreDNSImage string
	pauseImage   string
	flannelImage string
	// containerd is the least version that knows the configuration that is rendered.
	containerd string
	// lacking are flags by component that this release has not got, or not any more, each with what to do instead. A * at the end
	// stands for anything.
	lacking map[component]map[string]string
}

// component is a program with flags.
type component = v1alpha1.Component

const (
	componentEtcd      = v1alpha1.ComponentEtcd
	componentAPIServer = v1alpha1.ComponentAPIServer
	componentManager   = v1alpha1.ComponentControllerManager
	componentScheduler = v1alpha1.ComponentScheduler
)

const (
	imageRepository = "registry.k8s.io"
	flannelImage    = "ghcr.io/flannel-io/flannel:v0.28.10"
	adminsGroup     = "kubeadm:cluster-admins"
)

// releases by minor. A version that is not here is refused: an untested combination of flags is found out
// on the admin's desk and not in the rack.
func releases() map[int]release {
	removed := func(manager, etcd map[string]string) map[component]map[string]string {
		return map[component]map[string]string{
			componentAPIServer: {
				"cloud-config":   "was removed in 1.33; cloud providers run outside",
				"cloud-provider": "was removed in 1.33; cloud providers run outside",
			},
			componentManager: manager,
			componentEtcd:    etcd,
		}
	}
	return map[int]release{
		36: {
			latest:       "v1.36.3",
			etcdImage:    imageRepository + "/etcd:3.6.16-0",
			coreDNSImage: imageRepository + "/coredns/coredns:v1.15.0",
			pauseImage:   imageRepository + "/pause:3.10.2",
			flannelImage: flannelImage,
			containerd:   "2.4",
			lacking: removed(map[string]string{
				"concurrent-disruption-syncs": "came with 1.37",
			}, map[string]string{"enable-v2": "was removed in etcd 3.6"}),
		},
		37: {
			latest:       "v1.37.2",
			etcdImage:    imageRepository + "/etcd:3.7.3-0",
			coreDNSImage: imageRepository + "/coredns/coredns:v1.15.0",
			pauseImage:   imageRepository + "/pause:3.10.2",
			flannelImage: flannelImage,
			containerd:   "2.4",
			lacking: removed(
				nil,
				// In a configuration file or as environment variables etcd takes them without a word and starts alone.
				map[string]string{
					"enable-v2":       "was removed in etcd 3.6",
					"discovery":       "was removed in etcd 3.7; members are known from the machines",
					"discovery-proxy": "was removed in etcd 3.7; members are known from the machines",
					"experimental-*":  "was removed in etcd 3.7; use the flag without experimental-, or feature-gates",
				}),
		},
	}
}

// lacks says why the release has not got a flag, or "".
func (r *release) lacks(c component, flag string) string {
	for pattern, why := range r.lacking[c] {
		prefix, any := strings.CutSuffix(pattern, "*")
		if flag == pattern || any && strings.HasPrefix(flag, prefix) {
			return why
		}
	}
	return ""
}

// ErrUnknownVersion is returned for a Kubernetes version that there is no table for.
var ErrUnknownVersion = errors.New("unknown Kubernetes version")

// Version is a parsed version of Kubernetes.
type Version struct{ Minor, Patch int }

// ParseVersion reads vMAJOR.MINOR.PATCH.
func ParseVersion(s string) (Version, error) {
	parts := strings.Split(strings.TrimPrefix(s, "v"), ".")
	if !strings.HasPrefix(s, "v") || len(parts) != 3 || parts[0] != "1" {
		return Version{}, fmt.Errorf("%q is not a version such as %s", s, DefaultVersion())
	}
	minor, minorErr := strconv.ParseUint(parts[1], 10, 16)
	patch, patchErr := strconv.ParseUint(parts[2], 10, 16)
	if minorErr != nil || patchErr != nil {
		return Version{}, fmt.Errorf("%q is not a version such as %s", s, DefaultVersion())
	}
	return Version{int(minor), int(patch)}, nil
}

// String is the form that ParseVersion takes.
func (v Version) String() string { return fmt.Sprintf("v1.%d.%d", v.Minor, v.Patch) }

// KnownVersions returns the latest known patch release of every minor that can be rendered, oldest first.
func KnownVersions() []string {
	table := releases()
	var known []string
	for _, minor := range slices.Sorted(maps.Keys(table)) {
		known = append(known, table[minor].latest)
	}
	return known
}

// DefaultVersion is the version of a new cluster.
func DefaultVersion() string {
	known := KnownVersions()
	return known[len(known)-1]
}

func releaseOf(version string) (release, error) {
	v, err := ParseVersion(version)
	if err != nil {
		return release{}, fmt.Errorf("%w: %w", ErrUnknownVersion, err)
	}
	r, ok := releases()[v.Minor]
	if !ok {
		return release{}, fmt.Errorf("%w %s: this Coldrack can render %s and other patch releases of the same minors",
			ErrUnknownVersion, version, strings.Join(KnownVersions(), ", "))
	}
	return r, nil
}

// EtcdVersion is the version of etcd that goes with a version of Kubernetes, such as 3.7.3.
func EtcdVersion(kubernetes string) (string, error) {
	r, err := releaseOf(kubernetes)
	if err != nil {
		return "", err
	}
	return r.etcdVersion(), nil
}

// etcdOf is a release with the given version of etcd, "" standing for this one with its own. A version that no table names, as
// an earlier Coldrack recorded it, runs like the other patch releases of its minor.
func (r *release) etcdOf(version string) (release, error) {
	if version == "" || version == r.etcdVersion() {
		return *r, nil
	}
	minorOf := func(version string) string { return version[:max(0, strings.LastIndex(version, "."))] }
	table := releases()
	var known []string
	for _, minor := range slices.Sorted(maps.Keys(table)) {
		other := table[minor]
		if minorOf(other.etcdVersion()) == minorOf(version) {
			if other.etcdVersion() != version {
				other.etcdImage = imageRepository + "/etcd:" + version + "-0"
			}
			return other, nil
		}
		known = append(known, other.etcdVersion())
	}
	return release{}, fmt.Errorf("unknown version of etcd %q: this Coldrack can render %s and other patch releases of the same minors", version, strings.Join(known, ", "))
}

func (r *release) etcdVersion() string {
	_, tag, _ := strings.Cut(r.etcdImage, ":")
	version, _, _ := strings.Cut(tag, "-")
	return version
}

// Names of static pods, as NodeChange.Restarts has them.
const (
	PodEtcd      = string(componentEtcd)
	PodAPIServer = string(componentAPIServer)
)

func kubernetesImage(name component, version string) string {
	return imageRepository + "/" + string(name) + ":" + version
}
