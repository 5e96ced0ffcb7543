#!/usr/bin/env bash
# Moves pinned versions, in every place that names them, and says what is left to do.
# usage: hack/bump.sh [recipe=kubernetes-1.37] NAME=VERSION...
# NAME is one of those under versions: in recipes/kubernetes-1.37/recipe.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."
newest() { printf '%s\n' "$@" | sort -V | tail -n 1; }
recipe=$(basename "$(dirname "$(newest recipes/kubernetes-*/recipe.yaml)")")
latest=$recipe
pairs=()
for word in "$@"; do
	case $word in
	recipe=*) recipe=${word#recipe=} ;;
	*=v[0-9]*.[0-9]*.[0-9]*) pairs+=("$word") ;;
	*) echo "bump: $word is not NAME=VERSION, such as etcd=v3.7.4" >&2; exit 2 ;;
	esac
done
file=recipes/$recipe/recipe.yaml
[ ${#pairs[@]} -gt 0 ] && [ -f "$file" ] || {
	echo "usage: hack/bump.sh [recipe=$latest] NAME=VERSION...; pinned today:" >&2
	sed -n '/^versions:/,/^[^ ]/s/^  /  /p' "$file" >&2
	exit 2
}

# pinned NAME: its version in the recipe, nothing if it has none. pin NAME VERSION sets it. Only the section versions: counts.
pinned() { sed -n "/^versions:/,/^[^ ]*:/s/^  $1: //p" "$file"; }
pin() {
	if [ -n "$(pinned "$1")" ]; then
		sed -i "/^versions:/,/^[^ ]*:/s/^  $1: .*/  $1: $2/" "$file"
	else
		sed -i "s/^versions:/&\n  $1: $2/" "$file"
	fi
}
minor_of() { cut -d. -f1,2 <<<"${1#v}"; }
# module NAME VERSION: the folder that pins NAME at VERSION; a folder of another minor release is copied.
module() {
	local folder from
	folder=recipes/modules/$1-$(minor_of "$2")
	[ "$1" = cni-plugins ] && folder=recipes/modules/cni-plugins-1
	if [ ! -d "$folder" ]; then
		from=$(newest recipes/modules/"$1"-*)
		cp -r "$from" "$folder"
		(cd "$folder" && go mod edit -module "coldrack.dev/$folder")
		left+=("delete $from when no recipe names it any more")
	fi
	echo "$folder"
}
# tools FOLDER VERSION: all programs of a module at a version.
tools() (
	cd "$1"
	go mod edit -json | sed -n '/"Tool"/,/\]/s/.*"Path": "\(.*\)".*/\1@'"$2"'/p' | xargs go get -tool
	go mod tidy
)
# kubernetes FOLDER VERSION: a module of Kubernetes with its replacements.
kubernetes() (
	cd "$1"
	sed -i -E "s#^(require k8s.io/kubernetes) v.*#\1 $2#; s#(k8s.io/[a-z-]+ => k8s.io/[a-z-]+) v.*#\1 v0.${2#v1.}#" go.mod
	go mod tidy
)
# libraries FOLDER PATTERN VERSION: direct requirements that match, at a version.
libraries() (
	cd "$1"
	go mod edit -json | sed -n '/"Require"/,/^\t\]/{/"Path"/{N;N;/Indirect/!s/.*"Path": "\([^"]*\)".*/\1/p}}' | grep -E "$2" | sed "s/\$/@$3/" | xargs go get
	go mod tidy
)
# table FIELD SED: changes a line of this minor release in the table of releases.
table() { sed -i -E "/^\t\t${minor#1.}: \{/,/^\t\t\},/{/^\t\t\t$1:/$2}" internal/cluster/kube/version.go; }

left=()
declared=$(pinned kubernetes)
for pair in "${pairs[@]}"; do [ "${pair%%=*}" = kubernetes ] && declared=${pair#*=}; done
minor=$(minor_of "$declared")
for pair in "${pairs[@]}"; do
	name=${pair%%=*} version=${pair#*=}
	[ -n "$(pinned "$name")" ] || grep -q "^  $name: v" "recipes/$latest/recipe.yaml" || { echo "bump: $file has no version of $name" >&2; exit 2; }
	echo "bump: $name $version in $file"
	pin "$name" "$version"
	case $name in
	kubernetes)
		kubernetes "$(module kubernetes "$version")" "$version"
		table latest "s/v1[^\"]*/$version/"
		if [ "$recipe" = "$latest" ]; then
			libraries . '^k8s.io/(api|apiextensions-apiserver|apimachinery|apiserver|client-go|component-base|kube-proxy|kubelet|pod-security-admission)$' "v0.${version#v1.}"
			left+=("sigs.k8s.io/controller-runtime in go.mod: is there a release for these libraries?")
		fi ;;
	etcd)
		tools "$(module etcd "$version")" "$version"
		table etcdImage "s/etcd:[^\"]*/etcd:${version#v}-0/"
		[ "$recipe" = "$latest" ] && libraries . '^go.etcd.io/etcd/' "$version" ;;
	coredns)
		tools "$(module coredns "$version")" "$version"
		table coreDNSImage "s/coredns:v[^\"]*/coredns:$version/" ;;
	containerd)
		tools "$(module containerd "$version")" "$version"
		left+=("containerd: the least version in internal/cluster/kube/version.go, and the version of its configuration") ;;
	cni-plugins) tools "$(module cni-plugins "$version")" "$version" ;;
	flannel)
		tools "$(module flannel "$version")" "$version"
		sed -i -E "s/(flannel-io\/flannel:)v[^\"]*/\1$version/" internal/cluster/kube/version.go ;;
	pause) table pauseImage "s/pause:[^\"]*/pause:${version#v}/" ;;
	esac
done
go run ./hack/align
go run ./hack/gendocs
cat <<TEXT
bump: done: recipes, modules, go.mod, the table of releases, docs/reference
bump: left to do, in this order:
  go build ./... && go vet ./...
  read the release notes: flags that are gone belong to releases() in internal/cluster/kube/version.go
  go test ./internal/cluster/kube -update    and read what changed in testdata/golden
  make oracle                                real kubeadm of the new version against ours
  make bundle && make demo
  CHANGELOG.md, with action required where there is any; measured figures in docs are of the version they name
TEXT
for line in "${left[@]}"; do echo "  $line"; done
