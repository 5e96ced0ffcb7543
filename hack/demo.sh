#!/usr/bin/env bash
# The demo: a server on its defaults, three blank virtual machines, three Ready nodes.
# `up` may be interrupted and run again; `down` removes everything it made. State is in build/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
state=build/demo
data=$state/data
bundle=build/default.bundle.tar
machines=${MACHINES:-3}
export COLDRACK_KUBECONFIG=$PWD/$data/admin.kubeconfig
coldrack=$PWD/bin/coldrack

server_pid() {
	local pid
	pid=$(cat $state/server.pid 2>/dev/null) || return 1
	# A recycled process id must not be mistaken for the server.
	[ "$(readlink "/proc/$pid/exe" 2>/dev/null | sed 's/ (deleted)$//')" = "$coldrack" ] && echo "$pid"
}

down() {
	"$coldrack" lab down --name demo --state-dir $state/lab || true
	local pid
	if pid=$(server_pid); then
		kill "$pid"
		for _ in $(seq 100); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
	fi
	rm -rf $state
}

up() {
	if [ "$(id -u)" -ne 0 ]; then
		echo "demo: the lab makes a network namespace and a bridge, which needs root: run as root: make demo" >&2
		exit 1
	fi
	local started=$SECONDS
	mkdir -p $state
	echo "creating the lab's network"
	"$coldrack" lab up --name demo --state-dir $state/lab --machines 0
	if ! server_pid >/dev/null; then
		echo "starting the server; its log is $state/server.log"
		setsid "$coldrack" serve --data-dir $data --boot-netns coldrack-demo \
			--bundles $bundle --trusted-keys build/cache/bundle.pub --manifests examples/lab >>$state/server.log 2>&1 </dev/null &
		echo $! >$state/server.pid
		disown
	fi
	local waited=0
	until "$coldrack" get subnets >/dev/null 2>&1; do
		if ! server_pid >/dev/null || [ $waited -gt 600 ]; then
			echo "demo: the server did not start; the end of its log:" >&2
			tail -n 20 $state/server.log >&2
			exit 1
		fi
		sleep 0.1
		waited=$((waited + 1))
	done
	echo "powering on $machines blank machines"
	"$coldrack" lab up --name demo --state-dir $state/lab --machines "$machines" --firmware "${FIRMWARE:-mixed}"
	"$coldrack" watch --until Ready --count "$machines" --timeout "${TIMEOUT:-20m}"
	echo
	"$coldrack" machines
	echo
	"$coldrack" lab ps --name demo --state-dir $state/lab
	grep -E '^Vm(HWM|RSS)' "/proc/$(server_pid)/status" | sed 's/^VmHWM:/server memory, peak:/; s/^VmRSS:/server memory, now: /'
	cat <<END

$machines nodes are Ready after $((SECONDS - started)) seconds. Look around:

  export COLDRACK_KUBECONFIG=$COLDRACK_KUBECONFIG PATH=$PWD/bin:\$PATH
  coldrack machines                       # where every machine stands
  coldrack machines describe NAME         # what it is and how its install went
  coldrack explain-boot NAME              # what it was told to boot, and why
  coldrack reinstall NAME --yes --wait    # once more
  kubectl --kubeconfig \$COLDRACK_KUBECONFIG get machines --watch   # make bin/kubectl builds one
  coldrack lab console NAME -f --name demo --state-dir $state/lab
  make demo-down                          # stop and remove everything
END
}

case "${1:-}" in
up) up ;;
down) down ;;
*)
	echo "usage: $0 up|down" >&2
	exit 2
	;;
esac
