# Everything that is done with this tree, by name. `make` alone lists it.

CARGO ?= cargo
# What the recipes and tests call beside Rust. Debian's names.
PACKAGES = gcc make binutils busybox-static cpio iproute2 lz4 qemu-system-x86 systemd xz-utils zstd
TOOLS = gcc make objcopy busybox cpio ip tc lz4 qemu-system-x86_64 xz zstd apt-get dpkg-deb systemd-analyze systemd-socket-activate
# What targets with a whole Debian in the guest call beside that.
image-debian guests databases: PACKAGES += e2fsprogs mmdebstrap openssh-client
image-debian guests databases: TOOLS += mkfs.ext4 mmdebstrap ssh ssh-keygen

.DEFAULT_GOAL := help
.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: deps build image-cloud ## move a stock Linux guest between two hosts while somebody talks to it
	$(CARGO) run --release --quiet -p integration-tests --bin demo

# Tests with Linux guests each keep a nested host with one processor busy; those that hold figures against each other (`alone`) want
# the machine for themselves; the rest, like tests without VMs, mostly wait.
VM_TESTS = $(CARGO) test --release -p integration-tests --no-fail-fast

# A debug build beside the release build. Of programs with the same name the one that was built last has it, so `build`
# comes after.
CHECKED = --profile bench --config .cargo/checked.toml

.PHONY: test
test: deps lint images ## lint, all tests, whole VMs included; about 25 minutes on two cores
	RUST_TEST_THREADS=4 CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$(CURDIR)/integration-tests/runner \
		$(CARGO) test $(CHECKED) -p migration -p devices -p vmm -p guest-images -p agent
	$(MAKE) build
	$(CARGO) run --release --quiet -p integration-tests --bin nested-host -- check --fetch
	failed=; \
	$(VM_TESTS) --test linux -- --test-threads=2 || failed=1; \
	$(VM_TESTS) --test refusals --test together -- --test-threads=4 || failed=1; \
	$(VM_TESTS) --lib --test alone -- --test-threads=1 && [ -z "$$failed" ]

# For example: make bench BENCH='--scenario 1G-idle 1G-hot64 --runs 9'
BENCH ?=

.PHONY: bench
bench: deps build ## move guests by Ferry and by QEMU, verify each and print what it cost; about 25 minutes
	$(CARGO) run --release --quiet -p integration-tests --bin bench -- $(BENCH)

# For example: make bench-net BENCH_NET='--programs ferry,qemu --guests 1'
BENCH_NET ?=

.PHONY: bench-net
bench-net: deps build image-cloud ## what guests' network cards carry, Ferry's beside QEMU's and vhost-net; about half an hour
	$(CARGO) run --release --quiet -p integration-tests --bin bench-net -- $(BENCH_NET)

# For example: make bench-boot BENCH_BOOT='--runs 15'
BENCH_BOOT ?=

.PHONY: bench-boot
bench-boot: deps build image-cloud ## boot a stock kernel to its init in Ferry and in QEMU's microvm; about 5 minutes
	$(CARGO) run --release --quiet -p integration-tests --bin bench-boot -- $(BENCH_BOOT)

# For example: make guests GUESTS='--only Debian'
GUESTS ?=

.PHONY: guests
guests: deps build image-cloud image-generic image-rt image-debian ## boot and move stock kernels, 1 to 16 vCPUs, and a whole Debian
	$(CARGO) run --release --quiet -p integration-tests --bin guests -- $(GUESTS)

# For example: make databases DATABASES='--moves 2'
DATABASES ?=

.PHONY: databases
databases: deps build image-cloud image-debian ## move Redis and PostgreSQL under load, cut the power, count what was lost; about 15 minutes
	$(CARGO) run --release --quiet -p integration-tests --bin databases -- $(DATABASES)

# For example: make soak SOAK='--faults 500 --minutes 10 --seed 7 --moves 100 --linux-moves 0 --fuzz-minutes 0'
SOAK ?=

.PHONY: soak
soak: deps build image-cloud ## 2,000 faults on moves, 1,000 moves of one guest, 50 of a Linux guest, 20 minutes of each fuzz target; hours
	$(CARGO) run --release --quiet -p integration-tests --bin soak -- $(SOAK)

FERRY = target/x86_64-unknown-linux-gnu/release/ferry

.PHONY: study study-full
study: deps build ## run real moves at many loads under each policy, predict each, draw target/study/index.html; about 30 minutes
	$(FERRY) study integration-tests/studies/study.toml --out target/study

study-full: deps build ## the whole product of loads, policies and limits; many hours, goes on where it was
	$(FERRY) study integration-tests/studies/study-full.toml --out target/study-full

.PHONY: deb
deb: deps ## make target/deb/ferry_VERSION_amd64.deb: program, units, manual pages, completions
	$(CARGO) build --release -p vmm
	mkdir -p target/deb
	vmm/dist/package $(FERRY) target/deb

.PHONY: figures
figures: deps build ## published figures beside Ferry's: measure, predict, write docs/figures.md; about 15 minutes
	$(CARGO) run --release --quiet -p integration-tests --bin figures

.PHONY: lint
lint: ## formatting, clippy, licences and advisories of dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(CHECKED) --workspace --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; \
	else echo 'cargo-deny is not installed, so dependencies are not checked: cargo install --locked cargo-deny'; fi

.PHONY: images
images: image-cloud image-generic ## build the Linux guests from Debian's packages

.PHONY: image-cloud image-generic image-rt
image-cloud image-generic image-rt: image-%:
	guest-images/build $*

.PHONY: image-debian
image-debian: deps ## make a disk with a whole Debian: systemd, ssh, Redis, PostgreSQL; a minute, as root
	guest-images/build debian

.PHONY: build
build: ## build ferry and the programs of the tests
	$(CARGO) build --release -p vmm -p integration-tests

.PHONY: deps
deps: ## install what the rest needs (Debian, as root), or say what is missing
	@lacking() { for tool in $(TOOLS); do command -v $$tool >/dev/null 2>&1 || printf ' %s' $$tool; done; }; \
	if [ "$$(id -u)" = 0 ] && grep -qs '^ID=debian' /etc/os-release; then \
		apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || apt-get update; \
		[ -z "$$(lacking)" ] || { apt-get update && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y --no-install-recommends $(PACKAGES); }; \
	fi; \
	missing=$$(lacking); command -v $(CARGO) >/dev/null 2>&1 || missing="$$missing cargo"; \
	[ -z "$$missing" ] || { echo "missing:$$missing (Debian packages: $(PACKAGES); Rust from https://rustup.rs)" >&2; exit 1; }
