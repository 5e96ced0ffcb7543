package registry

import (
	"fmt"
	"net/http"
	"strings"

	"coldrack.dev/internal/base/digest"
)

type kind int

const (
	kindBase kind = iota
	kindManifest
	kindBlob
	kindTags
	kindReferrers
	kindUpload
)

// target is what the path of a request names.
type target struct {
	kind kind
	// name of the repository, perhaps with its registry before it.
	name string
	// reference is a tag or digest as the client gave it; of an upload its ID, empty for a new one.
	reference string
}

// parsePath takes a path below /v2. A repository may be called manifests or blobs, so that only the last
// two parts say what is meant.
func parsePath(path string) (target, error) {
	unknown := refuse(http.StatusNotFound, codeUnsupported, "%s is no part of the distribution protocol that this registry speaks", clip(path))
	rest, ok := strings.CutPrefix(path, "/v2")
	if !ok {
		return target{}, unknown
	}
	if rest == "" || rest == "/" {
		return target{kind: kindBase}, nil
	}
	rest, ok = strings.CutPrefix(rest, "/")
	if t, is := parseUpload(rest); ok && is {
		return checkName(t)
	}
	last := strings.LastIndexByte(rest, '/')
	if !ok || last < 0 {
		return target{}, unknown
	}
	middle := strings.LastIndexByte(rest[:last], '/')
	if middle < 0 {
		return target{}, unknown
	}
	t := target{name: rest[:middle], reference: rest[last+1:]}
	switch rest[middle+1 : last] {
	case "manifests":
		t.kind = kindManifest
	case "blobs":
		t.kind = kindBlob
	case "referrers":
		t.kind = kindReferrers
		if !digest.Valid(t.reference) {
			return target{}, refuse(http.StatusBadRequest, codeDigestInvalid, "%q is no digest of the form sha256:<64 hexadecimal digits>", clip(t.reference))
		}
	case "tags":
		if t.reference != "list" {
			return target{}, unknown
		}
		t.kind, t.reference = kindTags, ""
	default:
		return target{}, unknown
	}
	return checkName(t)
}

func checkName(t target) (target, error) {
	if !isName(t.name) {
		return target{}, refuse(http.StatusBadRequest, codeNameInvalid, "%q is no name of a repository", clip(t.name))
	}
	return t, nil
}

// parseUpload takes NAME/blobs/uploads/ and NAME/blobs/uploads/ID.
func parseUpload(rest string) (target, bool) {
	rest, id := strings.TrimSuffix(rest, "/"), ""
	if !strings.HasSuffix(rest, "/blobs/uploads") {
		at := strings.LastIndexByte(rest, '/')
		if at < 0 {
			return target{}, false
		}
		rest, id = rest[:at], rest[at+1:]
	}
	name, ok := strings.CutSuffix(rest, "/blobs/uploads")
	return target{kind: kindUpload, name: name, reference: id}, ok
}

// maxName is what clients and registries in the field accept at most, with the registry's host.
const maxName = 255

// isName checks the specification's grammar: parts of lower-case letters and digits, separated inside by one dot,
// one or two underscores, or any number of dashes.
func isName(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if !isNamePart(part) {
			return false
		}
	}
	return true
}

func isNamePart(part string) bool {
	separator := ""
	for i := range len(part) {
		c := part[i]
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			if separator != "" && separator != "." && separator != "_" && separator != "__" && strings.Trim(separator, "-") != "" {
				return false
			}
			separator = ""
			continue
		}
		if i == 0 || c != '.' && c != '_' && c != '-' {
			return false
		}
		separator += string(c)
	}
	return part != "" && separator == ""
}

func isTag(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		word := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
		if !word && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return true
}

func isReference(s string) bool { return isTag(s) || digest.Valid(s) }

// parseHost checks a registry's host, with or without port, and returns it as images' names have it.
func parseHost(s string) (string, error) {
	host, port, hasPort := s, "", false
	if at := strings.LastIndexByte(s, ':'); at >= 0 && !strings.HasSuffix(s, "]") {
		host, port, hasPort = s[:at], s[at+1:], true
	}
	valid := host != "" && len(s) <= maxName && (!hasPort || port != "" && len(port) <= 5 && strings.Trim(port, "0123456789") == "")
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		valid = valid && ok && inner != "" && strings.Trim(inner, "0123456789abcdefABCDEF:.") == ""
	} else {
		for part := range strings.SplitSeq(host, ".") {
			valid = valid && part != "" && part[0] != '-' && part[len(part)-1] != '-' &&
				strings.Trim(strings.ToLower(part), "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
		}
	}
	if !valid {
		return "", fmt.Errorf("%q is no host of a registry, such as registry.k8s.io or 10.0.0.5:5000", clip(s))
	}
	return canonicalHost(strings.ToLower(s)), nil
}

// canonicalHost is the name that Docker's registry has in images' names; it answers at others.
func canonicalHost(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// isHost tells whether the first part of a name is a registry, by the rule that all clients share.
func isHost(part string) bool { return part == "localhost" || strings.ContainsAny(part, ".:") }

// splitImage cuts a full name with tag. The host is in the form of canonicalHost.
func splitImage(name string) (host, repository, tag string, ok bool) {
	colon := strings.LastIndexByte(name, ':')
	if colon < 0 || strings.Contains(name[colon:], "/") {
		return "", "", "", false
	}
	host, repository, ok = strings.Cut(name[:colon], "/")
	if !ok || !isHost(host) {
		return "", "", "", false
	}
	host, err := parseHost(host)
	tag = name[colon+1:]
	return host, repository, tag, err == nil && isName(repository) && isTag(tag)
}
