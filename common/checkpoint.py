"""Checkpoints: their names, how one is found, saved, read, and rebuilt into a model that runs.

A checkpoint is a plain dict of tensors and JSON-like values, in the file `<name>_<top-1>.pt`:

format (2), stage ("teacher", "kd", "pruned" or "quantized"), name (such as "pruned_kd_resnet18"), arch
(torchvision's), classes (names in label order), image_size (pixels), mean, std (of each channel, for pixels
from 0 to 1), state_dict, int8 (None, or {"backend", "float_shapes"}: what the int8 model is rebuilt from),
metrics (figures of the test split and more), lineage (one row per stage from the first), and in the file
checksum (see `files.checksum`; format 1 has none)
"""

import hashlib
import itertools
import platform
import re
from pathlib import Path

import torch
import torch_pruning
import torchvision
from torch import nn

from common import engines, models, quantization, validity
from common.batches import IMAGENET_MEAN, IMAGENET_STD
from common.data import Splits
from common.errors import UserError
from common.files import CHECKSUM, checksum, load_checked, load_tensors, save_checked, written_whole
from common.validity import FORMAT, STAGES

CANDIDATES = "candidates"  # the folder, beside the checkpoints, of what compress.py tries
FILE_NAME = re.compile(r"(?P<name>.+)_(?P<top1>[01]\.\d{4})(-\d+)?\.pt")


def next_name(stage: str, base: str, model_name: str | None = None) -> str:
    """The name of what `stage` makes of `base`; `model_name` takes the architecture's place in it.

    A student starts a new chain; a pruned or quantized model goes on with the name of what it was made from.
    """
    prefixes, rest = [], base
    while rest.startswith(tuple(f"{known}_" for known in STAGES)):
        prefix, _, rest = rest.partition("_")
        prefixes.append(prefix)
    kept = [prefix for prefix in prefixes if prefix != "teacher"] if stage in ("pruned", "quantized") else []
    return "_".join([stage, *kept, model_name or rest])


def find(reference: str, folder: str | Path) -> Path:
    """The checkpoint that `reference` means: a path, a file's name in `folder`, or the start of one.

    The prefix `teacher_` and the suffix `.pt` may be left out. Of several matches the most accurate is taken,
    of equal ones the newest. Raises UserError, listing what there is.
    """
    try:
        if Path(reference).is_file():
            return Path(reference)
    except (OSError, ValueError):
        pass  # a name that no file can have is looked up like any other, to say what there is
    there = _files_in(folder)
    wanted = (reference, f"teacher_{reference}")
    tests = (
        lambda path: path.name in wanted or path.stem in wanted,
        lambda path: FILE_NAME.fullmatch(path.name)["name"] in wanted,
        lambda path: path.name.startswith(wanted),
    )
    for test in tests:
        if matches := [path for path in there if test(path)]:
            return max(
                matches, key=lambda path: (FILE_NAME.fullmatch(path.name)["top1"], path.stat().st_mtime)
            )
    names = ", ".join(sorted(path.name for path in there)) or "no checkpoint yet"
    raise UserError(f"no checkpoint {reference!r}; in {folder} there is: {names}")


def everything_in(folder: str | Path) -> list[Path]:
    """The checkpoints in `folder`, the oldest first. Raises UserError where there is none."""
    there = _files_in(folder)
    if not there:
        raise UserError(f"there is no checkpoint in {folder}")
    return sorted(there, key=lambda path: path.stat().st_mtime)


def _files_in(folder: str | Path) -> list[Path]:
    return [path for path in Path(folder).glob("*.pt") if FILE_NAME.fullmatch(path.name)]


def load(path: str | Path) -> dict:
    """Reads the checkpoint in `path`. Raises UserError where it is damaged, foreign or of a newer format."""
    content = load_checked(path, since=2)
    validity.check(content, path)
    return content


def open_parent(reference: str, folder: str, image_size: int | None, *, to: str) -> tuple[Path, dict]:
    """Finds and loads the float checkpoint that a stage works on; `to` says what for.

    `image_size` (pixels), where given, takes the place of the checkpoint's own. Raises UserError.
    """
    path = find(reference, folder)
    parent = load(path)
    if parent["int8"] is not None:
        raise UserError(f"{path} is an int8 model, the end of a chain: a float checkpoint is needed to {to}")
    figures = parent["metrics"]
    accuracy = f"{figures.get('split', 'test')} top-1 {figures['top1']:.2%}"
    print(f"{path}: {parent['stage']} {parent['arch']}, {accuracy}")
    return path, parent | {"image_size": image_size or parent["image_size"]}


def open_teacher(reference: str, folder: str, student: dict, splits: Splits) -> tuple[Path, nn.Module]:
    """Finds and rebuilds the float model that is to teach `student`, which sees the same pictures as it.

    Raises UserError where its classes or its normalisation are not the student's.
    """
    path, teacher = open_parent(reference, folder, student["image_size"], to="teach")
    check_fits(teacher, splits)
    if (teacher["mean"], teacher["std"]) != (student["mean"], student["std"]):
        raise UserError(f"{path} cannot teach {student['name']}: it sees pictures normalised in another way")
    return path, rebuild(teacher)


