# make demo   from simulated ROOT files to a score table, anew; what else is in demo/ stays
# make test   the tests, one more at a time than there are cores: some wait for clocks and servers
# make quick  those that are not slow
# make docs   the documentation as a site, in build/site
# make check  everything that has to hold before a change lands
# make fuzz   all readers, each for MINUTES (default 5); what is found goes to build/fuzz
# make audit  known vulnerabilities of the versions in constraints.txt; needs the network
# make sbom   what is installed, as CycloneDX: build/sbom.json
# make lock   requirements.lock anew, after a change of constraints.txt
# make locked .venv from requirements.lock: every file by its hash, but torch

PYTHON ?= python3
BIN := .venv/bin
JETSSL := $(BIN)/jetssl
TOOLS := .tools/bin
DEMO := demo
MADE := $(addprefix $(DEMO)/,root jagged train.h5 val.h5 test.h5 .train.* .fingerprints.json \
    ssfm frozen random scores/frozen.h5 scores/random.h5 tables)
MINUTES ?= 5
FUZZED := recipe config overrides jagged scores weights
SIMULATE := $(JETSSL) simulate jetclass --out $(DEMO)/root --jobs 2
DATA := --train $(DEMO)/train.h5 --val $(DEMO)/val.h5
SHORT := --steps 200 data.batch_size=125 optim.lr=1e-3 train.val_every=100 train.precision=32

.PHONY: demo test quick docs check fuzz audit sbom lock locked clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed'"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

$(TOOLS)/.installed: pyproject.toml
	$(PYTHON) -m venv .tools
	$(TOOLS)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(TOOLS)/python -m pip install --quiet --group audit
	touch $@

demo: $(BIN)/.installed
	rm -rf $(MADE)
	$(SIMULATE) --num-jets 1000 --split train
	$(SIMULATE) --num-jets 200 --split val
	$(SIMULATE) --num-jets 500 --split test
	$(JETSSL) convert $(DEMO)/root --recipe jetclass --out $(DEMO)/jagged --jobs 2
	$(JETSSL) merge $(DEMO)/jagged/train_100M --out $(DEMO)/train.h5
	$(JETSSL) merge $(DEMO)/jagged/val_5M --out $(DEMO)/val.h5
	$(JETSSL) merge $(DEMO)/jagged/test_20M --out $(DEMO)/test.h5
	$(JETSSL) pretrain --method ssfm --size tiny $(DATA) --out $(DEMO)/ssfm $(SHORT) train.probe_every=4
	$(JETSSL) finetune --backbone $(DEMO)/ssfm --frozen $(DATA) --out $(DEMO)/frozen $(SHORT)
	$(JETSSL) finetune --backbone $(DEMO)/ssfm --random $(DATA) --out $(DEMO)/random $(SHORT)
	$(JETSSL) export $(DEMO)/frozen --data $(DEMO)/test.h5 --out $(DEMO)/scores/frozen.h5
	$(JETSSL) export $(DEMO)/random --data $(DEMO)/test.h5 --out $(DEMO)/scores/random.h5
	$(JETSSL) evaluate $(DEMO)/scores/frozen.h5 $(DEMO)/scores/random.h5 --out $(DEMO)/tables

# the package is compiled once, not in each of hundreds of processes, whatever the environment says
test quick: $(BIN)/.installed
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $$($(BIN)/python -c 'import os; print((os.cpu_count() or 1) + 1)') --dist worksteal $(QUICK)

quick: QUICK := -m "not slow"

docs: $(BIN)/.installed
	$(BIN)/mkdocs build --strict --quiet

check: test docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fuzz: $(BIN)/.installed
	for target in $(FUZZED); do \
	    $(BIN)/python tests/fuzz/run.py $$target --minutes $(MINUTES) || exit 1; done

audit: $(TOOLS)/.installed
	$(TOOLS)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip \
	    --progress-spinner off

sbom: $(BIN)/.installed $(TOOLS)/.installed
	mkdir -p build
	$(TOOLS)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	    --output-file build/sbom.json $(BIN)/python

lock: $(TOOLS)/.installed
	grep -v '^torch==' constraints.txt | $(TOOLS)/uv pip compile --quiet --no-deps --no-header \
	    --no-annotate --generate-hashes --python-version 3.11.5 --output-file requirements.lock -

locked:
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(BIN)/.installed

clean:
	rm -rf .venv .tools $(DEMO) build dist
