# make demo   from ROOT files to a score table, on a small sample
# make test   the tests
# make check  everything that the continuous integration runs, but the wheel

PYTHON ?= python3
BIN := .venv/bin
JETSSL := $(CURDIR)/$(BIN)/jetssl
DEMO := demo
SAMPLE := tests/samples/jetclass
RUN = --train $(DEMO)/train.h5 --val $(DEMO)/val.h5

.PHONY: demo test check clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed'"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

demo: $(BIN)/.installed
	rm -rf $(DEMO)
	$(JETSSL) convert $(SAMPLE) --recipe jetclass --out $(DEMO)/jagged
	for split in train val test; do \
	  $(JETSSL) merge $(DEMO)/jagged/$$split --out $(DEMO)/$$split.h5 || exit; \
	done
	$(JETSSL) pretrain --method ssfm --size tiny $(RUN) --out $(DEMO)/ssfm --steps 200 \
	  data.batch_size=125 optim.lr=1e-3 train.val_every=100 train.probe_every=4
	for mode in frozen random; do \
	  $(JETSSL) finetune --backbone $(DEMO)/ssfm --$$mode $(RUN) --out $(DEMO)/$$mode --steps 200 \
	    data.batch_size=125 optim.lr=1e-3 train.val_every=100 || exit; \
	  $(JETSSL) export $(DEMO)/$$mode --data $(DEMO)/test.h5 --out $(DEMO)/scores/$$mode.h5 || exit; \
	done
	$(JETSSL) evaluate $(DEMO)/scores/frozen.h5 $(DEMO)/scores/random.h5 --out $(DEMO)/tables

test: $(BIN)/.installed
	$(BIN)/python -m pytest

check: test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf .venv $(DEMO) build dist
