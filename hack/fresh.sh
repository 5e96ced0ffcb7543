#!/usr/bin/env bash
# Proves that a fresh machine is enough: makes a clean Debian root with nothing but git, make and this machine's Go, puts
# a clone of HEAD into it and runs targets of the Makefile there. Takes its settings from the environment:
#   SUITE    Debian releases, one root each          (default: bookworm trixie)
#   RUN      targets of the Makefile                 (default: demo test)
#   CACHES   what is shared with earlier runs: go, apt, both with a comma between, or nothing (default)
#   KEEP     leave the root behind when a target failed, and say where
#   EXPORT   a cache of bundles that gets the steps that were built inside, so that they are not built once more
# Mirrors, keys and settings for fetching come from this machine's apt, Go and certificates. Everything that runs inside is in a
# namespace of processes and mounts of its own, and ends with it. Network interfaces are this machine's: so are its ports.
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
read -ra suites <<<"${SUITE:-bookworm trixie}"
read -ra targets <<<"${RUN:-demo test}"
caches=,${CACHES:-},
cache=${XDG_CACHE_HOME:-$HOME/.cache}/coldrack-fresh
work='' inside=''
results=()

fail() { echo "fresh: $*" >&2; exit 1; }
shares() { [[ $caches == *,$1,* ]]; }

# The processes in the namespace go with its first one, and the mounts with the last process.
end() {
	if [ -n "$inside" ]; then
		kill -KILL "$inside" 2>/dev/null || true
		wait "$inside" 2>/dev/null || true
		inside=''
	fi
	[ -z "$work" ] || rm -rf --one-file-system "$work"
	work=''
}
trap end EXIT
trap 'exit 130' INT TERM HUP

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

# environment: one variable a line; nothing of the caller's but what fetching needs.
environment() {
	local name
	echo HOME=/root
	echo "TERM=${TERM:-dumb}"
	echo PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	for name in GOPROXY GOSUMDB GONOSUMDB GONOPROXY GOPRIVATE GOINSECURE GOVCS GOTOOLCHAIN; do
		echo "$name=$(go env $name)"
	done
	for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY GOVULNDB; do
		[ -z "${!name:-}" ] || echo "$name=${!name}"
	done
	sed 's/^/FRESH_/' <<<"GOMODCACHE=$(go env GOMODCACHE)"$'\n'"GOCACHE=$(go env GOCACHE)"
}

# bootstrap ROOT SUITE
bootstrap() {
	local root=$1 suite=$2 debs=$cache/apt/$2/archives settings=$work/settings from=$work/debian.list options=()
	mkdir -p "$settings" "$debs"
	configure "$settings"
	sources "$suite" >"$from"
	[ -s "$from" ] || fail "this machine's apt has no source of Debian with the component main"
	if shares apt; then
		options=(--skip=essential/unlink "--setup-hook=mkdir -p \"\$1/var/cache/apt/archives\" && cp -au '$debs/.' \"\$1/var/cache/apt/archives/\""
			"--customize-hook=find \"\$1/var/cache/apt/archives\" -name '*.deb' -exec cp -ut '$debs' {} +")
	fi
	mmdebstrap --quiet --mode=root --variant=minbase --format=directory --include=git,make,ca-certificates \
		--aptopt="$settings/etc/apt/apt.conf.d/90fetch" --aptopt='APT::Install-Recommends "false"' \
		--setup-hook="cp -a '$settings/.' \"\$1/\"" "${options[@]}" \
		--customize-hook='chroot "$1" update-ca-certificates >/dev/null 2>&1' \
		--customize-hook="echo fresh >\"\$1/etc/hostname\"" \
		"$suite" "$root" "$from" >"$work/mmdebstrap.log" 2>&1 || { tail -n 20 "$work/mmdebstrap.log" >&2; fail "cannot make a root of $suite"; }
	cp "$settings"/etc/{resolv.conf,hosts} "$root/etc/"
}

# enter ROOT SUITE COMMAND: runs a command of the shell in the clone.
enter() {
	local root=$1 suite=$2
	environment >"$work/environment"
	unshare --mount --pid --uts --ipc --fork --kill-child --propagation private \
		bash "$repository/hack/fresh-inside.sh" "$root" "$work/environment" "$(go env GOROOT)" "${caches}" "$cache/apt/$suite" "$3" &
	inside=$!
	local status=0
	wait "$inside" || status=$?
	inside=''
	return $status
}

# export_steps ROOT: keeps the finished steps of bundles.
export_steps() {
	local step
	for step in "$1"/root/.cache/coldrack/bundle/steps/*/*; do
		local to=$EXPORT/steps/${step#"$1"/root/.cache/coldrack/bundle/steps/}
		[ -d "$step" ] && [[ $step != *.new ]] && [ ! -e "$to" ] || continue
		mkdir -p "$(dirname "$to")"
		rm -rf "$to.new"
		cp -a "$step" "$to.new"
		mv "$to.new" "$to"
	done
}

one() {
	local suite=$1 target began=$SECONDS status=0
	work=$(mktemp -d "${TMPDIR:-/var/tmp}/coldrack-fresh.XXXXXX")
	mkdir "$work/root"
	echo "fresh: making a clean root of $suite"
	bootstrap "$work/root" "$suite"
	git clone -q --no-local "$repository" "$work/root/root/coldrack"
	results+=("$(printf '%-10s %-14s %5d s' "$suite" root $((SECONDS - began)))")
	for target in "${targets[@]}"; do
		echo "fresh: $suite: make $target"
		began=$SECONDS
		enter "$work/root" "$suite" "make $target" || status=$?
		results+=("$(printf '%-10s %-14s %5d s' "$suite" "$target" $((SECONDS - began)))$([ $status -eq 0 ] || echo "  FAILED")")
		[ $status -eq 0 ] || break
	done
	[ $status -ne 0 ] || [ -z "${EXPORT:-}" ] || export_steps "$work/root"
	if [ $status -ne 0 ] && [ -n "${KEEP:-}" ]; then
		echo "fresh: the root is left in $work/root" >&2
		work=''
	fi
	end
	return $status
}

[ "$(id -u)" -eq 0 ] || fail "needs root: it makes a Debian root, mounts and namespaces"
command -v mmdebstrap >/dev/null || fail "this machine has no mmdebstrap; run: make setup"
[ -z "$(git status --porcelain)" ] || echo "fresh: what is not committed stays outside"
failed=0
for suite in "${suites[@]}"; do
	one "$suite" || failed=1
done
echo
printf '%s\n' "${results[@]}"
exit $failed
