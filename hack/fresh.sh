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
. hack/debian-root.sh
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
	debian_root "$work/root" "$suite" git,make,ca-certificates "$(! shares apt || echo "$cache/apt/$suite/archives")"
	echo fresh >"$work/root/etc/hostname"
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

can_make_roots
[ -z "$(git status --porcelain)" ] || echo "fresh: what is not committed stays outside"
failed=0
for suite in "${suites[@]}"; do
	one "$suite" || failed=1
done
echo
printf '%s\n' "${results[@]}"
exit $failed
