"""Classify pictures with an ONNX file that export.py wrote: python classify.py MODEL.onnx PICTURE...

Prints the five likeliest classes of each picture. Needs onnxruntime, numpy and pillow only: the metadata of
the file say how to prepare a picture. A mistake ends in one line and exit code 2; a picture that cannot be
read is one line, and the rest go on.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

THREADS = 0  # 0: as many as there are cores
NEEDED = "classes", "mean", "std", "resize", "image_size"


def load(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    if "image_size" not in texts:
        raise ValueError("its metadata do not say the image size: export.py did not write it")
    return session, {name: json.loads(texts[name]) for name in NEEDED}


def upright(picture):
    """The picture in RGB, turned as its EXIF data say, transparent parts on white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def prepare(picture, resize, image_size, mean, std):
    """float32 [1, 3, S, S]: the middle of the picture, once its short side is `resize`; normalised."""
    width, height = (int(resize * side / min(picture.size)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    pixels = np.asarray(picture.crop((left, top, left + image_size, top + image_size)), np.float32) / 255
    return ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)[None]


def main(model, *pictures):
    try:
        session, metadata = load(model)
    except Exception as error:  # ONNX Runtime's errors have no common class that is public
        sys.exit(complain(f"cannot use {model}: {str(error).strip().splitlines()[0]}"))
    classes, status = metadata.pop("classes"), 0
    for path in pictures:
        try:
            with Image.open(path) as picture:
                images = prepare(upright(picture), **metadata)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            status = complain(f"cannot read the picture {path}: {error}")
            continue
        logits = session.run(["logits"], {"images": images})[0][0]
        likelihoods = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        print(path)
        for index in np.argsort(-likelihoods, kind="stable")[:5]:
            print(f"  {likelihoods[index]:7.2%}  {classes[index]}")
    return status


def complain(line):
    print(line, file=sys.stderr)
    return 2


if __name__ == "__main__":
    usage = "usage: python classify.py MODEL.onnx PICTURE..."
    sys.exit(main(*sys.argv[1:]) if sys.argv[2:] else complain(usage))
