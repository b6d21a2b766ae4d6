# SPDX-License-Identifier: Apache-2.0
# slurm_ch. On a fresh Debian machine, as root: `make demo`, `make test`.

SHELL = /bin/bash
DEFAULT_PYTHON := $(shell sed -n 's/^DEFAULT_PYTHON = "\(.*\)"/\1/p' slurm_ch/agreement.py)
PYTHON ?= $(DEFAULT_PYTHON)
prefix ?= /usr/local
DESTDIR ?=
VENV = .venv
USER_NAME = chuser

PACKAGES = slurmctld slurmd slurm-client libslurm-dev munge squashfs-tools squashfs-tools-ng busybox-static \
    gcc libc6-dev make python3 python3-dev python3-venv util-linux bsdutils cppcheck strace \
    charliecloud-runtime python3-docutils python3-click python3-yaml fuse3 bubblewrap openmpi-bin libopenmpi-dev mpich libmpich-dev libpmix2 parallel \
    libdeflate-dev zlib1g-dev liblzma-dev liblz4-dev libzstd-dev \
    skopeo zstd umoci docker-registry apache2-utils openssl debootstrap git openssh-client

# What `make chaos` needs in addition.
CHAOS_PACKAGES = valgrind clang-14 libclang-rt-14-dev

# What `make bench` needs in addition.
BENCH_PACKAGES = valgrind linux-perf libsquashfuse-dev liblzo2-dev bindfs
BENCH_VENV = .venv-bench

libdir = $(prefix)/lib/slurm_ch

all: build

# Prepare this machine for the tests and the demo: packages, the usual mode of
# /dev/fuse, and an ordinary user.
deps:
	@PACKAGES="$(PACKAGES)" USER_NAME=$(USER_NAME) etc/prepare-machine

# Make .venv/bin/slurm-ch and the plugin work in this checkout.
build: $(VENV)/.built native

$(VENV)/.built: pyproject.toml $(VENV)/.python
	$(VENV)/bin/python -m pip install --quiet --editable '.[test,lint,images]'
	$(VENV)/bin/python -m pip install --quiet --upgrade --no-deps --target $(VENV)/click-oldest 'click==8.1.0'
	touch $@

# Make the virtual environment anew if it was made for another release of Python; this is checked each time.
$(VENV)/.python: FORCE
	@release=$$($(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])') || exit 1; \
	if [ ! -x $(VENV)/bin/python ] || [ ! -d $(VENV)/lib/$$release ]; then \
	    echo "$(VENV): made for $$release"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV) && touch $@; \
	elif [ ! -e $@ ]; then touch -r pyproject.toml $@; fi

FORCE:

# Compile all bytecode here, because the launcher runs as a user who can't write it.
native:
	$(MAKE) --no-print-directory -C spank PYTHON=$(PYTHON)
	$(PYTHON) -B etc/parts.py slurm_ch/native
	$(PYTHON) -m compileall -q slurm_ch
	$(PYTHON) -I -B slurm_ch/plugin/bundle.py

# Run in this checkout, or in a copy if the ordinary user can't read the checkout.
demo test: deps
	@etc/where-user-can $(USER_NAME) $(MAKE) --no-print-directory $@-here

demo-here: build
	@$(VENV)/bin/python -m etc.demo $(USER_NAME)

# The Debian image of some tests, made once; this needs a mirror.
debian-image: build
	@$(VENV)/bin/python -m tests.debian_image > /dev/null

# A test that hangs is interrupted by SIGINT, so that pytest reports where.
test-here: build lint debian-image
	timeout --foreground --signal=INT --kill-after=60 2700 $(VENV)/bin/python -m pytest --side-by-side

# The whole suite on Debian bullseye, bookworm, trixie and forky, each with its own
# Slurm (20.11, 22.05, 24.11, 26.05), then `make docs-test`. Needs root, and a gigabyte per release below build/.
# JOBS=2 tests two releases at a time.
matrix:
	@status=0; $(PYTHON) etc/matrix.py $(if $(JOBS),--jobs=$(JOBS)) $(RELEASES) || status=1; \
	$(if $(RELEASES),$(if $(FRESH),$(PYTHON) -B etc/fresh.py $(FRESH) || status=1;),$(PYTHON) -B etc/fresh.py || status=1;) \
	exit $$status
