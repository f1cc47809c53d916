"""Pretrained weights: the state dict in a file of `torch.save` or safetensors, as trainers write it."""

import argparse
import importlib.util
import itertools
from pathlib import Path

import torch

from common.system.errors import UserError
from common.system.files import load_tensors

# where trainers store the weights; as in timm, averages (EMA) come before the weights themselves
ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "model.", "_orig_mod.")  # of names in DataParallel, Lightning and torch.compile


def read(path: str | Path):
    """Reads a file of weights.

    Args:
        path: The file: .safetensors, or one of `torch.save`. No code in it is run; the options of the command
            line that trainers store beside the weights, an `argparse.Namespace`, are plain values.

    Returns:
        Its content, with all tensors on the CPU.

    Raises:
        UserError: The file is missing, damaged or of another kind, or safetensors is not installed.
    """
    if Path(path).suffix.lower() != ".safetensors":
        return load_tensors(path, classes=[argparse.Namespace])
    if importlib.util.find_spec("safetensors") is None:
        raise UserError(f"{path} needs safetensors, which is not installed: pip install safetensors")
    from safetensors import SafetensorError  # optional
    from safetensors import torch as safetensors

    try:
        return safetensors.load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def find_state(content, source: str):
    """Finds the state dict in the content of a file.

    Prints a note where there are several.

    Args:
        content: The result of `read`.
        source: The file, for the note.

    Returns:
        The first of `ENTRIES` that there is, else the content itself.
    """
    found = [key for key in ENTRIES if isinstance(content, dict) and isinstance(content.get(key), dict)]
    if len(found) > 1:
        print(f"note: {source}: {found[0]} is used, and not {' or '.join(found[1:])}")
    return content[found[0]] if found else content


def without_prefix(state: dict, names: list[str], source: str) -> dict:
    """Removes what trainers put before the names of a state dict.

    Prints a note where other entries are beside those with the prefix: they are ignored.

    Args:
        state: Of any network.
        names: Those of the state dict that is wanted.
        source: The file, for the note.

    Returns:
        The entries with the prefix, of `PREFIXES`, with which most of `names` are found; without it.
    """
    prefixes = ["".join(parts) for count in range(4) for parts in itertools.product(PREFIXES, repeat=count)]
    prefix = max(prefixes, key=lambda prefix: sum(prefix + name in state for name in names))
    ignored = [str(key) for key in state if not str(key).startswith(prefix)]
    if ignored:
        print(f"note: {source}: ignored what is not under {prefix[:-1]}, such as {ignored[0]}")
    return {str(key).removeprefix(prefix): state[key] for key in state if str(key).startswith(prefix)}


def is_state(state) -> bool:
    """Tells whether a value is a state dict.

    Args:
        state: Any value.

    Returns:
        True for a dict of tensors.
    """
    return isinstance(state, dict) and bool(state) and all(map(torch.is_tensor, state.values()))
