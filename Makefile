# Each target does its own set-up in .venv; a second call of a target finds it done.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BRAINMARKS := .venv-brainmarks
CORES ?= $(shell nproc)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help demo smoke test slurm-test soak brainmarks-test lint format bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# torch goes in first, from its own line of constraints.txt: pulled in by another package it would be the CUDA build.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[slurm,test,lint]'
	touch $@

demo: $(VENV)/.installed ## simulate, pretrain, evaluate and draw all five figures in minutes, then check the truths
	snakemake all --cores $(CORES) --configfile config/demo.yaml --show-failed-logs --quiet rules host
	pipeline truths --print results/demo/tables/truths.parquet
	@echo "Open results/demo/report.html"

smoke: $(VENV)/.installed ## the demo with fewer cells, for CI
	snakemake all --cores $(CORES) --configfile config/demo.yaml config/smoke.yaml --show-failed-logs --quiet rules host
	pipeline truths --print results/smoke/tables/truths.parquet

test: $(VENV)/.installed ## every test that needs no cluster
	pytest --numprocesses $(CORES) --dist loadgroup --ignore tests/slurm

# Without root or apt-get nothing is installed, and the tests skip, saying why. They wait more than they compute: eight at
# a time. The list of jobs of Figure 4 is printed at the end.
slurm-test: $(VENV)/.installed ## training on a real SLURM of one node: preempted, killed, out of time (root, Debian)
	@command -v slurmctld > /dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null || { apt-get -q update \
	&& DEBIAN_FRONTEND=noninteractive apt-get -q --yes install --no-install-recommends slurm-wlm munge; }
	pytest tests/slurm --numprocesses 8 --verbose -rP --durations 0

soak: $(VENV)/.installed ## fifty trainings killed while they compute and while they write, each to end bitwise equal
	PYTHONPATH=tests/unit python tests/faults/soak_killed_runs.py

# brainmarks and torch 2.13 ask for different setuptools, so pip cannot have both: an environment that sees the main one
# (a .pth file), with brainmarks and the six packages that its smoke test imports, without their dependencies.
$(BRAINMARKS)/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(BRAINMARKS)
	main=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	own=$$($(BRAINMARKS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	echo "import site; site.addsitedir('$$main')" > $$own/main.pth
	$(BRAINMARKS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps brainmarks==0.1.1 \
	pycortex==1.4.0 templateflow==25.1.2 acres==0.5.0 looseversion==1.3.0 mda-xdrlib==0.2.0 numexpr==2.14.2
	touch $@

brainmarks-test: $(BRAINMARKS)/.installed ## brainmarks' own smoke test on encoders of ours, in an environment of its own
	XDG_CONFIG_HOME=$(CURDIR)/$(BRAINMARKS)/home TEMPLATEFLOW_HOME=$(CURDIR)/$(BRAINMARKS)/templates \
	$(BRAINMARKS)/bin/python -m pytest tests/unit/test_brainmarks.py -rP -k smoke

lint: $(VENV)/.installed ## style, types, layers, workflow
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	snakefmt --check Snakefile workflow
	snakemake --lint --configfile config/demo.yaml

format: $(VENV)/.installed ## rewrite the sources in the house's form
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

bench: $(VENV)/.installed ## speed, as ratios against named references
	for file in benchmarks/bench_*.py; do python $$file || exit 1; done

clean: ## remove results and the environment
	rm -rf results $(VENV) $(BRAINMARKS)
