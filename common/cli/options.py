"""The options that several scripts share, in groups, and how their values are read.

Imports no torch, so that `--help` prints at once.
"""

import argparse

from common.cli.parser import Parser, device_name, number, plain_name, shell_join

ARCHITECTURE = "a classification model of torchvision, or timm/NAME of timm"
CHECKPOINT = "a path, a name, or the start of one"
DATASETS = ("pet37", "synthetic", "folder")
OPTIMIZERS = ("adamw", "adam", "sgd")
PRECISIONS = ("auto", "bf16", "fp32")
ROUNDINGS = ("once", "twice")
ROUNDING = (
    "once: as ONNX Runtime, and LiteRT on CPUs (XNNPACK); twice: as TensorFlow Lite for Microcontrollers, "
    "CMSIS-NN and LiteRT's reference kernels"
)
RAM_SCHEDULES = ("layers", "rows", "camera")  # those of common.integer.planner, which loads torch
RAM_SCHEDULE = (
    "layers: every tensor is kept whole; rows: rows are computed when they are needed; camera: the image "
    "arrives row by row too"
)
SCHEDULES = ("cosine", "step")
SPLITS = ("test", "val")


def add_dataset_options(parser: Parser):
    """Adds the options of the data set.

    Args:
        parser: The parser of a script.

    Returns:
        The group of these options.
    """
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=DATASETS, default="pet37", help="default: pet37")
    group.add_argument(
        "--data-dir",
        metavar="DIR",
        help="the folder of the images; pet37 and synthetic are created there; "
        "default: data (pet37), data/synthetic",
    )
    group.add_argument(
        "--workers",
        type=number(int, 0, 256),
        metavar="N",
        help="processes that decode and crop images; default: a number that fits the machine",
    )
    return group


def add_cache_option(group) -> None:
    """Adds `--cache`, for scripts that read the same images more than once; "off" becomes None.

    Args:
        group: A group of a parser.
    """
    group.add_argument(
        "--cache",
        type=lambda text: None if text == "off" else text,
        default="auto",
        metavar="DIR|off",
        help="folder of decoded images; off: decode them in every epoch; default: data/cache, or off where "
        "it would take over half of the free disk",
    )


def add_data_options(parser: Parser, *, several_sizes: bool = False) -> None:
    """Adds the options of the data set, its cache, the image size and the split.

    Args:
        parser: The parser of a script.
        several_sizes: Whether --image-size takes several values, and becomes a list.
    """
    group = add_dataset_options(parser)
    add_cache_option(group)
    more = "; of several, to be tried, fractions of a budget are those at the first" if several_sizes else ""
    group.add_argument(
        "--image-size", type=number(int, 8, 4096), nargs="+" if several_sizes else None, metavar="PIXELS",
        help=f"side of the square that the network sees{more}; default: that of the checkpoint, else 224",
    )  # fmt: skip
    group.add_argument(
        "--val-fraction", type=number(float, 0, 1, below=True), default=0.2, metavar="FRACTION",
        help="fraction of the training images for validation, which selects the best epoch; "
        "0: keep the last epoch; default: 0.2",
    )  # fmt: skip


def add_training_options(parser: Parser, *, epochs: int, lr: float) -> None:
    """Adds the options of the optimizer, the device and the output.

    Args:
        parser: The parser of a script.
        epochs: Its default.
        lr: Its default.
    """
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs", type=number(int, 0), default=epochs, metavar="N", help=f"default: {epochs}"
    )
    group.add_argument(
        "--batch-size", type=number(int, 2), default=32, metavar="N", help="images per step; default: 32"
    )
    group.add_argument(
        "--lr",
        type=number(float, 0, above=True),
        default=lr,
        help=f"highest learning rate; default: {lr:g}",
    )
    group.add_argument(
        "--weight-decay",
        type=number(float, 0),
        default=0.05,
        help="on weights, not on biases and norms; default: 0.05",
    )
    group.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="default: adamw")
    group.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default="cosine",
        help="of the learning rate; cosine: warm-up, then half a cosine to 0; step: a tenth after every 15 "
        "epochs; default: cosine",
    )
    group.add_argument(
        "--mixup", action="store_true",
        help="train on pairs of images mixed with each other, for long runs",
    )  # fmt: skip
    group.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0, metavar="N", help="default: 0")
    _add_machine_options(parser)
    _add_file_options(parser)


def fit_options(args: argparse.Namespace) -> dict:
    """Reads the training options.

    Args:
        args: The parsed command line.

    Returns:
        The arguments of `loop.fit` with the same names.
    """
    names = ("lr", "weight_decay", "optimizer", "schedule", "seed")
    return {name: getattr(args, name) for name in names} | {"crops": vars(args).get("crops")}


def _add_machine_options(parser: Parser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--device",
        type=device_name,
        default="auto",
        help="auto, cpu, cuda or cuda:N (-1: cpu, N: cuda:N); default: auto",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the layers in training; bf16: bfloat16, weights stay in fp32; auto: bf16 where it is "
        "faster; default: auto",
    )


def _add_file_options(parser: Parser) -> None:
    group = parser.add_argument_group("files")
    add_output_dir_option(group)
    group.add_argument(
        "--config",
        metavar="FILE.yaml",
        help="'option: value' lines that become defaults; the command line wins",
    )


def add_stage_options(parser: Parser) -> None:
    """Adds the options of a single stage: its evaluation, resuming, its file name.

    Args:
        parser: The parser of a script.
    """
    group = parser.add_argument_group("stage")
    group.add_argument(
        "--score",
        choices=SPLITS,
        default="test",
        help="the split of the final accuracy; val leaves the test images unseen while you try settings; "
        "default: test",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue the same run where it was interrupted; if there is none, start from the beginning",
    )
    group.add_argument(
        "--model-name",
        type=plain_name,
        metavar="NAME",
        help="replaces the architecture in the file's name",
    )


def add_output_dir_option(group) -> None:
    """Adds `--output-dir`, for every script that writes or looks up checkpoints.

    Args:
        group: A group of a parser.
    """
    group.add_argument(
        "--output-dir",
        default="weights",
        metavar="DIR",
        help="folder of the checkpoints; default: weights",
    )


def add_pretrained_option(group) -> None:
    """Adds `--pretrained`, for scripts that build a model.

    Args:
        group: A group of a parser.
    """
    group.add_argument(
        "--pretrained",
        default="imagenet",
        metavar="imagenet|none|PATH",
        help="initial weights; PATH: a state dict of torchvision or timm (.pth, .safetensors, or as their "
        "training scripts and Lightning store it), or a float checkpoint; its classifier may differ; "
        "default: imagenet",
    )


def data_words(args: argparse.Namespace) -> list[str]:
    """The options with which the next stage finds the same data and checkpoints.

    Args:
        args: The parsed command line.

    Returns:
        Those that differ from their defaults, as words of a command line.
    """
    parts = []
    for name, default in (("dataset", "pet37"), ("data_dir", None), ("output_dir", "weights")):
        if getattr(args, name) != default:
            parts += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return parts


def data_arguments(args: argparse.Namespace) -> str:
    """Writes `data_words`.

    Args:
        args: The parsed command line.

    Returns:
        A text for the shell that begins with a space, or "".
    """
    parts = data_words(args)
    return f" {shell_join(parts)}" if parts else ""
