package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	// pulledDir has a file for each image that was pulled, with the digest of its manifest.
	pulledDir = "/var/lib/containerd/pulled"
	// pullLog says who pulled what from where.
	pullLog  = "/var/log/rack/pulls.log"
	certsDir = "/etc/containerd/certs.d"
)

// pulled is the digest of an image that is here; "" for none.
func pulled(name string) string {
	b, _ := os.ReadFile(filepath.Join(pulledDir, url.PathEscape(name)))
	return string(b)
}

func setPulled(name, digest string) error {
	return writeBelow(filepath.Join(pulledDir, url.PathEscape(name)), digest)
}

// ctr lists, pulls and names images as containerd's own client does.
func ctr(args []string) error {
	if len(args) < 4 || args[0] != "--namespace" || args[1] != "k8s.io" || args[2] != "images" {
		return fmt.Errorf("ctr %s: the rack knows only images of k8s.io", strings.Join(args, " "))
	}
	switch verb, rest := args[3], args[4:]; {
	case verb == "ls" && len(rest) == 1:
		name := strings.TrimPrefix(rest[0], "name==")
		fmt.Println("REF TYPE DIGEST SIZE PLATFORMS LABELS")
		if digest := pulled(name); digest != "" {
			fmt.Println(name, "application/vnd.oci.image.manifest.v1+json", digest, "1.0 KiB linux/amd64 -")
		}
		return nil
	case verb == "pull" && len(rest) == 3 && rest[0] == "--hosts-dir" && rest[1] == certsDir:
		return pull("ctr", rest[2])
	case verb == "tag" && len(rest) == 3 && rest[0] == "--force":
		digest := pulled(rest[1])
		if digest == "" {
			return fmt.Errorf("image %s: not found", rest[1])
		}
		return setPulled(rest[2], digest)
	}
	return fmt.Errorf("the rack does not know ctr %s", strings.Join(args, " "))
}

// pull fetches an image by NAME:TAG or NAME@DIGEST from the hosts that containerd would ask, and compares every digest.
func pull(by, reference string) error {
	host, rest, _ := strings.Cut(reference, "/")
	repository, digest, named := strings.Cut(rest, "@")
	tag := digest
	if !named {
		i := strings.LastIndexByte(rest, ':')
		repository, tag = rest[:max(i, 0)], rest[i+1:]
	}
	hosts, err := os.ReadFile(filepath.Join(certsDir, host, "hosts.toml"))
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range regexp.MustCompile(`(?m)^\[host\.["']([^"']+)["']\]\n((?:[^\[\n].*\n?)*)`).FindAllStringSubmatch(string(hosts), -1) {
		if !named && !strings.Contains(m[2], "resolve") {
			continue
		}
		has, err := pullFrom(m[1], m[2], host, repository, tag)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if named && has != digest {
			errs = append(errs, fmt.Errorf("%s gives %s", m[1], has))
			continue
		}
		return errors.Join(setPulled(reference, has), appendLine(pullLog, fmt.Sprintf("%s %s %s %s", by, reference, has, m[1])))
	}
	return fmt.Errorf("image %s: %w", reference, errors.Join(errs...))
}

func appendLine(file, line string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, line)
	return err
}

// pullFrom one host, and say which digest the image has.
func pullFrom(at, options, namespace, repository, reference string) (digest string, err error) {
	roots := x509.NewCertPool()
	if m := regexp.MustCompile(`ca = ["']([^"']+)["']`).FindStringSubmatch(options); m != nil {
		b, err := os.ReadFile(m[1])
		if err != nil {
			return "", err
		}
		roots.AppendCertsFromPEM(b)
	}
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	get := func(kind, what string) ([]byte, string, error) {
		request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, fmt.Sprintf("%s/v2/%s/%s/%s?ns=%s", at, repository, kind, what, namespace), nil)
		if err != nil {
			return nil, "", err
		}
		request.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
		response, err := c.Do(request)
		if err != nil {
			return nil, "", err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
		if err != nil {
			return nil, "", err
		}
		if response.StatusCode != http.StatusOK {
			return nil, "", fmt.Errorf("%s answers %s: %s", request.URL, response.Status, bytes.TrimSpace(body))
		}
		return body, fmt.Sprintf("sha256:%x", sha256.Sum256(body)), nil
	}
	raw, digest, err := get("manifests", reference)
	if err != nil {
		return "", err
	}
	type part struct{ Digest string }
	var manifest struct {
		Config part
		Layers []part
	}
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return "", err
	}
	for _, p := range append(manifest.Layers, manifest.Config) {
		switch _, has, err := get("blobs", p.Digest); {
		case err != nil:
			return "", err
		case has != p.Digest:
			return "", fmt.Errorf("blob %s of %s arrived as %s", p.Digest, repository, has)
		}
	}
	return digest, nil
}
