#!/usr/bin/env bash
# Writes the flags that the programs of a control plane have into api/v1alpha1/testdata/flags, one file for each program and
# release, from what the programs print themselves. Builds each of them; run it when recipes/modules gets a new release.
# usage: hack/flags.sh [FOLDER with programs named PROGRAM-RELEASE, instead of building them]
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/api/v1alpha1/testdata/flags
programs=${1:-}
export CGO_ENABLED=0 GOFLAGS='-trimpath -mod=readonly'
mkdir -p "$out"
flags() { # PROGRAM RELEASE MODULE PACKAGE
	local file=$programs/$1-$2
	if [ -z "$programs" ]; then
		file=$(mktemp)
		(cd "recipes/modules/$3" && go build -o "$file" "$4")
	fi
	"$file" --help 2>&1 | grep -oE '^ +(-[a-z], )?--[a-zA-Z0-9-]+' | grep -oE '[a-zA-Z0-9][a-zA-Z0-9-]*$' | sort -u >"$out/$1-$2"
	[ -n "$programs" ] || rm "$file"
}
for release in 1.36 1.37; do
	for program in kube-apiserver kube-controller-manager kube-scheduler; do
		flags $program $release kubernetes-$release k8s.io/kubernetes/cmd/$program
	done
done
for release in 3.6 3.7; do
	flags etcd $release etcd-$release go.etcd.io/etcd/server/v3
done
