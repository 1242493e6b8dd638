# make demo   set up, then tune a real built-in job
# make test   set up, then run every test
# make lint   ruff and the type checker
# make docs   the documentation as a site, into site/
# make gpu    what behaves otherwise on a CUDA device, into docs/gpu.md
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEST_READY := $(VENV)/.ready-test
DOCS_READY := $(VENV)/.ready-docs

.PHONY: demo test quick lint docs gpu clean

demo: $(READY)
	$(BIN)/rightbatch tune digits

test: $(TEST_READY)
	$(BIN)/python -m pytest -n 2

quick: $(TEST_READY)
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

# The variable keeps mkdocs-material from advertising its successor.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "built: site/index.html"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rightbatch needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV): everything pinned by constraints.txt, 1.4 GB, half a minute to some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --group dev -e '.[examples]'
	@touch $@

# The trainers and search engines that the integrations are tested with.
$(TEST_READY): $(READY)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[transformers,lightning,optuna,ray]' tensorboard
	@touch $@

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --group docs
	@touch $@

gpu: $(TEST_READY)
	$(BIN)/python benchmarks/devices.py

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis
