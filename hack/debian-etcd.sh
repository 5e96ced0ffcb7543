#!/usr/bin/env bash
# Fetches the etcd of this host's Debian release into a file: the one that tests of etcd's older discovery run. It is not installed,
# because the package starts a server.
set -euo pipefail
out=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
fetch() { (cd "$dir" && apt-get -q -o APT::Sandbox::User=root download etcd-server); }
if ! fetch >"$dir/log" 2>&1; then
	# The lists of packages may be missing, or older than the mirror.
	if ! { apt-get -q update && fetch; } >"$dir/log" 2>&1; then
		tail -n 5 "$dir/log" >&2
		echo "debian-etcd: the package etcd-server cannot be fetched; is a Debian mirror configured and reachable?" >&2
		exit 1
	fi
fi
dpkg-deb -x "$dir"/etcd-server_*.deb "$dir/root"
mkdir -p "$(dirname "$out")"
install -m 755 "$dir/root/usr/bin/etcd" "$out"
"$out" --version | sed -n 1p
