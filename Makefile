# weft: what a person runs. Everything here works from a fresh clone; `make` alone says what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build release demo lab-up lab-down clean-lab test model fuzz storm chaos faults bench bench-addresses bench-packets bench-growth bench-programming bench-reach fmt lint check install

PREFIX ?= /usr/local
DESTDIR ?=
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Tests and labs make network namespaces. PATH and HOME are kept, for that is where cargo lies.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo 'sudo -E env "PATH=$$PATH" "HOME=$$HOME"')

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## install what is missing to build, test and demonstrate (Debian packages)
	@tests/lab/setup.sh

build: setup ## build everything for development
	cargo build --workspace --locked

release: setup
	cargo build --release --locked -p weftd -p weft-cli

demo: ## three hosts, a real etcd, driven by etcdctl alone (KEEP=1 leaves it up, UNDERLAY=v4|v6|dual)
	@KEEP='$(KEEP)' UNDERLAY='$(UNDERLAY)' tests/lab/demo.sh

lab-up: setup ## bring up a lab with an agent on each host, to play with
	cargo build --locked -p weftd -p weft-cli -p weft-lab
	@$(AS_ROOT) $(TARGET)/debug/weft-lab up --bin-dir $(TARGET)/debug --underlay $(or $(UNDERLAY),v4)
	@echo "usage: $(TARGET)/debug/weft-lab --help; down again: make lab-down"

lab-down: ## take down the labs of lab-up and of demo KEEP=1
	@if [ -x $(TARGET)/debug/weft-lab ]; then $(AS_ROOT) $(TARGET)/debug/weft-lab down; \
	else echo "no weft-lab is built, so no lab of this checkout is up"; fi

clean-lab: ## remove what labs of killed processes left behind
	cargo build --locked -p weft-lab
	$(AS_ROOT) $(TARGET)/debug/weft-lab sweep

# Built as the caller and run as root: cargo then has nothing left to write as root.
test: setup ## all tests, end to end included, on real network namespaces and a real etcd
	cargo build --workspace --locked
	if cargo nextest --version >/dev/null 2>&1; then \
	    cargo nextest run --workspace --locked --no-run; \
	    cargo test --workspace --locked --doc --quiet; \
	    $(AS_ROOT) cargo nextest run --workspace --locked --no-fail-fast; \
	else \
	    cargo test --workspace --locked --no-run; \
	    $(AS_ROOT) cargo test --workspace --locked --no-fail-fast; \
	fi

model: setup ## the claim protocol against a reference, in random schedules of agents and faults (SCHEDULES=5000000, SEED=…)
	cargo build --release --locked -p weft-model
	@$(TARGET)/release/weft-model --schedules $(or $(SCHEDULES),200000) $(if $(SEED),--seed $(SEED)) $(if $(FAULT),--fault $(FAULT))

fuzz: setup ## arbitrary bytes for records, keys, requests and the kernel's answers (SECONDS=30, SEED=…, ONLY=records)
	cargo build --locked -p weft-fuzz
	@$(TARGET)/debug/weft-fuzz --seconds $(or $(SECONDS),30) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--target $(ONLY))

storm: setup ## attach and detach on four hosts while agents and etcd are killed, stopped and cut off (SECONDS=60, SEED=…)
	cargo build --locked -p weftd -p weft-cli -p weft-storm
	$(AS_ROOT) $(TARGET)/debug/weft-storm --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

chaos: setup ## everything that can go wrong with five hosts and etcd, several things at once, with traffic (SECONDS=60, SEED=…, ONLY=…)
	cargo build --locked -p weftd -p weft-cli -p weft-chaos
	$(AS_ROOT) $(TARGET)/debug/weft-chaos --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only "$(ONLY)")

faults: setup ## the failure table: restarts, crashes, drift, trouble with etcd; a test a row, with traffic running (ROW=part of a name, LONG=1: faults that last minutes)
	cargo build --workspace --locked
	cargo test --locked -p weft-faults --no-run
	$(AS_ROOT) $(if $(LONG),env WEFT_FAULTS_LONG=1 )cargo test --locked -p weft-faults --no-fail-fast -- --test-threads 2 $(ROW)

bench: bench-addresses bench-packets bench-growth bench-programming bench-reach ## all benchmarks, beside their peers and limits (LONG=1: steady figures)

bench-addresses: setup ## claims of addresses per second beside etcd's bare rate, and Docker's (LONG=1, ONLY=empty/16)
	cargo build --profile measure --locked -p weft-bench
	@$(AS_ROOT) LONG='$(LONG)' ONLY='$(ONLY)' $(TARGET)/measure/bench-addresses

bench-packets: setup ## TCP, packets a second and round trips beside a hand-made VXLAN, the bare underlay and Docker (LONG=1: also one setting at a time, ONLY=variants)
	@tests/lab/setup.sh iperf3 ethtool
	cargo build --release --locked -p weftd -p weft-cli
	cargo build --profile measure --locked -p weft-bench
	@$(AS_ROOT) WEFT_BIN_DIR='$(TARGET)/release' LONG='$(LONG)' ONLY='$(ONLY)' $(TARGET)/measure/bench-packets

bench-growth: setup ## what networks, hosts, endpoints and 1,000 agents on one etcd cost as they grow in number (LONG=1, ONLY=networks|hosts|endpoints|agents|proxies, AGENTS=300)
	cargo build --release --locked -p weftd -p weft-cli
	cargo build --profile measure --locked -p weft-bench
	@$(AS_ROOT) WEFT_BIN_DIR='$(TARGET)/release' LONG='$(LONG)' ONLY='$(ONLY)' AGENTS='$(AGENTS)' $(TARGET)/measure/bench-growth

bench-programming: setup ## starts, restarts, single changes, memory and CPU with 100k endpoints (LONG=1, ONLY=apply, start, change or memory)
	cargo build --release --locked -p weftd -p weft-cli
	cargo build --profile measure --locked -p weft-bench
	@$(AS_ROOT) WEFT_BIN_DIR='$(TARGET)/release' LONG='$(LONG)' ONLY='$(ONLY)' $(TARGET)/measure/bench-programming

bench-reach: setup ## how soon a change is in every kernel and an endpoint reachable, beside bare watchers and Docker (LONG=1, ONLY=convergence|attach|storm)
	cargo build --release --locked -p weftd -p weft-cli
	cargo build --profile measure --locked -p weft-bench
	@$(AS_ROOT) WEFT_BIN_DIR='$(TARGET)/release' LONG='$(LONG)' ONLY='$(ONLY)' $(TARGET)/measure/bench-reach

fmt: ## format
	cargo fmt --all

lint: setup ## formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

check: lint test ## lint, then all tests

install: release ## install weftd and weft below PREFIX (default /usr/local)
	install -D -m 755 $(TARGET)/release/weftd $(DESTDIR)$(PREFIX)/sbin/weftd
	install -D -m 755 $(TARGET)/release/weft $(DESTDIR)$(PREFIX)/bin/weft
