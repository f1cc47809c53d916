"""The table of stages, and what a checkpoint must contain before it is used: files come from anywhere."""

import math
import re
from pathlib import Path

from common.compression import target_devices
from common.system.errors import UserError

# Each stage, and whether the name of its checkpoint continues that of its parent: pruned_kd_resnet18.
STAGES = {"teacher": False, "kd": False, "pruned": True, "quantized": True}
FORMAT = 2
NAME = re.compile(r"[A-Za-z0-9._+-]{1,200}")  # it becomes part of a file's name
IMAGE_SIZES = range(8, 4097)  # pixels
ROW = {"options", "split", "parent", "parent_sha256"}  # what is read of each row of the lineage
TYPES = {
    "format": int,
    "stage": str,
    "name": str,
    "arch": str,
    "classes": list,
    "image_size": int,
    "mean": list,
    "std": list,
    "state_dict": dict,
    "int8": dict | None,
    "metrics": dict,
    "lineage": list,
}


def check(content, path: str | Path) -> None:
    """Checks the content of a file.

    Args:
        content: What was read.
        path: The file.

    Raises:
        UserError: It is not a checkpoint that this version can use.
    """
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(
            f"{path} is not a checkpoint of this project (a state dict can be given as --pretrained)"
        )
    if content["format"] not in (1, FORMAT):
        raise UserError(
            f"{path} has checkpoint format {content['format']}; this version reads formats 1 and {FORMAT}"
        )
    for key, kind in TYPES.items():
        if key not in content or not isinstance(content[key], kind):
            raise UserError(
                f"{path} is not a complete checkpoint: its {key!r} is missing or has the wrong type"
            )
    for metric in ("top1", "ci95", "n", "params", "macs"):
        if metric not in content["metrics"]:
            raise UserError(f"{path} is not a complete checkpoint: its metrics lack {metric!r}")
    if invalid := _invalid_part(content, Path(path).stat().st_size):
        raise UserError(f"{path} was not written by this project: {invalid} cannot be valid")


def _invalid_part(content: dict, file_bytes: int) -> str:
    """What cannot be in a checkpoint of this size, even with a correct checksum; "" for nothing."""

    def numbers(values, count: int | None = None) -> bool:
        finite = all(isinstance(value, int | float) and abs(value) < 1e18 for value in values)
        return finite and count in (None, len(values))

    classes, metrics, int8 = content["classes"], content["metrics"], content["int8"]
    if not NAME.fullmatch(content["name"]) or content["stage"] not in STAGES:
        return "its name or its stage"
    if not all(isinstance(name, str) for name in classes) or not 2 <= len(set(classes)) == len(classes):
        return "its classes"
    if (
        content["image_size"] not in IMAGE_SIZES
        or not all(numbers(content[key], 3) for key in ("mean", "std"))
        or not all(content["std"])
    ):
        return "its image size or normalization"
    if not is_crop_pct(content.get("crop_pct")):  # which older checkpoints lack
        return "its crop_pct"
    if not numbers([metrics[key] for key in ("top1", "n", "params", "macs")]):
        return "its metrics"
    for row in content["lineage"]:
        if not (isinstance(row, dict) and set(row) >= ROW and isinstance(row["options"], dict)):
            return "its lineage"
    if not all(isinstance(key, str) for key in content["state_dict"]):
        return "its weights"
    if int8 is not None:
        shapes = int8.get("float_shapes")
        if not isinstance(int8.get("backend"), str) or not isinstance(shapes, dict):
            return "its int8 part"
        target_devices.by_backend(int8["backend"])
        # from these a model is built: not one that fills the memory
        if not all(isinstance(shape, list) and all(map(_is_length, shape)) for shape in shapes.values()):
            return "its int8 part"
        if sum(map(math.prod, shapes.values())) > 4 * file_bytes:
            return "its layers, which are larger than the file,"
    return ""


def is_crop_pct(value) -> bool:
    """Whether a value can be the crop's fraction of the shorter side.

    Args:
        value: Anything.

    Returns:
        True for None, and for a float from 0.1 to 1.
    """
    return value is None or (type(value) is float and 0.1 <= value <= 1)


def _is_length(value) -> bool:
    return type(value) is int and value >= 0
