# make demo · make test · make test-slow · make check
# Each sets up what it needs in .venv. Python 3.11 or newer has to be there; `make PYTHON=python3.12 demo` names another.

PYTHON ?= python3
BIN := .venv/bin
APT := $(if $(filter-out 0,$(shell id -u)),sudo) env DEBIAN_FRONTEND=noninteractive apt-get -qq

.PHONY: demo test test-slow check ffmpeg chromium

demo: .venv/demo.ready
	$(BIN)/python -m jobs.samples output/films
	$(BIN)/python -m jobs.curation run demo.yaml

test: .venv/test.ready ffmpeg
	$(BIN)/pytest -m "not slow"

test-slow: .venv/test.ready ffmpeg chromium
	$(BIN)/pytest -m slow --durations=25

check: .venv/test.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Debian keeps ensurepip, which venv needs, in a package of its own.
$(BIN)/uv:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit("Filmray needs Python 3.11 or newer, and $(PYTHON) is %s: make PYTHON=python3.12 ..." % v if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv || { $(APT) update && $(APT) install python3-venv >/dev/null && $(PYTHON) -m venv --clear .venv; }
	$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9

.venv/%.ready: pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[$*]"
	@touch $@

# torchcodec loads FFmpeg's shared libraries; of these avdevice needs all others.
ffmpeg:
	@$(PYTHON) -c 'import ctypes.util, sys; sys.exit(not ctypes.util.find_library("avdevice"))' \
		|| { echo "Installing FFmpeg's shared libraries for torchcodec"; $(APT) update && $(APT) install --no-install-recommends ffmpeg >/dev/null; } \
		|| { echo "The tests of torchcodec need FFmpeg's shared libraries, 4 to 9: install them, and run make again" >&2; exit 1; }

# Playwright would download a browser of its own.
chromium:
	@command -v chromium >/dev/null \
		|| { echo "Installing Chromium for the tests of pages"; $(APT) update && $(APT) install --no-install-recommends chromium fonts-liberation >/dev/null; } \
		|| { echo "The tests of pages need the program chromium: install it, and run make again" >&2; exit 1; }
