# `make demo` and `make test` are all the set-up there is. Each target creates what it lacks; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
JOBS   ?= 2
JB     := $(BIN)/jupyter-book build . -W --keep-going -q
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM = false

.PHONY: help demo test test-slow lint unit notebooks book launch lab student bench results assets clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@echo "== setting up $(VENV) with the pinned packages (a few minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "minprune needs Python 3.11 to 3.13, not $$($(PYTHON) -V): say make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,book]' \
		|| { echo "pip could not install the packages (why: above): check network and package index, then make again"; exit 2; }
	@touch $@

assets: $(STAMP)  ## Fetch the embedded model and texts
	@$(BIN)/python -m minprune.data.assets

demo: $(STAMP)  ## Prune SmolLM2 in five ways and compare them (at most 5 minutes on two cores)
	@$(BIN)/minprune demo

test: lint unit notebooks book  ## Everything that CI runs: lint, unit tests, notebooks, the book
	@echo "== all green"

test-slow: assets  ## What takes too long for `make test`
	@$(BIN)/python -m pytest -m slow -o faulthandler_timeout=3600

lint: $(STAMP)
	@echo "== lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

unit: assets
	@echo "== unit tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n $(JOBS) --dist worksteal

notebooks: assets  ## Run every notebook and compare its outputs with the committed ones
	@echo "== notebooks (nbval)"
	@OMP_NUM_THREADS=1 PYTEST_ADDOPTS="$$PYTEST_ADDOPTS -n $(JOBS) --dist loadfile" \
		$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-sanitize-with notebooks/sanitize.cfg notebooks

book: $(STAMP)  ## Build the book from the executed notebooks, warnings as errors
	@echo "== book"
	@rm -rf _build
	@$(BIN)/python book/timing.py
	@start=$$(date +%s); $(JB) && echo "built in $$(( $$(date +%s) - start )) s; open _build/html/index.html"

launch: $(STAMP)  ## Bring badges, buttons and the cells that install to the repository's address in _config.yml
	@$(BIN)/python book/launch.py

lab: assets student  ## Open the chapters without their solutions in JupyterLab; answers in student/ stay
	@$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/student --LabApp.app_settings_dir=book/lab

student: $(STAMP)  ## Write the notebooks without solutions to student/ (minprune grade gives points)
	@$(BIN)/python -m minprune.course.classroom.student student notebooks/*.ipynb

bench: assets  ## Print the measured ratios: solver, methods, whole pipeline, peak memory, sparse products, tokens a second
	@for name in solver methods pipeline peak_memory kernels decode ranks; do $(BIN)/python benchmarks/$$name.py || exit 1; done

results: assets  ## Fill in what is missing of the measured data that pages quote (hours if all of it is)
	@test -e book/results/intro.json || $(BIN)/python book/results/intro.py
	@test -e book/results/zeros.json || $(BIN)/python benchmarks/zeros.py book/results/zeros.json
	@$(BIN)/python benchmarks/quality.py book/results/one-shot.json
	@$(BIN)/python benchmarks/quality.py book/results/optimum.json --methods sparsegpt admm alps --patterns 50% 60% 70% 2:4
	@$(BIN)/python benchmarks/layers.py book/results/layers.json
	@$(BIN)/python benchmarks/layers.py book/results/layers.json --methods obs --patterns 50%
	@$(BIN)/python benchmarks/allocation.py book/results/allocation.json
	@$(BIN)/python benchmarks/curves.py book/results/sweep.jsonl
	@$(BIN)/python benchmarks/abilities.py book/results/abilities.json
	@$(BIN)/python benchmarks/sizes.py book/results/sizes.json
	@$(BIN)/python benchmarks/depth.py book/results/pipeline.json
	@$(BIN)/python benchmarks/calibration.py book/results/calibration.json
	@$(BIN)/python benchmarks/recipe.py book/results/recipe.json
	@$(BIN)/python benchmarks/lottery.py book/results/lottery.json
	@$(BIN)/python benchmarks/recovery.py book/results/recovery.json
	@$(BIN)/python benchmarks/gradual.py book/results/gradual.json
	@$(BIN)/python benchmarks/activations.py book/results/activations.json
	@$(BIN)/python benchmarks/kernels.py book/results/speed.json
	@$(BIN)/python benchmarks/decode.py book/results/decode.json --rounds 5 --large
	@$(BIN)/python benchmarks/rivals.py book/results/rivals.json --rounds 4
	@$(BIN)/python benchmarks/structured.py book/results/structured.json
	@$(BIN)/python benchmarks/frontier.py book/results/frontier.json
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sentences.py book/results/sentences.json
	@$(BIN)/python benchmarks/quantize.py book/results/quantize.json
	@$(BIN)/python benchmarks/atlas.py book/results/atlas.jsonl
	@$(BIN)/python benchmarks/ranks.py book/results/ranks.json
	@$(BIN)/python benchmarks/precision.py book/results/precision.json
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/plan.py
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/memory.py --output book/results/memory.json

clean:  ## Remove what make and the book made, but neither the assets nor student/, which holds answers
	@rm -rf $(VENV) _build demo-output *.egg-info
