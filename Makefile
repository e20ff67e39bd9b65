# Every target makes the virtual environment that it needs; nothing is installed elsewhere.
.PHONY: help test test-all check demo dev clean
VENV := $(CURDIR)/.venv
CHECK := $(CURDIR)/.venv-check
TESTS ?=

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

test: ## pass the tests (under 5 minutes on 2 cores)
	@scripts/venv.sh $(VENV) editable test
	$(VENV)/bin/python -m pytest -n 2 $(TESTS)

test-all: ## the tests, with many more generated histories
	@scripts/venv.sh $(VENV) editable test
	REFOLD_TESTS=thorough $(VENV)/bin/python -m pytest -n 2 $(TESTS)

check: ## ruff, import-linter, mypy and pyright on what ships
	@scripts/venv.sh $(CHECK) installed test check
	$(CHECK)/bin/ruff check .
	cd docs && $(CHECK)/bin/lint-imports ../pyproject.toml --no-cache --no-logo
	cd docs && $(CHECK)/bin/mypy --config-file ../pyproject.toml -p refold
	scripts/pyright.sh $(CHECK)

demo: ## the main job: a team of processes reviews Python code, one of them is killed (PATH: make demo ARGS=folder)
	@scripts/venv.sh $(VENV) editable test
	$(VENV)/bin/refold demo $(ARGS)

dev: ## an environment for editors
	@scripts/venv.sh $(VENV) editable test check
	@if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(VENV)/bin/python -e . --config-settings editable_mode=strict; \
	else $(VENV)/bin/python -m pip install --quiet -e . --config-settings editable_mode=strict; fi
	@echo "choose $(VENV)/bin/python in your editor"

clean: ## remove what the targets made
	rm -rf $(VENV) $(CHECK) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis refold-demo
