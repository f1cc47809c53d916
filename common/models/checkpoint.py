"""Checkpoints: how one is found, read, rebuilt into a model that runs, and saved.

A checkpoint is a plain dict of tensors and JSON values, in the file `<name>_<top-1>.pt`:

format (2), stage ("teacher", "kd", "pruned" or "quantized"), name (such as "pruned_kd_resnet18"), arch
(torchvision's, or timm/NAME), classes (names in the order of the labels), image_size (pixels), mean, std (of
each channel, for pixels from 0 to 1), crop_pct (see `transforms.resized_side`; older files lack it),
state_dict, int8 (None, or {"backend", "float_shapes", "graph"}: what the int8 model is rebuilt from, and its
integers, see `integer.plain`; older files have no graph), metrics (on the test split, and more), lineage (one
row per stage from the first), and in the file checksum (see
`files.checksum`; format 1 has none)
"""

import itertools
import re
import sys
from pathlib import Path

import torch
from torch import nn

from common.compression import int8_engines, int8_state, quantization, target_devices
from common.compression.reparameterization import fuse_branches
from common.data.datasets import Splits
from common.data.transforms import renormalized
from common.models import architectures, lineage, schema
from common.system import hardware
from common.system.errors import UserError, first_line
from common.system.files import CHECKSUM, atomic_write, checksum, load_checked, load_tensors, save_checked

CANDIDATES = "candidates"  # the folder, beside the checkpoints, of what compress.py creates
SCRIPTS = Path(__file__).parents[2]
FILE_NAME = re.compile(r"(?P<name>.+)_(?P<top1>[01]\.\d{4})(-\d+)?\.pt")


