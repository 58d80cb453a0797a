# make demo and make test need python3, g++ and make; everything else is set up in .venv at the first call.
PYTHON ?= python3
BIN := .venv/bin
RECIPE ?= recipes/tiny.yaml

.PHONY: help setup demo test check bench bench-peers bench-fuzz bench-serve stress tiny

help:
	@echo "make demo     ask the embedded model a question, in English and in Chinese"
	@echo "make test     the whole test suite             (make test ARGS='-k tokenizer -x')"
	@echo "make check    ruff and mypy"
	@echo "make bench    speed and memory of published shapes with random weights, measured here"
	@echo "make bench-peers   the same beside llama.cpp, OpenVINO and transformers (builds them first)"
	@echo "make bench-fuzz   200,000 hostile GGUF and safetensors headers  (ARGS='--seed 1')"
	@echo "make bench-serve  the server beside its engine  (ARGS='--model FOLDER --peer llama-server --gguf FILE')"
	@echo "make stress   clients that leave, pauses, poisonous requests: thousands of each"
	@echo "make tiny     train the embedded models again  (one to three hours on two cores)"
	@echo "make setup    only set up .venv                (PYTHON=python3.12 to choose the Python)"

setup:
	@$(PYTHON) scripts/bootstrap.py

demo: setup
	$(BIN)/qwenkit run -p "What is 123 + 456?"
	$(BIN)/qwenkit run -p "你是谁？"

test: setup
	$(BIN)/python -m pytest $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python bench/first_token.py
	$(BIN)/python bench/speed.py $(ARGS)

bench-peers: setup
	$(BIN)/python bench/peers.py $(ARGS)

bench-fuzz: setup
	$(BIN)/python bench/fuzz_files.py $(ARGS)

bench-serve: setup
	$(BIN)/python bench/serve.py $(ARGS)

stress: setup
	$(BIN)/python bench/stress_engine.py $(ARGS)
	$(BIN)/python bench/structured.py
	$(BIN)/python bench/stress_server.py
	$(BIN)/python bench/fuzz_api.py --requests 10000

tiny: setup
	$(BIN)/qwenkit train tokenizer $(RECIPE)
	$(BIN)/qwenkit train pretrain $(RECIPE)
	$(BIN)/qwenkit train sft $(RECIPE)
	$(BIN)/qwenkit train sft recipes/tiny-polish.yaml
	$(BIN)/qwenkit train sft recipes/tiny-finish.yaml
	$(BIN)/qwenkit train sft recipes/tiny-settle.yaml
	$(BIN)/python scripts/average_models.py out/tiny/average/model out/tiny/finish/model out/tiny/settle/model
	$(BIN)/qwenkit eval --config recipes/tiny-settle.yaml
	$(BIN)/python scripts/install_tiny.py
