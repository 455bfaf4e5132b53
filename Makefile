# Each target sets up all it needs on a Debian-like machine, as root or with sudo. Everything made goes to .venv and build/.
PYTHON ?= python3
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
BIN := .venv/bin

# What a guest runs besides the project, and what boots it.
PACKAGES := qemu-system-x86 qemu-block-extra busybox-static kmod open-iscsi libiscsi-bin sg3-utils fio dmsetup lsscsi \
	e2fsprogs xfsprogs btrfs-progs dbus python3 python3-venv targetcli-fb multipath-tools iproute2 procps util-linux systemd
SOAK_PACKAGES = nftables nfs-kernel-server nfs-common nbdkit nbd-client polkitd libglib2.0-bin qemu-utils \
	pacemaker pacemaker-cli-utils corosync pcs stress-ng dbench \
	$(DEB_PACKAGES)

.PHONY: help demo test soak unit dbus dbus-next fuzz vm conformance coverage man docs picture opcodes lint vm-shell vm-kernel clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: vm-kernel ## a real LUN, a real initiator, ext4, a 40 s outage: with holding and without (HERE=1: on this machine)
	$(BIN)/python demo/run.py $(if $(HERE),--here)

# Two processes whatever the machine has: the tests wait more than they reckon, and two guests are what 2 cores carry.
SPREAD := -n 2 --dist loadfile
# A test without a guest that takes five minutes hangs: where, and that is the end.
QUICK := $(SPREAD) --max-worker-restart=0 -o faulthandler_exit_on_timeout=true

test: lint unit dbus dbus-next vm ## all tests: lint, unit, D-Bus, virtual machine

unit: native ## the pure rooms and the simulated kernel: seconds
	$(BIN)/python -m pytest tests/unit $(QUICK)

dbus: native ## daemon, D-Bus and CLI on a private bus, kernel simulated
	$(BIN)/python -m pytest tests/dbus $(QUICK)

dbus-next: .venv/made build/packages ## the same with dbus-next, dbus-fast's predecessor, where it imports
	if $(BIN)/python -c 'import dbus_next.aio'; then TCMU_RETRY_DBUS=dbus_next $(BIN)/python -m pytest tests/dbus $(QUICK); fi

fuzz: native ## a million rows of any SCSI commands (RUNS=), some through ring and pump, 5,000 calls of any kind over D-Bus
	$(BIN)/python -m tests.fuzz commands $(or $(RUNS),1000000)
	$(BIN)/python -m tests.fuzz pumped $$(($(or $(RUNS),1000000) / 20))
	TCMU_RETRY_FUZZ=5000 $(BIN)/python -m pytest tests/dbus/test_fuzz.py

vm: vm-kernel ## a stock Debian kernel in QEMU: LIO, open-iscsi, ext4
	$(BIN)/python -m pytest tests/vm --durations=20 $(SPREAD)

man: .venv/made ## the manual pages, into build/man/
	$(BIN)/python packaging/manual.py build/man

docs: .venv/made ## the site, with its reference from the sources, into build/site/; any warning is an error
	$(BIN)/python docs/reference.py build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

picture: .venv/made build/packages ## docs/watch.svg, docs/history.svg: `watch` in an outage, and the outage's history
	$(BIN)/python docs/picture.py docs/outage.sim docs/watch.svg docs/history.svg

opcodes: .venv/made ## docs/opcodes.md: the disk's commands, from the table that dispatches them
	$(BIN)/python docs/opcodes.py

coverage: .venv/made ## branches of scsi/ (98 % at least) and core/ (all) that their unit tests run through
	$(BIN)/python -m coverage run --branch --source=tcmu_retry/scsi,tcmu_retry/core -m pytest -q tests/unit/scsi tests/unit/core
	$(BIN)/python -m coverage report --show-missing --skip-covered --fail-under=98 --include='tcmu_retry/scsi/*'
	$(BIN)/python -m coverage report --show-missing --skip-covered --fail-under=100 --include='tcmu_retry/core/*'

soak: vm-kernel ## what takes longer than a test may, in parts that are run once; writes docs/reliability.md
	dpkg -s $(SOAK_PACKAGES) >/dev/null 2>&1 || $(SUDO) env DEBIAN_FRONTEND=noninteractive \
	  apt-get install -yq --no-install-recommends $(SOAK_PACKAGES)
	$(BIN)/python -m tests.soak.parts $(PARTS)

conformance: vm-kernel ## libiscsi's SCSI tests against our LUN and its peers (half an hour); docs/conformance.md
	$(BIN)/python -m tests.conformance

