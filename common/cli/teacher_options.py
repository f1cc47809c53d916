"""The options of the teacher and of the loss that it is followed with.

Imports no torch, so that `--help` prints at once.
"""

import argparse
import os

from common.cli.options import CHECKPOINT
from common.cli.parser import Parser, number
from common.system.errors import UserError

SETTINGS = {  # the defaults of each loss
    "kd": {"temperature": 3.0, "alpha": 0.9},
    "dist": {"temperature": 1.0, "alpha": 0.5},  # its paper: weights 1, 1, 1
}
NAMES = ("temperature", "alpha", "distillation", "standardize_logits")


def add_teacher_options(
    parser: Parser,
    *,
    required: bool,
    default: str = "none, the loss is cross-entropy only",
    distillation: str = "kd",
    several: bool = True,
) -> None:
    """Adds `--teacher` and the settings of the distillation loss.

    Args:
        parser: The parser of a script.
        required: Whether there must be a teacher.
        default: What happens without one, for the help.
        distillation: The default of `--distillation`, for the help: see `settle`.
        several: Whether there may be more than one.
    """
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--teacher", required=required, nargs="+" if several else None, metavar="CHECKPOINT",
        help=CHECKPOINT + ("; the logits of several are averaged" if several else "")
        + ("" if required else f"; default: {default}"),
    )  # fmt: skip
    group.add_argument(
        "--distillation", choices=SETTINGS,
        help="learn the probabilities of the teacher (kd), or their relations (dist); default: "
        + distillation,
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
        "--crops", type=number(int, 1), metavar="N",
        help="random crops of each image, which the epochs repeat: the teacher computes each only once; "
        "default: new ones in every epoch",
    )  # fmt: skip


def check(args: argparse.Namespace, num_classes: int) -> None:
    """Refuses, or notes, a loss that takes the signal of the teacher away.

    Two numbers with the mean 0 and the standard deviation 1 are -1 and 1, whatever they were: where two
    logits are standardized, or two probabilities correlated, the gradient is 0.

    Args:
        args: The parsed command line.
        num_classes: Those of the data set.

    Raises:
        UserError: Nothing is left of it.
    """
    if num_classes == 2 and args.standardize_logits:
        raise UserError(
            "--standardize-logits cannot be used with two classes: two standardized logits are always -1 and "
            "1, so the student would learn nothing from the teacher"
        )
    if args.distillation == "dist":
        images = args.batch_size // int(os.environ.get("WORLD_SIZE", 1))
        if num_classes == images == 2:
            raise UserError("--distillation dist has no gradient with two classes and batches of two images")
        for count, what, rest in (
            (num_classes, "two classes", "between the images of a batch"),
            (images, "batches of two images", "between the classes of an image"),
        ):
            if count == 2:
                print(f"note: with {what}, only the relations {rest} have a gradient in --distillation dist")


def settle(args: argparse.Namespace, stage: str, num_classes: int) -> None:
    """Sets the settings of the loss that were not given, once the number of classes is known.

    The distance is DIST for a student, else the KL divergence; with two classes always that.

    Args:
        args: The parsed command line; `distillation`, `temperature` and `alpha` are changed in place where
            they are None.
        stage: Of the table `STAGES`.
        num_classes: Those of the data set.

    Raises:
        UserError: See `check`.
    """
    check(args, num_classes)
    if args.distillation is None:
        args.distillation = "dist" if stage == "kd" and num_classes > 2 else "kd"
    for name, value in SETTINGS[args.distillation].items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def require_none(args: argparse.Namespace) -> None:
    """Refuses settings of the loss that have no effect without a teacher.

    Args:
        args: The parsed command line, after `settle`.

    Raises:
        UserError: One is given.
    """
    for option in ("standardize_logits", "distillation", "crops"):
        if getattr(args, option) not in (False, "kd", None):
            raise UserError(f"--{option.replace('_', '-')} needs --teacher")


def distillation_options(args: argparse.Namespace) -> dict:
    """Reads the settings of the distillation loss.

    Args:
        args: The parsed command line, after `settle`.

    Returns:
        The arguments of `distillation_loss_fn` with the same names.
    """
    return {name: getattr(args, name) for name in NAMES} | {"keep_logits": args.crops is not None}
