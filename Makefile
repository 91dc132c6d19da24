# `make demo` and `make test` are all that a newcomer needs; each sets up first.
PYTHON ?= python3.11
REQUIREMENTS ?= cpu
VENV := .venv
BIN := $(VENV)/bin
export ERRATA_HOME ?= $(CURDIR)/runs
export RAY_AUTH_MODE := disabled
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo serve bench-solver bench-targets bench-guard bench-revert bench-lifelong bench-counterfact bench-ablation bench-stream bench-ledger bench-serving bench-gpu bench-memory chaos tune test unit lint clean

setup: $(VENV)/.$(REQUIREMENTS)

# Torch's CPU build is not on every index: what pip already finds comes first, PyTorch's own index second.
$(VENV)/.cpu: requirements/cpu.txt requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps "$$(grep '^torch==' requirements/cpu.txt)" \
	  || $(BIN)/pip install --quiet --no-deps --index-url https://download.pytorch.org/whl/cpu "$$(grep '^torch==' requirements/cpu.txt)"
	@echo "installing the pinned packages: some minutes"
	$(BIN)/pip install --quiet --no-deps -r requirements/cpu.txt -r requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps -e .
	touch $@

$(VENV)/.gpu: requirements/gpu.txt requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps -r requirements/gpu.txt -r requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps -e .
	touch $@

ARGS ?=

demo: setup
	$(BIN)/python jobs/demo.py plan=demo $(ARGS)

serve: setup
	$(BIN)/errata serve $(ARGS)

# The public form of the solve against ours, with seconds, bytes and errors; FULL=1 runs the slow sizes for every number of rows.
bench-solver: setup
	$(BIN)/python -m benchmarks.solver $(ARGS)

# The search for closed-form targets, a batch at once against one edit at a time.
bench-targets: setup
	$(BIN)/python -m benchmarks.targets $(ARGS)

# A stream with poison in it, with the guard and without.
bench-guard: setup
	$(BIN)/python -m benchmarks.guarding $(ARGS)

# Edits taken out of a model that holds 200 of them, and answers traced to the versions they are due to.
bench-revert: setup
	$(BIN)/python -m benchmarks.reverts $(ARGS)

# Every editor on one stream of edits; FULL=1 is the large run, of hours. A run that was broken off goes on, ARGS=fresh=1 starts anew.
bench-lifelong: setup
	$(BIN)/python jobs/bench.py suite=lifelong $(ARGS)

# The same on CounterFact: ERRATA_COUNTERFACT names the folder with counterfact_train.json, counterfact_edit.json and me_ppl_1k.json.
bench-counterfact: setup
	$(BIN)/python jobs/bench.py suite=counterfact $(ARGS)

# RLEdit with one part taken away at a time.
bench-ablation: setup
	$(BIN)/python jobs/bench.py suite=ablation $(ARGS)

# A million edits in Parquet, read one by one: edits a second and peak memory, beside JSON lines and a check for conflicts.
bench-stream: setup
	$(BIN)/python -m benchmarks.records $(ARGS)

# Streams that never stop, with and without a batch of edits a second among them; FULL=1 is the long run.
bench-serving: setup
	$(BIN)/python -m benchmarks.serving_load $(ARGS)

# Edits, training and swaps at Llama-3-8B's size with random weights, on a GPU; ARGS=--size=tiny tries the script without one.
bench-gpu: setup
	$(BIN)/python -m benchmarks.gpu_8b $(ARGS)

# GiB of an episode at 8B, by parts and by what is done to spare them, and of an editor that serves; without the numbers, on any machine.
bench-memory: setup
	$(BIN)/python -m benchmarks.device_memory $(ARGS)

# Parts killed, frozen and damaged at random moments while edits never stop; FULL=1 for fifty faults.
chaos: setup
	$(BIN)/python -m tests.chaos.run $(ARGS)

# A ledger of 10,000 versions: milliseconds to append, seconds to open, bytes a version.
bench-ledger: setup
	$(BIN)/python -m benchmarks.ledger_growth $(ARGS)

# Sweep a plan's settings with Ray Tune; started again with the same ARGS it goes on.
tune: setup
	$(BIN)/python jobs/tune.py $(ARGS)

# What starts engines, Ray and MLflow has the cores to itself, after the rest.
test: unit
	$(BIN)/python -m pytest tests/e2e tests/chaos

unit: setup
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --ignore=tests/e2e --ignore=tests/chaos

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
