# `make help` lists what there is. Everything installs into .venv and .venv-*; nothing else on
# the machine changes, except that what runs tests or the bench installs a few Debian packages when
# they are missing (tests/system-packages; test-appliance: tests/appliance/system-packages), and that
# test-appliance keeps its images in ~/.cache/edge-app and for ARCH=arm64 registers QEMU in binfmt_misc.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
# The first Python that is new enough; override with `make PYTHON=python3.13 ...`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
SOURCES := pyproject.toml edge_app/__init__.py
# pip says everything or nothing; this shows that it is getting on.
PIP_INSTALL = $(BIN)/pip install --disable-pip-version-check --progress-bar off
PROGRESS := awk '/^ *Collecting/ {printf " %s", $$2; fflush()} \
	/^Installing collected/ {printf "\n unpacking ...\n"; fflush()}'

.PHONY: help
help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | \
		while IFS=$$'\t' read -r name text; do printf '  make %-22s %s\n' "$$name" "$$text"; done

.PHONY: run
run: $(VENV)/.demo ## see it work: the appliance on sample photos, with a broker of its own
	@$(BIN)/edge-app demo $(ARGS)

.PHONY: setup
setup: $(VENV)/.dev ## install everything for development into .venv

.PHONY: test
test: $(VENV)/.dev system-packages ## run the tests
	@$(BIN)/pytest $(ARGS)
	@$(MAKE) --no-print-directory test-tflite

.PHONY: soak
soak: $(VENV)/.dev system-packages ## a thousand faults, restarts of a child, 100 times kill -9 (an hour)
	@SOAK_FAULTS=1000 SOAK_RESTARTS=1000 $(BIN)/pytest -s --timeout 1200 \
		tests/integration/test_accelerator.py tests/contract/test_engine_child.py \
		tests/integration/test_spool_outages.py -k "soak or leaks or kill_9" $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.dev ## throw 5,000 batches of messages at the commands (minutes); FUZZ=N for more
	@FUZZ_EXAMPLES=$(or $(FUZZ),5000) $(BIN)/pytest --timeout=0 tests/unit/test_commands.py \
		-k nothing_that_arrives $(ARGS)

.PHONY: test-hw
test-hw: $(VENV)/.dev ## the Edge TPU's tests on a real Coral; MODEL=PATH of a compiled model
	@EDGETPU_HARDWARE=1 EDGETPU_MODEL=$(MODEL) $(BIN)/pytest tests/integration/test_edgetpu.py $(ARGS)

.PHONY: test-appliance
test-appliance: $(VENV)/.dev .venv-ansible/.ready system-packages ## a whole machine, in QEMU (as root); ARCH=arm64 emulates a Pi's
	@if tests/appliance/system-packages $(ARCH); then \
		$(BIN)/python -m tests.appliance.image $(ARCH) && APPLIANCE_ARCH=$(ARCH) $(BIN)/pytest tests/appliance --timeout=3600 $(ARGS); \
	else [ $$? -eq 3 ]; fi

# Home Assistant for Python 3.13; see tests/homeassistant/requirements.in.
PYTHON313 ?= $(shell for p in python3.13 python3 $(HOME)/.pyenv/versions/3.13.*/bin/python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null && echo "$$p" && break; done)
.PHONY: test-homeassistant
test-homeassistant: $(VENV)/.dev system-packages ## a real Home Assistant finds and commands it (Python 3.13)
ifeq ($(PYTHON313),)
	@echo "test-homeassistant: needs Python 3.13, and found none; try PYTHON313=/path/to/python3.13" >&2
	@exit 1
else
	@$(MAKE) --no-print-directory .venv-homeassistant/.ready
	@HOMEASSISTANT_PYTHON=$(CURDIR)/.venv-homeassistant/bin/python \
		$(BIN)/pytest tests/homeassistant --timeout=600 $(ARGS)
endif

# No compiler is needed. It asks for Python 3.13.2, and does with 3.13.0.
.venv-homeassistant/.ready: tests/homeassistant/requirements.txt
	@echo "installing Home Assistant into .venv-homeassistant (a minute, 800 MB) ..."
	@$(PYTHON313) -m venv .venv-homeassistant
	@.venv-homeassistant/bin/pip install --disable-pip-version-check --progress-bar off \
		--no-compile --no-deps --ignore-requires-python -r $< | $(PROGRESS) || \
		{ echo "test-homeassistant: Home Assistant cannot be installed here; pip says why, above" >&2; exit 1; }
	@touch $@

.PHONY: check
check: $(VENV)/.dev ## lint, format, types, and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --no-logo
	@echo "check: all fine"

.PHONY: docs
docs: $(VENV)/.dev ## write the tables of docs/mqtt.md anew from the records they describe
	@$(BIN)/python -m tests.mqtt_tables

