#!/usr/bin/env bash
# The first process of the namespaces that hack/fresh.sh makes: mounts what a running machine has into the root, and
# runs a command in the clone there. The mounts end with the namespace.
set -euo pipefail
root=$1 environment=$2 goroot=$3 caches=$4 apt=$5 command=$6

mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/usr/local/go" "$root/run/lock"
mount --bind -o ro "$goroot" "$root/usr/local/go"
hostname fresh

mapfile -t variables < <(grep -v ^FRESH_ "$environment")
variable() { sed -n "s/^$1=//p" "$environment"; }
# share FROM TO: a folder that outlives the root.
share() {
	mkdir -p "$1" "$root$2"
	mount --bind "$1" "$root$2"
}
if [[ $caches == *,go,* ]]; then
	share "$(variable FRESH_GOMODCACHE)" /root/go/pkg/mod
	share "$(variable FRESH_GOCACHE)" /root/.cache/go-build
fi
if [[ $caches == *,apt,* ]]; then
	share "$apt/archives" /var/cache/apt/archives
	share "$apt/lists" /var/lib/apt/lists
	share "$apt/builder" /root/.cache/coldrack/bundle/apt
	# Debian's images of containers delete what was fetched.
	echo 'Binary::apt-get::APT::Keep-Downloaded-Packages "true";' >"$root/etc/apt/apt.conf.d/91keep"
fi
# Not exec: a first process has to collect the orphans of the others, which bash does.
status=0
chroot "$root" /usr/bin/env -i "${variables[@]}" /bin/bash -c "cd /root/coldrack && $command" || status=$?
exit $status