FRESH = $(filter bookworm trixie,$(RELEASES))

# Build all C for aarch64, and run what qemu-user can run. Needs root, and a gigabyte below build/.
cross:
	@$(PYTHON) etc/cross.py

# Follow the instructions of the README and docs/admins.rst, and install the packages, on fresh Debian bookworm and
# trixie with Debian's own Slurm: install, run a step, upgrade, remove. Needs root, a few minutes and some gigabytes
# below build/. `make test` has the part that takes seconds: tests/install/test_documented.py.
docs-test packages-test:
	@$(PYTHON) -B etc/fresh.py $(if $(filter packages-test,$@),--way deb,--way make --way pip) $(RELEASES)

# Measure everything in one run, with ch-run for comparison; the results go to bench/results/.
bench: PACKAGES += $(BENCH_PACKAGES)
bench: deps build $(BENCH_VENV)/.built
	$(BENCH_VENV)/bin/python -m bench $(BENCH)

$(BENCH_VENV)/.built:
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet matplotlib
	touch $@

# Build the documentation as HTML in build/docs; a warning is an error.
DOCS_PACKAGES = graphviz
docs: PACKAGES += $(DOCS_PACKAGES)
docs: deps build $(VENV)/.docs
	$(VENV)/bin/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

$(VENV)/.docs: pyproject.toml | $(VENV)/.built
	$(VENV)/bin/python -m pip install --quiet --editable '.[docs]'
	touch $@

# Build the man pages in build/man, and the completion for three shells in build/completion.
# rst2man is in python3-docutils. If the checkout's own environment is built, its click is used.
WITH_CLICK = $(if $(wildcard $(VENV)/.built),$(VENV)/bin/python,$(PYTHON))
man: native
	$(WITH_CLICK) docs/man/make_pages.py build/man/source
	@for page in build/man/source/*.rst; do rst2man --halt=2 $$page build/man/$$(basename $$page .rst) || exit 1; done

completion: native
	mkdir -p build/completion
	@for shell in bash zsh fish; do env _SLURM_CH_COMPLETE=$${shell}_source $(WITH_CLICK) etc/completion.py \
	    > build/completion/slurm-ch.$$shell || exit 1; done

# Faults, load, hostile users and images: the long form of tests of which `make test`
# has a short one. The figures go to CHAOS_RESULTS, seeds and findings to the same
# directory; SEED repeats a run.
CHAOS_RESULTS ?= $(CURDIR)/build/chaos.json
SEED ?= $(shell date +%s)
chaos: deps
	@PACKAGES="$(CHAOS_PACKAGES)" USER_NAME=$(USER_NAME) etc/prepare-machine
	@etc/where-user-can $(USER_NAME) $(MAKE) --no-print-directory CHAOS_RESULTS=$(CHAOS_RESULTS) SEED=$(SEED) chaos-here

chaos-here: build
	mkdir -p $(dir $(CHAOS_RESULTS))
	CHAOS=full CHAOS_RESULTS=$(CHAOS_RESULTS) $(VENV)/bin/python -m pytest tests/chaos
	$(MAKE) --no-print-directory hostile-here

hostile-here: build analyze
	@mkdir -p $(dir $(CHAOS_RESULTS))fuzz
	@echo "$$(date -Is) SEED=$(SEED)" | tee -a $(dir $(CHAOS_RESULTS))fuzz/seeds
	tests/fuzz/million $(SEED) $(dir $(CHAOS_RESULTS))fuzz
	CHAOS=full SEED=$(SEED) $(VENV)/bin/python -m pytest --hypothesis-seed=$(SEED) tests/fuzz tests/unit/test_fuzz.py \
	    tests/join/test_join_hostile.py tests/join/test_deaths.py tests/images/test_merge.py tests/engine/test_hostile_images.py tests/engine/test_escape.py \
	    tests/native/test_serving.py tests/native/test_reader.py

# Ten million hostile images for the SquashFS reader: half an hour on two cores.
FUZZ_CASES ?= 10000000
fuzz: deps
	@PACKAGES="$(CHAOS_PACKAGES)" USER_NAME=$(USER_NAME) etc/prepare-machine
	@mkdir -p $(dir $(CHAOS_RESULTS))fuzz
	tests/fuzz/squashfs $(SEED) $(FUZZ_CASES) $(dir $(CHAOS_RESULTS))fuzz

# Without leaks, which the sanitizers find: here, memory that is kept in a table looks like one.
analyze: native
	@for source in spank/*/*.c; do echo "gcc -fanalyzer $$source"; gcc -std=gnu11 -O1 -Wall -Wextra -Werror -fanalyzer \
	    -Wno-analyzer-malloc-leak -c -o /dev/null $$source || exit 1; done

