package rack

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/test/require"
)

// programs are the files that a rack runs.
type programs struct {
	coldrack, machine, kubectl string
	// version of Kubernetes that a cluster begins with, such as v1.37.2.
	version string
	// newest that there is, where it is another one.
	newest string
	// versions that there are programs for.
	versions []string
	// binds are folders of the host, with the place at which machines see them: HOST:MACHINE.
	binds []string
}

// repository is the root of this source tree.
func repository() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	if filepath.IsAbs(file) {
		return filepath.Join(filepath.Dir(file), "..", ".."), nil
	}
	// With -trimpath the file's name says nothing; tests run in their package's folder.
	dir, err := os.Getwd()
	for ; err == nil && filepath.Dir(dir) != dir; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.Join(errors.New("this is not within the repository"), err)
}

// findPrograms builds what is of this repository, as it is now, and finds what make has built of Kubernetes: the newest
// release in bin, others in a folder of their minor release there.
func findPrograms(t testing.TB, dir, minor string) programs {
	t.Helper()
	root, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(root, "bin", "rack")
	p := programs{coldrack: filepath.Join(own, "coldrack"), machine: filepath.Join(own, "machine"), kubectl: filepath.Join(root, "bin", "kubectl"),
		binds: []string{filepath.Join(dir, "rack") + ":/rack", own + ":/programs/rack", "/usr:/host/usr"}}
	known := kube.KnownVersions()
	for i, version := range known {
		v, err := kube.ParseVersion(version)
		if err != nil {
			t.Fatal(err)
		}
		name, folder := fmt.Sprintf("1.%d", v.Minor), filepath.Join(root, "bin")
		if i < len(known)-1 {
			folder = filepath.Join(folder, name)
			if minor == name {
				require.Need(t, "kubernetes-"+name)
			}
			if !require.Has("kubernetes-" + name) {
				continue
			}
		}
		if err := makeImages(filepath.Join(dir, "rack", "images"), version, folder); err != nil {
			t.Fatal(err)
		}
		p.versions = append(p.versions, version)
		p.binds = append(p.binds, folder+":/programs/"+version)
		if minor == "" || minor == name {
			p.version = version
		}
	}
	if p.version == "" {
		t.Fatalf("this Coldrack does not know Kubernetes %s", minor)
	}
	if err := errors.Join(buildOwn(root, own), os.Symlink("/programs/rack/machine", filepath.Join(dir, "rack", "machine"))); err != nil {
		t.Fatal(err)
	}
	return p
}

// makeImages makes each image that there is a program for a folder of its own name with that program in it. Other images are of pods that
// are hollow.
func makeImages(images, version, folder string) error {
	required, err := imagesOf(version)
	if err != nil {
		return err
	}
	for _, image := range required {
		name, _, _ := strings.Cut(image[strings.LastIndexByte(image, '/')+1:], ":")
		if _, err := os.Stat(filepath.Join(folder, name)); err != nil {
			continue
		}
		at := filepath.Join(images, image)
		if err := errors.Join(os.MkdirAll(at, 0o755), os.Symlink("/programs/"+version+"/"+name, filepath.Join(at, name))); err != nil {
			return err
		}
	}
	return nil
}

// addEarlierPatch adds the patch release before the newest and has clusters begin with it. The module proxy does not have every patch
// release, and building two takes long: kube-apiserver is the newest one's program that says it is of another release, the rest is the
// newest's. What is tested with it is who changes what on a node, not what patch releases differ in.
func (p *programs) addEarlierPatch(t testing.TB, dir string) {
	t.Helper()
	newest := p.version
	v, err := kube.ParseVersion(newest)
	if err != nil {
		t.Fatal(err)
	}
	v.Patch--
	if v.Patch < 0 || len(v.String()) != len(newest) {
		t.Skipf("there is no patch release before %s whose name is as long", newest)
	}
	folder := filepath.Join(dir, "rack", "earlier")
	program, err := os.ReadFile(filepath.Join(filepath.Dir(p.kubectl), "kube-apiserver"))
	if err == nil {
		program = bytes.ReplaceAll(program, []byte(newest), []byte(v.String()))
		err = errors.Join(os.MkdirAll(folder, 0o755), os.WriteFile(filepath.Join(folder, "kube-apiserver"), program, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		at, is := filepath.Join(dir, "rack", "images", "registry.k8s.io", name+":"+v.String()), "/programs/"+newest+"/"+name
		if name == "kube-apiserver" {
			is = "/rack/earlier/kube-apiserver"
		}
		if err := errors.Join(os.MkdirAll(at, 0o755), os.Symlink(is, filepath.Join(at, name))); err != nil {
			t.Fatal(err)
		}
	}
	p.version, p.newest = v.String(), newest
	p.versions = append(p.versions, p.version)
}

// imagesOf a cluster of this version.
func imagesOf(version string) ([]string, error) {
	cluster, _, err := kube.Preset("production", kube.PresetOptions{Name: "any", Version: version, Workers: 1})
	if err != nil {
		return nil, err
	}
	required, err := kube.RequirementsOf(cluster)
	return required.Images, err
}

// buildOwn builds this repository's programs. Where nothing has changed, Go only compares.
func buildOwn(root, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	for name, path := range map[string]string{"coldrack": "./cmd/coldrack", "coldrack-agent": "./cmd/coldrack-agent", "machine": "./test/rack/machine"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), path)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", path, err, out)
		}
	}
	return nil
}
