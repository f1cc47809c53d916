# `make demo` and `make test` need only Python 3.11 or newer: they create .venv themselves.
PYTHON ?= python3
RUN := .venv/bin/python
DEMO := --config configs/demo.yaml
TEACHER := weights/teacher_mobilenet_v2_0.8422.pt
STUDENT := weights/kd_squeezenet1_1_0.7914.pt

.PHONY: demo test lint

.venv/installed: requirements.txt tests/requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet -r requirements.txt -r tests/requirements.txt
	touch $@

# five networks on small images: the second one shows what the student is without a teacher
demo: .venv/installed
	$(RUN) train_teacher.py $(DEMO) --teacher mobilenet_v2 --pretrained $(TEACHER) --epochs 3 --lr 0.001
	$(RUN) train_teacher.py $(DEMO) --teacher squeezenet1_1 --pretrained $(STUDENT) --epochs 6
	$(RUN) train_student.py $(DEMO) --teacher mobilenet_v2 --student squeezenet1_1 --pretrained $(STUDENT) --epochs 6
	$(RUN) train_pruning.py $(DEMO) --weights kd_squeezenet1_1 --teacher mobilenet_v2 --pruning-ratio 0.5 --epochs 2
	$(RUN) train_quantization.py $(DEMO) --weights pruned_kd_squeezenet1_1 --target-device server --epochs 1
	$(RUN) evaluate.py --dataset synthetic --output-dir weights/demo mobilenet_v2 teacher_squeezenet1_1 \
		kd_squeezenet1_1 pruned_kd_squeezenet1_1 quantized_pruned_kd_squeezenet1_1

# one process for each core, one thread for each process: what the tests compute is small
test: .venv/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
