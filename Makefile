# Everything runs in `.venv`, made from the locks in `requirements/` by scripts/install.sh.

.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
# Tests run in two processes, and start others: spinning threads of several of them starve each other.
TEST_ENV := OMP_NUM_THREADS=1
# The packages are installed as source: what is compiled by the first process, the others read.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install install-test demo test check format test-long bench bench-discovery lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## make .venv with every extra
	@scripts/install.sh

install-test: ## and the tools of the tests
	@scripts/install.sh --test

demo: install ## audit a small fine-tune, end to end, and steer it
	@$(BIN)/atomscope demo

test: check ## the checks, then the whole suite
	$(TEST_ENV) $(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile

check: install-test ## ruff, pyright and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: install-test ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-long: install-test ## the tests that take longer
	$(TEST_ENV) $(BIN)/python -m pytest -m long

SET := .bench/second
ON_SET := --base-model $(SET)/base --adapter $(SET)/adapter --dataset $(SET)/train.jsonl
TRAINED := $(SET)/adapter/adapter_model.safetensors
$(TRAINED):
	@$(BIN)/python benchmarks/second_set.py --out $(SET)

bench: install-test $(TRAINED) ## time extraction and the dictionary beside their peers, cost by size, a whole audit
	@benchmarks/peers/install.sh
	@$(BIN)/python benchmarks/extraction.py $(ON_SET)
	@$(BIN)/python benchmarks/dictionary.py
	@$(BIN)/python benchmarks/scaling.py
	@$(BIN)/python benchmarks/whole_audit.py --base-model $(SET)/base --adapter $(SET)/adapter --folder $(SET)

bench-discovery: install $(TRAINED) ## score an audit of a labelled set (SCORE=FILE, see benchmarks/discovery.py)
	@test -n "$(SCORE)" || { echo "SCORE=FILE is needed: a file with rank_scores(codes, labels)" >&2; exit 4; }
	@$(BIN)/atomscope audit run --local $(ON_SET) --out $(SET)/bundle
	@$(BIN)/python benchmarks/discovery.py --score $(SCORE) --set second $(SET)/bundle $(SET)/train.jsonl

lock: ## write requirements/*.txt from what .venv holds
	$(BIN)/python scripts/lock.py

clean: ## remove .venv and everything that was built or cached here
	rm -rf .venv .demo .bench .cache build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
