#!/usr/bin/env bash
# Makes clean roots of Debian, which get packages as this machine does. Sourced by scripts that define fail and, before they
# make a root, work: a folder that they remove at their end.

can_make_roots() {
	[ "$(id -u)" -eq 0 ] || fail "needs root: it makes a Debian root, mounts and namespaces"
	command -v mmdebstrap >/dev/null || fail "this machine has no mmdebstrap; run: make setup"
}

# sources SUITE: the mirrors of Debian that this machine's apt uses, as sources of another release of it. Those of others
# than Debian are left out, as `bundle build` does.
sources() {
	local host file
	host=$(. /etc/os-release && echo "$VERSION_CODENAME")
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
		[ ! -f "$file" ] || sed '/^[[:space:]]*#/d' "$file" | awk -v host="$host" -v suite="$1" -v lines="$([[ $file == *.list ]] && echo 1)" '
			function put(uri, from, signer,    option) {
				if (from !~ "^" host "(-updates|-security)?$" || signer != "" && signer !~ "/debian-archive-[^/]*$") return
				if (signer != "") option = "[signed-by=" signer "] "
				sub("^" host, suite, from)
				print "deb " option uri " " from " main"
			}
			BEGIN { if (!lines) { RS = ""; FS = "\n" } }
			lines && $1 == "deb" && / main( |$)/ {
				signer = ""
				if (match($0, /signed-by=[^] ]+/)) signer = substr($0, RSTART + 10, RLENGTH - 10)
				sub(/\[[^]]*\] */, "")
				put($2, $3, signer)
			}
			!lines {
				delete field
				for (i = 1; i <= NF; i++) if (match($i, /^[A-Za-z-]+:/)) field[tolower(substr($i, 1, RLENGTH - 1))] = substr($i, RLENGTH + 2)
				if (field["types"] !~ /^ *deb( |$)/ || " " field["components"] " " !~ / main / || tolower(field["enabled"]) ~ /no/) next
				split(field["uris"], uris, " "); n = split(field["suites"], suites, " ")
				gsub(/ /, "", field["signed-by"])
				for (u in uris) for (i = 1; i <= n; i++) put(uris[u], suites[i], field["signed-by"])
			}'
	done
}

# configure ROOT: what a person sets up on a machine before anything can be fetched.
configure() {
	local root=$1 file
	mkdir -p "$root"/etc/apt/{apt.conf.d,keyrings,trusted.gpg.d} "$root"/usr/share/keyrings "$root"/usr/local/share/ca-certificates
	for file in /etc/apt/keyrings/* /etc/apt/trusted.gpg.d/* /usr/share/keyrings/*; do
		[ ! -f "$file" ] || cp -n "$file" "$root$file"
	done
	apt-config dump | grep -E '^Acquire::.*".+";$' >"$root"/etc/apt/apt.conf.d/90fetch || true
	# There is nothing to lose in a root that is thrown away.
	mkdir -p "$root"/etc/dpkg/dpkg.cfg.d
	echo force-unsafe-io >"$root"/etc/dpkg/dpkg.cfg.d/fresh
	cp /etc/resolv.conf /etc/hosts "$root"/etc/
	cp /usr/local/share/ca-certificates/*.crt "$root"/usr/local/share/ca-certificates/ 2>/dev/null || true
}

# debian_root ROOT SUITE PACKAGES [ARCHIVES]: the least Debian with these packages. ARCHIVES is a folder of packages that were
# fetched, which outlives the root; without, all are fetched.
debian_root() {
	local root=$1 suite=$2 packages=$3 debs=${4:-} settings=${work:?}/settings from=$work/debian.list options=()
	mkdir -p "$settings"
	configure "$settings"
	sources "$suite" >"$from"
	[ -s "$from" ] || fail "this machine's apt has no source of Debian with the component main"
	if [ -n "$debs" ]; then
		mkdir -p "$debs"
		options=(--skip=essential/unlink "--setup-hook=mkdir -p \"\$1/var/cache/apt/archives\" && cp -au '$debs/.' \"\$1/var/cache/apt/archives/\""
			"--customize-hook=find \"\$1/var/cache/apt/archives\" -name '*.deb' -exec cp -ut '$debs' {} +")
	fi
	mmdebstrap --quiet --mode=root --variant=minbase --format=directory --include="$packages" \
		--aptopt="$settings/etc/apt/apt.conf.d/90fetch" --aptopt='APT::Install-Recommends "false"' \
		--setup-hook="cp -a '$settings/.' \"\$1/\"" "${options[@]}" \
		--customize-hook='chroot "$1" update-ca-certificates >/dev/null 2>&1' \
		"$suite" "$root" "$from" >"$work/mmdebstrap.log" 2>&1 || { tail -n 20 "$work/mmdebstrap.log" >&2; fail "cannot make a root of $suite"; }
	cp "$settings"/etc/{resolv.conf,hosts} "$root/etc/"
}
