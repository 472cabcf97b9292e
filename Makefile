# Every target sets up what it needs: its own .venv, pinned by requirements.lock. `make help` lists them.
PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check --progress-bar on
TEXT ?= Hello! I am a talking head. My voice, my lips and this video are made by five small models, each in its own process.
TEST_WORKERS ?= 2
export PYTHONUNBUFFERED = 1

.PHONY: help setup demo serve test check format docs bench bench-embedded bench-quality bench-live profile doctor clean

help:
	@grep -E '^[a-z-]+:.*#' $(MAKEFILE_LIST) | sed -E 's/:.*# /\t/' | expand -t 18

# torch first, as its CPU build, so that nothing pulls gigabytes of CUDA packages behind it
.venv/ready: requirements.lock pyproject.toml
	@echo "Setting up .venv (once; about two minutes, 2.5 GB)"
	$(PYTHON) -m venv .venv
	$(PIP) "$$(grep '^torch==' requirements.lock)"
	$(PIP) -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	touch .venv/ready

.venv/warm: .venv/ready $(shell find models/embedded -name '*.safetensors' -o -name '*.json' 2>/dev/null)
	$(PY) -m warmtalk.cli.warm
	touch .venv/warm

setup: .venv/warm # make .venv and compile the embedded models once

demo: export WARMTALK_TEXT = $(value TEXT)
demo: setup # speak TEXT="..." into out/demo.mp4
	@.venv/bin/warmtalk say -o out/demo.mp4 -- "$$WARMTALK_TEXT"

serve: setup # serve on http://127.0.0.1:8000 until Ctrl-C
	@exec .venv/bin/warmtalk serve

# Each worker computes with one thread, and now and then waits: three keep two cores busy. What starts a Ray has the
# machine for itself.
test: setup # all tests: tests/unit and the page in two processes, then the graph, one test after another
	@failed=0; \
	echo "1 of 2: the page in Chromium, and tests/unit"; \
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/browser tests/gpu tests/unit \
		-n $(TEST_WORKERS) --dist loadgroup --no-loadscope-reorder || failed=1; \
	echo "2 of 2: the graph on a real Ray"; \
	$(PY) -m pytest tests/graph || failed=1; \
	exit $$failed

check: .venv/ready # format, lint, types, import contracts
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/ready # format and mend what can be mended
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: setup # speed of the whole graph on this machine
	$(PY) -m benchmarks.graph

bench-embedded: setup # lip sync, closures, seams of the embedded default, from the final video
	$(PY) -m benchmarks.embedded

bench-live: setup # live sessions: first frame, joins, interruption, idle viewers
	$(PY) -m benchmarks.live

bench-quality: setup # how real the mouth looks: the embedded default, and a clip whose motion is known
	$(PY) -m benchmarks.quality
	$(PY) -m benchmarks.side_by_side -o out/manual_vs_ours.png

docs: .venv/ready # generate the reference pages and build the documentation into out/site
	$(PY) docs/generate.py
	$(PY) -m mkdocs build --strict --quiet

profile: setup # p50/p95 of every stage, batch throughput, memory
	.venv/bin/warmtalk profile --json out/profile.json

doctor: .venv/ready # check this machine
	.venv/bin/warmtalk doctor

clean: # remove what was made here; results and avatars stay
	rm -rf .venv .cache out build *.egg-info
