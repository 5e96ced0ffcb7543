#!/bin/sh
# Runs as the last step of making the image's root, with that root as its own: it uses the image's programs and reaches
# nothing of the building machine. The words are systemd units to enable and, after "--", to disable. What the builder
# wants to know of the image is left in /coldrack-facts.
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
facts=/coldrack-facts

verb=enable
for unit; do
	if [ "$unit" = -- ]; then
		verb=disable
		continue
	fi
	complaint=$(systemctl --root=/ "$verb" "$unit" 2>&1) || {
		echo "E: image.$verb: cannot $verb $unit: $complaint" >&2
		exit 1
	}
done

# Each machine makes its own.
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /var/lib/systemd/random-seed /etc/hostname /etc/resolv.conf
# Empty, not absent and not "uninitialized": systemd then makes an id on the first boot, but does not
# apply its presets over the units enabled above.
rm -f /etc/machine-id
: >/etc/machine-id

# Not /tmp: mmdebstrap keeps the settings there that make its last call of apt clean this root,
# and not the building machine.
# The mirror of the building machine is of no use where the image runs.
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/99mmdebstrap
sed -i '/^force-unsafe-io$/d' /etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig /var/lib/dpkg/*-old \
	/var/lib/systemd/deb-systemd-helper-* /var/tmp/* /run/*
find /var/log -type f -delete
find /usr -name __pycache__ -prune -exec rm -rf {} +

set -- /boot/vmlinuz-*
if [ $# -ne 1 ] || [ ! -e "$1" ]; then
	echo "E: image.packages: want one kernel in the image, found: $*" >&2
	exit 1
fi
version=${1##*/vmlinuz-}
if [ ! -s "/boot/initrd.img-$version" ]; then
	echo "E: image.packages: the image has no initramfs for kernel $version" >&2
	exit 1
fi
# What the boot loader's configuration names, whatever kernel is installed later.
ln -sfn "boot/vmlinuz-$version" /vmlinuz
ln -sfn "boot/initrd.img-$version" /initrd.img

echo "$version" >"$facts"/kernel-version
cat /etc/debian_version >"$facts"/os-version
dpkg-query -W -f='${db:Status-Abbrev}|${Package}|${Version}|${Architecture}|${source:Package}\n' >"$facts"/packages