.PHONY: bench
bench: vm-kernel ## speed against tcmu-runner, LIO and a minimal handler (80 min; PARTS=); docs/performance.md
	dpkg -s valgrind >/dev/null 2>&1 || $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends valgrind
	$(BIN)/python -m bench $(PARTS)

lint: native ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

NATIVE := tcmu_retry/pump/native
PACKAGES += gcc libc6-dev pkg-config python3-dev liburing-dev # what the native pump is built from

.PHONY: native sanitize
native: .venv/made build/packages ## the pump in C, built into the source tree
	@test -d build/native || PATH=$(CURDIR)/$(BIN):$$PATH meson setup build/native -Dnative=enabled
	@PATH=$(CURDIR)/$(BIN):$$PATH meson compile -C build/native | sed '/no work to do\|^INFO:\|^ninja:/d'
	@cmp -s build/native/core.*.so tcmu_retry/pump/native/core.*.so || \
	  for so in build/native/core.*.so; do install -m 644 $$so $(NATIVE)/.new && mv $(NATIVE)/.new $(NATIVE)/$${so##*/}; done

sanitize: native ## ring and pump tests over a native pump with AddressSanitizer and UBSan
	@test -d build/sanitize/meson || PATH=$(CURDIR)/$(BIN):$$PATH meson setup build/sanitize/meson -Dnative=enabled \
	  -Db_sanitize=address,undefined -Db_lundef=false -Dbuildtype=debugoptimized --prefix=/usr
	PATH=$(CURDIR)/$(BIN):$$PATH meson install -C build/sanitize/meson --quiet --destdir $(CURDIR)/build/sanitize/root
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc \
	  PYTHONPATH="$$(dirname $$(find build/sanitize/root -name tcmu_retry)):$(CURDIR)" \
	  $(BIN)/python -P -m pytest tests/unit/pump tests/unit/tcmu/test_ring.py -p no:cacheprovider

DEB_PACKAGES := cython3 debhelper dh-python fakeroot liburing-dev libxml2-utils lintian meson pkg-config \
	pybuild-plugin-pyproject python3-argcomplete python3-dbus-fast python3-dev python3-hypothesis python3-matplotlib \
	python3-mesonpy python3-pip python3-prometheus-client python3-pyroute2 python3-pytest python3-pyudev python3-rich \
	python3-rtslib-fb python3-setuptools python3-wheel resource-agents rpm rpmlint

.PHONY: packages
packages: .venv/made build/packages ## .deb, .rpm, wheel and sdist into build/dist/, each checked (VERSION=: to try an upgrade)
	@dpkg -s $(DEB_PACKAGES) >/dev/null 2>&1 || { $(SUDO) apt-get update -q && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $(DEB_PACKAGES); }
	packaging/build.sh $(BIN)/python $(VERSION)
	$(BIN)/python -m pytest tests/packages -o faulthandler_timeout=0

RACE := build/race
.PHONY: race
race: build/packages ## the native pump's loop with three threads under ThreadSanitizer
	@mkdir -p $(RACE)
	gcc -std=gnu11 -O1 -g -fsanitize=thread -Dmain=kernel_main -c bench/kernel.c -o $(RACE)/kernel.o
	gcc -std=gnu11 -O1 -g -fsanitize=thread -Wall -Wextra -Werror -Wno-tsan -I$(NATIVE) -o $(RACE)/driver \
	  tests/race/driver.c $(wildcard $(NATIVE)/*.c) $(RACE)/kernel.o -luring
	setarch -R $(RACE)/driver $(or $(SECONDS),20)
	setarch -R $(RACE)/driver $(or $(SECONDS),20) writeback

vm-shell: vm-kernel ## a shell in a guest, with the project in it
	$(BIN)/python -m tests.vm.guest

vm-kernel: native build/vm/kernel/made ## Debian's kernel, unpacked into build/

clean: ## remove all that was made
	rm -rf .venv build $(NATIVE)/*.so

.venv/made: pyproject.toml
	$(PYTHON) -m venv .venv || ($(SUDO) apt-get update && $(SUDO) apt-get install -y python3-venv && $(PYTHON) -m venv .venv)
	$(BIN)/python -c 'import tomllib as t; p = t.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*t.load(open("pyproject.toml", "rb"))["build-system"]["requires"], *p["dependencies"], \
	  *sum(p["optional-dependencies"].values(), []), sep="\n")' > .venv/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r .venv/requirements.txt
	pwd > "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')/tcmu-retry.pth"
	touch $@

build/packages: Makefile
	mkdir -p build
	dpkg -s $(PACKAGES) >/dev/null 2>&1 || { $(SUDO) apt-get update -q && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $(PACKAGES); }
	touch $@

build/vm/kernel/made: tests/vm/kernel.sh | build/packages
	tests/vm/kernel.sh build/vm/kernel
	touch $@
