# Everything a developer runs. `make` alone lists the targets.

MODULE  := github.com/cri-shim/cri-shim
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)

GO       ?= go
# The version is stamped here; -buildvcs would fail in a checkout that another user owns.
GOBUILD  := CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath
LDFLAGS  := -s -w -X $(MODULE)/internal/version.version=$(VERSION) -X $(MODULE)/internal/version.commit=$(COMMIT)
PAYLOAD  := internal/payload/files

PREFIX   ?= /usr/local
BINDIR   ?= $(PREFIX)/bin
UNITDIR  ?= /etc/systemd/system

FUZZTIME ?= 20s
SOAK     ?= 10m

.DEFAULT_GOAL := help
.PHONY: help build payload install test test-unit test-all test-soak validate-oci validate-oci-vm test-vm test-kubelet test-cluster test-cosign cluster cluster-down demo lint mutants fuzz bench bench-pod bench-runtime bench-pull critest critest-vm tools clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: payload ## build bin/cri-shim, bin/cri-shim-oci, which is called as runc is, and bin/cri-shim-trust, for signatures and encrypted images
	$(GOBUILD) -tags payload,nri_no_wasm -ldflags "$(LDFLAGS)" -o bin/cri-shim ./cmd/cri-shim
	$(GOBUILD) -tags payload -ldflags "$(LDFLAGS)" -o bin/cri-shim-oci ./cmd/cri-shim-oci
	cmd/cri-shim-trust/build.sh bin/cri-shim-trust

# The programs that cri-shim embeds.
payload:
	$(GOBUILD) -ldflags "$(LDFLAGS)" -o $(PAYLOAD)/ ./cmd/cri-shim-supervisor ./cmd/cri-shim-init ./cmd/cri-shim-classes

install: build ## install cri-shim, cri-shim-oci, cri-shim-trust and the systemd unit (DESTDIR, PREFIX=/usr/local, UNITDIR)
	install -D -m 0755 bin/cri-shim $(DESTDIR)$(BINDIR)/cri-shim
	install -D -m 0755 bin/cri-shim-oci $(DESTDIR)$(BINDIR)/cri-shim-oci
	install -D -m 0755 bin/cri-shim-trust $(DESTDIR)$(BINDIR)/cri-shim-trust
	install -d $(DESTDIR)$(UNITDIR)
	sed 's,/usr/local/bin/,$(BINDIR)/,' hack/packaging/cri-shim.service > $(DESTDIR)$(UNITDIR)/cri-shim.service
	chmod 0644 $(DESTDIR)$(UNITDIR)/cri-shim.service

test: ## lint, unit tests, integration tests (as root), check for leaks
	hack/test.sh

test-unit: ## the tests as an unprivileged user; those that need root are skipped
	hack/test.sh unit

test-vm: ## the tests in a guest with cgroup v2, systemd and AppArmor (needs root and qemu)
	hack/vm/test.sh

validate-oci: build ## the OCI's validation programs against bin/cri-shim-oci and runc (needs root; PROGRAMS, OUT)
	hack/runtimetools/run.sh $(PROGRAMS)

validate-oci-vm: build ## validate-oci in the guest of test-vm, on cgroup v2
	hack/runtimetools/vm.sh $(PROGRAMS)

test-soak: build ## pods come and go for SOAK (10m); the node must end as it was
	CRI_SHIM_SOAK=$(SOAK) go test ./hack/e2e -run '^TestSoak$$' -count=1 -timeout 24h -v

# Where make test kills a pull 12 times.
test-all: export TEST_KILL_ROUNDS ?= 200
test-all: test validate-oci critest test-soak test-kubelet test-cluster test-cosign test-vm ## test and all that it leaves out

critest: build ## the CRI validation suite (needs root; FOCUS, SKIP, SEED, PARALLEL)
	hack/critest/run.sh

critest-vm: build ## critest in the guest of test-vm
	hack/critest/vm.sh

test-kubelet: build ## an unmodified kubelet with static pods (needs root; TEST_FLAGS)
	hack/kube/test-kubelet.sh

test-cluster: build ## a Kubernetes of one node, used by kubectl (needs root; TEST_FLAGS)
	hack/kube/test-cluster.sh

test-cosign: ## what cosign itself signs, under signature policies; builds cosign once (needs root; COSIGN)
	cosign=$$(hack/cosign/build.sh) && COSIGN=$$cosign go test ./image -run '^TestCosign' -count=1 -v

cluster: build ## start a Kubernetes of one node in namespaces of its own, and print its KUBECONFIG (needs root)
	hack/kube/cluster.sh up

cluster-down: ## end it; nothing is left
	hack/kube/cluster.sh down

demo: build ## run pods in a private daemon, step by step, with crictl; about a minute after the build
	hack/demo.sh

lint: ## gofmt, go vet, staticcheck, shell syntax
	hack/lint.sh

mutants: ## take protections out one by one and see their tests fail (needs root; ONLY=CVE-2024-21626)
	$(GO) run ./hack/mutants $(if $(ONLY),"$(ONLY)")

fuzz: ## run every fuzz target for FUZZTIME (20s)
	FUZZTIME=$(FUZZTIME) hack/fuzz.sh

bench: ## run the benchmarks
	hack/bench.sh

bench-pod: build ## measure starts, execs, stops and memory over the CRI, in ms and MiB (ENDPOINTS="name=socket ..." for others)
	hack/bench/run.sh $(ENDPOINTS)

bench-runtime: build ## measure the low-level runtime against crun and runc, where they are installed (ROUNDS)
	hack/bench/runtime.sh

bench-pull: build ## measure pulls over the CRI from a registry on this machine, and those of containerd, podman and skopeo (needs root; ROUNDS, CASES, CONTAINERD_BIN)
	hack/benchpull/run.sh $(FLAGS)

tools: ## build crictl, critest and the linters into .cache/tools
	@for tool in crictl critest gotestsum staticcheck; do hack/tools/build.sh $$tool || exit; done

clean: ## remove what was built
	@[ ! -e .cache/cluster/current ] || hack/kube/cluster.sh down
	rm -rf bin .cache
	rm -f $(PAYLOAD)/cri-shim-*
