#!/usr/bin/env bash
# Does an older ONNX Runtime give the same logits as the installed one, bit for bit? It is installed into a
# temporary environment, and runs the files as docs/deploy/classify.py does, on 8 random images.
#
#     bash benchmarks/old_runtime.sh 1.15.1 mobilenet_v2.onnx...
set -euo pipefail
version=$1 root=$(realpath "$(dirname "$0")/..")
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$root/.venv/bin/python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "onnxruntime==$version" 'numpy<2' pillow
cat >"$folder/logits.py" <<'PYTHON'
import hashlib
import sys

import classify
import numpy as np

classify.THREADS = 1
for path in sys.argv[1:]:
    session, metadata = classify.load(path)
    shape = 8, 3, metadata["image_size"], metadata["image_size"]
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    (logits,) = session.run(None, {"images": images})
    print(path, logits.shape, hashlib.sha256(logits.tobytes()).hexdigest()[:16])
PYTHON
export PYTHONPATH=$root/docs/deploy
"$root/.venv/bin/python" "$folder/logits.py" "$@" | tee "$folder/new"
"$folder/venv/bin/python" "$folder/logits.py" "$@" >"$folder/old"
diff "$folder/new" "$folder/old" && echo "the same in ONNX Runtime $version"
