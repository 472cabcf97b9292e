# Every target sets up what it needs: its own .venv, pinned by requirements.lock. `make help` lists them.
PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check --no-compile
TORCH_INDEX ?=
# on all cores, unlike pip's. What nothing here imports is left out, a third of the work; templates are no Python.
UNUSED := /tests?/|/(transformers/models|diffusers/(modular_)?pipelines|ray/rllib)/
COMPILE := { $(PY) -m compileall -qq -j 0 -x "$(UNUSED)" .venv/lib || true; }
SETUP_LOG := .venv/setup.log
TEXT ?= Hello! I am a talking head. My voice, my lips and this video are made by five small models, each in its own process.
TEST_WORKERS ?= 2
HOURS ?= 0.05
export PYTHONUNBUFFERED = 1
unexport PYTHONDONTWRITEBYTECODE # else each of a graph's and a test run's processes compiles all sources again
export NO_MKDOCS_2_WARNING = 1 # a banner of mkdocs-material that hides its errors

.PHONY: help setup demo serve test test-full soak check format docs bench bench-embedded bench-quality bench-live profile load doctor clean

help:
	@grep -E '^[a-z-]+:.*#' $(MAKEFILE_LIST) | sed -E 's/:.*# /\t/' | expand -t 18

# $(call step,description,command): one line on the terminal. The output goes to SETUP_LOG, which is shown on failure.
define step
@printf '%s … ' "$(1)"; \
if { $(2); } >>$(SETUP_LOG) 2>&1; then echo done; \
else echo failed; echo; tail -n 20 $(SETUP_LOG); echo; echo "The complete log is $(SETUP_LOG)."; exit 1; fi
endef

# torch first, so that its build is chosen here. Default: what pip finds, which on Linux may bring gigabytes of CUDA
# libraries. TORCH_INDEX: the address of torch's index of CPU wheels (pytorch.org/get-started shows it).
.venv/ready: requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("Python 3.11 or newer is needed; pass PYTHON=…")'
	@echo "Setting up .venv: once, a few minutes, 2.8 GB on disk"
	@mkdir -p .venv && : >$(SETUP_LOG)
	$(call step,1/4 Creating the environment,$(PYTHON) -m venv .venv)
	$(call step,2/4 Installing torch,$(PIP) $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) "$$(grep '^torch==' requirements.lock)")
	$(call step,3/4 Installing the other packages,$(PIP) -r requirements.lock && $(COMPILE))
	$(call step,4/4 Installing warmtalk,$(PIP) --no-deps --no-build-isolation -e .)
	@touch .venv/ready

.venv/warm: .venv/ready $(shell find models/embedded -name '*.safetensors' -o -name '*.json' 2>/dev/null)
	@$(PY) -m warmtalk.cli.warm
	@touch .venv/warm

setup: .venv/warm # create .venv and compile the embedded models, once

demo: export WARMTALK_TEXT = $(value TEXT)
demo: setup # speak TEXT="..." into out/demo.mp4
	@.venv/bin/warmtalk say -o out/demo.mp4 -- "$$WARMTALK_TEXT"

serve: setup # serve on http://127.0.0.1:8000 until Ctrl-C
	@exec .venv/bin/warmtalk serve

# The page and the graph mostly wait for video to play, so the unit tests run beside them, at a lower priority; their
# results follow at the end. The page and the graph do not run at once: both play in real time. Tests marked `full` are
# left out (addopts in pyproject.toml).
test: setup # all tests but those at full size: the page, then the graph on a real Ray, and the unit tests beside both
	@failed=0; mkdir -p out; \
	OMP_NUM_THREADS=1 nice $(PY) -m pytest tests/gpu tests/unit -n $(TEST_WORKERS) --dist loadfile >out/unit.log 2>&1 & unit=$$!; \
	trap 'kill $$unit 2>/dev/null; exit 130' INT TERM; \
	echo "1 of 4: the page in Chromium; unit tests run meanwhile"; \
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/browser -n 3 --dist worksteal || failed=1; \
	echo "2 of 4: the graph on a real Ray"; \
	$(PY) -m pytest tests/graph || failed=1; \
	echo "3 of 4: faults of the graph, the short form of make soak"; \
	$(PY) -m pytest tests/chaos || failed=1; \
	echo "4 of 4: unit tests"; \
	wait $$unit || failed=1; trap - INT TERM; cat out/unit.log; \
	exit $$failed

test-full: setup # the tests at full size, for a release, after `make test`; needs 10 GB of free memory
	$(PY) -m pytest -m full

soak: export WARMTALK_SOAK_HOURS = $(HOURS)
soak: setup # every fault of tests/chaos, then HOURS of sessions; for a release, before `cp out/chaos.json docs/reliability.json`
	$(PY) -m pytest -v tests/chaos -m "soak or not soak"

check: .venv/ready # format, lint, types, import contracts
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/ready # format, and fix what ruff can fix
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

profile: setup # what each stage costs and what limits it
	.venv/bin/warmtalk profile --json out/profile.json --html out/profile.html --trace out/trace.json

load: setup # a small load of sessions on a graph of its own, with a report
	.venv/bin/warmtalk load --json out/load.json

doctor: .venv/ready # check this machine
	.venv/bin/warmtalk doctor

clean: # remove generated files; results and avatars stay
	rm -rf .venv .cache out build dist *.egg-info
