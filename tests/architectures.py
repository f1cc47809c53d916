"""Takes one network through prune, quantize, reload and export, as a user does.

    python -m tests.architectures resnet18 FOLDER IMAGES

Prints the result as one JSON object. That a stage refuses a network is no failure of this program.
"""

import contextlib
import importlib
import io
import json
import re
import sys
from pathlib import Path

import export
from common.evaluation import int8_agreement
from common.models import checkpoint
from common.system.errors import UserError

CHANNELS_REMOVED, EPOCHS = 0.25, 1
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
    )
    for name, script, arguments in steps:
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                module = importlib.import_module(script)
                module.main(module.parse_args([str(argument) for argument in arguments()]))
        except UserError as error:
            if name == "litert":  # not every operator has a form there
                result["no_litert"] = str(error)
                continue
            trained = "epoch 1/" in output.getvalue()
            return result | {"refused": str(error), "by": script, "after_training": trained}
        result[name] = re.search(r"saved (\S+?):?\s", output.getvalue())[1]
        if name == "pruned":
            layers = re.search(r"reconstructed (\d+) layers?", output.getvalue())
            result["reconstructed"] = int(layers[1]) if layers else 0  # there is a note in place of it
            counts = re.search(r"parameters\s+([\d,]+) => ([\d,]+)", output.getvalue()).groups()
            result["parameters"] = [int(count.replace(",", "")) for count in counts]
        if name == "int8":
            metrics = checkpoint.load(result["int8"])["metrics"]
            result |= {key: metrics.get(key) for key in ("macs", "ram_bytes", "int8_fraction")}
    return result | {
        "bytes": {name: Path(result[name]).stat().st_size for name, *_ in steps if name in result}
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
