# Two commands from a fresh clone, each doing all of its own set-up: `make demo` and `make test`.
# PYTHON names the interpreter that the virtual environment is made from, WORKERS the number of
# processes that share the tests.

PYTHON ?= python3
WORKERS ?= 2
PYTEST := bin/pytest --numprocesses $(WORKERS)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
AUDITED := '.[dev,audit]'  # a comma written in `call` would end its argument
LOCKED := requirements/locked.txt
OLDEST := requirements/oldest.txt
COMPILE := .venv/bin/uv pip compile pyproject.toml --universal --quiet \
	--no-header --no-annotate --no-emit-index-url

.PHONY: demo docs test test-slow test-oldest test-newest lint lock format audit coverage mutants clean

demo: $(READY)
	$(BIN)/python examples/digits/demo.py

test: lint
	$(VENV)/$(PYTEST)

test-slow: $(READY)
	$(VENV)/$(PYTEST) -m slow

# The same tests with the oldest versions that pyproject.toml allows, whose own warnings are not
# failures, and with the newest there are.
test-oldest: .venv-oldest/.ready
	.venv-oldest/$(PYTEST) -W default

test-newest: .venv-newest/.ready
	.venv-newest/$(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Lines of `src` that the tests run, those of processes that they start included; 90 % at least.
coverage: .venv-audit/.ready
	.venv-audit/bin/coverage erase
	.venv-audit/bin/coverage run -m pytest
	.venv-audit/bin/coverage combine --quiet
	.venv-audit/bin/coverage report

# Known holes of the locked packages, and patterns of code that are holes often. pip-audit asks
# PyPI, and so needs the network.
audit: .venv-audit/.ready
	.venv-audit/bin/bandit --quiet --recursive --configfile pyproject.toml src
	.venv-audit/bin/pip-audit --requirement $(LOCKED) --no-deps --disable-pip

# Hours: the sources are changed in one place after the other, which some test must notice. MODULE is
# one of algebra, fit, merge (with verify); SAMPLE a number, where not all of its mutants are wanted.
# What was done is kept; start over with `rm mutants/*.sqlite`. The sources are changed in place: use
# a checkout of its own.
MODULE ?= algebra
SAMPLE ?=
MUTANTS := mutants/$(MODULE)
mutants: .venv-audit/.ready
	test -e $(MUTANTS).sqlite || \
		.venv-audit/bin/cosmic-ray init $(MUTANTS).toml $(MUTANTS).sqlite
	.venv-audit/bin/python mutants/sample.py $(MUTANTS).sqlite $(SAMPLE)
	.venv-audit/bin/cosmic-ray exec $(MUTANTS).toml $(MUTANTS).sqlite
	.venv-audit/bin/cr-report --show-diff $(MUTANTS).sqlite > $(MUTANTS).txt
	.venv-audit/bin/cr-rate --fail-over 15 $(MUTANTS).sqlite

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The versions that `make` installs, and the oldest ones, found anew. They may then need a newer
# torch than this machine knows: `make lock CAP=FILE` names a file of constraints.
lock: $(READY)
	.venv/bin/python -m pip install --quiet uv
	$(COMPILE) --all-extras --python-version 3.11 $(if $(CAP),--constraint $(CAP)) \
		--upgrade --output-file $(LOCKED)
	$(COMPILE) --extra test --python-version 3.11 --resolution lowest-direct \
		--upgrade --output-file $(OLDEST)

# Done anew only when the requirements change. The three large packages come in one resolution.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --editable $(1)
	touch $@
endef

$(READY): pyproject.toml $(LOCKED)
	$(call install,'.[dev]' --constraint $(LOCKED))

.venv-oldest/.ready: pyproject.toml $(OLDEST)
	$(call install,'.[test]' --constraint $(OLDEST))

.venv-audit/.ready: pyproject.toml $(LOCKED)
	$(call install,$(AUDITED) --constraint $(LOCKED))

.venv-newest/.ready: pyproject.toml
	$(call install,'.[dev]' --upgrade --upgrade-strategy eager)

# The site, into site/; a broken link is an error.
docs: .venv/.docs
	$(BIN)/python docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

.venv/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[docs]' --constraint $(LOCKED)
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-audit runs/demo site
