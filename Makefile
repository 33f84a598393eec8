# `make demo` shows Postbox at work, `make test` runs every test. Both bring what they need into target/.

# The major versions of PostgreSQL to test; the last one runs the demo and the benchmarks.
MAJORS ?= 15 18
# A minor release from before August 2026, which does not ask what output plugins it may load, and what is tested on it.
OLDER = 15.18
OLDER_TESTS = harness:: messages:: transport::refusals:: docs:: decoding:: live:: encodings:: origins::
# The server that `make install` puts Postbox into, and what to write there with, for instance SUDO=sudo.
PG_CONFIG ?= pg_config
SUDO ?=
# How many messages `make kills` has.
MESSAGES ?= 100000
# What `make fuzz` runs, and for how many seconds each.
TARGETS ?= frames options conninfo login messages jsonb pgoutput emitted
FUZZ_SECONDS ?= 60

# Tests have their servers in memory if there is plenty of it: each makes and removes a thousand files.
test test-older mutants: export POSTBOX_CLUSTERS ?= $(shell exec 2>/dev/null; \
    [ "$$(awk '$$1 == "MemAvailable:" { print $$2 }' /proc/meminfo)" -gt 16000000 ] && \
    [ "$$(df --output=avail /dev/shm | tail -n 1)" -gt 12000000 ] && echo /dev/shm || echo /tmp)

export CARGO_TARGET_DIR ?= $(CURDIR)/target
export RUST_TEST_THREADS ?= 4
CARGO ?= cargo
NEWEST = $(lastword $(MAJORS))
# The crates that need no server's headers, and those that do.
PLAIN = -p postbox-wire -p postbox-jsonb -p postbox -p postbox-fuzz
PGRX = -p postbox-plugin -p postbox-floor

# How the pgrx crates build without cargo-pgrx: bindgen uses the libclang that tests/fetch brought and gcc's headers.
# The bindings need no formatting, so rustfmt may be missing.
PGRX_ENV = LIBCLANG_PATH='$(CURDIR)/target/libclang' BINDGEN_EXTRA_CLANG_ARGS="-isystem $$(gcc -print-file-name=include)" \
    PGRX_BINDGEN_NO_DETECT_INCLUDES=1 RUSTFMT=true PGRX_PG_CONFIG_PATH="$$pg_config"

SHELL = /bin/bash
.SHELLFLAGS = -euo pipefail -c
.ONESHELL:
.NOTPARALLEL:
.DEFAULT_GOAL = help
.PHONY: help demo circle kills test test-older test-all build install lint bench failpoints sanitize fuzz mutants

help: ## Print this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/p' Makefile | expand -t 16

demo: build server-$(NEWEST) ## Show the main job on a private server; KEEP=1 leaves that server running
	@POSTBOX_PG=$(NEWEST) KEEP='$(KEEP)' $(CARGO) run --locked --quiet --release -p postbox-tests --bin demo

circle: build server-$(NEWEST) ## Show orders going round between two services while everything is killed at random; SEED=7 repeats
	@POSTBOX_PG=$(NEWEST) $(CARGO) run --locked --quiet --release -p postbox-tests --bin circle -- $(SEED)

kills: build server-$(NEWEST) ## Kill 10 inbox workers at random over MESSAGES=100000 messages: each has its effect once
	@POSTBOX_PG=$(NEWEST) POSTBOX_BIN="$$CARGO_TARGET_DIR/release/postbox" POSTBOX_INBOX_MESSAGES=$(MESSAGES) \
	    $(CARGO) test --locked --quiet -p postbox-tests --test main -- --nocapture effects_happen_once_while

test: build failpoints $(MAJORS:%=server-%) ## Run every test on PostgreSQL 15 and 18; MAJORS="16 17" chooses others
	@tests/fetch --tests
	failed=
	$(CARGO) test --locked --no-fail-fast $(PLAIN) || failed+=' crates'
	for major in $(MAJORS); do
	    echo "== PostgreSQL $$major =="
	    # The tests themselves need no optimizing: what they test is the release build.
	    POSTBOX_PG=$$major POSTBOX_BIN="$$CARGO_TARGET_DIR/release/postbox" \
        POSTBOX_FAILPOINTS_BIN="$$CARGO_TARGET_DIR/failpoints/debug/postbox" \
	        $(CARGO) test --locked --no-fail-fast -p postbox-tests || failed+=" PostgreSQL-$$major"
	done
	if [ -n "$$failed" ]; then echo "Failed:$$failed" >&2; exit 1; fi

