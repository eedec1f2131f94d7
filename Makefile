# Everything a developer types. `make help` lists it.
PYTHON  ?= python3.11
VENV    ?= .venv
UV      := .tool/bin/uv
PY      := $(VENV)/bin/python
LOCK    := requirements/cpu-3.11.txt
# The CPU build of torch: from pip's configured find-links where such a wheel lies there, else from PyTorch's CPU index.
LINKS   := $(firstword $(PIP_FIND_LINKS) $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
TORCH   := $(if $(wildcard $(LINKS)/torch-*+cpu-*.whl),--find-links "$(LINKS)",--torch-backend cpu)
export PYTHONPATH := $(CURDIR)/platform

.DEFAULT_GOAL := help
.PHONY: help setup demo quickstart results-quickstart results-wiki wiki-small test test-slow test-cluster test-faults lint lock docs bench bench-rank bench-scaling \
  bench-align bench-sample bench-driver bench-reading bench-efficiency bench-gpu bench-serve serve monitor package cluster-up cluster-down clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

setup: $(VENV)/.ready  ## virtual environment, pinned packages (JDK and language model are packages too)

$(UV):
	@$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11)' || { echo "aqe needs Python 3.11: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "First set-up: 1.6 GB of packages to fetch, 4 GB of disk below this directory, 2 minutes with a fast network."
	@echo "The demo after it: 8 GB of memory, 2 GB of disk, about 13 minutes on two cores."
	@$(PYTHON) -m venv .tool
	@.tool/bin/pip install -q --no-warn-script-location uv==0.13.9

$(VENV)/.ready: $(LOCK) $(UV)
	@$(UV) venv -q --allow-existing --python $(PYTHON) $(VENV)
	@$(UV) pip sync -q --python $(PY) $(TORCH) $(LOCK)
	@$(PY) -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@

demo: setup  ## the whole loop at small counts (13 minutes on 2 cores, 8 GB of memory)
	@$(PY) -m cluster.local.submit --config demo

quickstart: setup  ## the whole loop with counts large enough for a result (some 90 minutes on 2 cores); resumes
	@$(PY) -m cluster.local.submit --config quickstart

results-quickstart: setup  ## the quickstart with every control and three seeds, and its table (hours; see docs/results.md)
	@$(PY) -m cluster.local.submit --config results_quickstart
	@$(PY) -m aqe.report.results runs/results_quickstart/report docs/results/quickstart.json
	@$(PY) benchmarks/weight_one.py

results-wiki: setup  ## the same on Wikipedia passages that lie in ../shared/data/wiki (hours; see docs/results.md)
	@$(PY) -m cluster.local.submit --config wiki
	@$(PY) -m aqe.report.results runs/wiki/report docs/results/wiki.json

wiki-small: setup  ## the recipe on Wikipedia passages that lie in ../shared/data/wiki
	@$(PY) -m cluster.local.submit --config wiki_small

test: setup  ## the tests
	@$(PY) -m pytest -q -m "not slow and not faults" --durations=30 --durations-min=10

test-slow: setup  ## the longer tests
	@$(PY) -m pytest -q -m slow

test-cluster: setup  ## the tests on several Ray nodes, with those that are too long for `make test`: a whole pipeline, autoscaling (15 minutes)
	@$(PY) -m pytest -q -m "not faults" tests/cluster/test_nodes.py tests/cluster/test_autoscaler.py tests/cluster/test_monitoring.py tests/align/test_training.py

test-faults: setup  ## nodes, runs and disks that fail while real work runs (30 minutes on 2 cores, 10 GB of memory)
	@$(PY) -m pytest -q -s -m faults tests/faults

lint: setup  ## ruff and mypy
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy platform/aqe jobs serve cluster tests

bench: setup  ## generation against Hugging Face's own
	@$(PY) benchmarks/generation.py

bench-rank: setup  ## exact gold ranks against Pyserini, Lucene and bm25s (after make quickstart, make wiki-small)
	@$(PY) benchmarks/gold_rank.py

bench-sample: setup  ## the sampling stage against bare vLLM (20 minutes on 2 cores; after make quickstart)
	@$(PY) benchmarks/sample.py

bench-align: setup  ## RSFT and DPO against TRL as it comes (an hour on 2 cores; after make quickstart)
	@$(PY) benchmarks/align.py

bench-scaling: setup  ## ranking, sampling and dispatch on one and two nodes (15 minutes; after make bench-rank)
	@$(PY) benchmarks/scaling.py

bench-driver: setup  ## the driver's memory with 80,000 queries x 50 candidates, ranked and preferred (15 minutes on 2 cores, 3 GB of disk)
	@$(PY) benchmarks/driver.py

bench-reading: setup  ## memory and pace of reading a corpus of 10 GB beside one of 1 GB (25 GB of disk)
	@$(PY) benchmarks/reading.py

bench-gpu: setup  ## the transformers engine and a training step on a GPU, at real models' sizes (4 minutes)
	@$(PY) benchmarks/gpu.py

bench-efficiency: setup  ## one greedy expansion against generate-then-filter: time and memory (after make results-quickstart)
	@$(PY) benchmarks/efficiency.py

bench-serve: setup  ## the endpoint against vLLM's own server (30 minutes, 16 GB of memory; after make quickstart)
	@$(PY) benchmarks/serve.py

serve: setup  ## the expander as an HTTP endpoint with a page on http://127.0.0.1:8000
	@$(PY) -m cluster.local.serve

cluster-up: setup  ## several Ray nodes on this machine: a head, one labelled pool=gpu, two pool=cpu; they stay up
	@$(PY) -m cluster.local.nodes up

cluster-down: setup  ## stop them, and nothing else
	@$(PY) -m cluster.local.nodes down

monitor: setup  ## what the pipeline that runs on this machine does: tokens/s, candidates/s, ranks/s, ETA
	@$(PY) -m cluster.observability.monitor $(if $(PROMETHEUS),--prometheus $(PROMETHEUS))

package: setup  ## the code as a checksummed zip below dist/, for `working_dir: https://...`
	@$(PY) -m cluster.package

# --excludes only here: the GPU build needs torchvision, torchaudio and triton.
lock: $(UV)  ## resolve the pinned packages anew
	$(UV) pip compile -q pyproject.toml --extra all --extra serve --extra cpu --group demo --group dev --excludes requirements/cpu-excludes.txt $(TORCH) \
	  --python-version 3.11 --no-annotate --custom-compile-command "make lock" -o requirements/cpu-3.11.txt
	$(UV) pip compile -q pyproject.toml --extra all --extra serve --extra gpu --group demo --group dev --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	  --no-annotate --custom-compile-command "make lock" -o requirements/gpu-3.11.txt
	grep -v '^python-dateutil==' requirements/gpu-3.11.txt > .tool/constraints.txt  # boto3 wants an older one
	$(UV) pip compile -q requirements/aws.in -c .tool/constraints.txt --python-version 3.11 --no-annotate \
	  --custom-compile-command "make lock" -o requirements/aws-3.11.txt

docs: setup  ## write docs/configuration.md, the tables of README.md and docs/results.md, and the Grafana dashboard anew
	@$(PY) -m aqe.config.reference > docs/configuration.md
	@$(PY) -m aqe.report.pages docs/results README.md docs/results.md
	@$(PY) -m cluster.observability > cluster/observability/dashboard.json

clean:  ## remove the environment and caches, keep runs/
	rm -rf $(VENV) .tool .pytest_cache .mypy_cache .ruff_cache .hypothesis
