# make help lists the targets. All output goes to .build in this checkout.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

BUILD := $(CURDIR)/.build
VENV_PYTHON := .build/venv/bin/python
SETUP := $(or $(PYTHON),python3) tests/tools/setup.py

# The environment of the programs below tests/. Bytecode is kept below .build even for users who disable it, because without it
# each start of Ansible takes seconds.
RUN = env -u PYTHONDONTWRITEBYTECODE \
	ANSIBLE_COLLECTIONS_PATH="$(BUILD)/collections" \
	PYTHONPATH="$(BUILD)/collections" \
	PYTHONPYCACHEPREFIX="$(BUILD)/cache/python" \
	PATH="$(BUILD)/venv/bin:$$PATH" \
	$(VENV_PYTHON)

LEGS := lint types unit kernel awx layouts integration integration-oldest sanity docs importer

.PHONY: help test $(LEGS) eda demo demo-clean bench farm farm-detaching farm-patched farm-resolve farm-starts farm-verity farm-volumes \
	metrics page unionmount fuzz format requirements clean setup-demo setup-test setup-all

help: ## list the targets
	@echo "make TARGET [PYTHON=/path/to/python3] [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

test: setup-all ## run every check below, then print a table and the counts (kernel and integration need root)
	@$(RUN) tests/tools/check.py $(LEGS)

lint: ## run ruff, yamllint, ansible-lint, antsibull-changelog and shellcheck; build and install the collection
types: ## run mypy for Python 3.9
unit: ## run pytest tests/unit
kernel: ## run pytest tests/kernel on real file systems; needs root
layouts: ## deploy views of software that rez, conda, Spack and pip laid out; needs root
awx: ## test examples/awx: configure AWX, and run its jobs in ansible-runner; needs root
integration: ## run ansible-test integration; needs root
integration-oldest: ## do the same with the oldest supported ansible-core
sanity: ## run ansible-test sanity
docs: ## build the documentation of modules and roles without warnings; HTML in .build/docs/html
importer: ## run the checks of Galaxy's importer

integration-oldest: setup-oldest
importer: setup-importer

$(LEGS): setup-test
	@$(RUN) tests/tools/check.py $@ $(if $(ARGS),-- $(ARGS))

eda: setup-test ## test the rulebook in ansible-rulebook; needs root and Java
	@$(SETUP) eda
	@$(RUN) tests/tools/check.py $@ $(if $(ARGS),-- $(ARGS))

demo: SCRIPT := tests/demo/run
demo-clean: SCRIPT := tests/demo/clean
bench: SCRIPT := tests/bench/run
farm: SCRIPT := tests/farm/run
metrics: SCRIPT := tests/metrics/run
page: SCRIPT := tests/page/run
unionmount: SCRIPT := tests/unionmount/run
fuzz: SCRIPT := tests/fuzz/run

demo: setup-demo ## create a small software root on this machine, deploy a view of it, and say how to look at it
demo-clean: setup-demo ## remove the demo
bench: setup-test ## measure building, switching, finalizing and removing; print tables
farm: setup-test ## test on virtual machines: a real NFS server and several kernels
metrics: setup-test ## have node_exporter and Prometheus read metrics; test alert rules and the dashboard
farm-resolve: ARGS := test -s tests/farm/test_resolve.py
farm-resolve: farm ## count the NFS calls of a resolve with rez on the farm
farm-patched: ARGS := test -s tests/farm/test_patched.py
farm-patched: farm ## test finalizing on a kernel that seals directories itself: overlayfs is patched and built
farm-volumes: ARGS := test -s tests/farm/test_volumes.py
farm-volumes: farm ## test a view over twelve exports behind an automounter on the farm, and count its NFS calls
farm-verity: ARGS := test -s tests/farm/test_verity.py
farm-verity: farm ## damage images that have fs-verity on the farm, below their file system
farm-detaching: ARGS := test -s tests/farm/test_detaching.py
farm-detaching: farm ## detach a view on the farm 50 times under a reader
farm-starts: ARGS := --write starts
farm-starts: farm ## measure starts of software on the farm, and detach a view 50 times; takes hours
page: setup-test ## open the page of a report in headless Chromium; keep pages and pictures in .build/page
unionmount: setup-test ## run unionmount-testsuite, ARGS=DIRECTORY, on finalized and on detached overlays; needs root
fuzz: setup-test setup-fuzz ## give readers of outside data the inputs of a coverage-guided fuzzer; ARGS='--seconds 300 TARGET'

demo demo-clean bench farm metrics page unionmount fuzz:
	@test -f $(SCRIPT) || { echo "make $@: $(SCRIPT) is missing in this version" >&2; exit 1; }
	@exec $(RUN) $(SCRIPT) $(ARGS)

format: setup-test ## format the Python code for lint
	-@$(RUN) -m ruff check --fix-only --quiet .
	@$(RUN) -m ruff format --quiet .

requirements: ## update the pinned versions in tests/requirements
	@$(SETUP) requirements
	@cd tests/requirements && for name in demo software test oldest importer rez conda eda awx fuzz; do \
		"$(BUILD)/venv-requirements/bin/uv" pip compile --quiet --upgrade --universal --python-version 3.10 \
			--no-header --no-annotate "$$name.in" --output-file "$$name.txt" || exit 1; \
	done

setup-demo:
	@$(SETUP) demo software

setup-test setup-all:
	@$(SETUP) demo test rez conda awx $(if $(filter setup-all,$@),importer oldest)
	@$(or $(PYTHON),python3) tests/tools/images.py
	@$(or $(PYTHON),python3) tests/tools/awx_collection.py

setup-oldest setup-importer setup-fuzz: setup-%:
	@$(SETUP) $*

clean: ## remove .build
	@if grep -qsF "$(BUILD)/" /proc/self/mounts; then \
		echo "make clean: there are mounts below $(BUILD): run make demo-clean first" >&2; exit 1; fi
	rm -rf .build
