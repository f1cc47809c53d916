"""How a checkpoint was created: its name, and a row for each stage from the first."""

import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
import torch_pruning
import torchvision

from common.data import class_names
from common.data.datasets import Splits
from common.models import architectures, timm_models
from common.models.schema import FORMAT, STAGES
from common.system.errors import UserError


def next_name(stage: str, base: str, model_name: str | None = None) -> str:
    """The name of the checkpoint that a stage creates.

    Args:
        stage: The stage, of the table `STAGES`.
        base: The name of the parent; of a stage that starts a new chain, the architecture.
        model_name: Takes the place of the architecture in the name.

    Returns:
        Such as "pruned_kd_resnet18"; of timm/lcnet_050 "pruned_kd_timm_lcnet_050".
    """
    prefixes, rest = [], base.replace("/", "_")
    while rest.startswith(tuple(f"{known}_" for known in STAGES)):
        prefix, _, rest = rest.partition("_")
        prefixes.append(prefix)
    kept = [prefix for prefix in prefixes if prefix != "teacher"] if STAGES[stage] else []
    return "_".join([stage, *kept, model_name or rest])


def new_checkpoint(arch: str, classes: list[str], image_size: int | None) -> dict:
    """The start of a chain: a checkpoint without stage, weights, metrics and lineage.

    Args:
        arch: The architecture.
        classes: The names, in the order of the labels.
        image_size: Side of the images, in pixels; None for that of the architecture.

    Returns:
        What the first stage's checkpoint inherits.
    """
    images = architectures.input_config(arch)
    return {
        "format": FORMAT,
        "name": arch,
        "arch": arch,
        "classes": classes,
        **images,
        "image_size": image_size or images["image_size"],
        "int8": None,
        "metrics": {},
        "lineage": [],
    }


def check_classes(checkpoint: dict, classes: list[str]) -> None:
    """Checks that a checkpoint predicts the classes of a data set.

    Args:
        checkpoint: Its `classes` are compared.
        classes: The names in the data set, in the order of the labels.

    Raises:
        UserError: They differ, or their order does.
    """
    if difference := class_difference(checkpoint, classes):
        raise UserError(
            f"{checkpoint['name']} does not fit this data set: {difference}; see --dataset, --data-dir"
        )


def class_difference(checkpoint: dict, classes: list[str]) -> str:
    """Describes how the classes of a checkpoint and of a data set differ.

    Args:
        checkpoint: Its `classes` are compared.
        classes: The names in the data set, in the order of the labels.

    Returns:
        Words for a message; "" where they are the same in the same order.
    """
    own = checkpoint["classes"]
    if own == classes:
        return ""
    difference = class_names.difference(own, classes, "the checkpoint", "the data set")
    count = f"it has {len(own)} classes, not {len(classes)}: " if len(own) != len(classes) else ""
    return count + (difference or "it has the same classes in another order")


def check_fits(checkpoint: dict, splits: Splits) -> None:
    """Checks that a checkpoint predicts the classes of a data set.

    Prints a note where it was trained on another split: its training images may be validation images here.

    Args:
        checkpoint: Its `classes` and `lineage` are compared.
        splits: The data set.

    Raises:
        UserError: The classes differ, or their order does.
    """
    check_classes(checkpoint, splits.classes)
    if checkpoint["lineage"] and not splits.trained(checkpoint):
        print(
            f"note: {checkpoint['name']} was trained on other images or another split; "
            "its training images may be among the validation images here"
        )


def new_row(
    parent: dict,
    parent_path: Path | None,
    stage: str,
    *,
    arch: str | None = None,
    options: dict,
    machine: str,
    split: str,
    teacher_paths: Sequence[Path] = (),
) -> dict:
    """The row of the lineage that a stage adds.

    Args:
        parent: The checkpoint that the stage starts from.
        parent_path: Its file; None where there is none.
        stage: The stage, of the table `STAGES`.
        arch: The architecture, of a student.
        options: Those of the command line, with `model_name`.
        machine: What the training computes with.
        split: The fingerprint of the training and validation images.
        teacher_paths: The files of the teachers that are not the parent.

    Returns:
        Plain values.
    """
    return {
        "stage": stage,
        "name": next_name(stage, arch or parent["name"], options["model_name"]),
        "options": {key: value for key, value in options.items() if value is not None and key != "resume"},
        "machine": machine,
        "split": split,
        "parent": parent_path and parent_path.name,
        "parent_sha256": parent_path and sha256(parent_path),
        "parent_bytes": parent_path and parent_path.stat().st_size,
        "teacher": [path.name for path in teacher_paths] or None,
        "teacher_sha256": [sha256(path) for path in teacher_paths] or None,
        "pretrained_sha256": _sha256_of_pretrained(options, parent_path),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "torch-pruning": str(torch_pruning.__version__),
        }
        | timm_models.version(arch or parent["arch"]),
    }


def _sha256_of_pretrained(options: dict, parent_path: Path | None) -> str | None:
    """The SHA-256 of the initial weights, where they are a file that is used."""
    path = Path(options.get("pretrained", ""))
    used = parent_path is None or "student" in options
    return sha256(path) if used and path.is_file() else None


def child(parent: dict, row: dict, **content) -> dict:
    """The checkpoint that a stage creates.

    Args:
        parent: The checkpoint that it starts from.
        row: The result of `new_row`, added to the lineage.
        **content: What differs from the parent, such as `state_dict` and `metrics`.

    Returns:
        The content of the new checkpoint.
    """
    lineage = [*parent["lineage"], row]
    return {
        **parent,
        "format": FORMAT,
        "stage": row["stage"],
        "name": row["name"],
        "lineage": lineage,
        **content,
    }


def sha256(path: Path) -> str:
    """The SHA-256 of a file, by which a lineage refers to it.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()
