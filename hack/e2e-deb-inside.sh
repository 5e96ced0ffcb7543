#!/usr/bin/env bash
# Started by the systemd of the root that hack/e2e-deb.sh makes: the life of the packages, as an administrator leads it. Prints
# each command, what it said, and at the end "all as it should be".
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
cd /debs
arch=$(dpkg --print-architecture)

fail() { echo "FAILED: $*"; journalctl --no-pager -q -n 40 -u coldrack 2>/dev/null || true; exit 1; }
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
title() { printf '\n## %s\n' "$*"; }
# run COMMAND...: shows it and what it says.
run() { echo "\$ $*"; "$@" 2>&1; }
# is WHAT WANT COMMAND...: what the command prints must be WANT.
is() {
	local what=$1 want=$2 got
	shift 2
	got=$("$@" 2>/dev/null || true)
	[ "$got" = "$want" ] || fail "$what: $got; want $want"
	printf '%-46s %s\n' "$what" "$got"
}
apt_get() {
	echo "\$ apt-get -y $*"
	apt-get -qy -o Dpkg::Use-Pty=0 "$@" >/tmp/apt.log 2>&1 || { cat /tmp/apt.log; fail "apt-get $*"; }
	grep -E '^(Setting up|Removing|Purging|Unpacking|coldrack is)' /tmp/apt.log || true
}
files() { find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /dev -o -path /debs -o -path /var/log -o -path /var/cache \) -prune -o -print | sort; }
pid() { systemctl show -P MainPID coldrack; }
# api PATH: asks people's API as the first administrator.
api() {
	local config=/var/lib/coldrack/admin.kubeconfig key
	for key in certificate-authority-data client-certificate-data client-key-data; do
		sed -n "s/^ *$key: *//p" $config | base64 -d >/tmp/$key
	done
	curl -sS --cacert /tmp/certificate-authority-data --cert /tmp/client-certificate-data --key /tmp/client-key-data \
		"$(sed -n 's/^ *server: *//p' $config)$1"
}
# ready: a server with a store tells systemd that it is ready once it answers machines; people are answered a little later.
ready() { for ((i = 0; i < 600; i++)); do [ "$(api /readyz 2>/dev/null)" != ok ] || { echo ok; return; }; sleep 0.1; done; api /readyz; }
subnets() { coldrack get subnets -o json | grep -c '"kind": "Subnet"' || true; }
listens() { for ((i = 0; i < 600; i++)); do [ -z "$(ss -Hlun "sport = :$1")" ] || { echo yes; return; }; sleep 0.1; done; echo no; }
started() { systemctl start coldrack || fail "start"; }

files >/tmp/before
title "Install"
apt_get install "./coldrack_0.1.0-1_$arch.deb"
is "the unit is started" inactive systemctl is-active coldrack
is "the unit is enabled" disabled systemctl is-enabled coldrack
is "the user's shell" /usr/sbin/nologin sh -c 'getent passwd coldrack | cut -d: -f7'
is "the data folder" "drwx------ coldrack coldrack" stat -c '%A %U %G' /var/lib/coldrack
is "what is in it" "" ls -A /var/lib/coldrack
is "config file" "-rw-r--r-- root root" stat -c '%A %U %G' /etc/coldrack/config.yaml
is "files that were altered since" "" dpkg --verify coldrack
is "the version" v0.1.0 sh -c 'coldrack version | cut -d" " -f2'
is "manual pages" yes sh -c 'test -s /usr/share/man/man1/coldrack.1.gz && test -s /usr/share/man/man1/coldrack-serve.1.gz && echo yes'

title "Configure"
ip link add rack type veth peer name machine
ip address add 10.20.0.1/24 dev rack
ip link set rack up
ip link set machine up
sed -i 's/^#interfaces: .*/interfaces: [rack]/' /etc/coldrack/config.yaml
run grep ^interfaces /etc/coldrack/config.yaml
run coldrack doctor || fail "the doctor objects"