test-older: build failpoints server-$(basename $(OLDER)) ## Run what depends on the minor release on an older one
	@tests/fetch --tests $(OLDER)
	$(put)
	# What was built for the newest minor release of its major, as packages are.
	newest=target/pg/$(basename $(OLDER))
	(cd "$$newest" && find . -name 'postbox.so' -o -name 'postbox.control' -o -name 'postbox--*.sql') | while read -r file; do
	    put "$$newest/$$file" "target/pg/$(OLDER)/$$file"
	done
	echo "== PostgreSQL $(OLDER) =="
	POSTBOX_PG=$(basename $(OLDER)) POSTBOX_SERVER='$(CURDIR)/target/pg/$(OLDER)' POSTBOX_BIN="$$CARGO_TARGET_DIR/release/postbox" \
	    POSTBOX_FAILPOINTS_BIN="$$CARGO_TARGET_DIR/failpoints/debug/postbox" \
	    $(CARGO) test --locked --no-fail-fast -p postbox-tests --test main -- $(OLDER_TESTS)

test-all: ## Run every test on every supported major of PostgreSQL, 14 to 18, and every mutation, which must fail its tests
	@failed=
	$(MAKE) --no-print-directory test MAJORS='14 15 16 17 18' || failed+=' majors'
	$(MAKE) --no-print-directory test-older || failed+=' older'
	$(MAKE) --no-print-directory mutants || failed+=' mutants'
	if [ -n "$$failed" ]; then echo "Failed:$$failed" >&2; exit 1; fi

build: ## Build target/release/postbox
	@$(CARGO) build --locked --release -p postbox

# For the kill matrix: a postbox that ends or stands still at the step that POSTBOX_FAILPOINT names. In a place of its own, as the
# feature would have everything that uses the crate built again.
failpoints:
	@$(CARGO) build --locked -p postbox --features failpoints --target-dir "$$CARGO_TARGET_DIR/failpoints"

install: ## Put plugin and extension into the server of PG_CONFIG=/path/to/pg_config; SUDO=sudo copies as root
	@tests/fetch
	$(put_plugin)
	$(put_extension)
	echo "Postbox $$version is in PostgreSQL $$major: $$library, $$share"
	# Not grep -q: it leaves before postgres has said everything, which pipefail takes for a failure.
	if "$$("$$pg_config" --bindir)/postgres" --describe-config 2>/dev/null | grep ^output_plugin_libraries >/dev/null; then
	    echo "Now add postbox to output_plugin_libraries in postgresql.conf and reload; then CREATE EXTENSION postbox."
	else
	    echo "Now: CREATE EXTENSION postbox."
	fi

