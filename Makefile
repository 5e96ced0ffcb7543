# Coldrack. `make demo` and `make check` are all a newcomer needs; `make help` lists the rest.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty --abbrev=12 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X coldrack.dev/internal/base/version.Version=$(VERSION)
# The product is pure Go and static. Builds, vet, staticcheck and tests have the same flags: with others each of them would
# compile all of Kubernetes' libraries once more. Only the race detector needs a C compiler, and a build of its own.
export CGO_ENABLED := 0
export GOFLAGS     := -trimpath $(filter-out -trimpath,$(GOFLAGS))
GOBUILD := go build -ldflags '$(LDFLAGS)'
BUNDLE  := build/default.bundle.tar
# Downloads and finished steps of bundles, named by what went into them: all clones share them. Deleting it costs only time,
# and the key that signed earlier bundles.
# BUILD_CACHE=FOLDER is another place for it.
BUILD_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/coldrack/bundle
export PATH := $(CURDIR)/bin:$(PATH)
# What tests may rely on here, after `make setup`; where one of these is missing they fail instead of skipping.
TOOLS := root netns qemu dropbear dropbearkey kubectl etcd etcd-debian curl skopeo tftp udhcpc dhclient dnsmasq tcpdump nft setpriv containerd ctr oci-conformance losetup sgdisk mtype \
	fsck.vfat blkid ssh ssh-keygen mkfs.ext4 e2fsck resize2fs tune2fs ipmi_sim ipmitool redfishtool sushy versitygw \
	dig host nslookup named named-checkzone chronyd timesyncd dhcpd dhcrelay kea-dhcp4 bird birdc \
	dpkg-deb deb-systemd-helper systemd-sysusers systemd-tmpfiles python3-debian shellcheck \
	pvcreate mkfs.btrfs mkfs.xfs cryptsetup mdadm drbdmeta make-bcache ignition cloud-init dmidecode lspci
space := $(subst ,, )
comma := ,
export COLDRACK_REQUIRE ?= $(subst $(space),$(comma),$(strip $(TOOLS)))

.PHONY: help setup check build deb e2e-deb bundle bundle-1.36 bump debian-half debian-half-again fresh fresh-bundle demo demo-down test unit fuzz soak soak-minute lint oracle rack rack-keys rack-kubeadm rack-image e2e e2e-failures e2e-proxy e2e-menu e2e-networks e2e-units e2e-laptop e2e-production bench ui-test screenshots oci-report generate clean
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## setup      install the Debian packages that builds and tests use (idempotent)
setup:
	@hack/setup.sh

## build      bin/coldrack and bin/coldrack-agent
build:
	@mkdir -p bin
	@echo "building coldrack and coldrack-agent $(VERSION)"
	@$(GOBUILD) -o bin/coldrack-agent ./cmd/coldrack-agent
	@$(GOBUILD) -o bin/coldrack ./cmd/coldrack

## bundle     build/default.bundle.tar: Debian and Kubernetes 1.37 (steps are cached in ~/.cache/coldrack)
bundle: setup build
	@bin/coldrack bundle build -f recipes/default -f recipes/kubernetes-1.37 --agent bin/coldrack-agent --cache $(BUILD_CACHE) -o $(BUNDLE)
	@cp $(BUILD_CACHE)/bundle.pub build/bundle.pub

## bundle-1.36  build/kubernetes-1.36.bundle.tar, to be imported beside it: the release to upgrade from
bundle-1.36: setup build
	@bin/coldrack bundle build -f recipes/kubernetes-1.36 --cache $(BUILD_CACHE) -o build/kubernetes-1.36.bundle.tar

## bump       other versions of what bundles contain: make bump SET="etcd=v3.7.4 coredns=v1.15.1"
bump:
	@hack/bump.sh $(SET)

# The half of the default bundle that is made of Debian packages, with nothing installed but what building it needs; and
# once more after the packages that it is made of were installed, which must not show in it.
debian-half: build
	@hack/setup.sh --only recipes/HOST-PACKAGES
	@bin/coldrack bundle build -f recipes/default --agent bin/coldrack-agent --cache $(BUILD_CACHE) -o build/debian.bundle.tar
debian-half-again:
	@hack/same-products.sh $(BUILD_CACHE)

## fresh      `make demo` and `make test` in clean Debian roots: SUITE="bookworm trixie" RUN="demo test" CACHES=go,apt (root)
fresh:
	@hack/fresh.sh

