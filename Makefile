PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint claims clean

demo: $(INSTALLED)  ## the main job on real data that is on board
	$(BIN)/netwright compare --data digits --model mlp --seeds 5 --budget 40epochs --report netwright-demo-mlp.html \
	    --try 'phm[n=2]' --try gradient-noise --try quadratic --try random-pruning --try lottery-ticket --try 'phm[n=2]+lottery-ticket'
	$(BIN)/netwright compare --data digits --model cnn --seeds 5 --budget 10epochs --report netwright-demo-cnn.html \
	    --try evonorm --try phm --try 'evonorm+phm'

test: $(INSTALLED)  ## the fast tests, on two processes
	$(BIN)/python -m pytest

lint: $(INSTALLED)  ## format, style, types, and which room may import which
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

claims: $(INSTALLED)  ## every claim at the smoke scale
	$(BIN)/netwright reproduce --all --scale smoke --store .netwright/smoke.db

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

clean:
	rm -rf .venv .netwright
