# Short names for the commands of this project; the work is done by the programs they call.

PYTHON := .venv/bin/python
LINT_IMPORTS := .venv/bin/lint-imports
IMAGE =
MODELS =
PORT =
RUNTIME =
TAG =
ARGS =

# As typed: make itself expands no $ in them. The shell finds the names in its environment, where
# quotes, spaces and $ mean nothing; ARGS alone are words for it.
define as_typed
override $(1) := $$(value $(1))
export $(1)
endef
$(foreach name,IMAGE MODELS PORT RUNTIME TAG ARGS,$(eval $(call as_typed,$(name))))

.DEFAULT_GOAL := help
.PHONY: help setup demo test train convert predict build run cloud deploy undeploy http data sample explore compare tune benchmark fuzz mutants test-cloud lock sbom format clean

help: ## list all commands
	@echo "Start with make demo. All commands:"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "Variables:"
	@echo "  ARGS     more arguments for demo, test, train, convert, predict, build, run, cloud,"
	@echo "           deploy, undeploy, http, data, sample, explore, compare, tune, benchmark, fuzz,"
	@echo "           mutants, test-cloud and sbom:"
	@echo "           make train ARGS=\"--epochs 5\", make train ARGS=--help; the shell reads it,"
	@echo "           so quote what is in it; the variables below are taken as they are"
	@echo "  IMAGE    file, folder or URL to classify: make predict IMAGE=rose.jpg"
	@echo "  MODELS   folder of models, for train, convert, predict, build, cloud, deploy and sbom:"
	@echo "           make build MODELS=models/mine"
	@echo "  PORT     where the container, or make cloud, listens on this machine:"
	@echo "           make run PORT=8081"
	@echo "  RUNTIME  of the container image, tflite-runtime, ai-edge-litert or openvino:"
	@echo "           make build RUNTIME=openvino"
	@echo "  TAG      name of the container image: make build TAG=mine, make run TAG=mine"

setup: ## install the packages of Pipfile.lock into .venv
	@bash tools/setup.sh

demo: setup ## train briefly, convert, serve and classify a flower (ARGS=--stay: and keep its page)
	@$(PYTHON) -m tools.demo $(ARGS)

test: setup ## check format, style, types, imports and dead code, then run all tests
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ty check
	$(LINT_IMPORTS)
	$(PYTHON) -m vulture
	$(PYTHON) -m pytest -n 2 --dist loadfile --max-worker-restart 0 $(ARGS)

train: setup ## train on flowers/; the best epoch is kept in models/
	$(PYTHON) train.py $(if $(MODELS),--models="$$MODELS") $(ARGS)

convert: setup ## convert the best checkpoint in models/ to TFLite
	$(PYTHON) convert_to_tflite.py $(if $(MODELS),--models="$$MODELS") $(ARGS)

predict: setup ## classify IMAGE
	@$(PYTHON) predict.py $(if $(MODELS),--model="$$MODELS") $(ARGS) $(if $(IMAGE),-- "$$IMAGE")

build: setup ## build the container image with the best model of MODELS; convert it first if needed
	@$(PYTHON) -m tools.container build $(if $(MODELS),--models="$$MODELS") \
		$(if $(RUNTIME),--runtime="$$RUNTIME") $(if $(TAG),--tag="$$TAG") -- $(ARGS)

run: setup ## serve the container image on PORT of this machine until Ctrl-C
	@$(PYTHON) -m tools.container run $(if $(PORT),--port="$$PORT") \
		$(if $(TAG),--tag="$$TAG") -- $(ARGS)

cloud: setup ## run the AWS stack on this machine and try it (ARGS=--stay: and keep it)
	@$(PYTHON) -m tools.cloud $(if $(MODELS),--models="$$MODELS") \
		$(if $(RUNTIME),--runtime="$$RUNTIME") $(if $(PORT),--port="$$PORT") $(ARGS)

deploy: setup ## put the service on AWS: build, push, deploy (ARGS=--dry-run: only say how)
	@$(PYTHON) -m tools.deploy up $(if $(MODELS),--models="$$MODELS") \
		$(if $(RUNTIME),--runtime="$$RUNTIME") $(ARGS)

undeploy: setup ## take it down again; the bucket of images stays
	@$(PYTHON) -m tools.deploy down $(ARGS)

http: setup ## turn HTTP on port 9000 into events for `make run`, like a Function URL
	$(PYTHON) -m tools.function_url $(ARGS)

data: setup ## download the data set into flowers/
	$(PYTHON) -m training.dataset.download $(ARGS)

sample: setup ## draw a small data set into flowers/
	$(PYTHON) -m training.sample $(ARGS)

explore: setup ## explore the images of flowers/: a page of figures
	$(PYTHON) -m experiments.explore $(ARGS)

compare: setup ## train several networks on flowers/ under one budget and compare them
	$(PYTHON) -m experiments.compare $(ARGS)

tune: setup ## search for better hyperparameters of the head, on flowers/
	$(PYTHON) -m experiments.tune $(ARGS)

benchmark: setup ## compare the speed of each way of training
	$(PYTHON) -m benchmarks.training $(ARGS)

fuzz: setup ## fuzz the service: 100,000 malformed events, as many images, 10,000 malicious hosts
	$(PYTHON) -m tests.fuzz.events $(ARGS)
	$(PYTHON) -m tests.fuzz.images $(ARGS)
	$(PYTHON) -m tests.fuzz.hosts $(ARGS)

mutants: setup ## make 600 small changes to the code and count how many the tests notice
	$(PYTHON) -m tools.mutants $(ARGS)

test-cloud: setup ## test the AWS stack on this machine (ARGS="-m 'not slow'": in less time)
	TEST_CLOUD=1 $(PYTHON) -m pytest tests/cloud $(ARGS)

lock: setup ## renew the versions and hashes in Pipfile.lock
	$(PYTHON) -m tools.lock

sbom: setup ## list what each container image and the environment hold, as CycloneDX, in sbom/
	@$(PYTHON) -m tools.sbom $(if $(MODELS),--models="$$MODELS") $(ARGS)

format: setup ## format the code and fix what the linter can
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

clean: ## remove caches and the demo's files; .venv, flowers/ and checkpoints stay
	rm -rf .cache .pytest_cache .ruff_cache models/demo mutants sbom .aws-sam
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
