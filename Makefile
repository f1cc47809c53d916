# `make demo` and `make test` need only Python 3.11 or newer: they create .venv themselves.
PYTHON ?= python3
RUN := .venv/bin/python
DEMO := --config configs/demo.yaml

.PHONY: demo test lint

.venv/installed: requirements.txt tests/requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r requirements.txt -r tests/requirements.txt
	touch $@

# no network smaller than a ResNet-18 learns from scratch in a minute: teacher and student are the same
demo: .venv/installed
	$(RUN) train_teacher.py $(DEMO) --teacher resnet18 --pretrained none --epochs 5 --lr 0.001
	$(RUN) train_student.py $(DEMO) --teacher resnet18 --student resnet18 --pretrained none --epochs 5 --lr 0.001
	$(RUN) train_pruning.py $(DEMO) --weights kd_resnet18 --pruning-ratio 0.4 --epochs 4
	$(RUN) train_quantization.py $(DEMO) --weights pruned_kd_resnet18 --target-device server --epochs 2
	$(RUN) evaluate.py --dataset synthetic --output-dir weights/demo resnet18 kd_resnet18 pruned_kd_resnet18 \
		quantized_pruned_kd_resnet18

# one process for each core, one thread for each process: what the tests compute is small
test: .venv/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --maxprocesses 8

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
