# SPDX-License-Identifier: GPL-2.0-or-later
#
# Every target works alone, from nothing, and can be repeated.

PYTHON ?= /usr/bin/python3
TOOL = PYTHONDONTWRITEBYTECODE=1 $(PYTHON)

# One after another: each step uses all processors itself.
.NOTPARALLEL:
.DEFAULT_GOAL := help

ifdef VERBOSE
Q =
else
Q = @
endif

.PHONY: help
help: ## Print this list
	$(Q)awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: deps
deps: ## Install the Debian packages that are missing (root or sudo)
	$(Q)sh tools/deps

.PHONY: fetch
fetch: deps ## Download QEMU's and Linux's source (QEMU_SRC=, LINUX_SRC= take your own)
	$(Q)$(TOOL) tools/fetch qemu
	$(Q)$(TOOL) tools/fetch linux

.PHONY: tree
tree: deps ## Make build/tree: QEMU as a git repository with the series as commits
	$(Q)$(TOOL) tools/tree

# Builds take the user's own work in build/tree as it is.
.PHONY: build
build: deps ## Build QEMU with the series: build/qemu and, for arm64, build/qemu-arm64
	$(Q)$(TOOL) tools/tree --keep
	$(Q)$(TOOL) tools/build qemu qemu-arm64

.PHONY: upstream
upstream: deps ## Build QEMU without the series: build/upstream and build/upstream-arm64
	$(Q)$(TOOL) tools/tree --keep
	$(Q)$(TOOL) tools/build upstream upstream-arm64
	$(Q)$(TOOL) tools/behaviour --build

.PHONY: behaviour
behaviour: deps ## Run each qtest of ours on QEMU without the series: a table for the docs
	$(Q)$(TOOL) tools/tree --keep
	$(Q)$(TOOL) tools/behaviour

.PHONY: bench
bench: $(if $(QUICK),deps,build upstream) ## Measure what it costs, ours beside unpatched QEMU (QUICK=1 for less)
	$(Q)$(TOOL) tools/tree --keep
	$(Q)$(TOOL) tools/behaviour --build
	$(Q)QUICK=$(QUICK) $(TOOL) bench/run

.PHONY: demo
demo: build $(if $(UPSTREAM),upstream) ## Show it: an NVMe behind an accelerated SMMUv3 (UPSTREAM=1 compares)
	$(Q)UPSTREAM=$(UPSTREAM) $(TOOL) lab/demo

.PHONY: lab
lab: build ## Run the nested lab's scenarios (SCENARIO=name for one, SANITIZE=1)
	$(Q)$(if $(SANITIZE),$(TOOL) tools/build qemu-sanitize)
	$(Q)UPSTREAM= SANITIZE=$(SANITIZE) SCENARIO="$(SCENARIO)" $(TOOL) lab/run

.PHONY: lab-upstream
lab-upstream: upstream ## Run them on QEMU without the series, where interrupts are lost
	$(Q)UPSTREAM=1 SANITIZE= SCENARIO="$(SCENARIO)" $(TOOL) lab/run

.PHONY: test
test: build ## Run all tests: scripts, qtests (on arm64 too), a minute of fuzzing, the lab
	$(Q)$(TOOL) tools/test

.PHONY: check
check: deps ## Run the qtests only (TESTS=walk: those whose name has it)
	$(Q)$(TOOL) tools/tree --keep
	$(Q)TESTS="$(TESTS)" $(TOOL) tools/test qemu

.PHONY: test-sanitize
test-sanitize: deps ## Run the series' qtests and the lab's L0 under ASan and UBSan
	$(Q)$(TOOL) tools/tree --keep
	$(Q)$(TOOL) tools/test sanitize lab-sanitize

.PHONY: test-tsan
test-tsan: deps ## Run the series' qtests under TSan
	$(Q)$(TOOL) tools/tree --keep
	$(Q)$(TOOL) tools/test tsan

.PHONY: fuzz
fuzz: deps ## Fuzz devices behind an accelerated SMMUv3 (TIME=seconds, default 60)
	$(Q)$(TOOL) tools/tree --keep
	$(Q)$(TOOL) tools/fuzz $(or $(TIME),60)

