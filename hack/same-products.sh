#!/usr/bin/env bash
# Builds the Debian half of the default bundle once more (see `make debian-half`; $1 is the cache of that build), after installing on this machine the
# packages that it is made of and spoiling their files. The bundle must be the same, bit by bit. For a root that is
# thrown away: `make fresh-bundle`.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(hostname)" = fresh ] || { echo "same-products: spoils installed packages; run: make fresh-bundle" >&2; exit 1; }
first=$1 second=$PWD/build/again
export DEBIAN_FRONTEND=noninteractive
apt-get -q update >/dev/null
apt-get -qy install --no-install-recommends ipxe grub-common grub-pc-bin grub-efi-amd64-bin kmod busybox e2fsprogs >/dev/null
spoiled=0
for file in /boot/ipxe.* /usr/lib/ipxe/*.kpxe /usr/lib/ipxe/*.efi /usr/lib/grub/*/*.mod /usr/lib/grub/*/*.img /usr/lib/x86_64-linux-gnu/libkmod.so.2 /etc/mke2fs.conf; do
	[ -f "$file" ] || continue
	echo "not of the recipe" >"$file"
	spoiled=$((spoiled + 1))
done
for program in /usr/bin/grub-mkimage /usr/bin/busybox /sbin/depmod /sbin/mke2fs /sbin/debugfs; do
	rm -f "$program"
	ln -s /bin/false "$program"
done
[ $spoiled -gt 50 ] || { echo "same-products: only $spoiled files to spoil; do the packages look different now?" >&2; exit 1; }
# Downloads, the key and the image's root (two minutes of mmdebstrap, in a root of its own) are those of the first build.
mkdir -p "$second/steps"
ln -sfn "$first/apt" "$second/apt"
cp "$first/bundle.key" "$second/"
cp -al "$first/steps/image-root" "$second/steps/"
bin/coldrack bundle build -f recipes/default --agent bin/coldrack-agent --cache "$second" -o build/again.bundle.tar
cmp build/debian.bundle.tar build/again.bundle.tar || { echo "same-products: the bundle depends on what is installed on the building machine" >&2; exit 1; }
echo "the same bundle, with $spoiled spoiled files of the same packages on the building machine"
