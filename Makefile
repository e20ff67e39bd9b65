# Each target makes the virtual environment that it needs; nothing is installed elsewhere. PYTHON=... picks an interpreter.
.PHONY: help test test-all test-servers crash-points bench faults mutants mutmut check demo picture dev clean
VENV := $(CURDIR)/.venv
CHECK := $(CURDIR)/.venv-check
DEV := $(CURDIR)/.venv-dev
BENCH := $(CURDIR)/.venv-bench
MUTANTS := $(CURDIR)/.venv-mutants
ROWS ?=
TESTS ?=
N ?= 2
RUNS ?= 10
SCENARIOS ?=
BROKERS ?=
WORDS ?=
ON ?=
SAMPLE ?= 300

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

test: ## pass the tests, in under 5 minutes on 2 cores (TESTS="tests/test_x.py -k word", N=processes)
	@scripts/venv.sh $(VENV) editable test
	$(VENV)/bin/python -m pytest -n $(N) --inline-snapshot=disable $(TESTS)

test-all: ## the tests, over many more generated histories
	@scripts/venv.sh $(VENV) editable test
	REFOLD_TESTS=thorough $(VENV)/bin/python -m pytest -n $(N) --inline-snapshot=disable $(TESTS)

test-servers: ## the tests on NATS and Kafka: three nodes, each fault, each scene's crash points (20 minutes, a quiet machine)
	@scripts/venv.sh $(VENV) editable test
	cd tests && REFOLD_DEMAND_BROKERS=1 REFOLD_SERVERS=thorough $(VENV)/bin/python -m pytest -n $(N) --inline-snapshot=disable \
		$(or $(TESTS),test_faults.py test_crash_points.py test_conformance_kafka.py $(notdir $(wildcard tests/test_jetstream*.py tests/test_kafka*.py)))

crash-points: ## die at every call of the log, the stores and the effects, restart, compare (ON=nats://HOST:PORT, kafka://...)
	@scripts/venv.sh $(VENV) editable test
	cd tests && CRASH_POINTS_ON=$(ON) $(VENV)/bin/python -m crash_points.campaign

bench: ## refold beside hand-written loops and what others offer, in up to an hour (ROWS="append pipeline", ARGS="--turns 3")
	@scripts/venv.sh $(BENCH) editable bench-peers bench-brokers bench-faststream
	$(BENCH)/bin/python bench/run.py --limit 3600 $(ARGS) $(ROWS)

faults: ## processes and servers killed, stopped, starved; each run judged (RUNS=10, SCENARIOS="worker_killed ...", BROKERS="nats kafka")
	@scripts/venv.sh $(VENV) editable test
	cd tests && $(VENV)/bin/python -m faults.campaign $(SCENARIOS) $(BROKERS:%=--broker %) --runs $(RUNS)

mutants: ## put each seeded mistake into a copy of the product: the tests must notice it (WORDS="of its name")
	@scripts/venv.sh $(VENV) editable test
	cd tests && $(VENV)/bin/python -m mutants.run $(WORDS)

mutmut: ## a sample of what mutmut makes of the fold, the scheduler, the ownership code (half an hour; SAMPLE=300)
	@scripts/venv.sh $(MUTANTS) editable test mutants
	cd tests && $(MUTANTS)/bin/python -m mutants.generated $(CURDIR)/.mutants --sample $(SAMPLE)

check: ## ruff, import-linter, mypy and pyright, on what ships
	@scripts/venv.sh $(CHECK) installed test check
	@scripts/check.sh $(CHECK)

demo: ## the main job: processes review Python code, one of them is killed (ARGS=folder)
	@scripts/venv.sh $(VENV) editable test
	$(VENV)/bin/refold demo $(ARGS)

picture: ## make docs/demo.svg again, from a run of the demo
	@scripts/venv.sh $(VENV) editable test
	$(VENV)/bin/refold demo --svg docs/demo.svg

dev: ## an environment for editors; again after adding a file
	@scripts/venv.sh $(DEV) strict test check
	@echo "choose $(DEV)/bin/python in your editor"

clean: ## remove what the targets made
	rm -rf $(VENV) $(CHECK) $(DEV) $(BENCH) $(MUTANTS) .mutants .bench-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis refold-demo
