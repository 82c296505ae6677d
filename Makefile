# Every target works on a fresh clone: the virtual environment of the checkout is made and filled first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
MARK := .venv/.installed

.PHONY: demo test lint bench zoo pictures clean

demo: $(MARK)-demo
	$(BIN)/gainstage demo

test: $(MARK)-test
	$(BIN)/python -m pytest -n 2

lint: $(MARK)-lint
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(MARK)-bench
	$(BIN)/python -m benchmarks.measure
	$(BIN)/python -m benchmarks.fill

zoo: $(MARK)-zoo
	$(BIN)/python -m pytest tests/zoo
	$(BIN)/python -m benchmarks.zoo

pictures: $(MARK)-demo
	$(BIN)/python docs/pictures.py

clean:
	rm -rf .venv runs build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# one mark for each set of extras; made anew when the pins or the package's metadata change
$(MARK)-demo: EXTRAS = demo
$(MARK)-test: EXTRAS = test
$(MARK)-zoo: EXTRAS = zoo
$(MARK)-lint: EXTRAS = lint,frames,demo
$(MARK)-bench: EXTRAS = bench
$(MARK)-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[$(EXTRAS)]'
	touch $@
