# Two commands matter: `make demo` and `make test`. Each sets up what it needs.
# PYTHON=... uses an existing environment as it is; without it a private one is made in .venv.

ifeq ($(origin PYTHON), undefined)
# The first Python that runs and is new enough.
BASE_PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
PYTHON := .venv/bin/python
READY := .venv/.installed
SCALE_READY := .venv/.installed-scale
else
READY :=
SCALE_READY :=
endif

# The same for the other projects whose files we read and write: PEERS_PYTHON=..., or one is made in .venv-peers.
ifeq ($(origin PEERS_PYTHON), undefined)
PEERS_PYTHON := $(abspath .venv-peers/bin/python)
PEERS_READY := .venv-peers/.installed
else
PEERS_READY :=
endif

export HF_HUB_OFFLINE ?= 1
DEMO_OUT ?= demo

.PHONY: demo demo-fast test test-slow test-browser test-peers test-ray lint format bench docs clean

demo: $(READY)  ## train, measure and draw on the embedded model; writes demo/report.html
	$(PYTHON) -m sparsight demo --out $(DEMO_OUT)

demo-fast: $(READY)  ## the same in under 45 seconds, with smaller dictionaries
	$(PYTHON) -m sparsight demo --out $(DEMO_OUT)-fast --fast

test: $(READY)  ## the fast tests: under 5 minutes on 2 cores
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --dist loadfile

test-slow: $(READY)  ## the slow tests: studies and long runs
	$(PYTHON) -m pytest -m "slow"

test-browser: $(READY)  ## the pages in Chromium (needs the chromium program)
	$(PYTHON) -m pytest -m "browser" tests/browser

test-peers: $(READY) $(PEERS_READY)  ## SAELens, dictionary_learning and sparsify themselves read and write beside us
	PEERS_PYTHON="$(PEERS_PYTHON)" $(PYTHON) -m pytest -m "peers" tests/formats/peers

test-ray: $(SCALE_READY)  ## harvest in several processes, workers killed among them (installs Ray into .venv)
	$(PYTHON) -m pytest -m "ray" tests/activations/test_activation_ray.py

lint: $(READY)  ## formatting, lint, types, import direction, spelling
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "import sys; from importlinter.cli import lint_imports_command; sys.argv = ['lint-imports']; lint_imports_command()"
	$(PYTHON) -m codespell_lib src tests docs examples benchmarks README.md CHANGELOG.md CONTRIBUTING.md

format: $(READY)
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

bench: $(READY) $(PEERS_READY)  ## the training step and sparse coding beside other projects, as ratios in one run
	$(PYTHON) benchmarks/step.py --size S --peers-python "$(PEERS_PYTHON)"
	$(PYTHON) benchmarks/step.py --size M --peers-python "$(PEERS_PYTHON)"
	$(PYTHON) benchmarks/step.py --size L --rounds 3 --seconds 2 --peers-python "$(PEERS_PYTHON)"
	$(PYTHON) benchmarks/step.py --size M --dead 0.5 --rounds 2 --seconds 0.1 --peers-python "$(PEERS_PYTHON)"
	for architecture in batchtopk matryoshka jumprelu relu gated; do $(PYTHON) benchmarks/step.py --size M --rounds 3 \
		--seconds 1 --architecture $$architecture --peers-python "$(PEERS_PYTHON)" || exit 1; done
	peers=$$("$(PEERS_PYTHON)" -c 'import pathlib, sysconfig; print(pathlib.Path(sysconfig.get_path("purelib")).parent)') \
		&& for size in S M; do $(PYTHON) benchmarks/coding.py --size $$size --peers "$$peers" || exit 1; done

docs: $(READY)  ## rewrite the generated pages (docs/commands.md)
	$(PYTHON) -m sparsight.cli.reference docs/commands.md

clean:
	rm -rf .venv .venv-peers demo demo-fast .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(BASE_PYTHON)" || { echo "sparsight needs Python 3.10 or newer, found none; install one, or name it with BASE_PYTHON=..."; exit 1; }
	test -x .venv/bin/python || $(BASE_PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,web]'
	touch $@

.venv/.installed-scale: $(READY)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[scale]'
	touch $@

# torchvision comes with nnsight, which does not import it; built for CUDA, it breaks what does beside a torch for CPUs.
.venv-peers/.installed: tests/formats/peers/requirements.txt $(READY)
	test -x .venv-peers/bin/python || $(or $(BASE_PYTHON),$(PYTHON)) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/formats/peers/requirements.txt
	.venv-peers/bin/python -m pip uninstall --quiet --disable-pip-version-check --yes torchvision
	touch $@
