# make                build everything
# make install        install it below DESTDIR; PREFIX=/usr SYSCONFDIR=/etc unless told otherwise
# make demo           one command from a fresh machine to a job in a container on two nodes
# make cluster        the same cluster, left running for you to try things
# make test           every test; make test-long adds soaks and long fuzzing
# make bench          figures beside the floor and peers, on a quiet machine
# make check          style, documentation, dependencies

PREFIX ?= /usr
SYSCONFDIR ?= /etc
CARGO ?= cargo

# Where rustup puts cargo, for the first run after tests/bootstrap.sh.
export PATH := $(HOME)/.cargo/bin:$(PATH)

# Not asked of rustc, which root may not have when it installs.
HOST = $(shell uname -m)-unknown-linux-gnu
MUSL = $(shell uname -m)-unknown-linux-musl
# The C library of the programs that run on nodes. glibc asks the processor for its features whenever
# a program begins, and a virtual machine answers slowly; it serves where rustc has no musl.
LIBC ?= $(shell PATH="$(PATH)"; test -d "$$(rustc --print target-libdir --target $(MUSL) 2>/dev/null)" && \
	echo musl || echo gnu)
NODE_HOST = $(if $(filter musl,$(LIBC)),$(MUSL),$(HOST))
TARGET = $(or $(CARGO_TARGET_DIR),target)
# PROFILE=dev builds faster, for those who work on it.
PROFILE ?= release
OUTPUT = $(patsubst dev,debug,$(PROFILE))
PLAIN = $(TARGET)/$(OUTPUT)
STATIC = $(TARGET)/$(HOST)/$(OUTPUT)
# Leads to where the last build has put what runs on nodes.
NODE = $(TARGET)/node-$(OUTPUT)
BUILD = $(CARGO) build --profile $(PROFILE) --locked

.PHONY: all benches node-directory bench-images install sample-image real-images test-kernel testbed demo cluster \
	cluster-stop test test-long check rpm-check bench figures
.NOTPARALLEL:

# A start takes as long as it takes to load the program: the smaller, the sooner. Not for PROFILE=dev.
SMALL = $(if $(filter release,$(PROFILE)),CARGO_PROFILE_RELEASE_LTO=fat \
	CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 CARGO_PROFILE_RELEASE_OPT_LEVEL=s)

# Each with its own features: what runs with privilege is never built together with what speaks
# TLS. `--target` keeps crt-static away from proc macros, which must be dynamic.
all: node-directory
	$(SMALL) RUSTFLAGS='-C target-feature=+crt-static' $(BUILD) --target $(NODE_HOST) \
		-p node-setup --bins
	$(SMALL) SHIFTER_PREFIX=$(PREFIX) RUSTFLAGS='-C target-feature=+crt-static' $(BUILD) \
		--target $(NODE_HOST) -p torque-hooks --bins
	$(SMALL) RUSTFLAGS='-C target-feature=+crt-static' $(BUILD) --target $(HOST) \
		-p udi-image --bins
	SHIFTER_PREFIX=$(PREFIX) $(BUILD) -p spank-shifter
	$(BUILD) -p image-manager --bins
	$(BUILD) -p site-tools --bins

# The floor is as one would write it by hand: static, with the C library that everything else has.
benches:
	RUSTFLAGS='-C target-feature=+crt-static' $(BUILD) --target $(HOST) -p shifter-benches --bins

node-directory:
	mkdir -p $(TARGET)
	ln -sfn $(NODE_HOST)/$(OUTPUT) $(NODE)

# conf/ is written for PREFIX=/usr.
SUBSTITUTE = sed -E \
	-e 's,/usr/(s?bin/(shifter|setupRoot|unsetupRoot)|(lib|share)/shifter),$(PREFIX)/\1,g' \
	-e 's,^\# prefix = "/usr",prefix = "$(PREFIX)",'
SHARE = $(DESTDIR)$(PREFIX)/share/shifter
# What every container has at /opt/udiImage.
UDI = $(DESTDIR)$(PREFIX)/lib/shifter/udiImage
MAN = $(DESTDIR)$(PREFIX)/share/man
UNITS = $(DESTDIR)$(PREFIX)/lib/systemd/system
COMPLETIONS = $(DESTDIR)$(PREFIX)/share/bash-completion/completions

