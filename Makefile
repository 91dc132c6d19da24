# A newcomer needs `make demo` and `make test`; each installs the environment first.
PYTHON ?= python3.11
REQUIREMENTS ?= cpu
VENV := .venv
BIN := $(VENV)/bin
export ERRATA_HOME ?= $(CURDIR)/runs
export RAY_AUTH_MODE := disabled
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo serve bench-solver bench-targets bench-guard bench-revert bench-lifelong bench-counterfact bench-ablation bench-reedits bench-stream bench-ledger bench-serving bench-abuse bench-chat bench-facts bench-memory-editors bench-real bench-places bench-gpu bench-memory bench-retrieval bench-edit-latency bench-wayback bench-tiers chaos simulate tune test unit lint tree clean

setup: $(VENV)/.$(REQUIREMENTS)

# Not every package index has torch's CPU build: the configured index is tried first, PyTorch's own index second.
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
	$(BIN)/python jobs/demo.py $(ARGS)

serve: setup
	$(BIN)/errata serve $(ARGS)

# Compare the published form of the solve with ours: seconds, bytes and errors. FULL=1 runs the slow sizes for every number of rows.
bench-solver: setup
	$(BIN)/python -m benchmarks.solver $(ARGS)

# Compare the search for closed-form targets by batch with the search for one edit at a time.
bench-targets: setup
	$(BIN)/python -m benchmarks.targets $(ARGS)

# Find the records of a memory of questions: recall, false firing, and milliseconds at up to 100,000 records.
bench-retrieval: setup
	$(BIN)/python -m benchmarks.retrieval $(ARGS)

# Post edits, and take the time until every replica answers by them, by stage.
bench-edit-latency: setup
	$(BIN)/python -m benchmarks.edit_latency $(ARGS)

# Post corrections that a memory answers and the weights learn; beside it, weights alone and memory alone.
bench-tiers: setup
	$(BIN)/python -m benchmarks.tiers $(ARGS)

# Play a stream that contains harmful edits, with the guard and without it.
bench-guard: setup
	$(BIN)/python -m benchmarks.guarding $(ARGS)

# Revert edits of a model that holds 200 of them, and trace answers to the versions that caused them (blame).
bench-revert: setup
	$(BIN)/python -m benchmarks.reverts $(ARGS)

# Take 20 of 200 edits out by down-dating and by replay, against a model that never had them.
bench-wayback: setup
	$(BIN)/python -m benchmarks.wayback $(ARGS)

# Score every editor on one stream of edits. FULL=1 is the large run of several hours. An interrupted run resumes; ARGS=fresh=1 starts over.
bench-lifelong: setup
	$(BIN)/python jobs/bench.py suite=lifelong $(ARGS)

# The same on CounterFact: ERRATA_COUNTERFACT names the folder with counterfact_train.json, counterfact_edit.json and me_ppl_1k.json.
bench-counterfact: setup
	$(BIN)/python jobs/bench.py suite=counterfact $(ARGS)

# Score RLEdit with one component removed at a time.
bench-ablation: setup
	$(BIN)/python jobs/bench.py suite=ablation $(ARGS)

# Corrections of corrections: each fact is edited, edited again three times, and set to the truth again, with every editor.
bench-reedits: setup
	$(BIN)/python jobs/bench.py suite=reedits $(ARGS)

# Read a million edits from Parquet one by one: edits per second and peak memory, also for JSON lines and with a check for conflicts.
bench-stream: setup
	$(BIN)/python -m benchmarks.records $(ARGS)

# Measure 1, 4 and 8 request streams with and without one batch of edits per second. ARGS=model=world takes the small Llama; FULL=1 is the long run.
bench-serving: setup
	$(BIN)/python -m benchmarks.serving_load $(ARGS)

# Let one key do what takes a service without limits from all others, and measure what other clients notice.
bench-abuse: setup
	$(BIN)/python -m benchmarks.abuse $(ARGS)

# Post 200 edits in mixed forms and scripts, and ask the served model each of them at the end: applied means answered.
bench-chat: setup
	$(BIN)/python -m benchmarks.chat $(ARGS)

# Compare parts of RLEdit on the default model: true corrections in chat, in one process. ARGS="--edits=100 --policy=FOLDER".
bench-facts: setup
	$(BIN)/python -m benchmarks.facts bench-facts $(ARGS)

# Compare editors of weights and memories on 500 corrections of the default model: scores and costs. Hours; an interrupted run
# goes on. ARGS="--rows=SCR,oracle --artifact=SERAC=FOLDER".
bench-memory-editors: setup
	$(BIN)/python -m benchmarks.facts bench-memory-editors $(ARGS)

# The same with corrections of corrections and more forms of the questions. FULL=1 makes 1,000 edits, three seeds for five rows.
bench-real: setup
	$(BIN)/python -m benchmarks.facts bench-real $(ARGS)

# Print for each matrix how well it tells rephrasings from neighbours. ARGS="--model=DIR --edits=FILE [--text=FILE]".
bench-places: setup
	$(BIN)/python -m benchmarks.places $(ARGS)

# Measure edits, training and swaps at Llama-3-8B's size with random weights, on a GPU. ARGS=--size=tiny runs the script without one.
bench-gpu: setup
	$(BIN)/python -m benchmarks.gpu_8b $(ARGS)

# Count the GiB of a training episode at 8B by parts and by memory-saving option, and of an editor in service; needs no GPU.
bench-memory: setup
	$(BIN)/python -m benchmarks.device_memory $(ARGS)

# Kill, freeze and damage parts of a service at random moments, and check the history of its clients. FULL=1 makes 76 faults.
chaos: setup
	$(BIN)/python -m tests.chaos.run $(ARGS)

# Crash the simulated edit worker at every await and every durable write, over many drawn requests. FULL=1 takes 200 seeds.
simulate: setup
	PYTHONHASHSEED=0 $(BIN)/python -m tests.simulate.run $(ARGS)

# Grow a ledger to 10,000 versions: milliseconds to append, seconds to open, bytes per version.
bench-ledger: setup
	$(BIN)/python -m benchmarks.ledger_growth $(ARGS)

# Sweep a plan's settings with Ray Tune. The same ARGS resume an interrupted sweep.
tune: setup
	$(BIN)/python jobs/tune.py $(ARGS)

# One thread for each of pytest's processes: more would only wait for each other.
UNIT = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal --ignore=tests/e2e --ignore=tests/chaos
UNIT_LOG = $(ERRATA_HOME)/unit-tests.log

# Tests that start engines, Ray and MLflow wait for a third of their time: the others run beside them, at a lower priority.
test: setup
	@mkdir -p $(ERRATA_HOME)
	@echo "the unit tests write to $(UNIT_LOG), which is shown at the end"
	@nice -n 10 env $(UNIT) > $(UNIT_LOG) 2>&1 & unit=$$!; trap "kill $$unit" INT TERM; \
	$(BIN)/python -m pytest tests/e2e tests/chaos; ended=$$?; \
	wait $$unit || ended=1; cat $(UNIT_LOG); exit $$ended

unit: setup
	$(UNIT)

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Write the list of files in docs/architecture.md from the modules' docstrings.
tree:
	$(PYTHON) docs/tree.py

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
