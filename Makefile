# `make demo` and `make test` need nothing but Python 3.11 or newer: they make .venv themselves.
PYTHON ?= python3
RUN := .venv/bin/python
DEMO := --config configs/demo.yaml

.PHONY: demo test lint clean

.venv/installed: requirements.txt tests/requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r requirements.txt -r tests/requirements.txt
	touch $@

# nothing smaller than a ResNet-18 learns from scratch in a minute: here the student is one as well
demo: .venv/installed
	$(RUN) train_teacher.py $(DEMO) --teacher resnet18 --pretrained none --epochs 5 --lr 0.001
	$(RUN) train_student.py $(DEMO) --teacher resnet18 --student resnet18 --pretrained none --epochs 5 --lr 0.001
	$(RUN) train_pruning.py $(DEMO) --weights kd_resnet18 --pruning-ratio 0.4 --epochs 4
	$(RUN) train_quantization.py $(DEMO) --weights pruned_kd_resnet18 --target-device server --epochs 2
	$(RUN) evaluate.py --dataset synthetic --output-dir weights/demo resnet18 kd_resnet18 pruned_kd_resnet18 \
		quantized_pruned_kd_resnet18

# what the tests compute is small: more threads would wait for each other longer than they work
test: .venv/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
