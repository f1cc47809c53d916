"""Takes one network through prune, quantize, reload and export, as a user does.

    python -m tests.architectures resnet18 FOLDER IMAGES

Prints the result as one JSON object. That a stage refuses a network is no failure of this program.
"""

import contextlib
import importlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import onnx
import torch

import export
from common.deployment import layers
from common.evaluation import int8_agreement
from common.models import checkpoint, integers
from common.system.errors import UserError
from tests.deployment import c_dumps

CHANNELS_REMOVED, EPOCHS = 0.25, 1
COMPILED = 40  # million parameters of the largest network that is compiled: C has 3 bytes for each
# pixels; the others see 64
SIDES = {"inception_v3": 96, "vit_b_16": 224, "maxvit_t": 224, "timm/vit_tiny_patch16_224": 224}


def main(arch: str, folder: Path, images: Path) -> dict:
    data = ["--dataset", "folder", "--data-dir", images, "--workers", 0, "--output-dir", folder]
    training = [*data, "--cache", "off", "--image-size", SIDES.get(arch, 64), "--batch-size", 8]
    training += ["--lr", 0.0001]
    start = ["--model", arch, "--pretrained", "none", "--channel-ratio", CHANNELS_REMOVED]
    start += ["--calibration-batches", 1]
    result = {"arch": arch}
    # hardly trained networks pass or fail these by chance
    int8_agreement.MIN_AGREEMENT = export.MIN_AGREEMENT = 0.0
    steps = (
        ("pruned", "train_pruning", lambda: [*start, "--epochs", EPOCHS, *training]),
        ("int8", "train_quantization", lambda: ["--weights", result["pruned"], "--epochs", 1, *training]),
        ("onnx", "export", lambda: [result["int8"], "--output", folder / "model.onnx", *data]),
        ("litert", "export", lambda: [result["int8"], "--output", folder / "model.tflite", *data]),
        ("c", "export", lambda: [result["int8"], "--output", folder / "model.c", "--no-check", *data]),
    )
    for name, script, arguments in steps:
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                module = importlib.import_module(script)
                module.main(module.parse_args([str(argument) for argument in arguments()]))
        except UserError as error:
            if name in ("litert", "c"):  # not every operator has a form there
                result[f"no_{name}"] = str(error)
                continue
            trained = "epoch 1/" in output.getvalue()
            return result | {"refused": str(error), "by": script, "after_training": trained}
        result[name] = re.search(r"saved (\S+?):?\s", output.getvalue())[1]
        if name == "pruned":
            layers = re.search(r"reconstructed (\d+) layers?", output.getvalue())
            result["reconstructed"] = int(layers[1]) if layers else 0  # there is a note in place of it
            counts = re.search(r"parameters\s+([\d,]+) => ([\d,]+)", output.getvalue()).groups()
            result["parameters"] = [int(count.replace(",", "")) for count in counts]
        if name == "c":
            header = (folder / "model.h").read_text(encoding="utf-8")
            result["c_ram_bytes"] = int(re.search(r"_RAM (\d+)", header)[1])
        if name == "int8":
            metrics = checkpoint.load(result["int8"])["metrics"]
            result |= {key: metrics.get(key) for key in ("macs", "ram_bytes", "int8_fraction")}
    return result | {
        "equal": bit_equal(result),
        "bytes": {name: Path(result[name]).stat().st_size for name, *_ in steps if name in result},
    }


def bit_equal(result: dict) -> dict[str, str]:
    """Of each exported file, the operator of the first layer whose integers differ from the reference."""
    content = checkpoint.load(result["int8"])
    if (graph := integers.read(content)) is None:
        return {}
    images = torch.rand(4, 3, content["image_size"], content["image_size"]) * 2 - 1
    expected, kinds = layers.of_graph(graph, images), layers.in_graph(graph)

    def first_difference(actual, expected=expected):
        found = (each.layer for each in layers.differences(expected, actual) if each.count)
        layer = next(found, None)
        return kinds[layer][1].operator if layer else "all"

    equal = {"onnx": first_difference(layers.of_onnx(onnx.load(result["onnx"]), images))}
    if "litert" in result:
        equal["litert"] = first_difference(layers.of_litert(Path(result["litert"]).read_bytes(), images))
    if "c" in result and result["parameters"][1] <= COMPILED * 1e6 and shutil.which(c_dumps.COMPILER[0]):
        twice = layers.of_graph(graph, images, "twice")
        equal["c"] = first_difference(c_dumps.of_c(Path(result["c"]), graph, images, twice), twice)
    return equal


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
