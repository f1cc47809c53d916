"""The options of the teacher and of the loss that it is followed with.

Imports no torch, so that `--help` prints at once.
"""

import argparse

from common.cli.options import CHECKPOINT
from common.cli.parser import Parser, number

SETTINGS = {  # the defaults of each loss
    "kd": {"temperature": 3.0, "alpha": 0.9},
    "dist": {"temperature": 1.0, "alpha": 0.5},  # its paper: weights 1, 1, 1
}
NAMES = ("temperature", "alpha", "distillation", "standardize_logits", "mixup")


def add_teacher_options(
    parser: Parser,
    *,
    required: bool,
    default: str = "none, the loss is cross-entropy only",
    distillation: str | None = "kd",
) -> None:
    """Adds `--teacher` and the settings of the distillation loss.

    Args:
        parser: The parser of a script.
        required: Whether there must be a teacher.
        default: What happens without one, for the help.
        distillation: The default of `--distillation`; None: each stage that the script calls has its own.
    """
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--teacher", required=required, metavar="CHECKPOINT",
        help=CHECKPOINT + ("" if required else f"; default: {default}"),
    )  # fmt: skip
    group.add_argument(
        "--distillation", choices=SETTINGS, default=distillation,
        help="learn the probabilities of the teacher (kd), or their relations (dist); default: "
        + (distillation or "dist for a student, kd for a pruned or quantized network"),
    )  # fmt: skip
    group.add_argument(
        "--temperature", type=number(float, 0, above=True),
        help="softens the predictions of both networks; default: 3 for kd, 1 for dist",
    )  # fmt: skip
    group.add_argument(
        "--alpha", type=number(float, 0, 1),
        help="weight of the teacher in the loss, 1 - alpha is that of the labels; "
        "default: 0.9 for kd, 0.5 for dist",
    )  # fmt: skip
    group.add_argument(
        "--standardize-logits", action="store_true", help="of both networks, before they are compared"
    )
    group.add_argument(
        "--mixup", action="store_true",
        help="both networks see pairs of images mixed with each other: for long runs",
    )  # fmt: skip


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """Sets what was not given of the settings of the loss.

    Args:
        args: The parsed command line; `temperature` and `alpha` are changed in place where they are None.

    Returns:
        `args`.
    """
    for name, value in SETTINGS[args.distillation].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def distillation_options(args: argparse.Namespace) -> dict:
    """Reads the settings of the distillation loss.

    Args:
        args: The parsed command line, `with_defaults`.

    Returns:
        The arguments of `distillation_loss_fn` with the same names.
    """
    return {name: getattr(args, name) for name in NAMES}
