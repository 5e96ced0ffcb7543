#!/usr/bin/env bash
# Installs the Debian packages that are listed beside the code that needs them, and those of files it is given; with
# --only, those of the files alone. Does nothing when all are there.
set -euo pipefail
cd "$(dirname "$0")/.."
lists=(recipes/HOST-PACKAGES internal/lab/HOST-PACKAGES test/HOST-PACKAGES)
if [ "${1:-}" = --only ]; then
	lists=()
	shift
fi
mapfile -t wanted < <(cat "${lists[@]}" "$@" | sed 's/#.*//' | tr -s ' \t' '\n' | sed '/^$/d' | sort -u)
missing=()
for package in "${wanted[@]}"; do
	[ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
	echo "setup: these Debian packages are missing, and installing them needs root: ${missing[*]}" >&2
	echo "setup: run as root: make setup" >&2
	exit 1
fi
echo "installing ${#missing[@]} Debian packages: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	echo "setup: apt-get failed; is a Debian mirror configured and reachable?" >&2
	exit 1
fi
