#!/usr/bin/env bash
# nvidia-modelopt 0.47.0: installed without an extra, `import modelopt.torch.prune` fails, since packages are missing that it
# imports and does not declare. One may expect that it works: the pruning guide says that FastNAS, its method for networks of
# computer vision, needs no additional dependencies.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet nvidia-modelopt==0.47.0 torch==2.14.1 \
    numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" - <<'EOF'
import importlib.metadata, re, sys

declared = importlib.metadata.requires("nvidia-modelopt")
core = sorted(re.match(r"[\w.-]+", line)[0] for line in declared if "extra ==" not in line)
print(f"nvidia-modelopt {importlib.metadata.version('nvidia-modelopt')}, torch {importlib.metadata.version('torch')}")
print("declared:", *core)
missing = None
try:
    import modelopt.torch.prune
except ModuleNotFoundError as error:
    missing = error.name
print(f"import modelopt.torch.prune: expected to work, missing: {missing}")
sys.exit(missing != "requests" or "requests" in core)
EOF
