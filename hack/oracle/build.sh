#!/usr/bin/env bash
# Builds a real program of Kubernetes into the given file; its name says which. What internal/cluster/kube renders is compared
# with what kubeadm generates; internal/cluster/kubeapi is tested against kube-apiserver.
# usage: hack/oracle/build.sh bin/kubeadm
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "$0")"
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
minor=${minor%%.*}
stamp=k8s.io/component-base/version
mkdir -p "$(dirname "$out")"
export CGO_ENABLED=0 GOFLAGS=-trimpath
go build -o "$out" \
	-ldflags "-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$minor -X $stamp.gitTreeState=clean" \
	"k8s.io/kubernetes/cmd/$(basename "$out")"
