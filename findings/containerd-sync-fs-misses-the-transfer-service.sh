#!/usr/bin/env bash
# containerd 2.4.2: with sync_fs = true of the diff service, layers that the transfer service unpacks are not synced.
#
# Version      github.com/containerd/containerd/v2 v2.4.2 (containerd, ctr); strace, tar of Debian
# Expected     The comment of the setting says that it is effective for all clients: after an image was unpacked by any of them, its layer is
#              on the disk, so that a power cut leaves no image that counts as complete and has empty files.
# Behaviour    It is effective for clients that call the diff service themselves. The transfer service, by which "ctr image import" unpacks
#              without --local, applies layers by the differ directly and never syncs. By default the CRI plugin pulls by that service, too.
# Seen         transfer service: 0 calls of syncfs
#              --local: 1 call of syncfs
# Why it matters  After a power cut, programs of an image that was pulled shortly before start with empty files, and no restart heals it. Kubelet's
#              pulls need image_pull_with_sync_fs of the CRI plugin instead, which makes containerd pull without the transfer service.
# Needs        root, strace, Go
set -euo pipefail
work=$(mktemp -d)
server=none
trap 'pkill -KILL -P "$server" 2>/dev/null; { wait; } 2>/dev/null; chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"
export CGO_ENABLED=0 GOFLAGS='-trimpath -mod=mod'
go mod init sync >/dev/null 2>&1
go get -tool github.com/containerd/containerd/v2/cmd/{containerd,ctr}@v2.4.2 >/dev/null 2>&1
go build -o bin/ tool

# image NAME: an OCI image of one layer with one file, as a tar archive. The file differs, so that no layer is there already.
sum() { sha256sum "$1" | cut -d' ' -f1; }
blob() { local d; d=$(sum "$1"); cp "$1" "$name/blobs/sha256/$d"; echo "{\"mediaType\":\"application/vnd.oci.image.$2\",\"digest\":\"sha256:$d\",\"size\":$(stat -c %s "$1")}"; }
image() {
	name=$1
	mkdir -p "$name/blobs/sha256" files
	echo "$name" >files/which
	tar -C files -cf layer which
	echo "{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$(sum layer)\"]}}" >config
	echo "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":$(blob config config.v1+json),\"layers\":[$(blob layer layer.v1.tar)]}" >manifest
	echo "{\"schemaVersion\":2,\"manifests\":[$(blob manifest manifest.v1+json | sed "s#}\$#,\"annotations\":{\"io.containerd.image.name\":\"example.test/$name:1\"}}#")]}" >"$name/index.json"
	echo '{"imageLayoutVersion":"1.0.0"}' >"$name/oci-layout"
	tar -C "$name" -cf "$name.tar" .
}
image one
image two

cat >config.toml <<TOML
version = 3
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
[grpc]
address = "$work/socket"
[ttrpc]
address = "$work/socket.ttrpc"
[plugins."io.containerd.service.v1.diff-service"]
sync_fs = true
TOML
strace -f -qq -e trace=syncfs -o trace bin/containerd --config config.toml >log 2>&1 &
server=$!
for _ in $(seq 300); do bin/ctr --address "$work/socket" version >/dev/null 2>&1 && break; kill -0 $server && sleep 0.1; done
grep -q 'sync_fs = true' <(bin/containerd --config config.toml config dump) || { echo "the setting was not taken" >&2; exit 2; }

# calls COMMAND: how many syncfs calls containerd makes while it runs.
calls() {
	local before
	before=$(grep -c 'syncfs(.*= 0' trace || true)
	"$@" >/dev/null 2>>log
	echo $(($(grep -c 'syncfs(.*= 0' trace || true) - before))
}
transfer=$(calls bin/ctr --address "$work/socket" image import one.tar)
direct=$(calls bin/ctr --address "$work/socket" image import --local two.tar)
bin/ctr --address "$work/socket" snapshots ls | grep -c Committed | grep -qx 2 || { echo "not both images were unpacked" >&2; cat log >&2; exit 2; }
echo "transfer service: $transfer calls of syncfs"
echo "--local: $direct call of syncfs"
[ "$transfer" = 0 ] && [ "$direct" -ge 1 ]
