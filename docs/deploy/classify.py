"""Classify images with an ONNX file that export.py wrote: python classify.py MODEL.onnx IMAGE...

Prints the top 5 classes of each image. Needs onnxruntime, numpy and pillow only: the metadata of the file
describe how an image is prepared. An error ends in one line and exit code 2. An image that cannot be read is
one line, and the program continues with the next one.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

THREADS = 0  # 0: one for each core
NEEDED = "classes", "mean", "std", "resize", "image_size"


def load(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 3
    if sums_overflow():
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    if "image_size" not in texts:
        raise ValueError("its metadata have no image size: it was not written by export.py")
    return session, {name: json.loads(texts[name]) for name in NEEDED}


def sums_overflow():
    """Whether sums of int8 products overflow without an option: on x86 without VNNI; True if unknown.

    With VNNI the option would only double the time. On ARM it changes nothing.
    """
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(words)


def upright(image):
    """The image in RGB of 8 bits, rotated as its EXIF data specify, transparent parts on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow alone would make all but the darkest 256 levels white
        levels = np.asarray(image, np.float32) / 257
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def prepare(image, resize, image_size, mean, std):
    """float32 [1, 3, S, S]: the shorter side is resized to `resize`, the center cropped and normalized."""
    width, height = (int(resize * side / min(image.size)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    pixels = np.asarray(image.crop((left, top, left + image_size, top + image_size)), np.float32) / 255
    return ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)[None]


def main(model, *paths):
    try:
        session, metadata = load(model)
    except Exception as error:  # ONNX Runtime's errors have no common class that is public
        sys.exit(complain(f"cannot use {model}: {str(error).strip().splitlines()[0]}"))
    classes, status = metadata.pop("classes"), 0
    for path in paths:
        try:
            with Image.open(path) as image:
                images = prepare(upright(image), **metadata)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            status = complain(f"cannot read the image {path}: {error}")
            continue
        logits = session.run(["logits"], {"images": images})[0][0]
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        print(path)
        for index in np.argsort(-logits, kind="stable")[:5]:
            print(f"  {probabilities[index]:7.2%}  {classes[index]}")
    return status


def complain(line):
    print(line, file=sys.stderr)
    return 2


if __name__ == "__main__":
    usage = "usage: python classify.py MODEL.onnx IMAGE..."
    sys.exit(main(*sys.argv[1:]) if sys.argv[2:] else complain(usage))
