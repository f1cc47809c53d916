"""Runs an ONNX file on one image in ONNX Runtime. Part of benchmarks.arm_instructions, run by ARM64's Python.

    python count.py FOLDER_OF_PACKAGES FILE.onnx

The plugin of the emulator prints the number of instructions between two calls of os.getpid.
"""

import os
import sys

sys.path.insert(0, sys.argv[1])

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
(given,) = session.get_inputs()
images = np.random.default_rng(0).standard_normal((1, *given.shape[1:]), np.float32)
session.run(None, {given.name: images})  # the first run prepares memory
os.getpid()
session.run(None, {given.name: images})
os.getpid()
