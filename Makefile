# Every target sets up .venv by itself. It needs Python 3.11 to 3.14: the first one found, or PYTHON=/path/to/python.
# All paths are relative, since make cannot handle a clone in a folder with a space otherwise.

PYTHON ?=
PYTEST_ARGS ?=
LOCK_ARGS ?=
SOAK_ROUNDS ?= 200
SOAK_SEED ?= 0
QUICK ?=
ONLY ?=
RUN := .venv/bin/python -m
MAKEFLAGS += --no-print-directory
unexport PYTHONPATH PYTHONHOME

# Runs scripts/set_up.py with arguments $(1).
define set_up
@if [ -n "$(PYTHON)" ]; then exec "$(PYTHON)" scripts/set_up.py $(1); fi; \
for python in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	if "$$python" scripts/set_up.py --usable >/dev/null 2>&1; then exec "$$python" scripts/set_up.py $(1); fi; \
done; \
echo "No Python 3.11 to 3.14 with its venv module found. Install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
python3 scripts/set_up.py --usable; \
exit 1
endef

.PHONY: help venv demo test soak bench check format docs lock

help:
	@echo "make demo     a local NexHealth, a full sync of it, and what is where"
	@echo "make test     all tests but the long ones      (PYTEST_ARGS=...)"
	@echo "make soak     the long ones: kills at random    (SOAK_ROUNDS=200 SOAK_SEED=0)"
	@echo "make bench    what is measured, and against whom   (QUICK=1 ONLY=\"bench budget\")"
	@echo "make check    format, lint, types, import directions"
	@echo "make format   put the code into its format"
	@echo "make docs     write the reference sections of README and docs/"
	@echo "make lock     resolve pyproject.toml again     (LOCK_ARGS=--upgrade)"

venv:
	$(call set_up)

demo: venv
	@.venv/bin/nexhealth demo

test: venv
	@$(RUN) pytest -q -m "not soak" --durations=20 $(PYTEST_ARGS)

soak: venv
	@SOAK_ROUNDS=$(SOAK_ROUNDS) SOAK_SEED=$(SOAK_SEED) $(RUN) pytest -q -m soak --durations=20 $(PYTEST_ARGS)

bench: venv
	@.venv/bin/python benchmarks/run.py $(if $(QUICK),--quick) $(ONLY)

check: venv
	@$(RUN) ruff format --check -q .
	@$(RUN) ruff check -q .
	@$(RUN) mypy --no-error-summary
	@$(RUN) pytest -q -n 0 --no-header tests/test_architecture.py

format: venv
	@$(RUN) ruff check -q --fix .
	@$(RUN) ruff format -q .

docs: venv
	@.venv/bin/python scripts/write_docs.py

lock:
	$(call set_up,--lock $(LOCK_ARGS))
