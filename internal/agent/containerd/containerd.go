// Package containerd has a node's containerd pull images before a pod needs them, by ctr, which is on every node.
package containerd

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/contract/wire"
)

const (
	// namespace of the images that the kubelet sees.
	namespace = "k8s.io"
	// hostsDir says where containerd pulls from.
	hostsDir = "/etc/containerd/certs.d"
	// pullLimit is for one image over a slow link.
	pullLimit = 30 * time.Minute
	lookLimit = time.Minute
)

// Ctr pulls images by ctr.
type Ctr struct{}

// Pull has containerd fetch an image, unless it has it with the same digest. It is fetched by its digest, where that is known, so that it
// is what the server meant whoever gives it; its name is set when it is here as a whole.
func (Ctr) Pull(ctx context.Context, ctr string, image wire.PrefetchImage) error {
	list, err := run(ctx, lookLimit, ctr, "images", "ls", "name=="+image.Name)
	if err != nil {
		return err
	}
	if has := digestIn(list, image.Name); has != "" && (has == image.Digest || image.Digest == "") {
		return nil
	}
	reference := image.Name
	if image.Digest != "" {
		reference = untagged(image.Name) + "@" + image.Digest
	}
	if _, err := run(ctx, pullLimit, ctr, "images", "pull", "--hosts-dir", hostsDir, reference); err != nil || reference == image.Name {
		return err
	}
	_, err = run(ctx, lookLimit, ctr, "images", "tag", "--force", reference, image.Name)
	return err
}

// untagged is an image's name without its tag.
func untagged(name string) string {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i]
	}
	return name
}

// digestIn finds an image in what ctr lists: its name, type, digest and more, a line each. Empty: it is not there.
func digestIn(list []byte, name string) string {
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != name {
			continue
		}
		if i := slices.IndexFunc(fields, func(f string) bool { return strings.HasPrefix(f, "sha256:") }); i >= 0 {
			return fields[i]
		}
	}
	return ""
}

func run(ctx context.Context, limit time.Duration, ctr string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var out, trouble bytes.Buffer
	cmd := exec.CommandContext(ctx, ctr, append([]string{"--namespace", namespace}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &trouble
	if err := cmd.Run(); err != nil {
		text := strings.Join(strings.Fields(trouble.String()), " ")
		const most = 300
		if len(text) > most {
			text = "..." + text[len(text)-most:] // the cause comes last
		}
		return nil, fmt.Errorf("ctr %s: %w: %s", strings.Join(args[:2], " "), err, text)
	}
	return out.Bytes(), nil
}
