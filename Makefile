# `make demo` runs the main job on a real tree; `make test` runs all tests, real FUSE mounts included.

CARGO ?= cargo

.PHONY: demo test test-long test-vm lint bench bench-walk bench-remote bench-prefetch bench-disk bench-virtiofs fuzz deny setup servers programs guest

demo: setup
	contrib/demo.sh

test: setup servers programs guest
	@if test -w /dev/fuse && command -v fusermount3 >/dev/null 2>&1; then \
		contrib/test.sh $(CARGO) test --locked --no-fail-fast -- --include-ignored; \
	else \
		echo "make test: no usable /dev/fuse here, so the tests that mount are reported as ignored"; \
		contrib/test.sh $(CARGO) test --locked --no-fail-fast; \
	fi

# 200 clients through one hub, and a hub that is away for a minute under a build.
test-long: setup
	$(CARGO) test --locked --release --test long -- --test-threads=1 --nocapture

# Guests under QEMU, to which back ends of vhost-user-fs serve trees. What is missing is reported as ignored.
test-vm: setup guest
	$(CARGO) test --locked --test vm

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --test long --test vm -- -D warnings

# Native and mounted reads side by side, as a table of ratios. Takes some minutes; needs root for fresh caches.
bench: setup
	$(CARGO) bench --locked --bench mount

# Walks over trees of up to a million entries, beside a server that does nothing and beside the disk. Takes ten minutes; needs root.
bench-walk: setup
	$(CARGO) bench --locked --bench walk

# Cold reads from each kind of remote, near and far, beside bulk transfers and other people's mounts. Takes a quarter of
# an hour.
bench-remote: setup servers
	$(CARGO) bench --locked --bench remote

# What reading ahead must do over a far link, row by row, beside `rclone mount`. Takes half an hour.
bench-prefetch: setup servers
	$(CARGO) bench --locked --bench prefetch

# Filling the disk tier, and starting with one that is full. Takes some minutes and 20 GiB of disk.
bench-disk: setup
	$(CARGO) bench --locked --bench disk

# A guest's reads over virtiofs, beside the reference daemon. Takes ten minutes.
bench-virtiofs: setup guest
	$(CARGO) bench --locked --bench virtiofs

# Looks for what breaks the back end of virtiofs, one minute from the corpus on. Needs a nightly toolchain and cargo-fuzz.
fuzz: setup
	@mkdir -p fuzz/corpus/virtiofs
	$(CARGO) +nightly fuzz run virtiofs fuzz/corpus/virtiofs tests/hostile/corpus -- -max_total_time=60 -max_len=4096

# Licences, advisories and sources of all dependencies; fetches the advisory database.
deny:
	$(CARGO) deny --locked check

# Other people's servers, for the tests: S3, Azure, HTTP, WebDAV. What cannot be installed is reported as ignored.
servers:
	@contrib/test-servers.sh $${CARGO_TARGET_DIR:-target}/servers

# Compilers, overlays, debuggers and others that the tests run over mounts. What is missing is reported as ignored.
programs:
	@contrib/test-programs.sh

# QEMU and what a guest boots with, for the tests in a virtual machine. What is missing is reported as ignored.
guest:
	@contrib/test-vm.sh $${CARGO_TARGET_DIR:-target}/vm

setup:
	@contrib/setup.sh