.PHONY: builds
builds: deps ## Build without KVM, VFIO or iommufd, for debugging, with clang, 32-bit targets
	$(Q)$(TOOL) tools/tree --keep
	$(Q)$(TOOL) tools/test builds

# What few need is installed for them only.
.PHONY: deb
deb: ## Build Debian's packages of QEMU with the series (SUITE=forky SYSTEMS=arm)
	$(Q)sh tools/deps deb
	$(Q)$(TOOL) tools/tree --keep
	$(Q)$(TOOL) tools/series
	$(Q)SUITE=$(SUITE) SYSTEMS="$(SYSTEMS)" $(TOOL) tools/deb

.PHONY: deb-test
deb-test: deb ## Install them over Debian's in a clean root, run a VM and the qtests there
	$(Q)$(TOOL) lab/artefacts
	$(Q)SUITE=$(SUITE) $(TOOL) tools/test deb

# Before what takes long.
.PHONY: as-root # only part of others
as-root:
	$(Q)[ "$$(id -u)" = 0 ] || { echo "error: make $(MAKECMDGOALS) is for root;" \
	    "run: sudo make $(MAKECMDGOALS)" >&2; exit 1; }

.PHONY: libvirt-test
libvirt-test: as-root deb ## Have Debian's newest libvirt start a VM with them in a clean root (as root)
	$(Q)$(TOOL) lab/artefacts
	$(Q)SUITE=$(SUITE) $(TOOL) tools/test libvirt

.PHONY: regress
regress: ## Run QEMU's own tests without and with the series, print what differs (long)
	$(Q)sh tools/deps regress
	$(Q)$(TOOL) tools/tree --keep
	$(Q)$(TOOL) tools/regress $(TESTS)

SUITES ?= bookworm,trixie
TARGETS ?= demo,test

.PHONY: fresh
fresh: as-root ## Run demo and test on clean Debian 12 and 13 (as root; SUITES=, TARGETS=; hours)
	$(Q)sh tools/deps roots
	$(Q)$(TOOL) tools/fresh $(SUITES) $(TARGETS)

.PHONY: docs
docs: ## Build QEMU's documentation, and compare arm-smmuv3's help with the manual
	$(Q)sh tools/deps docs
	$(Q)$(TOOL) tools/tree --keep
	$(Q)$(TOOL) tools/build qemu
	$(Q)$(TOOL) tools/docs

.PHONY: coverage
coverage: deps ## Print which lines of ours the qtests run, and list the others
	$(Q)$(TOOL) tools/tree --keep
	$(Q)$(TOOL) tools/coverage

.PHONY: refresh
refresh: deps ## Fold what was committed in build/tree back into patches/ and our files
	$(Q)$(TOOL) tools/refresh

.PHONY: series
series: tree ## Write the series as mails for git am to build/series/
	$(Q)$(TOOL) tools/series

# On the pinned QEMU, also when QEMU_SRC= is one to try.
.PHONY: series-check
series-check: ## Check the series: on other versions of QEMU, and each commit by itself
	$(Q)sh tools/deps series
	$(Q)QEMU_SRC= $(TOOL) tools/tree
	$(Q)$(TOOL) tools/series --matrix --commits

.PHONY: series-matrix
series-matrix: ## Only on all versions of QEMU and Debian's source (QEMU_SRC=, QEMU_DEBIAN_SRC= add one)
	$(Q)sh tools/deps series
	$(Q)QEMU_SRC= $(TOOL) tools/tree
	$(Q)$(TOOL) tools/series --matrix

.PHONY: series-commits
series-commits: tree ## Only each commit: checkpatch, build, tests (COMMITS=N-M for some)
	$(Q)$(TOOL) tools/series --commits $(COMMITS)

.PHONY: clean
clean: ## Remove build/
	rm -rf build

.PHONY: distclean
distclean: clean ## Remove build/ and the cache (downloads, kernel, ccache)
	$(Q)$(TOOL) -c 'import sys; sys.path.insert(0, "tools"); import common, shutil; \
	    print("rm -rf", common.CACHE); common.CACHE.exists() and shutil.rmtree(common.CACHE)'