lint: server-$(NEWEST) ## Check formatting, lints and documentation
	@$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets $(PLAIN) -p postbox-tests -- -D warnings
	$(CARGO) clippy --locked -p postbox --features failpoints -- -D warnings
	for major in $(MAJORS); do
	    tests/fetch $$major
	    pg_config=$(CURDIR)/target/pg/$$major/bin/pg_config
	    $(PGRX_ENV) $(CARGO) clippy --locked $(PGRX) --no-default-features --features postbox-plugin/pg$$major,postbox-floor/pg$$major -- -D warnings
	done
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps $(PLAIN)
	# A database of another encoding may lack any other character, and CREATE EXTENSION would fail there.
	! grep -nP '[^\x00-\x7F]' sql/*.sql sql/postbox.control || { echo 'the extension script must be ASCII' >&2; exit 1; }
	diff <(grep -v '^#' sql/order | sort) <(cd sql && ls *.sql) || { echo 'sql/order does not list every file of sql/ once' >&2; exit 1; }

bench: build $(MAJORS:%=server-%) $(MAJORS:%=floor-%) ## Measure; ARGS="…" goes to the benchmark
	@tests/fetch --peers $(MAJORS)
	POSTBOX_PG=$(NEWEST) $(CARGO) run --locked --quiet --release -p postbox-tests --bin bench -- $(ARGS)

mutants: failpoints server-$(NEWEST) ## Break the code in every way of tests/mutations/: each must fail the tests that it names; ONLY=word chooses
	@tests/mutants $(NEWEST) '$(ONLY)'

# The crates forbid unsafe code; what they use does not (lz4_flex, memchr). Only a nightly compiler has the sanitizer's runtime.
sanitize: ## Run the tests of the stream's crates under AddressSanitizer; needs a nightly toolchain
	@target=$$(rustc -vV | sed -n 's/^host: //p')
	if ! ls "$$(rustc +nightly --print target-libdir 2>/dev/null)"/librustc-*_rt.asan.a >/dev/null 2>&1; then
	    echo 'No nightly toolchain with the AddressSanitizer runtime: rustup toolchain install nightly' >&2
	    exit 1
	fi
	# With a target named, build scripts and macros are left alone.
	RUSTFLAGS=-Zsanitizer=address $(CARGO) +nightly test --locked --target "$$target" --target-dir "$$CARGO_TARGET_DIR/sanitize" \
	    -p postbox-wire -p postbox-jsonb --lib --tests

# Without a sanitizer, so that the stable compiler will do: safe code shows its faults as panics.
fuzz: ## Fuzz each target in tests/fuzz for FUZZ_SECONDS=60; TARGETS="frames options" chooses
	@fuzz=$$CARGO_TARGET_DIR/tools/bin/cargo-fuzz
	[ -x "$$fuzz" ] || $(CARGO) install --locked --quiet cargo-fuzz --version 0.13.2 --root "$$CARGO_TARGET_DIR/tools"
	for target in $(TARGETS); do
	    found=$$CARGO_TARGET_DIR/fuzz/$$target
	    mkdir -p "$$found"
	    "$$fuzz" run --fuzz-dir tests/fuzz --sanitizer none --features fuzzing --target-dir "$$CARGO_TARGET_DIR/fuzz-build" \
	        "$$target" "$$found" tests/fuzz/corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048
	done

# A private server in target/pg with Postbox in it.
server-%: PG_CONFIG = $(CURDIR)/target/pg/$*/bin/pg_config
server-%:
	@tests/fetch $*
	$(put_plugin)
	$(put_extension)

# The plugin that the benchmarks compare with.
floor-%: PG_CONFIG = $(CURDIR)/target/pg/$*/bin/pg_config
floor-%: CRATE = floor
floor-%: LIBRARY = postbox_floor
floor-%:
	@$(put_plugin)

CRATE = plugin
LIBRARY = postbox

# An equal file is left alone; another one is replaced by a rename, as a running server has the old one mapped.
define put
put() {
    cmp -s "$$1" "$$2" && return
    $(SUDO) install -D -m 644 "$$1" "$$2.new"
    $(SUDO) mv -f "$$2.new" "$$2"
}
endef

# Each major has a target directory of its own: cargo gives a cdylib one name for all features, and in a shared directory
# every change of the major would build the plugin again.
define put_plugin
$(put)
pg_config=$$(command -v '$(PG_CONFIG)') || { echo 'PG_CONFIG=$(PG_CONFIG) is not a program' >&2; exit 1; }
pg_config=$$(realpath -s "$$pg_config")
major=$$("$$pg_config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
case $$major in
    1[4-8]) ;;
    *) echo "$$pg_config is of PostgreSQL $$major; Postbox needs 14 to 18" >&2; exit 1 ;;
esac
headers=$$("$$pg_config" --includedir-server)
if [ ! -e "$$headers/postgres.h" ]; then
    echo "$$headers has no postgres.h: install that server's headers (Debian's postgresql-server-dev-$$major" >&2
    echo "also moves an installed server to the newest minor release)" >&2
    exit 1
fi
target=$$CARGO_TARGET_DIR/pg$$major
$(PGRX_ENV) $(CARGO) build --locked --release -p postbox-$(CRATE) --no-default-features --features "pg$$major" --target-dir "$$target"
library=$$("$$pg_config" --pkglibdir)/$(LIBRARY).so
put "$$target/release/libpostbox_$(CRATE).so" "$$library"
endef

define put_extension
version=$$(sed -nE "s/^default_version *= *'(.*)'/\1/p" sql/postbox.control)
share=$$("$$pg_config" --sharedir)/extension
script=$$CARGO_TARGET_DIR/postbox--$$version.sql
{
    echo '\echo Use "CREATE EXTENSION postbox" to load this file. \quit'
    grep -v '^#' sql/order | while read -r file; do cat "sql/$$file"; done
} >"$$script"
put "$$script" "$$share/postbox--$$version.sql"
put sql/postbox.control "$$share/postbox.control"
endef