## fresh-bundle  the Debian half of the default bundle in such a root, twice: what is installed there must not show (root; RUN=debian-half: once)
fresh-bundle:
	@SUITE="$(or $(SUITE),trixie)" RUN="$(or $(RUN),debian-half debian-half-again)" CACHES="$(or $(CACHES),go)" EXPORT=$(BUILD_CACHE) hack/fresh.sh

## deb        build/deb/*.deb: Debian packages of coldrack and coldrack-agent; the same commit gives the same bytes
# Programs are built with the commit that git names, as where Go looks itself differs (GOFLAGS=-buildvcs).
DEBS   ?= build/deb
COMMIT  = $(shell git rev-parse --short=12 HEAD)$(if $(shell git status --porcelain),+dirty)
deb: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
deb:
	@mkdir -p "$(DEBS)"; rm -f "$(DEBS)"/*.deb
	@echo "building coldrack and coldrack-agent $(VERSION)"
	@go build -buildvcs=false -ldflags '$(LDFLAGS) -X coldrack.dev/internal/base/version.Commit=$(COMMIT)' -o "$(DEBS)/programs/" ./cmd/coldrack ./cmd/coldrack-agent
	@go run ./hack/deb -programs "$(DEBS)/programs" -version $(VERSION) -out "$(DEBS)"

## e2e-deb    the packages in a clean Debian 13 with systemd: install, start, upgrade, remove, purge, lintian (root); OUTPUT=FILE
e2e-deb:
	@hack/e2e-deb.sh

## demo       three blank virtual machines become a Kubernetes cluster
demo: bundle bin/kubectl
	@hack/demo.sh up

## demo-down  stop the demo and remove what it made
demo-down:
	@hack/demo.sh down

# The real programs that tests drive, built from Go modules. Those of Kubernetes are the ones that bundles contain: the build is
# shared, as that of the container runtime.
KUBERNETES := $(lastword $(sort $(wildcard recipes/modules/kubernetes-*)))
bin/kubectl bin/kubeadm bin/kube-apiserver bin/kube-controller-manager bin/kube-scheduler bin/kube-proxy: $(wildcard $(KUBERNETES)/go.* $(KUBERNETES)/*/*.go) hack/kubernetes.sh
	@mkdir -p bin; echo "building $(notdir $@)"
	@hack/kubernetes.sh $@
