# Ironspan. "make help" lists what there is to make; BUILD.md says more.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS   += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# Stamp the revision where git knows one; git refuses trees of other users.
VCS         := $(shell git rev-parse --verify -q HEAD >/dev/null 2>&1 && echo true || echo false)
PREFIX      ?= /usr/local

# Commands that need Go run with the one bootstrap.sh found or installed.
WITH := tools/bootstrap.sh --exec

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: bootstrap
bootstrap: ## install what this machine lacks (Debian; root or sudo)
	@tools/bootstrap.sh

# The lab's program is also the init of its servers, so it is linked statically.
.PHONY: build
build: bootstrap ## bin/ironspan, bin/perf, bin/lab and bin/demo
	@mkdir -p bin
	@$(WITH) go build -trimpath -buildvcs=$(VCS) -o bin/ ./tools/ironspan ./perf
	@CGO_ENABLED=0 $(WITH) go build -trimpath -buildvcs=$(VCS) -o bin/ ./tools/lab ./tools/demo

.PHONY: demo
demo: build ## one Linux guest across two servers of the lab, over RDMA, with a report
	@$(WITH) bin/demo

# The order finds the commonest faults first.
TIERS := build test-lint test-unit test-sim test-kvm lint test-lab test-demo

.PHONY: test
test: ## everything: lint, unit, simulation, kvm and lab tiers
	@began=$$SECONDS; \
	for tier in $(TIERS); do \
		echo "== $$tier"; step=$$SECONDS; \
		$(MAKE) $$tier </dev/null; \
		echo "== $$tier: passed, $$((SECONDS - step)) s"; \
	done; \
	echo "== all tiers passed, $$((SECONDS - began)) s"

.PHONY: test-lint
test-lint: bootstrap ## formatting, go vet and the rules of the house (tools/lint)
	@out=$$($(WITH) gofmt -l . ); [ -z "$$out" ] || { echo "gofmt -w is due for:"; echo "$$out"; exit 1; }
	@$(WITH) go vet ./...
	@$(WITH) go test ./tools/lint

.PHONY: lint
lint: test-lint ## test-lint and staticcheck
	@$(WITH) go run $(STATICCHECK) ./...

.PHONY: test-unit
test-unit: bootstrap ## unit tests with the race detector; what needs KVM or RDMA skips itself
	@$(WITH) go test -race -short -timeout 10m ./...

.PHONY: test-sim
test-sim: bootstrap ## the protocol under the seeded simulator and the model checker, at length
	@$(WITH) go test -timeout 20m ./engine/coherence/... ./engine/sim/...
	@$(MAKE) soak DURATION=120s

# exec: Ctrl-C is for the soak, which ends with its summary. SOAK takes flags, as --json.
.PHONY: soak
soak: bootstrap ## random clusters of the simulator, DURATION long (default 10m), seeds nobody has seen
	@mkdir -p build/test; $(WITH) go build -o build/test/soak ./tools/soak
	@exec build/test/soak --duration $(or $(DURATION),10m) $(SOAK)

# Part of test-sim, too; here with what it went through.
.PHONY: verify
verify: bootstrap ## every state of small clusters of the protocol, and the bugs seeded into it, with what was found
	@mkdir -p build/test; log=build/test/verify.log; \
	if $(WITH) go test -count=1 -v -timeout 20m ./engine/sim/check >$$log 2>&1; then \
		sed -nE 's/^ *[a-z]+_test\.go:[0-9]+: //p; /^ok/p' $$log; \
	else \
		cat $$log; exit 1; \
	fi

# What a package skips and why is worth seeing here: -v, cut down to that and go's closing lines.
.PHONY: test-kvm
test-kvm: bootstrap ## mini-guests on this host's /dev/kvm, two nodes over shared memory
	@if [ ! -w /dev/kvm ]; then echo "kvm tier skipped: /dev/kvm is absent or not writable for $$(id -un)"; exit 0; fi; \
	mkdir -p build/test; log=build/test/kvm.log; \
	if $(WITH) go test -v -timeout 10m ./kvmhost/... ./fastpath/... ./engine ./engine/litmus >$$log 2>&1; then \
		grep -E -B1 '^ *--- SKIP' $$log | grep -v '^--$$' || true; grep -E '^(ok|\?) ' $$log; \
	else \
		grep -v -E '^ *--- PASS|^=== |\[rapid\] OK' $$log; echo "all of it: $$log"; exit 1; \
	fi

# Like the kvm tier's, but all of it, again and again; what outcomes there were is said at the end.
.PHONY: litmus
litmus: bootstrap ## memory-model tests as guests on several nodes, each of eleven clusters DURATION long (default 1m)
	@mkdir -p build/test; $(WITH) go test -count=1 -v -timeout 0 -run TestGuests ./engine/litmus \
		-args -all -long $(or $(DURATION),1m) >build/test/litmus.log 2>&1 && ok=1 || ok=0; \
	grep -v -E '^=== |^ *--- PASS.*seed' build/test/litmus.log; [ $$ok = 1 ]

# The same inside of Linux, with servers of the lab; DEMO takes flags, as --vcpus 2,2, with which CPUs are left to storm.
.PHONY: litmus-lab
litmus-lab: build ## the same in a Linux guest across two servers of the lab, over RDMA, in BATCHES (default 400)
	@$(WITH) bin/demo --no-single --out build/litmus --timeout 2h $(DEMO) \
		--workload adds:100,rounds:2,ipis:1,pct:1,verify:64,litmus:$(or $(BATCHES),400)

.PHONY: test-lab
test-lab: build ## real RDMA (soft-RoCE), KVM and its shadow page tables in servers in QEMU; the lab itself; the loss of a server
	@if ! reason=$$(tools/bootstrap.sh --probe-lab 2>&1); then echo "lab tier skipped: $$reason"; exit 0; fi; \
	$(WITH) bin/lab test ./verbs/... ./fastpath/fabric/rdma/... ./kvmhost; \
	$(WITH) go test -count=1 -timeout 20m -run 'TestLab|TestLostServer' ./tools/lab

.PHONY: test-demo
test-demo: build ## one guest across two servers of the lab, with a small workload
	@if ! reason=$$(tools/bootstrap.sh --probe-lab 2>&1); then echo "demo tier skipped: $$reason"; exit 0; fi; \
	$(WITH) bin/demo --no-single --out build/test/demo --workload adds:1000,rounds:2,ipis:2,litmus:8,pct:5,verify:64

# BENCH takes flags of perf, as --help.
.PHONY: bench
bench: build ## what a fault costs on this host: mini-guests on /dev/kvm, nodes over shared memory
	@bin/perf host $(BENCH)

.PHONY: bench-lab
bench-lab: build ## the same over soft-RoCE in servers of the lab, with raw verbs and other systems beside it
	@$(WITH) bin/perf lab $(BENCH)

.PHONY: bench-go
bench-go: bootstrap ## the packages' benchmarks
	@$(WITH) go test -run '^$$' -bench . ./...

.PHONY: install
install: build ## copy bin/ironspan below PREFIX, /usr/local if not given
	install -D -m 755 bin/ironspan '$(DESTDIR)$(PREFIX)/bin/ironspan'

.PHONY: clean
clean: ## remove bin and build
	rm -rf bin build
