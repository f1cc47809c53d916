#!/usr/bin/env bash
# opencv-python-headless 5.0.0.93: white of a BMP with 16 bits per pixel (5 for each color) is read as 248.
# Expected: 255, which Pillow 13.0.0 reads. OpenCV fills the lower 3 bits with zeros in place of scaling 31 to 255.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || { echo "could not create the environment"; exit 2; }
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 numpy==2.4.6 pillow==13.0.0 ||
    { echo "could not install"; exit 2; }
"$folder/venv/bin/python" - "$folder/white.bmp" <<'EOF'
import struct
import sys

import cv2
import numpy as np
import PIL
from PIL import Image

pixels = np.full((8, 8), 0x7FFF, "<u2").tobytes()  # 5 bits of red, green and blue, all ones
header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 16, 0, len(pixels), 2835, 2835, 0, 0)
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<2sIHHI", b"BM", 54 + len(pixels), 0, 0, 54) + header + pixels)

opencv = int(cv2.imread(sys.argv[1]).max())
pillow = int(np.asarray(Image.open(sys.argv[1]).convert("RGB")).max())
print(f"OpenCV {cv2.__version__}: white is read as {opencv}; Pillow {PIL.__version__}: {pillow}; expected 255")
sys.exit((opencv, pillow) != (248, 255))
EOF
