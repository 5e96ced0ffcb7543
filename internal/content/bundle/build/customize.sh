#!/bin/sh
# Runs on the building machine as the last step of making the image's root. $1 is the root, $2 a
# folder for what the builder wants to know of it; further words are systemd units to enable and, after
# "--", to disable.
set -eu
root=$1 facts=$2
shift 2

verb=enable
for unit; do
	if [ "$unit" = -- ]; then
		verb=disable
		continue
	fi
	systemctl --root="$root" "$verb" "$unit" >/dev/null 2>&1 || {
		echo "E: image.$verb: cannot $verb $unit" >&2
		exit 1
	}
done

# Each machine makes its own.
rm -f "$root"/etc/ssh/ssh_host_* "$root"/var/lib/dbus/machine-id "$root"/var/lib/systemd/random-seed \
	"$root"/etc/hostname "$root"/etc/resolv.conf
# Empty, not absent and not "uninitialized": systemd then makes an id on the first boot, but does not
# apply its presets over the units enabled above.
: >"$root"/etc/machine-id

# Not $root/tmp: mmdebstrap keeps the settings there that make its last call of apt clean this root,
# and not the building machine.
# The mirror of the building machine is of no use where the image runs.
rm -rf "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/apt.conf.d/99mmdebstrap
sed -i '/^force-unsafe-io$/d' "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old "$root"/var/cache/ldconfig \
	"$root"/var/lib/dpkg/*-old "$root"/var/lib/systemd/deb-systemd-helper-* "$root"/var/tmp/* "$root"/run/*
find "$root"/var/log -type f -delete
find "$root"/usr -name __pycache__ -prune -exec rm -rf {} +

set -- "$root"/boot/vmlinuz-*
if [ $# -ne 1 ] || [ ! -e "$1" ]; then
	echo "E: image.packages: want one kernel in the image, found: $*" >&2
	exit 1
fi
version=${1##*/vmlinuz-}
if [ ! -s "$root/boot/initrd.img-$version" ]; then
	echo "E: image.packages: the image has no initramfs for kernel $version" >&2
	exit 1
fi
# What the boot loader's configuration names, whatever kernel is installed later.
ln -sfn "boot/vmlinuz-$version" "$root"/vmlinuz
ln -sfn "boot/initrd.img-$version" "$root"/initrd.img

echo "$version" >"$facts"/kernel-version
cat "$root"/etc/debian_version >"$facts"/os-version
dpkg-query --admindir="$root"/var/lib/dpkg -W -f='${db:Status-Abbrev}|${Package}|${Version}|${Architecture}|${source:Package}\n' >"$facts"/packages