def find(reference: str, folder: str | Path) -> Path:
    """Finds the checkpoint that a user means.

    Args:
        reference: A path, the name of a file in `folder`, or the start of one; the prefix "teacher_" and the
            suffix ".pt" can be omitted.
        folder: Where checkpoints are kept; it is looked up beside the scripts too.

    Returns:
        The file; of several matches the most accurate, of equal ones the newest.

    Raises:
        UserError: There is none; the message lists what there is.
    """
    try:
        if Path(reference).is_file():
            return Path(reference)
    except (OSError, ValueError):
        pass  # a name that no file can have is looked up like any other, to list what there is
    name = reference.replace("timm/", "timm_")  # the architecture as file names have it
    wanted = (name, f"teacher_{name}")
    tests = (
        lambda path: path.name in wanted or path.stem in wanted,
        lambda path: FILE_NAME.fullmatch(path.name)["name"] in wanted,
        lambda path: path.name.startswith(wanted),
    )
    for place, test in itertools.product(_places(folder), tests):
        if matches := [path for path in _files_in(place) if test(path)]:
            best = max(
                matches, key=lambda path: (FILE_NAME.fullmatch(path.name)["top1"], path.stat().st_mtime)
            )
            if test is tests[-1]:
                print(f"note: {reference!r} is not a full name; {best.name} begins with it", file=sys.stderr)
            return best
    there = [
        f"in {place.absolute()}: {', '.join(sorted(path.name for path in _files_in(place))) or 'none yet'}"
        for place in _places(folder)
    ]
    raise UserError(f"no checkpoint {reference!r}; there is {'; '.join(there)}")


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Lists the checkpoints in a folder.

    Args:
        folder: Where checkpoints are kept.

    Returns:
        The files, the oldest first.

    Raises:
        UserError: There is none.
    """
    for place in _places(folder):
        if files := _files_in(place):
            return sorted(files, key=lambda path: path.stat().st_mtime)
    raise UserError(f"there is no checkpoint in {' or '.join(str(p.absolute()) for p in _places(folder))}")


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.pt") if FILE_NAME.fullmatch(path.name))


def _places(folder: str | Path) -> list[Path]:
    """Where a folder is looked up: from the current folder, and beside the scripts."""
    places = {place.resolve(): place for place in (Path(folder), SCRIPTS / folder)}
    return list(places.values())


def load(path: str | Path) -> dict:
    """Reads a checkpoint.

    Args:
        path: The file.

    Returns:
        Its content, without the checksum.

    Raises:
        UserError: It is missing, damaged, not a checkpoint of this project, or of a newer format.
    """
    content = load_checked(path, since=2)
    schema.check(content, path)
    return content


def open_parent(reference: str, folder: str, image_size: int | None = None) -> tuple[Path, dict]:
    """Finds and reads the float checkpoint that a stage starts from, and prints its accuracy.

    Args:
        reference: See `find`.
        folder: Where checkpoints are kept.
        image_size: Takes the place of the checkpoint's own, in pixels.

    Returns:
        (path, content).

    Raises:
        UserError: There is none, it cannot be read, or it is an int8 model.
    """
    path = find(reference, folder)
    parent = load(path)
    if parent["int8"] is not None:
        raise UserError(f"{path} is an int8 model, the end of a chain: this needs a float checkpoint")
    metrics = {"image_size": parent["image_size"]} | parent["metrics"]
    accuracy = f"{metrics.get('split', 'test')} top-1 {metrics['top1']:.2%}"
    print(f"{path}: {parent['stage']} {parent['arch']}, {accuracy}")
    return path, parent | {"metrics": metrics, "image_size": image_size or parent["image_size"]}


def open_teacher(reference: str, folder: str, student: dict, splits: Splits) -> tuple[Path, nn.Module]:
    """Finds and rebuilds the float model that teaches another in pruning or quantization.

    Args:
        reference: See `find`.
        folder: Where checkpoints are kept.
        student: The checkpoint that is taught; both models see the same images.
        splits: The data set.

    Returns:
        (path, model): the model is on the CPU; it takes images as the student does.

    Raises:
        UserError: There is none, or its classes differ from those of the student.
    """
    path, teacher = open_parent(reference, folder, student["image_size"])
    lineage.check_fits(teacher, splits)
    return path, renormalized(rebuild(teacher), teacher, student)


def rebuild(checkpoint: dict, engine: str | None = None) -> nn.Module:
    """Builds the model of a checkpoint.

    Args:
        checkpoint: The content of one.
        engine: See `int8_engines.use`, which is called for an int8 model.

    Returns:
        The float or int8 model, on the CPU.

    Raises:
        UserError: The weights do not fit the architecture, or no engine of this machine runs them correctly.
    """
    arch, num_classes, int8 = checkpoint["arch"], len(checkpoint["classes"]), checkpoint["int8"]
    try:
        if int8 is not None:
            target = target_devices.by_backend(int8["backend"])
            int8_engines.use(target, engine)
            float_model = architectures.rebuild(arch, num_classes, int8["float_shapes"])
            model = quantization.skeleton(float_model, target, checkpoint["image_size"])
            int8_state.load(model, checkpoint["state_dict"])
            return model
        state = checkpoint["state_dict"]
        model = architectures.rebuild(
            arch, num_classes, {key: list(value.shape) for key, value in state.items()}
        )
        own = model.state_dict()  # its _metadata tells a module (of mnasnet) which layout it reads
        own.update(state)
        model.load_state_dict(own)
        return model
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UserError(
            f"the checkpoint's weights do not fit {arch}: {' '.join(str(error).split())}"
        ) from None


def check_rebuilds(parent: dict, model: nn.Module) -> None:
    """Checks, before a pruned network is trained, that its checkpoint will yield the same one.

    Args:
        parent: The content of the checkpoint that the network was pruned from.
        model: The pruned network; put into eval mode.

    Raises:
        UserError: The shapes of its tensors do not determine it, or its branches cannot be fused.
    """
    content, side = parent | {"state_dict": float_state(model)}, parent["image_size"]
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    fused = fuse_branches(rebuild(content)).eval()
    with torch.no_grad(), hardware.full_float32():
        expected = model.eval()(images.to(next(model.parameters()).device)).cpu()
        try:
            actual = fused(images)
        except RuntimeError as error:
            reason = first_line(error)
            raise UserError(f"the pruned {parent['arch']} cannot be rebuilt: {reason}") from None
    if not torch.allclose(actual, expected, rtol=0.01, atol=0.01 * float(expected.abs().max())):
        raise UserError(f"a checkpoint of the pruned {parent['arch']} would yield another network")


def float_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a float model, as a checkpoint stores it.

    Args:
        model: On any device.

    Returns:
        Its tensors on the CPU, contiguous.
    """
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


def save(checkpoint: dict, folder: str | Path, *, once: bool = False) -> Path:
    """Writes `<name>_<top-1>.pt`, completely or not at all.

    An existing file is never replaced: the new one then ends in -2, -3 and so on.

    Args:
        checkpoint: The content.
        folder: Where to write it.
        once: Whether an existing file with exactly this content is enough: a resumed run may have been
            killed after it had saved.

    Returns:
        The file.

    Raises:
        UserError: The file cannot be written.
    """
    stem = f"{checkpoint['name']}_{checkpoint['metrics']['top1']:.4f}"
    for number in itertools.count(1):
        path = Path(folder) / f"{stem}{f'-{number}' if number > 1 else ''}.pt"
        if path.exists():
            if once and _contains(path, checkpoint):
                break
            continue
        try:
            with atomic_write(path, replace=False) as temporary:
                save_checked(checkpoint, temporary)
            break
        except FileExistsError:  # another run has taken the name meanwhile
            continue
    return path


def _contains(path: Path, content: dict) -> bool:
    try:
        return load_tensors(path).get(CHECKSUM) == checksum(content)
    except (UserError, AttributeError):  # damaged, or no dict
        return False
