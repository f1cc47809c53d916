#!/usr/bin/env bash
# opencv-python-headless 5.0.0.93 (4.14.0.94 too): a binary PGM or PPM declares the value that is white, such as 4095
# for a 12-bit camera. OpenCV ignores it: white is read as 15. In a text PGM with 15 as white it does not ignore it.
# Expected: white is read as 255. https://netpbm.sourceforge.net/doc/pgm.html
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || { echo "could not create the environment"; exit 2; }
for version in 4.14.0.94 5.0.0.93; do
    "$folder/venv/bin/pip" install --quiet opencv-python-headless==$version numpy==2.4.6 || { echo "could not install"; exit 2; }
    "$folder/venv/bin/python" - "$folder" <<'EOF'
import pathlib
import sys

import cv2
import numpy as np

folder = pathlib.Path(sys.argv[1])
files = {
    "12-bit PGM": ("a.pgm", b"P5\n8 8\n4095\n" + np.full((8, 8), 4095, ">u2").tobytes()),
    "12-bit PPM": ("a.ppm", b"P6\n8 8\n4095\n" + np.full((8, 8, 3), 4095, ">u2").tobytes()),
    "4-bit PGM": ("b.pgm", b"P5\n8 8\n15\n" + bytes([15]) * 64),
    "4-bit PGM as text": ("c.pgm", b"P2\n8 8\n15\n" + b"15 " * 64 + b"\n"),
}
seen = []
for kind, (name, content) in files.items():
    (folder / name).write_bytes(content)
    seen.append(int(cv2.imread(str(folder / name)).max()))
    print(f"OpenCV {cv2.__version__}, {kind}: white is read as {seen[-1]}, expected 255")
sys.exit(seen != [15, 15, 15, 255])
EOF
done
