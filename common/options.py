"""The options that several scripts share, in groups, and the defaults of those that differ."""

from common import cli

CACHE = "data/cache"
DATASETS = ("pet37", "synthetic", "folder")
IMPORTANCES = ("magnitude", "taylor", "lamp", "bn-scale", "random")
SCOPES = ("local", "global", "isomorphic")
TARGETS = {
    "macs": "multiply-accumulates: 0.5 for half of them, or 300M",
    "size": "the file: 2MB, 500KB, or a share of the file",
    "latency": "for one picture on this machine: 5ms, or a share of what it takes now",
}
ENGINES = ("fbgemm", "onednn", "qnnpack", "x86")
OPTIMIZERS = ("adamw", "adam", "sgd")
PRECISIONS = ("auto", "bf16", "fp32")
SCHEDULES = ("cosine", "step")
SCORED = ("test", "val")


def add_dataset_options(parser: cli.Parser):
    """Adds the options that say which pictures are read, and gives their group."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=DATASETS, default="pet37", help="default: pet37")
    group.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where the pictures are or will be put; default: data (pet37), data/synthetic",
    )
    group.add_argument(
        "--workers",
        type=cli.number(int, 0, 256),
        metavar="N",
        help="processes that decode and crop pictures; default: what fits the machine",
    )
    return group


def add_cache_option(group) -> None:
    """Adds `--cache`, for the scripts that read the same pictures more than once; "off" gives None."""
    group.add_argument(
        "--cache",
        type=lambda text: None if text == "off" else text,
        default=CACHE,
        metavar="DIR|off",
        help="where decoded pictures are kept; off: decode them in every epoch; default: data/cache",
    )


def add_data_options(parser: cli.Parser) -> None:
    """Adds the options that say which pictures are read, how, and how they are split."""
    group = add_dataset_options(parser)
    add_cache_option(group)
    group.add_argument(
        "--image-size",
        type=cli.number(int, 8, 4096),
        metavar="PIXELS",
        help="side of the square the network sees; default: that of the checkpoint, else 224",
    )
    group.add_argument(
        "--val-fraction",
        type=cli.number(float, 0, 1, below=True),
        default=0.2,
        metavar="SHARE",
        help="share of the training pictures that chooses the best epoch; 0: keep the last; default: 0.2",
    )


def add_training_options(parser: cli.Parser, *, epochs: int, lr: float) -> None:
    """Adds the options of the optimizer, the device and the output, with this stage's defaults."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs", type=cli.number(int, 0), default=epochs, metavar="N", help=f"default: {epochs}"
    )
    group.add_argument(
        "--batch-size",
        type=cli.number(int, 2),
        default=32,
        metavar="N",
        help="pictures a step; default: 32",
    )
    group.add_argument(
        "--lr",
        type=cli.number(float, 0, above=True),
        default=lr,
        help=f"highest learning rate; default: {lr:g}",
    )
    group.add_argument(
        "--weight-decay", type=cli.number(float, 0), default=0.05, help="on weights alone; default: 0.05"
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
        "--seed", type=cli.number(int, 0, 2**32 - 1), default=0, metavar="N", help="default: 0"
    )
    _add_machine_options(parser)
    _add_file_options(parser)


def of_fit(args) -> dict:
    """The values of `add_training_options` that `training.fit` takes under the same names."""
    return {name: getattr(args, name) for name in ("lr", "weight_decay", "optimizer", "schedule", "seed")}


def _add_machine_options(parser: cli.Parser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--device",
        type=cli.device_name,
        default="auto",
        help="auto, cpu, cuda or cuda:N (-1: cpu, N: cuda:N); default: auto",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="in which layers compute; bf16: bfloat16, weights stay in fp32; auto: bf16 where it is faster; "
        "default: auto",
    )


def _add_file_options(parser: cli.Parser) -> None:
    group = parser.add_argument_group("files")
    add_output_dir_option(group)
    group.add_argument(
        "--config",
        metavar="FILE.yaml",
        help="'option: value' lines that become defaults; the command line wins",
    )


def add_stage_options(parser: cli.Parser) -> None:
    """Adds the options of a stage that is run by itself: what it scores, and what becomes of its file."""
    group = parser.add_argument_group("stage")
    group.add_argument(
        "--score",
        choices=SCORED,
        default="test",
        help="the split whose accuracy the file gets in the end; val leaves the test pictures unseen while "
        "settings are tried; default: test",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the same run where it was interrupted; without one, start from the beginning",
    )
    group.add_argument(
        "--model-name",
        type=cli.plain_name,
        metavar="NAME",
        help="stands in the file's name instead of the architecture",
    )


def add_target_options(group) -> None:
    """Adds `--target-macs`, `--target-size` and `--target-latency` to a group of which one may be given."""
    for kind, text in TARGETS.items():
        group.add_argument(f"--target-{kind}", type=cli.amount(kind), metavar="AMOUNT", help=text)


def add_target_device_option(group) -> None:
    """Adds `--target-device`, what int8 models are made for."""
    group.add_argument(
        "--target-device",
        choices=("server", "embedded"),
        default="embedded",
        help="of int8 models; server: x86, fbgemm; embedded: ARM, qnnpack; default: embedded",
    )


def add_target_conditions(group) -> None:
    """Adds what a target of int8 models and of latency depends on."""
    add_target_device_option(group)
    group.add_argument(
        "--threads", type=cli.number(int, 1), default=1, metavar="N", help="of --target-latency; default: 1"
    )


def add_engine_option(group) -> None:
    """Adds `--engine`, for the scripts that run int8 models."""
    group.add_argument(
        "--engine",
        choices=ENGINES,
        help="what runs int8 models; default: the fastest here that gives right results",
    )


def add_output_dir_option(group) -> None:
    """Adds `--output-dir`, for every script that writes or looks up checkpoints."""
    group.add_argument(
        "--output-dir",
        default="weights",
        metavar="DIR",
        help="where checkpoints are kept and looked up; default: weights",
    )


def add_pretrained_option(group) -> None:
    """Adds `--pretrained`, for the scripts that build a torchvision model."""
    group.add_argument(
        "--pretrained",
        default="imagenet",
        metavar="imagenet|none|PATH",
        help="initial weights; PATH: a torchvision state dict, its classifier may differ; default: imagenet",
    )


def add_teacher_options(parser: cli.Parser, *, required: bool) -> None:
    """Adds `--teacher` and the two settings of the distillation loss."""
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--teacher",
        required=required,
        metavar="CHECKPOINT",
        help="a path, a name, or the start of one" + ("" if required else "; default: the labels alone"),
    )
    group.add_argument(
        "--temperature",
        type=cli.number(float, 0, above=True),
        default=3.0,
        help="softens the answers of both networks; default: 3",
    )
    group.add_argument(
        "--alpha",
        type=cli.number(float, 0, 1),
        default=0.9,
        help="share of the teacher in the loss, the labels have the rest; default: 0.9",
    )
    group.add_argument(
        "--mixup",
        action="store_true",
        help="show both pairs of pictures laid over each other: for long runs",
    )


def of_distillation(args) -> dict:
    """The values of `add_teacher_options` that `distillation.taught_by` takes under the same names."""
    return {name: getattr(args, name) for name in ("temperature", "alpha", "mixup")}


def data_arguments(args) -> str:
    """The options of `args`, ready to paste, with which the next stage finds the same data and files."""
    parts = []
    for name, default in (("dataset", "pet37"), ("data_dir", None), ("output_dir", "weights")):
        if getattr(args, name) != default:
            parts += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return f" {cli.joined(parts)}" if parts else ""