install:
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/lib/shifter
	install -m 0700 $(NODE)/setupRoot $(NODE)/unsetupRoot $(NODE)/startSshd \
		$(DESTDIR)$(PREFIX)/sbin/
	install -m 0755 $(PLAIN)/shifterimg $(DESTDIR)$(PREFIX)/bin/
	install -m 0755 $(PLAIN)/shifter-config $(DESTDIR)$(PREFIX)/sbin/
	install -m 0755 $(PLAIN)/shifter-doctor $(PLAIN)/shifter-ps $(DESTDIR)$(PREFIX)/lib/shifter/
	install -m 0700 $(NODE)/shifter-identity $(DESTDIR)$(PREFIX)/lib/shifter/
	install -m 0755 $(PLAIN)/libshifter_slurm.so $(DESTDIR)$(PREFIX)/lib/shifter/shifter_slurm.so
	install -m 0755 $(STATIC)/shifter-ssh-keys $(DESTDIR)$(PREFIX)/lib/shifter/
	install -d $(UDI)/bin $(UDI)/sbin $(UDI)/etc
	install -m 0755 $(STATIC)/ssh $(UDI)/bin/
	install -m 0755 $(NODE)/shifter-inside $(UDI)/bin/shifter
	install -m 0755 $(STATIC)/sshd $(UDI)/sbin/
	install -m 0755 $(STATIC)/shifter-ps-inside $(UDI)/sbin/shifter-ps
	ln -sf /etc/ssh/ssh_config $(UDI)/etc/
	install -m 4755 $(NODE)/shifter $(DESTDIR)$(PREFIX)/bin/
	install -m 0755 $(NODE)/shifter-prologue $(NODE)/shifter-epilogue $(NODE)/shifter-node-service \
		$(NODE)/shifter-node-clean $(DESTDIR)$(PREFIX)/sbin/
	install -m 0755 $(NODE)/shifter-submit-filter $(NODE)/shiftrun $(DESTDIR)$(PREFIX)/bin/
	install -m 0700 $(NODE)/shifter-node $(DESTDIR)$(PREFIX)/lib/shifter/
	install -d $(DESTDIR)$(PREFIX)/lib/shifter/torque
	for name in prologue prologue.parallel cray-shifter-prologue udiRoot-prologue; do \
		ln -sf ../../../sbin/shifter-prologue $(DESTDIR)$(PREFIX)/lib/shifter/torque/$$name; \
	done
	for name in epilogue epilogue.parallel epilogue.precancel cray-shifter-epilogue udiRoot-epilogue; do \
		ln -sf ../../../sbin/shifter-epilogue $(DESTDIR)$(PREFIX)/lib/shifter/torque/$$name; \
	done
	install -d $(SHARE)/plugstack.conf.d $(SHARE)/sudoers.d $(SHARE)/modules $(SHARE)/torque \
		$(DESTDIR)$(SYSCONFDIR)/shifter
	for file in shifter.toml registries.toml plugstack.conf.d/shifter.conf job_submit.lua sudoers.d/shifter \
		modules/mpich.toml modules/gpu.toml modules/slurm.toml torque/execjob.py torque/nscd.conf \
		torque/roots.conf; do \
		$(SUBSTITUTE) conf/$$file > $(SHARE)/$$file && chmod 0644 $(SHARE)/$$file || exit 1; \
	done
	install -d $(UNITS)
	$(SUBSTITUTE) conf/torque/shifter-node-clean.service > $(UNITS)/shifter-node-clean.service
	chmod 0644 $(UNITS)/shifter-node-clean.service
	test -e $(DESTDIR)$(SYSCONFDIR)/shifter/shifter.toml || \
		install -m 0644 $(SHARE)/shifter.toml $(DESTDIR)$(SYSCONFDIR)/shifter/
	install -d $(COMPLETIONS)
	install -m 0644 conf/shifterimg.bash $(COMPLETIONS)/shifterimg
	ln -sf shifterimg $(COMPLETIONS)/shifter
	docs/man/build.sh $(MAN)

bootstrap-%:
	tests/bootstrap.sh $*

sample-image:
	tests/sample-image.sh

# For the tests alone: what umoci makes of them is what is expected of a pull.
real-images:
	tests/real-images.sh

# For the tests alone, and never installed.
test-kernel:
	tests/kernel.sh fetch

testbed:
	$(CARGO) build --locked -p shifter-tests --bin testbed

# Where the worlds of the demo and the tests have it: the plugin falls back to the prefix it was
# built with when there is no configuration to name one.
demo cluster test test-long bench: PREFIX = /opt/shifter

demo: bootstrap-demo all testbed sample-image
	@tests/world.sh $(TARGET)/debug/testbed demo

cluster: bootstrap-demo all testbed sample-image
	@tests/cluster.sh start

cluster-stop:
	@tests/cluster.sh stop

test: bootstrap-test all benches sample-image real-images test-kernel
	FUZZ_SEED=7 tests/fuzz.sh 20; fuzzed=$$?; tests/run.sh && exit $$fuzzed

test-long: bootstrap-test all benches sample-image real-images test-kernel
	tests/long.sh $(SLICE)

check: bootstrap-check
	tests/check.sh

rpm-check: bootstrap-test
	tests/rpm.sh

# Those that are pulled; made once.
bench-images: bootstrap-bench
	/usr/bin/python3 benches/images.py $(TARGET)

# Figures, beside the floor and peers; quiet machines only. Not a test. BENCH='starts 50' measures
# one thing alone, BENCH='--noisy all 25' does not wait for a quiet machine.
BENCH ?= all 25
bench: bootstrap-bench all benches sample-image $(if $(findstring pull,$(BENCH)),bench-images)
	tests/world.sh $(MAKE) --no-print-directory figures

# The same where everything is built and this is a world already.
figures:
	@$(STATIC)/shifter-benches $(BENCH)