lint: $(VENV)/.built
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	cppcheck --quiet --enable=warning,portability --inline-suppr --error-exitcode=1 \
	    --suppress=missingIncludeSystem --suppress=normalCheckLevelMaxBranches spank

# ---- Installing: docs/admins.rst ----

# The Python packages that the command needs (click; PyYAML and posix_ipc for some features) come from the
# distribution. Or WHEELS=DIR takes them from a directory of wheels, and WHEELS=pypi from PyPI, both checked
# against the hashes in etc/requirements.txt. Nothing else is ever fetched.
WHEELS ?=
WHEELS_FROM = $(if $(filter pypi,$(WHEELS)),,--no-index --find-links $(abspath $(WHEELS)))

FOLDERS = $(patsubst %/__init__.py,%,$(wildcard slurm_ch/__init__.py slurm_ch/*/__init__.py))
SCRIPT = sed -e 's|@LIBDIR@|$(libdir)|g; s|@PREFIX@|$(prefix)|g; s|@PYTHON@|$(PYTHON)|g' \
    -e 's|@OTHER_PYTHON@|$(if $(filter $(DEFAULT_PYTHON),$(PYTHON)),, python=$(PYTHON))|g' -e
# The new version is installed beside the old one, and replaces it at the end: so no file of an older version stays,
# and no program or library is overwritten while it runs.
NEW = $(DESTDIR)$(libdir).new
# The static program, which is also the command: links to it have the command's names.
COMMAND = $(DESTDIR)$(libdir)/slurm_ch/native/ch-join
SHARE = $(DESTDIR)$(prefix)/share

# The administrator's umask must not matter, because the users of the cluster run these files.
install: native
	@umask 022 && $(MAKE) --no-print-directory install-files $(if $(CH_RUN),install-ch-run)

install-files: install-needed
	rm -rf $(NEW)
	install -d $(NEW)/slurm_ch/native $(DESTDIR)$(prefix)/bin $(DESTDIR)$(prefix)/lib/slurm $(SHARE)/slurm_ch
	for folder in $(FOLDERS); do install -d $(NEW)/$$folder && install -m 644 $$folder/*.py $(NEW)/$$folder || exit 1; done
	test ! -e slurm_ch/py.typed || install -m 644 slurm_ch/py.typed $(NEW)/slurm_ch
	install -m 755 slurm_ch/native/* $(NEW)/slurm_ch/native
	echo $(PYTHON) > $(NEW)/slurm_ch/native/interpreter
	chmod 644 $(NEW)/slurm_ch/native/parts.json $(NEW)/slurm_ch/native/interpreter
	test ! -d build/vendor || cp -r build/vendor $(NEW)/vendor
	$(PYTHON) -m compileall -q -s $(NEW) -p $(libdir) $(NEW)
	$(PYTHON) -I -B $(NEW)/slurm_ch/plugin/bundle.py
	chmod -R u=rwX,go=rX $(NEW)
	if [ -e $(DESTDIR)$(libdir) ]; then mv -T $(DESTDIR)$(libdir) $(NEW).old; fi
	mv -T $(NEW) $(DESTDIR)$(libdir)
	rm -rf $(NEW).old
	ln -srf $(COMMAND) $(DESTDIR)$(prefix)/bin/slurm-ch
	ln -sf $(libdir)/slurm_ch/native/slurm_ch.so $(DESTDIR)$(prefix)/lib/slurm/slurm_ch.so
	for file in plugstack.conf profile.sh modulefile; do $(SCRIPT) '' etc/$$file.in > $(SHARE)/slurm_ch/$$file && \
	    chmod 644 $(SHARE)/slurm_ch/$$file || exit 1; done
	install -m 755 etc/task-prolog $(SHARE)/slurm_ch
	install -Dm 644 build/completion/slurm-ch.bash $(SHARE)/bash-completion/completions/slurm-ch
	install -Dm 644 build/completion/slurm-ch.zsh $(SHARE)/zsh/site-functions/_slurm-ch
	install -Dm 644 build/completion/slurm-ch.fish $(SHARE)/fish/vendor_completions.d/slurm-ch.fish
	for page in build/man/*.[1-8]; do test ! -e $$page || install -Dm 644 $$page $(SHARE)/man/man$${page##*.}/$${page##*/} || exit 1; done

# Fail if a required package is missing; report optional ones and go on.
install-needed:
	@rm -rf build/vendor build/man build/completion
	@if [ -n "$(WHEELS)" ]; then \
	    test -x build/pip/bin/python || $(PYTHON) -m venv build/pip && \
	    build/pip/bin/python -m pip install --quiet --require-hashes --no-deps --only-binary :all: $(WHEELS_FROM) \
	        --target build/vendor -r etc/requirements.txt || \
	    { echo "make install: WHEELS=$(WHEELS) does not give what etc/requirements.txt lists" >&2; exit 1; }; \
	elif ! $(PYTHON) -I -c 'import click' 2> /dev/null; then \
	    echo "make install: $(PYTHON) has no click: install python3-click, or say WHEELS=DIR or WHEELS=pypi (docs/admins.rst)" >&2; \
	    exit 1; \
	else \
	    $(PYTHON) -I -c 'import posix_ipc' 2> /dev/null || echo "without posix_ipc: no joins (slurm-ch run --join) where a policy forbids abstract sockets"; \
	    $(PYTHON) -I -c 'import yaml' 2> /dev/null || echo "without PyYAML: device files (CDI) must be JSON"; \
	fi
	@$(MAKE) --no-print-directory completion WITH_CLICK="$(INSTALLED_CLICK)"
	@if type rst2man > /dev/null 2>&1; then $(MAKE) --no-print-directory man WITH_CLICK="$(INSTALLED_CLICK)"; \
	else echo "without rst2man (python3-docutils): no man pages"; fi

INSTALLED_CLICK = env PYTHONPATH=$(CURDIR)/build/vendor $(PYTHON)

# With `make install CH_RUN=1`: install the command as ch-run too, for scripts that call Charliecloud's.
install-ch-run:
	install -d $(DESTDIR)$(prefix)/bin
	ln -srf $(COMMAND) $(DESTDIR)$(prefix)/bin/ch-run

# Refuse while plugstack.conf still has a line for the plugin: every srun fails if a required plugin is missing. Keep
# a ch-run that isn't ours.
uninstall:
	@$(if $(DESTDIR),:,$(PYTHON) -B etc/still-configured.py $(libdir) $(prefix)/lib/slurm/slurm_ch.so)
	test ! $(DESTDIR)$(prefix)/bin/ch-run -ef $(COMMAND) || rm -f $(DESTDIR)$(prefix)/bin/ch-run
	rm -rf $(DESTDIR)$(libdir) $(SHARE)/slurm_ch
	rm -f $(DESTDIR)$(prefix)/bin/slurm-ch $(DESTDIR)$(prefix)/lib/slurm/slurm_ch.so
	rm -f $(SHARE)/bash-completion/completions/slurm-ch $(SHARE)/zsh/site-functions/_slurm-ch \
	    $(SHARE)/fish/vendor_completions.d/slurm-ch.fish $(SHARE)/man/man1/slurm-ch.1 $(SHARE)/man/man1/slurm-ch-*.1 \
	    $(SHARE)/man/man8/slurm_ch.8 $(SHARE)/man/man5/slurm_ch-plugstack.conf.5

# ---- Packages, in build/packages; nothing is fetched ----

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' slurm_ch/__init__.py)
COMMIT ?= $(shell git -c safe.directory=$(CURDIR) rev-parse --short=10 HEAD 2> /dev/null)
# The files that git knows; without git, all files but those that were built.
SOURCES = { git -c safe.directory=$(CURDIR) ls-files -z 2> /dev/null || \
    find . \( -name build -o -name '.?*' -o -name __pycache__ -o -path ./slurm_ch/native \) -prune -o -type f -printf '%P\0'; }
DEB_ARCH ?=
DEB_DIR = build/deb/slurm-ch-$(VERSION)

deb:
	rm -rf build/deb && mkdir -p $(DEB_DIR) build/packages
	$(SOURCES) | tar --null -cf - -T - | tar -xf - -C $(DEB_DIR)
	cp -r etc/packages/debian $(DEB_DIR)/debian
	cd $(DEB_DIR) && COMMIT=$(COMMIT) dpkg-buildpackage -us -uc -b $(if $(DEB_ARCH),-a$(DEB_ARCH) -Pcross) > ../build.log 2>&1 || \
	    { tail -n 30 ../build.log >&2; exit 1; }
	mv build/deb/*.deb build/packages

# On Debian, rpm doesn't know the packages that the build needs: hence RPM_FLAGS=--nodeps.
SLURM_NUMBER = $(shell printf '\043include <slurm/slurm.h>\nfound SLURM_VERSION_NUMBER\n' | cpp -P | sed -n 's/^found //p')
RPM_FLAGS ?= $(if $(wildcard /etc/debian_version),--nodeps)
rpm:
	rm -rf build/rpm && mkdir -p build/rpm/SOURCES build/rpm/slurm-ch-$(VERSION) build/packages
	$(SOURCES) | tar --null -cf - -T - | tar -xf - -C build/rpm/slurm-ch-$(VERSION)
	tar -C build/rpm -czf build/rpm/SOURCES/slurm-ch-$(VERSION).tar.gz slurm-ch-$(VERSION)
	rpmbuild -bb $(RPM_FLAGS) --define '_topdir $(CURDIR)/build/rpm' --define 'slurm_ch_version $(VERSION)' \
	    --define 'slurm_ch_commit $(or $(COMMIT),unknown)' --define '_buildhost reproducible' \
	    --define "slurm_release $$(printf %d.%02d $$(($(SLURM_NUMBER) >> 16)) $$(($(SLURM_NUMBER) >> 8 & 255)))" \
	    --define "slurm_next $$(printf %d.%02d $$(($(SLURM_NUMBER) >> 16)) $$((($(SLURM_NUMBER) >> 8 & 255) + 1)))" \
	    --define 'use_source_date_epoch_as_buildtime 1' --define 'source_date_epoch_from_changelog 1' \
	    --define 'clamp_mtime_to_source_date_epoch 1' etc/packages/slurm-ch.spec \
	    > build/rpm/build.log 2>&1 || { tail -n 30 build/rpm/build.log >&2; exit 1; }
	mv build/rpm/RPMS/*/*.rpm build/packages

clean:
	$(MAKE) --no-print-directory -C spank clean
	rm -rf $(VENV) $(BENCH_VENV) build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: FORCE all bench analyze completion cross deb debian-image deps docs docs-test packages-test fuzz build native demo rpm test \
    demo-here test-here chaos chaos-here hostile-here matrix lint man install \
    install-ch-run install-files install-needed uninstall clean
