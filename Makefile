# Names for the commands that a person types; what they do is in the programs they call.

PYTHON := .venv/bin/python
IMAGE =
RUNTIME =
ARGS =

.DEFAULT_GOAL := help
.PHONY: help setup demo test train convert predict build run http data sample explore compare tune benchmark fuzz mutants lock format clean

help: ## list these commands
	@echo "make demo shows the whole path, make test checks it. All of them:"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "Variables:"
	@echo "  ARGS     further arguments of demo, test, train, convert, predict, build, run, http,"
	@echo "           data, sample, explore, compare, tune, benchmark, fuzz and mutants:"
	@echo "           make train ARGS=\"--epochs 5\", make train ARGS=--help"
	@echo "  IMAGE    what to predict, a file, a folder or a URL: make predict IMAGE=rose.jpg"
	@echo "  RUNTIME  what the image runs, tflite-runtime, ai-edge-litert or openvino: make"
	@echo "           build RUNTIME=openvino"

setup: ## make .venv with all that Pipfile.lock pins
	@bash tools/setup.sh

demo: setup ## train briefly, convert, serve, ask: see a flower named by a Lambda service
	@$(PYTHON) -m tools.demo $(ARGS)

test: setup ## lint, then run all tests
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pytest $(ARGS)

train: setup ## train on flowers/ and keep the best epoch in models/
	$(PYTHON) train.py $(ARGS)

convert: setup ## convert the best checkpoint in models/ to TFLite
	$(PYTHON) convert_to_tflite.py $(ARGS)

predict: setup ## name the flower in IMAGE
	@$(PYTHON) predict.py $(if $(IMAGE),"$(IMAGE)") $(ARGS)

build: setup ## build the Lambda image `flowers`, converting first where nothing is converted
	ls models/*.tflite >/dev/null 2>&1 || $(PYTHON) convert_to_tflite.py
	BUILDX_NO_DEFAULT_ATTESTATIONS=1 \
		docker build -t flowers $(if $(RUNTIME),--build-arg RUNTIME=$(RUNTIME)) $(ARGS) .

run: ## serve the image `flowers` on port 8080, until Ctrl-C
	docker run --rm -p 8080:8080 $(ARGS) flowers

http: setup ## plain HTTP on port 9000 in front of `make run`, as AWS would put it there
	$(PYTHON) -m tools.function_url $(ARGS)

data: setup ## download the data set into flowers/
	$(PYTHON) -m training.dataset.download $(ARGS)

sample: setup ## draw a small data set into flowers/
	$(PYTHON) -m training.sample $(ARGS)

explore: setup ## look at the images of flowers/: one page of figures
	$(PYTHON) -m experiments.explore $(ARGS)

compare: setup ## several networks under one budget on flowers/, in one table
	$(PYTHON) -m experiments.compare $(ARGS)

tune: setup ## search for better settings of the head, on flowers/
	$(PYTHON) -m experiments.tune $(ARGS)

benchmark: setup ## measure how fast each way of training is, side by side
	$(PYTHON) -m benchmarks.training $(ARGS)

fuzz: setup ## ask the service 100,000 events and images that nobody meant to send
	$(PYTHON) -m tests.fuzz.events $(ARGS)
	$(PYTHON) -m tests.fuzz.images $(ARGS)

mutants: setup ## change the code in 600 small ways and see which ones the tests notice
	$(PYTHON) -m tools.mutants $(ARGS)

lock: setup ## lock the versions and hashes of the Pipfile's packages anew
	$(PYTHON) -m tools.lock

format: setup ## format the code, and mend what the linter can
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

clean: ## remove caches and what the demo made; .venv, flowers/ and checkpoints stay
	rm -rf .cache .pytest_cache .ruff_cache models/demo mutants
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
