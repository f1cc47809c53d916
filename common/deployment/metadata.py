"""What an exported file says of itself: classes, preprocessing and counts, as text by name."""

import json
from pathlib import Path

from common.data.transforms import resized_side
from common.models.schema import IMAGE_SIZES, is_crop_pct
from common.system.errors import UserError


def of(checkpoint: dict) -> dict[str, str]:
    """The metadata of an exported file.

    Args:
        checkpoint: The content of a checkpoint.

    Returns:
        Text by name: name, stage, arch, backend ("" for float); params and macs of the float model, for one
        image; classes, mean and std as JSON lists; resize, the shorter side, in pixels, that an image is
        resized to; image_size, the side of the square that is then cropped from its center; crop_pct, from
        which resize follows.
    """
    return {
        "name": checkpoint["name"],
        "stage": checkpoint["stage"],
        "arch": checkpoint["arch"],
        "backend": checkpoint["int8"]["backend"] if checkpoint["int8"] else "",
        "params": str(checkpoint["metrics"]["params"]),
        "macs": str(checkpoint["metrics"]["macs"]),
        # the name of a folder may contain bytes that are no text: they are escaped as in JSON
        "classes": json.dumps(checkpoint["classes"], ensure_ascii=False)
        .encode(errors="backslashreplace")
        .decode(),
        "mean": json.dumps(checkpoint["mean"]),
        "std": json.dumps(checkpoint["std"]),
        "resize": str(resized_side(checkpoint)),
        "image_size": str(checkpoint["image_size"]),
        "crop_pct": json.dumps(checkpoint.get("crop_pct")),
    }


def parse(texts: dict[str, str], path: str | Path) -> dict:
    """What `of` wrote, with the types and names of a checkpoint, except for its name.

    Args:
        texts: The metadata of a file.
        path: The file.

    Returns:
        The values.

    Raises:
        UserError: `of` did not write this text.
    """
    try:
        return _parse(texts)
    except KeyError as error:
        raise UserError(f"{path} was not written by export.py: its metadata have no {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} was not written by export.py: in its metadata, {error}") from None


def _parse(texts: dict[str, str]) -> dict:
    values = {key: texts[key] for key in ("stage", "arch", "backend")}
    values |= {key: json.loads(texts[key]) for key in ("classes", "image_size", "mean", "std")}
    values["crop_pct"] = json.loads(texts.get("crop_pct", "null"))  # which older files lack
    counts = {key: json.loads(texts.get(key, "null")) for key in ("params", "macs")}
    names, side = values["classes"], values["image_size"]
    valid = {key: count is None or _is_count(count) for key, count in counts.items()} | {
        "classes": type(names) is list and all(type(name) is str for name in names),
        "image_size": _is_count(side) and side in IMAGE_SIZES,
        "mean": _are_three(values["mean"], -10, 10),  # of pixels from 0 to 1
        "std": _are_three(values["std"], 0.0001, 10),
        "crop_pct": is_crop_pct(values["crop_pct"]),
    }
    for key in valid:
        if not valid[key]:
            raise ValueError(f"{key} cannot be {texts[key]:.60}")
    return values | {"metrics": counts}


def _is_count(value) -> bool:
    return type(value) is int and 0 <= value < 2**63  # no bool, which is an int too


def _are_three(values, low: float, high: float) -> bool:
    return (
        type(values) is list
        and len(values) == 3
        and all(type(value) in (int, float) and low <= value <= high for value in values)
    )
