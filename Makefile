# hubkit's commands. The first one makes .venv by itself; nothing else has to be installed by hand.
PYTHON  ?= python3
RECIPE  ?= parrot
PROFILE ?= laptop
WORKERS ?= 2

BIN   := .venv/bin
DEMO  := .venv/.demo
READY := .venv/.ready
RUN   := $(BIN)/hubkit run $(RECIPE) --profile $(PROFILE)
# All figures into tests/bench/bench.json, BENCHMARKS.md and README.md.
FIGURES := $(BIN)/python tests/bench/readme.py

.PHONY: demo corpus asker rollout curate chat eval push spaces pictures test test-order test-slow fuzz conformance check format
.PHONY: bench bench-demo bench-gpu bench-curve bench-preference bench-study plans chaos attack reference scanner licences clean help
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z -]+:.*## / { printf "%-27s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What the demo needs, hash-checked. torch comes first and by itself: which build of it fits is the machine's matter.
$(DEMO): pyproject.toml demo.lock constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	@echo "Installing into .venv, once: about 400 MB of downloads (2 GB more where pip's torch brings CUDA)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement demo.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(DEMO)

$(READY): $(DEMO)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt text-generation
	touch $(READY)

demo: $(DEMO) ## the whole loop on embedded defaults (RECIPE=parrot or realm)
	$(RUN)

corpus rollout curate eval: $(DEMO) ## one stage alone; those before it must have run
	$(BIN)/hubkit $@ $(RECIPE) --profile $(PROFILE)

asker chat: $(DEMO) ## likewise: one training
	$(BIN)/hubkit train $@ $(RECIPE) --profile $(PROFILE)

push: $(DEMO) ## final cards, Spaces, collection; HUB=https://… copies it all there (ARGS=--dry-run)
	$(BIN)/hubkit push $(RECIPE) --profile $(PROFILE) $(if $(HUB),--to $(HUB)) $(ARGS)

spaces: $(READY) ## both pushed Spaces on this machine, against the embedded Hub and engine
	$(BIN)/hubkit spaces $(RECIPE) --profile $(PROFILE) $(ARGS)

pictures: $(READY) ## take the pictures on the Spaces' cards, of the Spaces of a recipe that has run
	$(BIN)/python tests/bench/space_pictures.py --recipe $(RECIPE)

test: $(READY) ## the tests, without the slow ones (on two cores at once; WORKERS=0: one after the other)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test-order: $(READY) ## the same, and write down how long each file takes: the longest begin first
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --junitxml .venv/tests.xml
	$(BIN)/python tests/support/durations.py .venv/tests.xml

test-slow: $(READY) ## the slow tests: kills, chaos, whole demos
	$(BIN)/python -m pytest -m slow --timeout 3600

fuzz: $(READY) ## the tests of made-up input, with other examples each time (`make test` has the same ones)
	FUZZ=1 $(BIN)/python -m pytest -k fuzz tests

conformance: $(READY) ## the clients' own test suites against the embedded Hub
	$(BIN)/python tests/contract/conformance.py
	$(FIGURES)

attack: $(READY) ## attacks and accidents: what a stranger or a bad day may do, and what holds
	$(BIN)/python tests/bench/attack.py
	$(FIGURES)

chaos: $(READY) ## drivers, Hubs, pushes and trainers killed at any moment, disks filled, bits flipped
	$(BIN)/python tests/bench/chaos.py
	$(FIGURES)

bench: $(READY) ## measure, side by side with the alternatives (QUESTIONS=folder of benchmarks' questions)
	$(BIN)/python -m pytest -m bench --timeout 7200 tests/bench
	$(BIN)/python tests/bench/engine_architectures.py
	$(BIN)/python tests/bench/steps.py $(QUESTIONS)
	$(BIN)/python tests/bench/plans.py
	$(FIGURES)

bench-demo: $(READY) ## time the whole loop, three runs of each recipe
	$(BIN)/python tests/bench/demo.py
	$(FIGURES)

bench-curve: $(READY) ## held-out loss over three sizes of training data, both recipes, and its picture
	$(BIN)/python tests/bench/learning_curve.py
	$(FIGURES)

bench-preference: $(READY) ## the laptop's asker before and after preference training on people's next turns
	$(BIN)/python tests/bench/asker_preference.py
	$(FIGURES)

bench-study: $(READY) ## what asking is worth: the study, resumable (PROFILE=laptop: minutes; desk: hours)
	$(BIN)/python tests/bench/study.py $(PROFILE) --recipe $(RECIPE)
	$(FIGURES)

bench-gpu: $(READY) ## training on a GPU: tokens/s, memory, utilisation (skipped where there is none)
	$(BIN)/python -m pytest -m bench -s -rs --timeout 3600 tests/bench/test_train_gpu.py
	$(FIGURES)

plans: $(READY) ## hours and price of the papers at full scale, as planned
	$(BIN)/python tests/bench/plans.py
	$(FIGURES)

reference: $(READY) ## write REFERENCE.md: every command, every recipe key
	$(BIN)/hubkit reference > REFERENCE.md

scanner: $(READY) ## write docs/scanner.md: what the scanner of secrets and personal data finds
	mkdir -p docs
	PYTHONPATH=tests $(BIN)/python -m support.sensitive_samples > docs/scanner.md

lock: $(READY) ## write demo.lock: what the demo installs, by version and hash
	printf 'hatchling\neditables\n' | $(BIN)/uv pip compile pyproject.toml - --extra demo --constraint constraints.txt \
	  --universal --python-version 3.11.5 --generate-hashes --no-annotate --no-header --output-file .venv/demo.lock >/dev/null
	$(BIN)/python tests/support/lock.py .venv/demo.lock > demo.lock

licences: $(READY) ## write LICENCES.md: what is installed, and under which terms
	$(BIN)/python tests/support/licences.py > LICENCES.md

check: $(READY) ## lint, format, types, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=.:tests $(BIN)/mypy --cache-dir .mypy_cache/tests --config-file tests/mypy.ini $$(git ls-files 'tests/*.py' ':!tests/bench')
	MYPYPATH=.:tests/bench:tests $(BIN)/mypy --cache-dir .mypy_cache/tests --config-file tests/mypy.ini tests/bench/*.py
	$(BIN)/lint-imports --no-cache
	$(BIN)/mkdocs build --strict --quiet

format: $(READY) ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built here (not hubkit's data)
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
