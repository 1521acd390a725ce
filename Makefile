# make help tells what there is. All that is made lands in .build, in this checkout.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

BUILD := $(CURDIR)/.build
VENV_PYTHON := .build/venv/bin/python
SETUP := $(or $(PYTHON),python3) tests/tools/setup.py

# What the programs below tests/ find in their environment. Bytecode is kept, outside of the checkout's folders, wherever a user
# wants none: without it each start of Ansible takes seconds.
RUN = env -u PYTHONDONTWRITEBYTECODE \
	ANSIBLE_COLLECTIONS_PATH="$(BUILD)/collections" \
	PYTHONPATH="$(BUILD)/collections" \
	PYTHONPYCACHEPREFIX="$(BUILD)/cache/python" \
	PATH="$(BUILD)/venv/bin:$$PATH" \
	$(VENV_PYTHON)

LEGS := lint types unit kernel integration integration-oldest sanity docs importer

.PHONY: help test $(LEGS) demo demo-clean bench farm format requirements clean setup-demo setup-test

help: ## this list
	@echo "make TARGET [PYTHON=/path/to/python3] [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

test: setup-test ## every check below, then a table and the counts (needs root for kernel and integration)
	@$(SETUP) importer oldest
	@$(RUN) tests/tools/check.py $(LEGS)

lint: ## ruff, yamllint, ansible-lint, shellcheck, the changelog, and building and installing the collection
types: ## mypy for Python 3.9
unit: ## pytest tests/unit
kernel: ## pytest tests/kernel: real file systems, needs root
integration: ## ansible-test integration; needs root
integration-oldest: ## the same on the oldest ansible-core that is supported
sanity: ## ansible-test sanity
docs: ## the modules' and roles' documentation, without a warning; HTML in .build/docs/html
importer: ## what Galaxy checks on an upload

integration-oldest: setup-oldest
importer: setup-importer

$(LEGS): setup-test
	@$(RUN) tests/tools/check.py $@ $(if $(ARGS),-- $(ARGS))

demo: SCRIPT := tests/demo/run
demo-clean: SCRIPT := tests/demo/clean
bench: SCRIPT := tests/bench/run
farm: SCRIPT := tests/farm/run

demo: setup-demo ## deploy a small software root on this machine and show the view
demo-clean: setup-demo ## take the demo down
bench: setup-test ## how fast a layer is built; prints a table
farm: setup-test ## a real NFS server and several kernels

demo demo-clean bench farm:
	@test -f $(SCRIPT) || { echo "make $@: there is no $(SCRIPT) in this version" >&2; exit 1; }
	@exec $(RUN) $(SCRIPT) $(ARGS)

format: setup-test ## bring the Python code into the form that lint wants
	-@$(RUN) -m ruff check --fix-only --quiet .
	@$(RUN) -m ruff format --quiet .

requirements: ## bring the pinned versions in tests/requirements up to date
	@$(SETUP) requirements
	@cd tests/requirements && for name in demo software test oldest importer; do \
		"$(BUILD)/venv-requirements/bin/uv" pip compile --quiet --upgrade --universal --python-version 3.10 \
			--no-header --no-annotate "$$name.in" --output-file "$$name.txt" || exit 1; \
	done

setup-demo:
	@$(SETUP) demo software

setup-test:
	@$(SETUP) demo test
	@$(or $(PYTHON),python3) tests/tools/images.py

setup-oldest setup-importer: setup-%:
	@$(SETUP) $*

clean: ## remove .build
	@if grep -qsF "$(BUILD)/" /proc/self/mounts; then \
		echo "make clean: something is mounted below $(BUILD): make demo-clean first" >&2; exit 1; fi
	rm -rf .build
