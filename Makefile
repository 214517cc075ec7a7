# Everything happens in .venv; `make run` and `make test` set it up by themselves.

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
STAMP := .venv/.set-up
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder  # much of what tests do is waiting for processes

.PHONY: setup model run test check bench compiled clean
.DEFAULT_GOAL := run

setup: $(STAMP)

# torch first and by its pin: on a machine that has a CPU build at hand nothing else may drag CUDA in.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 setup")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[serve,trace,bench,plan,sim,agent,wasm,dev]'
	$(BIN)/mortice tile build || echo "kernels: they are compiled when they are first needed"
	$(BIN)/mortice sandbox setup || echo "sandboxes: what could not be had stands above; 'mortice sandbox doctor' says what works"
	touch $@

model: setup
	$(BIN)/mortice pull smollm2

run: model
	$(BIN)/mortice serve --model smollm2 --prefill 1 --decode 1 --ask "What is gravity?"

test: setup
	$(MAKE) model || echo "tests that want a real model will be skipped"
	$(BIN)/pytest -m "not slow" $(SIDE_BY_SIDE)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: setup
	$(BIN)/python benchmarks/serve_cpu.py

# The simulator's inner files and the decisions that it shares with the live cluster, as they stand, through mypyc: a copy of the
# package for PYTHONPATH=build/compiled. Nothing imports it unless told to.
COMPILED := $(addprefix mortice/,sched/fleet.py sched/plane.py sched/prefix_map.py sched/router.py \
	sim/books.py sim/clock.py sim/cluster.py sim/decode_batch.py sim/handover.py sim/link.py sim/prompt_queue.py sim/request.py sim/worker.py)

compiled: setup
	rm -rf build/compiled
	mkdir -p build/compiled
	cp -r src/mortice build/compiled/
	cd build/compiled && ../../$(BIN)/mypyc --ignore-missing-imports --follow-imports=silent $(COMPILED) > mypyc.log 2>&1 \
		|| { tail -5 mypyc.log; exit 1; }

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
