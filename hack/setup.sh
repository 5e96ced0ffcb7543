#!/usr/bin/env bash
# Installs the Debian packages that are listed beside the code that needs them, and those of files it is given; with
# --only, those of the files alone. Packages of test/UNPACKED-PACKAGES, and of the file in $UNPACK, are only unpacked, below bin/unpacked. Does nothing when all are there.
set -euo pipefail
cd "$(dirname "$0")/.."
lists=(recipes/HOST-PACKAGES internal/lab/HOST-PACKAGES test/HOST-PACKAGES)
unpacked=(test/UNPACKED-PACKAGES ${UNPACK:+"$UNPACK"})
if [ "${1:-}" = --only ]; then
	lists=() unpacked=()
	shift
fi
mapfile -t wanted < <(cat "${lists[@]}" "$@" | sed 's/#.*//' | tr -s ' \t' '\n' | sed '/^$/d' | sort -u)
missing=()
for package in "${wanted[@]}"; do
	[ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
mapfile -t wanted < <(cat /dev/null "${unpacked[@]}" | sed 's/#.*//' | tr -s ' \t' '\n' | sed '/^$/d' | sort -u)
folded=()
for package in "${wanted[@]}"; do
	[ -d "bin/unpacked/$package" ] || folded+=("$package")
done
[ $((${#missing[@]} + ${#folded[@]})) -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
	echo "setup: these Debian packages are missing, and installing them needs root: ${missing[*]} ${folded[*]}" >&2
	echo "setup: run as root: make setup" >&2
	exit 1
fi
log=$(mktemp)
new=$(mktemp -d)
trap 'rm -rf "$log" "$new"' EXIT
failed() {
	tail -n 20 "$log" >&2
	echo "setup: apt-get failed; is a Debian mirror configured and reachable?" >&2
	exit 1
}
apt-get -q update >"$log" 2>&1 || failed
if [ ${#missing[@]} -gt 0 ]; then
	echo "installing ${#missing[@]} Debian packages: ${missing[*]}"
	DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "${missing[@]}" >"$log" 2>&1 || failed
fi
for package in "${folded[@]}"; do
	echo "unpacking the Debian package $package"
	mkdir "$new/$package"
	(cd "$new" && apt-get -q download "$package" && dpkg -x "$package"_*.deb "$package") >"$log" 2>&1 || failed
	# Its libraries serve nobody by themselves. They have other names in other suites, so they are not listed.
	mapfile -t libraries < <(apt-cache depends "$package" | sed -n 's/^ *Depends: \(lib[^ <>]*\)$/\1/p')
	[ ${#libraries[@]} -eq 0 ] || DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "${libraries[@]}" >"$log" 2>&1 || failed
	# Packages of Debian 12 have files below /lib and /sbin, which are /usr/lib and /usr/sbin.
	for folder in lib sbin; do
		[ ! -d "$new/$package/$folder" ] || { mkdir -p "$new/$package/usr/$folder" && cp -a "$new/$package/$folder/." "$new/$package/usr/$folder/" && rm -r "${new:?}/$package/$folder"; }
	done
	mkdir -p bin/unpacked
	mv "$new/$package" "bin/unpacked/$package"
done
