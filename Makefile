# Everything a developer types. `make help` lists it.
VENV    ?= .venv
UV      := .tool/bin/uv
PY      := $(VENV)/bin/python
PINNED  := uv==0.13.9
export PYTHONPATH := $(CURDIR)/platform

.DEFAULT_GOAL := help
.PHONY: help setup demo quickstart results-quickstart results-wiki wiki-small test test-slow test-cluster test-faults lint lock docs site bench bench-rank bench-scaling \
  bench-align bench-sample bench-driver bench-reading bench-efficiency bench-gpu bench-serve serve monitor package cluster-up cluster-down clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

setup: $(UV)  ## the environment, from the lock of the Python and the GPU that are here (PYTHON=python3.12, ACCELERATOR=cpu|gpu name others)
	@PYTHON="$(PYTHON)" ACCELERATOR="$(ACCELERATOR)" requirements/setup.sh $(VENV)

# Any Python 3 with venv brings uv, or any uv the one that the locks are made with.
$(UV): Makefile
	@rm -rf .tool
	@if ! { $(or $(PYTHON),python3) -m venv .tool && .tool/bin/pip install -q --no-warn-script-location $(PINNED); }; then \
	  rm -rf .tool && uv venv -q .tool && uv pip install -q --python .tool $(PINNED) || \
	  { rm -rf .tool; echo "make setup needs a Python 3 with venv (apt-get install python3-venv), or uv."; exit 2; }; fi
	@touch $(UV)

demo: setup  ## the whole loop at small counts (6 minutes on 2 cores, 8 GB of memory)
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

bench-reading: setup  ## memory and pace of reading a corpus of 10 GB and one of 1 GB (25 GB of disk)
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

lock: $(UV)  ## resolve the pinned packages, for each Python
	@requirements/lock.sh

docs: setup  ## write docs/configuration.md, the tables of README.md and docs/results.md, and the Grafana dashboard
	@$(PY) -m aqe.config.reference > docs/configuration.md
	@$(PY) -m aqe.report.pages docs/results README.md docs/results.md
	@$(PY) -m cluster.observability > cluster/observability/dashboard.json

.tool/site/.ready: requirements/docs.txt $(UV)
	@$(UV) venv -q --allow-existing --python '>=3.11' .tool/site
	@$(UV) pip sync -q --python .tool/site/bin/python requirements/docs.txt
	@touch $@

site: .tool/site/.ready  ## the pages of docs/ as a website in site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 .tool/site/bin/mkdocs build --strict
	@echo "Open site/index.html. To search in it: python3 -m http.server -d site"

clean:  ## remove the environment and caches, keep runs/
	rm -rf $(VENV) .tool site .pytest_cache .mypy_cache .ruff_cache .hypothesis