title "Start"
echo '$ systemctl start coldrack'
started
is "the unit is" active systemctl is-active coldrack
is "the server's user" coldrack sh -c "stat -c %U /proc/$(pid)"
is "/readyz" ok ready
run coldrack doctor || fail "the doctor objects"
cat >/tmp/subnet.yaml <<'YAML'
apiVersion: coldrack.dev/v1alpha1
kind: Subnet
metadata: {name: rack}
spec: {cidr: 10.20.0.0/24, discovery: 10.20.0.100-10.20.0.200}
YAML
run coldrack apply -f /tmp/subnet.yaml
is "DHCP is served" yes listens 67
is "TFTP is served" yes listens 69
run systemd-analyze --no-pager security coldrack.service | tail -n 1
run systemctl enable coldrack

title "Upgrade"
first=$(pid)
key=$(sha256sum </var/lib/coldrack/pki/master.key)
apt_get install -o Dpkg::Options::=--force-confold "./coldrack_0.1.1-1_$arch.deb"
is "the unit is" active systemctl is-active coldrack
[ "$(pid)" != "$first" ] || fail "the server was not restarted"
is "the program that runs is the new one" yes sh -c "test /proc/$(pid)/exe -ef /usr/bin/coldrack && echo yes"
is "the version" v0.1.1 sh -c 'coldrack version | cut -d" " -f2'
is "the edited config file is as it was" "interfaces: [rack]" grep ^interfaces /etc/coldrack/config.yaml
is "the new one lies beside it" "# A new line." tail -n 1 /etc/coldrack/config.yaml.dpkg-dist
is "/readyz" ok ready
is "the version that the server tells" 1 sh -c "$(declare -f api); api /coldrack/v1/metrics | grep -c '^coldrack_build_info{.*v0.1.1'"
is "Subnets in the store" 1 subnets
echo '$ systemctl stop coldrack'
systemctl stop coldrack
apt_get install --reinstall "./coldrack_0.1.1-1_$arch.deb"
is "a server that was stopped is" inactive systemctl is-active coldrack
started

title "Remove, and install again"
apt_get remove coldrack
is "processes of the server" "" pgrep -x coldrack
is "the program" no sh -c 'test -e /usr/bin/coldrack || echo no'
is "the config file" "interfaces: [rack]" grep ^interfaces /etc/coldrack/config.yaml
is "the master key is the same" "$key" sha256sum </var/lib/coldrack/pki/master.key
apt_get install "./coldrack_0.1.1-1_$arch.deb"
started
is "/readyz" ok ready
is "Subnets in the store" 1 subnets

title "Purge"
apt_get purge coldrack
is "processes of the server" "" pgrep -x coldrack
is "/etc/coldrack" no sh -c 'test -e /etc/coldrack || echo no'
is "links to the unit" "" find /etc/systemd /var/lib/systemd -name 'coldrack*'
is "the store" "content etcd pki" sh -c "cd /var/lib/coldrack && ls -d content etcd pki | xargs"
is "the user that owns it" coldrack stat -c %U /var/lib/coldrack/etcd
is "the master key is the same" "$key" sha256sum </var/lib/coldrack/pki/master.key

title "Purge of what was never started"
mv /var/lib/coldrack /debs/kept
apt_get install "./coldrack_0.1.1-1_$arch.deb" "./coldrack-agent_0.1.1-1_$arch.deb"
is "the agent beside the server" v0.1.1 sh -c 'coldrack-agent version | cut -d" " -f3'
is "what the agent finds" yes sh -c 'coldrack-agent inventory | grep -q "\"memory" && echo yes'
apt_get purge coldrack coldrack-agent
files >/tmp/after
is "what is left of the packages" "" sh -c "diff /tmp/before /tmp/after | grep '^>' | grep coldrack"
is "what is gone that was there before" "" sh -c "diff /tmp/before /tmp/after | grep '^<'"
echo
echo "all as it should be"
