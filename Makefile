# make demo: set up, the main job on the embedded miniature, its spreadsheet and page. make test: set up, all tests.
# make check: set up, lint, format and types.
PYTHON ?= python3
VENV ?= .venv

PRODUCT = common zscl moe_adapters inflora vq_prompt alta results docs

.PHONY: demo test check setup

demo: setup
	PYTHON=$(VENV)/bin/python bash moe_adapters/scripts/train_full_shot_order1.sh --scale mini --save runs/moe_adapters/order1
	$(VENV)/bin/python -m results --scale mini --runs runs --out runs/results

test: setup
	$(VENV)/bin/python -m pytest

check: setup
	$(VENV)/bin/ruff check $(PRODUCT)
	$(VENV)/bin/ruff format --check $(PRODUCT)
	$(VENV)/bin/mypy

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -r requirements.txt
	touch $@
