#!/usr/bin/env bash
# Builds a program of Kubernetes into the given file; its name says which. It is the program that bundles contain, from the same
# module, so that Go compiles Kubernetes once for both. Tests use kubectl as a foreign client, compare what internal/cluster/kube
# renders with what kubeadm generates, and run internal/cluster/kubeapi against kube-apiserver.
# A file in a folder named after a minor release is the program of that one.
# usage: hack/kubernetes.sh bin/kubeadm, hack/kubernetes.sh bin/1.36/kube-apiserver
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "$0")/../recipes/modules"
minor=$(basename "$(dirname "$out")")
if [ -d "kubernetes-$minor" ]; then
	cd "kubernetes-$minor"
else
	cd "$(printf '%s\n' kubernetes-* | sort -V | tail -n 1)"
fi
export CGO_ENABLED=0 GOFLAGS='-trimpath -mod=readonly'
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
minor=${minor%%.*}
stamp=k8s.io/component-base/version
mkdir -p "$(dirname "$out")"
file=$out package=k8s.io/kubernetes/cmd/$(basename "$out")
case $(basename "$out") in
kube-apiserver | kube-controller-manager | kube-scheduler) # one program of three names
	file=$(dirname "$out")/kubernetes-control-plane package=./control-plane
	;;
kubelet | kubeadm | kubectl)
	file=$(dirname "$out")/kubernetes-node package=./node
	;;
esac
go build -o "$file" \
	-ldflags "-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$minor -X $stamp.gitTreeState=clean" \
	"$package"
[ "$file" = "$out" ] || { ln -f "$file" "$out" && touch "$out"; }