# The release to upgrade from, for the rack.
bin/1.36/kube-%: $(wildcard recipes/modules/kubernetes-1.36/go.* recipes/modules/kubernetes-1.36/*/*.go) hack/kubernetes.sh
	@echo "building $(notdir $@) of Kubernetes 1.36"
	@hack/kubernetes.sh $@
bin/1.36/etcd: recipes/modules/etcd-3.6/go.mod recipes/modules/etcd-3.6/go.sum
	@mkdir -p bin/1.36; echo "building etcd 3.6"
	@cd recipes/modules/etcd-3.6 && go build -ldflags '-s -w' -o ../../../$@ go.etcd.io/etcd/server/v3
bin/etcd: go.mod
	@mkdir -p bin; echo "building etcd"
	@go build -o bin/etcd go.etcd.io/etcd/server/v3
# An older etcd, of the Debian release of this host: 3.4 in Debian 12, 3.5 in Debian 13.
bin/etcd-debian: hack/debian-etcd.sh
	@echo "fetching Debian's etcd"
	@hack/debian-etcd.sh $@
bin/containerd bin/ctr: recipes/modules/containerd-2.4/go.mod recipes/modules/containerd-2.4/go.sum
	@mkdir -p bin; echo "building $(notdir $@)"
	@cd recipes/modules/containerd-2.4 && go build -ldflags '-s -w' -o ../../../$@ github.com/containerd/containerd/v2/cmd/$(notdir $@)
# An S3 server, for the tests of backups.
bin/versitygw: hack/s3server/go.mod hack/s3server/go.sum
	@mkdir -p bin; echo "building versitygw"
	@cd hack/s3server && go build -ldflags '-s -w' -o ../../bin/versitygw github.com/versity/versitygw/cmd/versitygw
# The conformance suite of the OCI distribution specification, and its last output.
bin/oci-conformance: hack/oci/go.mod hack/oci/go.sum
	@mkdir -p bin; echo "building oci-conformance"
	@cd hack/oci && go build -ldflags '-s -w' -o ../../$@ github.com/opencontainers/distribution-spec/conformance
bin/staticcheck: hack/tools/go.mod
	@mkdir -p bin; echo "building staticcheck"
	@cd hack/tools && go build -o ../../bin/staticcheck honnef.co/go/tools/cmd/staticcheck
bin/govulncheck: hack/tools/go.mod
	@mkdir -p bin; echo "building govulncheck"
	@cd hack/tools && go build -o ../../bin/govulncheck golang.org/x/vuln/cmd/govulncheck

# Tests, with the time of each and the slowest named at the end.
bin/gotest: $(wildcard hack/gotest/*.go)
	@mkdir -p bin; go build -o bin/gotest ./hack/gotest

## check      without root: format, vet, and every test that needs no privilege and no other program
check: bin/gotest
	@hack/lint.sh quick
	@COLDRACK_REQUIRE=none gotest $$(hack/pure.sh)

## test       everything that can be checked quickly
test: setup build bin/kubectl bin/etcd bin/etcd-debian bin/containerd bin/ctr bin/oci-conformance bin/versitygw lint unit soak-minute fuzz

## unit       all unit, network-namespace and API tests, with the race detector but for the command line's, which start it a hundred times
unit: build bin/gotest bin/kubectl bin/etcd bin/etcd-debian bin/containerd bin/ctr bin/oci-conformance bin/versitygw
	@echo "tests of the command line, and those that are too slow with the race detector"
	@gotest -timeout 15m ./cmd/coldrack
	@hack/swift.sh
	@echo "unit tests with the race detector"
	@CGO_ENABLED=1 gotest -race -timeout 15m $$(go list ./... | grep -vE '/(test/browser|test/e2e|test/rack|test/soak|cmd/coldrack)$$')

## fuzz       a few seconds of fuzzing for every parser of foreign bytes
fuzz:
	@hack/fuzz.sh

## soak       known machines, strangers, full disks and stores, kills, clock jumps, all at once: SOAK=1h SOAK_MACHINES=10000 (root)
soak: build bin/gotest
	@SOAK=$(or $(SOAK),1h) gotest -count=1 -v -timeout 6h -run TestSoak ./test/soak

# A minute of it, by itself: firmware gives up when its server gets no processor.
soak-minute: build bin/gotest
	@gotest -count=1 -timeout 15m ./test/soak

## lint       gofmt, vet, staticcheck, shellcheck, go mod verify, govulncheck where its data can be had
lint: bin/staticcheck bin/govulncheck
	@hack/lint.sh

## oracle     real kubeadm's output against ours; what we do in a cluster against a real kube-apiserver
oracle: bin/gotest bin/kubeadm bin/kube-apiserver bin/kube-proxy bin/etcd bin/kubectl
	@COLDRACK_REQUIRE=kubeadm,kube-apiserver,kube-proxy,kubectl,netns,etcd gotest -count=1 ./internal/cluster/kube ./internal/cluster/kubeapi ./internal/cluster/loadbalancer/node

## rack       clusters of real programs on machines that are namespaces: bring-up, power cuts, scaling, rolled changes, at native speed (root)
rack: setup bin/gotest bin/etcd bin/kubectl bin/versitygw bin/kube-apiserver bin/kube-controller-manager bin/kube-scheduler
	@COLDRACK_REQUIRE=$(COLDRACK_REQUIRE),keepalived,kube-apiserver,kube-controller-manager,kube-scheduler gotest -count=1 -v -timeout 40m -parallel 3 ./test/rack

## rack-keys  the same machines: every authority and key of a cluster is replaced while it is used (root)
rack-keys: setup bin/gotest bin/etcd bin/kubectl bin/kube-apiserver bin/kube-controller-manager bin/kube-scheduler
	@COLDRACK_RACK_KEYS=1 COLDRACK_REQUIRE=$(COLDRACK_REQUIRE),kube-apiserver,kube-controller-manager,kube-scheduler gotest -count=1 -v -timeout 40m -run 'TestAuthoritiesRotate|TestKeysRotate' ./test/rack

## rack-kubeadm  the same machines: real kubeadm looks at a cluster of ours, upgrades every node, and resets one (root)
rack-kubeadm: setup bin/gotest bin/etcd bin/kubectl bin/kubeadm bin/kube-apiserver bin/kube-controller-manager bin/kube-scheduler
	@COLDRACK_RACK_KUBEADM=1 COLDRACK_REQUIRE=$(COLDRACK_REQUIRE),kubeadm,kube-apiserver,kube-controller-manager,kube-scheduler gotest -count=1 -v -timeout 40m -run TestKubeadmTakesOver ./test/rack

## rack-image  the same machines: another operating system is rolled over all of them (root)
rack-image: setup bin/gotest bin/etcd bin/kubectl bin/kube-apiserver bin/kube-controller-manager bin/kube-scheduler
	@COLDRACK_RACK_IMAGE=1 COLDRACK_REQUIRE=$(COLDRACK_REQUIRE),keepalived,kube-apiserver,kube-controller-manager,kube-scheduler gotest -count=1 -v -timeout 40m -run TestAnImageRolls ./test/rack

# Tests that drive virtual machines, with their bundle.
E2E := COLDRACK_E2E_BUNDLE=$(CURDIR)/$(BUNDLE) gotest -count=1 -v

## e2e        real programs and real firmware: from power-on to a cluster (QEMU, with or without KVM)
e2e: bundle oracle rack bin/gotest
	@$(E2E) -timeout 60m ./test/e2e/...

## e2e-failures  the same, and power cuts, pulled cables, foreign disks, a killed server, on emulated machines
e2e-failures: bundle bin/gotest bin/kubectl
	@COLDRACK_E2E_FAILURES=1 $(E2E) -timeout 75m -run 'TestDevelopmentCluster|TestFromPowerOnToReady|TestMishaps' ./test/e2e

## e2e-proxy  real firmware, by BIOS and by UEFI, boots by Coldrack while dnsmasq gives the addresses
e2e-proxy: bundle bin/gotest bin/kubectl
	@COLDRACK_E2E_PROXY=1 $(E2E) -timeout 40m -run TestBesideTheSitesServer ./test/e2e

## e2e-menu   keys at the console of an emulated machine: real iPXE shows the boot menu
e2e-menu: bin/gotest
	@COLDRACK_E2E_MENU=1 $(E2E) -timeout 20m -run TestAPersonAtTheConsole ./internal/server/daemon

## e2e-networks  real systemd-networkd makes bonds, VLANs and bridges of our files, in a kernel that is a program
e2e-networks: bin/gotest
	@UNPACK=test/uml/UNPACKED-PACKAGES hack/setup.sh
	@COLDRACK_E2E_NETWORKS=1 COLDRACK_REQUIRE=$(COLDRACK_REQUIRE),linux.uml gotest -count=1 -v -timeout 20m -run TestNetworkdMakesLinks ./internal/contract/nodeconfig

## e2e-units  a real systemd, in namespaces and a control group of its own, runs the units that the agent gives it (root)
e2e-units: bin/gotest
	@COLDRACK_E2E_UNITS=1 COLDRACK_REQUIRE=$(COLDRACK_REQUIRE),unshare,nsenter,systemctl gotest -count=1 -v -timeout 10m -run RealSystemd ./internal/agent/units

## e2e-laptop  one blank machine becomes a cluster of its own
e2e-laptop: bundle bin/gotest bin/kubectl
	@COLDRACK_E2E_CLUSTERS=1 $(E2E) -timeout 30m -run TestLaptopCluster ./test/e2e

## e2e-production  three etcd members, two control planes, a worker; failures, and the whole rack loses its power
e2e-production: bundle bin/gotest bin/kubectl
	@COLDRACK_E2E_CLUSTERS=1 $(E2E) -timeout 150m -run 'TestProductionCluster|TestAForeignMachineJoins' ./test/e2e

## bench      our boot services beside their peers, into docs/performance.md (root; installs test/bench/HOST-PACKAGES)
bench: build
	@hack/setup.sh test/bench/HOST-PACKAGES
	@mkdir -p bin && go build -o bin/bench ./test/bench && go test -c -o bin/swarm.test ./test/swarm
	@bin/bench

## ui-test    the web pages in a real browser: every page, keys, live changes, hostile machines (root; installs test/browser/HOST-PACKAGES)
ui-test: bin/gotest
	@hack/setup.sh --only test/browser/HOST-PACKAGES
	@COLDRACK_REQUIRE=chromium gotest -count=1 -v -timeout 30m ./test/browser

## screenshots  pictures of the web pages, into docs/images (root; installs test/browser/HOST-PACKAGES)
screenshots:
	@hack/setup.sh --only test/browser/HOST-PACKAGES
	@go run ./test/browser -screenshots docs/images

## generate   CRDs, deep copies and reference documentation from the types
generate:
	@cd api/v1alpha1 && go generate .
	@go run ./hack/gendocs

## oci-report  the conformance suite of the OCI distribution specification, into docs/oci-conformance.txt
oci-report: bin/gotest bin/oci-conformance
	@report=$$(mktemp); echo "oci-conformance $$(sed -n 's,.*distribution-spec/conformance \(v[^ ]*\).*,\1,p' hack/oci/go.mod), by make oci-report" >$$report; echo >>$$report; \
	COLDRACK_OCI_REPORT=$$report gotest -count=1 -run TestConformance ./internal/content/registry && cat $$report >docs/oci-conformance.txt; rm -f $$report

## clean      remove what was built; keeps the cache
clean:
	rm -rf bin build/*.tar build/bundle.pub build/demo
