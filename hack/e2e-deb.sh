#!/usr/bin/env bash
# Proves that the Debian packages do what docs/install.md says: made twice, in two clones, they are the same; in a clean
# Debian 13 whose systemd runs they are installed, started, upgraded, removed and purged; lintian of that release accepts them.
# Needs root. Takes its settings from the environment:
#   OUTPUT   a file that gets what was said inside (default: none)
#   KEEP     leave the root behind when something failed, and say where
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
cache=${XDG_CACHE_HOME:-$HOME/.cache}/coldrack-fresh
. hack/debian-root.sh
work='' inside='' group=''

fail() { echo "e2e-deb: $*" >&2; exit 1; }

# The processes inside go with the first one of their namespace, and the mounts with the last one.
end() {
	local status=$?
	if [ -n "$inside" ]; then
		kill -KILL "$inside" 2>/dev/null || true
		wait "$inside" 2>/dev/null || true
	fi
	if [ -n "$group" ] && [ -d "$group" ]; then
		[ ! -e "$group/cgroup.kill" ] || echo 1 >"$group/cgroup.kill" || true
		find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
	fi
	if [ -n "$work" ] && [ "$status" -ne 0 ] && [ -n "${KEEP:-}" ]; then
		echo "e2e-deb: the root is left in $work/root" >&2
	elif [ -n "$work" ]; then
		rm -rf --one-file-system "$work"
	fi
}
trap end EXIT
trap 'exit 130' INT TERM HUP

# packages CLONE VERSION: makes them there, and lists them.
packages() {
	make -s -C "$1" deb VERSION="$2" DEBS="$1/debs" >"$work/make.log" 2>&1 || { tail -n 20 "$work/make.log" >&2; fail "make deb failed"; }
}

can_make_roots
[ -z "$(git status --porcelain)" ] || echo "e2e-deb: what is not committed stays outside"
work=$(mktemp -d "${TMPDIR:-/var/tmp}/coldrack-deb.XXXXXX")
root=$work/root

echo "e2e-deb: making the packages in two clones"
git clone -q --no-local "$repository" "$work/one"
(umask 077 && git clone -q --no-local "$repository" "$work/in another folder, two")
packages "$work/one" v0.1.0
(umask 077 && export TZ=Asia/Kathmandu LC_ALL=C GOMAXPROCS=1 && packages "$work/in another folder, two" v0.1.0)
for deb in "$work"/one/debs/*.deb; do
	cmp "$deb" "$work/in another folder, two/debs/${deb##*/}" || fail "${deb##*/} differs from one that was made elsewhere of the same commit"
done
mkdir -p "$work/debs"
mv "$work"/one/debs/*.deb "$work/debs/"
# The next release has another config file, as releases do.
echo '# A new line.' >>"$work/one/packaging/config.yaml"
packages "$work/one" v0.1.1
mv "$work"/one/debs/*.deb "$work/debs/"
rm -rf "$work/one" "$work/in another folder, two"

echo "e2e-deb: making a clean root of trixie"
debian_root "$root" trixie systemd,systemd-sysv,dbus,iproute2,procps,curl,ca-certificates "$cache/apt/trixie/archives"
echo rack >"$root/etc/hostname"
mkdir "$root/debs"
mv "$work"/debs/*.deb "$root/debs/"
install -m 755 hack/e2e-deb-inside.sh "$root/debs/e2e"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
cat >"$root/etc/systemd/system/e2e.service" <<'UNIT'
[Unit]
Wants=network-online.target
[Service]
Type=oneshot
ExecStart=/debs/e2e
ExecStopPost=systemctl --no-block poweroff
StandardOutput=file:/debs/output
StandardError=inherit
UNIT
ln -s ../e2e.service "$root/etc/systemd/system/multi-user.target.wants/e2e.service"

# systemd is the first process of namespaces of its own, in a control group of its own, on a network that leads nowhere.
echo "e2e-deb: starting its systemd"
unified=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$unified" ] || fail "this machine has no cgroup2 file system, and systemd needs one"
group=$unified/coldrack-deb.$$
mkdir "$group"
cat >"$work/start" <<'START'
set -euo pipefail
root=$1
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for device in null zero full random urandom tty; do
	touch "$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
hostname rack
ip link set lo up
exec chroot "$root" /usr/bin/env -i container=unshare PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --log-target=console --show-status=no </dev/null
START
(
	echo $BASHPID >"$group/cgroup.procs"
	exec unshare --mount --pid --uts --ipc --net --cgroup --fork --kill-child --propagation private bash "$work/start" "$root"
) >"$work/systemd.log" 2>&1 &
inside=$!
timeout 900 tail --pid=$inside -f /dev/null || fail "systemd inside did not power off within 15 minutes"
wait $inside || true
inside=''
cat "$root/debs/output" 2>/dev/null || { tail -n 30 "$work/systemd.log" >&2; fail "systemd inside did not come as far as the test"; }
[ "$(tail -n 1 "$root/debs/output")" = "all as it should be" ] || fail "failed; see above"

echo "e2e-deb: lintian of Debian 13"
chroot "$root" sh -c 'export DEBIAN_FRONTEND=noninteractive; apt-get -q update && apt-get -qy install --no-install-recommends lintian' >"$work/lintian.log" 2>&1 ||
	{ tail -n 20 "$work/lintian.log" >&2; fail "cannot install lintian"; }
chroot "$root" sh -c 'lintian --allow-root --info --show-overrides --fail-on error,warning /debs/coldrack*_0.1.0-1_*.deb' || fail "lintian objects"
[ -z "${OUTPUT:-}" ] || cp "$root/debs/output" "$OUTPUT"
echo "e2e-deb: passed"