def untrained(arch: str, classes: list[str], image_size: int | None) -> dict:
    """What a chain starts from: a checkpoint without stage, weights, figures and lineage; for 224 px."""
    return {
        "format": FORMAT,
        "name": arch,
        "arch": arch,
        "classes": classes,
        "image_size": image_size or 224,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "int8": None,
        "metrics": {},
        "lineage": [],
    }


def rebuild(checkpoint: dict, engine: str | None = None) -> nn.Module:
    """The checkpoint's model on the CPU: float, or int8 with torch's engine set (see `engines.use`).

    Raises UserError where the weights do not fit the architecture, or no engine here runs them right.
    """
    arch, num_classes, int8 = checkpoint["arch"], len(checkpoint["classes"]), checkpoint["int8"]
    try:
        if int8 is not None:
            engines.use(int8["backend"], engine)
            float_model = models.rebuild(arch, num_classes, int8["float_shapes"])
            model = quantization.skeleton(float_model, int8["backend"], checkpoint["image_size"])
            quantization.load_int8_state(model, checkpoint["state_dict"])
            return model
        state = checkpoint["state_dict"]
        model = models.rebuild(arch, num_classes, {key: list(value.shape) for key, value in state.items()})
        own = model.state_dict()  # its _metadata tells a module (of mnasnet) which layout it reads
        own.update(state)
        model.load_state_dict(own)
        return model
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UserError(
            f"the checkpoint's weights do not fit {arch}: {' '.join(str(error).split())}"
        ) from None


def check_classes(checkpoint: dict, classes: list[str]) -> None:
    """Raises UserError unless the checkpoint's classes are `classes`, in the same order."""
    own = checkpoint["classes"]
    if own != classes:
        if sorted(own) == sorted(classes):
            difference = "the same classes in another order"
        elif len(own) != len(classes):
            difference = f"{len(own)} classes, not {len(classes)}"
        else:
            difference = f"no class {next(name for name in classes if name not in own)!r}"
        raise UserError(
            f"{checkpoint['name']} does not fit this data set: it has {difference}; see --dataset, --data-dir"
        )


def check_fits(checkpoint: dict, splits: Splits) -> None:
    """Raises UserError unless the checkpoint's classes are those of `splits`, in the same order.

    Says so where it was trained on another split: its training pictures may be validation pictures here.
    """
    check_classes(checkpoint, splits.classes)
    if checkpoint["lineage"] and checkpoint["lineage"][-1]["split"] != splits.fingerprint:
        print(
            f"note: {checkpoint['name']} was made from other pictures or another split; "
            "it may have been trained on pictures that are for validation here"
        )


def float_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's state dict on the CPU, contiguous."""
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


def lineage_row(
    parent: dict,
    parent_path: Path | None,
    stage: str,
    *,
    arch: str | None = None,
    options: dict,
    machine: str,
    split: str,
    teacher_path: Path | None = None,
) -> dict:
    """What `stage` sets out to do with `parent`, to be kept in the lineage of the checkpoint that it makes.

    `arch`: of a student, which starts a new chain; `options`: those of the command line; `machine`: what the
    training computes with; `split`: the fingerprint of the data.
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
        "teacher": teacher_path and teacher_path.name,
        "teacher_sha256": teacher_path and sha256(teacher_path),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "torch-pruning": str(torch_pruning.__version__),
        },
    }


def child(parent: dict, row: dict, **content) -> dict:
    """The checkpoint of which `row` is the last of the lineage: what `content` names is new, the rest is the
    parent's.
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
    """The SHA-256 of the file, in hexadecimal: how a lineage names it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(checkpoint: dict, folder: str | Path, *, once: bool = False) -> Path:
    """Writes `<name>_<top-1>.pt` into `folder`, whole or not at all, and returns its path.

    An existing file stays: the new one then ends in -2, -3 and so on. With `once` a file that has the very
    same content is enough: a resumed run may have been killed after it had saved. Raises UserError.
    """
    stem = f"{checkpoint['name']}_{checkpoint['metrics']['top1']:.4f}"
    for number in itertools.count(1):
        path = Path(folder) / f"{stem}{f'-{number}' if number > 1 else ''}.pt"
        if path.exists():
            if once and _holds(path, checkpoint):
                break
            continue
        try:
            with written_whole(path, replace=False) as temporary:
                save_checked(checkpoint, temporary)
            break
        except FileExistsError:  # another run took the name in this moment
            continue
    return path


def _holds(path: Path, content: dict) -> bool:
    try:
        return load_tensors(path).get(CHECKSUM) == checksum(content)
    except (UserError, AttributeError):  # damaged, or no dict
        return False