.PHONY: bench
bench: $(VENV)/.dev system-packages ## measure this machine; ARGS=--json for programs
	@$(BIN)/edge-app bench $(ARGS)

.PHONY: wheel
wheel: $(VENV)/.dev ## build dist/edge_app-*.whl
	@$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	@ls -l dist/*.whl

.PHONY: models
models: $(VENV)/.dev ## rebuild the default model and compare it with the committed one
	@$(BIN)/python -m edge_app.models.builder build

.PHONY: calibrate
calibrate: $(VENV)/.dev ## find the quantisation parameters again from photos (minutes)
	@$(BIN)/python -m edge_app.models.builder calibrate

.PHONY: evaluate
evaluate: $(VENV)/.dev ## measure how well the int8 model follows the float network (minutes)
	@$(BIN)/python -m edge_app.models.builder evaluate

# The engine's contract on the second runtime, where its wheels exist (Python 3.11 and older).
PYTHON311 ?= $(shell for p in python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo "$$p" && break; done)
.PHONY: test-tflite
test-tflite: ## engine and Edge TPU on tflite_runtime (needs Python 3.11)
ifeq ($(PYTHON311),)
	@echo "test-tflite: SKIPPED, no Python 3.11 here: tflite_runtime has no wheel for another"
else
	@$(MAKE) --no-print-directory .venv-tflite/.ready
	@.venv-tflite/bin/pytest tests/contract/test_engine.py tests/integration/test_standin.py \
		-k tflite
endif

.venv-tflite/.ready: pyproject.toml
	@echo "installing tflite_runtime into .venv-tflite ..."
	@$(PYTHON311) -m venv .venv-tflite
	@.venv-tflite/bin/pip install --disable-pip-version-check --progress-bar off -e '.[tflite]' \
		'opencv-python-headless<4.12' pytest pytest-timeout hypothesis | $(PROGRESS)
	@touch $@

.PHONY: system-packages
system-packages:
	@tests/system-packages

.PHONY: lock
lock: $(VENV)/.dev ## pin every run-time dependency by hash, for the platforms we install on
	@PATH="$(CURDIR)/$(BIN):$$PATH" python provisioning/lock.py

.PHONY: lock-homeassistant
lock-homeassistant: $(VENV)/.dev ## pin what test-homeassistant installs
	@cd tests/homeassistant && $(CURDIR)/$(BIN)/uv pip compile requirements.in --quiet --upgrade \
		--override overrides.in --python-version 3.13.2 --no-header \
		--no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements.txt

# The playbooks' own environment: Ansible stays out of the appliance's.
.PHONY: provisioning
provisioning: .venv-ansible/.ready ## install Ansible into .venv-ansible (docs/deploy.md)

.PHONY: check-provisioning
check-provisioning: .venv-ansible/.lint ## lint the playbooks at ansible-lint's production profile
	@cd provisioning && PATH="$(CURDIR)/.venv-ansible/bin:$$PATH" \
		ANSIBLE_INVENTORY=inventory.example.yml ansible-lint -q --strict
	@echo "check-provisioning: all fine"

INTO_ANSIBLE = .venv-ansible/bin/pip install --disable-pip-version-check --progress-bar off
.venv-ansible/.ready: provisioning/controller.txt
	@echo "installing Ansible into .venv-ansible (once) ..."
	@$(PYTHON) -m venv .venv-ansible
	@$(INTO_ANSIBLE) -r provisioning/controller.txt | $(PROGRESS)
	@touch $@

.venv-ansible/.lint: provisioning/lint.txt .venv-ansible/.ready
	@echo "installing ansible-lint into .venv-ansible (once) ..."
	@$(INTO_ANSIBLE) -r provisioning/controller.txt -r provisioning/lint.txt | $(PROGRESS)
	@touch $@

.PHONY: bundle
bundle: $(VENV)/.dev ## everything a site without internet needs, in dist/bundle (docs/deploy.md)
	@rm -f dist/edge_app-*.whl
	@$(MAKE) --no-print-directory wheel >/dev/null
	@$(BIN)/python provisioning/bundle.py $(ARGS)

.PHONY: clean
clean: ## remove what was built, the virtual environments included
	rm -rf .venv .venv-ansible .venv-tflite .venv-homeassistant dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found." >&2; exit 1; }
	@echo "creating $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "hint: apt install python3-venv" >&2; exit 1; }

$(VENV)/.demo: $(SOURCES) | $(VENV)/bin/python
	@echo "installing edge-app and the demo's broker (once; about a minute) ..."
	@$(PIP_INSTALL) -e '.[demo]' | $(PROGRESS)
	@touch $@

$(VENV)/.dev: $(SOURCES) | $(VENV)/bin/python
	@echo "installing edge-app and the development tools (once; about a minute) ..."
	@$(PIP_INSTALL) -e '.[dev]' | $(PROGRESS)
	@touch $@ $(VENV)/.demo
