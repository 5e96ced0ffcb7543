#!/usr/bin/env bash
# The demo: a server on its defaults, three blank virtual machines, a Kubernetes cluster on them.
# `up` may be interrupted and run again; `down` removes everything it made. State is in build/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
state=build/demo
data=$state/data
bundle=build/default.bundle.tar
machines=${MACHINES:-3}
memory=${MEMORY:-3GiB}
# The cluster's API on this host; the lab's network is not reachable from it.
port=${PORT:-16443}
export COLDRACK_KUBECONFIG=$PWD/$data/admin.kubeconfig
coldrack=$PWD/bin/coldrack
kubectl=$PWD/bin/kubectl
cluster=$state/cluster.yaml

# alive PIDFILE: the process of the file, when it still is coldrack and not a recycled process id.
alive() {
	local pid
	pid=$(cat "$1" 2>/dev/null) || return 1
	[ "$(readlink "/proc/$pid/exe" 2>/dev/null | sed 's/ (deleted)$//')" = "$coldrack" ] && echo "$pid"
}

stop() {
	local pid
	if pid=$(alive "$1"); then
		kill "$pid"
		for _ in $(seq 100); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
	fi
}

down() {
	"$coldrack" lab down --name demo --state-dir $state/lab || true
	stop $state/forward.pid
	stop $state/bmc.pid
	stop $state/server.pid
	rm -rf $state
}

# serves SECONDS WHAT VERB...: waits until the server answers the verb, or says what it was waiting for.
serves() {
	local waited=0 most=$(($1 * 10)) what=$2
	shift 2
	until "$coldrack" "$@" >/dev/null 2>&1; do
		if ! alive $state/server.pid >/dev/null || [ $waited -gt $most ]; then
			echo "demo: $what; the end of the server's log:" >&2
			tail -n 20 $state/server.log >&2
			exit 1
		fi
		sleep 0.1
		waited=$((waited + 1))
	done
}

# look asks the new cluster, as often as an emulated control plane that is still busy with its start may need.
look() {
	for _ in $(seq 20); do
		if "$kubectl" --kubeconfig $state/demo.kubeconfig --request-timeout 60s "$@" 2>$state/kubectl.log; then
			return
		fi
		sleep 5
	done
	echo "demo: the cluster's API is too busy to answer: $(tail -n 1 $state/kubectl.log)"
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
	if ! alive $state/server.pid >/dev/null; then
		echo "starting the server; its log is $state/server.log"
		setsid "$coldrack" serve --data-dir $data --boot-netns coldrack-demo \
			--bundles $bundle --trusted-keys build/bundle.pub --manifests examples/lab --discovery-args tsc=reliable,mitigations=off,highres=off >>$state/server.log 2>&1 </dev/null &
		echo $! >$state/server.pid
		disown
	fi
	serves 60 "the server did not start" get subnets
	echo "importing the bundle"
	serves 120 "the bundle was not imported" get images debian-13
	if [ ! -s $cluster ]; then
		local preset=(--preset development --pools --workers $((machines - 1)))
		[ "$machines" -gt 1 ] || preset=(--preset laptop)
		"$coldrack" cluster init --name demo "${preset[@]}" -o $cluster
	fi
	echo "asking for a Kubernetes cluster: $cluster"
	"$coldrack" bundle verify -f $cluster --trust build/bundle.pub $bundle
	"$coldrack" apply -f $cluster
	echo "powering on $machines blank machines"
	# Emulated processors that outnumber the host's wait for each other: only the control plane gets two, and it goes first.
	"$coldrack" lab up --name demo --state-dir $state/lab --machines 1 --off --cpus 2 --memory "$memory" --firmware "${FIRMWARE:-mixed}" >/dev/null
	"$coldrack" lab up --name demo --state-dir $state/lab --machines "$machines" --cpus 1 --nice 8 --memory "$memory" --firmware "${FIRMWARE:-mixed}"
	"$coldrack" cluster watch demo --until Ready --timeout "${TIMEOUT:-30m}"
	echo
	"$coldrack" machines
	local server
	server=$("$kubectl" --kubeconfig "$COLDRACK_KUBECONFIG" get clusters demo -o 'jsonpath={.status.endpoint}' | sed 's|^https://||')
	if ! alive $state/forward.pid >/dev/null; then
		setsid "$coldrack" lab forward --name demo --state-dir $state/lab "$port" "$server" >>$state/forward.log 2>&1 </dev/null &
		echo $! >$state/forward.pid
		disown
	fi
	# The machines are known now: from here on the server can switch them.
	if ! alive $state/bmc.pid >/dev/null; then
		setsid "$coldrack" lab bmc --attach --listen "${BMC_PORT:-16623}" --name demo --state-dir $state/lab >>$state/bmc.log 2>&1 </dev/null &
		echo $! >$state/bmc.pid
		disown
	fi
	rm -f $state/demo.kubeconfig
	"$coldrack" kubeconfig demo --admin --server "https://127.0.0.1:$port" --write $state/demo.kubeconfig
	echo
	look get nodes -o wide
	echo
	look get pods -A -o wide
	echo
	echo "looking whether it works"
	"$coldrack" cluster verify demo || echo "demo: emulated nodes may need some more minutes; look again: coldrack cluster verify demo"
	echo
	"$coldrack" lab ps --name demo --state-dir $state/lab
	grep -E '^Vm(HWM|RSS)' "/proc/$(alive $state/server.pid)/status" | sed 's/^VmHWM:/server memory, peak:/; s/^VmRSS:/server memory, now: /'
	cat <<END

A Kubernetes cluster of $machines nodes is Ready after $((SECONDS - started)) seconds. Its kubeconfig:

  export KUBECONFIG=$PWD/$state/demo.kubeconfig PATH=$PWD/bin:\$PATH
  kubectl get pods -A -o wide

What made it, and what it can still do:

  export COLDRACK_KUBECONFIG=$COLDRACK_KUBECONFIG
  coldrack machines                       # where every machine stands
  coldrack machines describe NAME         # what it is and how its install went
  coldrack cluster describe demo          # the cluster, its steps, its nodes
  coldrack plan -f $PWD/$cluster          # edit it, and see what would change
  coldrack explain-boot NAME              # what it was told to boot, and why
  coldrack power cycle NAME               # by its virtual BMC, after a look at what that interrupts
  coldrack lab console NAME -f --name demo --state-dir $PWD/$state/lab
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
