# make demo: set up, then the main job on the embedded miniature. make test: set up, then all tests.
PYTHON ?= python3
VENV ?= .venv

.PHONY: demo test setup

demo: setup
	PYTHON=$(VENV)/bin/python bash moe_adapters/scripts/train_full_shot_order1.sh --scale mini --save runs/moe_adapters/order1

test: setup
	$(VENV)/bin/python -m pytest

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -r requirements.txt
	touch $@
