"""Compare training recipes by cross-validation on the training images only: the test split stays unseen.

    python -m benchmarks.recipe --data-dir data --pretrained . --output recipe.jsonl

The training images are divided into three folds. Each variant is trained three times, with seed k on all
folds but the k-th, and its last epoch is evaluated on the k-th: every image is evaluated once, by a model
that has not seen it, and no epoch is selected. Student, pruning and quantization start from the fold's own
teacher, which has not seen it either. --pretrained contains mobilenet_v2.pth, squeezenet1_1.pth and, for
several teachers, tf_efficientnet_lite1.pth. Each run adds a line of JSON to --output; runs that are there are
not repeated. The table comes from that file. On CUDA only the students were run.
"""

import copy
import functools
import itertools
import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torchvision.transforms import v2

from common.budget import costs
from common.budget.widths import widths_for_budget
from common.cli import launch, options
from common.cli.parser import Parser
from common.compression import importance, masking, pruning, quantization, reconstruction
from common.compression.distillation import (
    MeanOfLogits,
    cross_entropy,
    distillation_loss_fn,
    mixup,
)
from common.compression.target_devices import TARGET_DEVICES
from common.data import datasets
from common.data.loaders import Loaders, make_loaders
from common.data.transforms import renormalized, resized_side
from common.evaluation import metrics
from common.models import architectures, lineage
from common.system import seeding
from common.training import loop, optimizers

FOLDS, CPU = 3, torch.device("cpu")
SIDE = 128  # pixels: a third of the time of 224
TEACHER, STUDENT = "mobilenet_v2", "squeezenet1_1"
SECOND_TEACHER = "timm/tf_efficientnet_lite1"
DEFAULTS = {"epochs": 6, "lr": 5e-4, "weight_decay": 0.05}
KD = {"temperature": 3.0, "alpha": 0.9}
DIST = {"distillation": "dist", "temperature": 1.0, "alpha": 0.5}  # its paper: weights 1, 1, 1
EMA_DECAY = 0.98  # a mean over about 50 steps, two epochs


def scaled_steps(step: int, *, epochs: int, steps: int) -> float:
    """The survey's schedule, a tenth after every 15 of 100 epochs, scaled to `epochs`."""
    return 0.1 ** int(step / (0.15 * epochs * steps))


optimizers.SCHEDULES["scaled steps"] = scaled_steps


def smoothed(model, images, labels):
    logits = model(images)
    return F.cross_entropy(logits, labels, label_smoothing=0.1), logits


class Fold:
    """What the runs of one fold have in common: its images, its teacher, and how a model is trained."""

    def __init__(self, number: int, samples, classes, args):
        self.number, self.classes, self.args = number, classes, args
        self.train = [sample for index, sample in enumerate(samples) if index % FOLDS != number]
        self.held_out = [sample for index, sample in enumerate(samples) if index % FOLDS == number]
        self.view = lineage.new_checkpoint(TEACHER, classes, SIDE)

    def loaders(self, crop=None) -> Loaders:
        seeding.seed_everything(self.number)
        splits = datasets.Splits(self.train, [], self.held_out, self.classes)
        loaders = make_loaders(
            splits, self.view, 32, self.number, cache=self.args.cache, workers=self.args.workers,
            device=self.args.device,
        )  # fmt: skip
        if crop:
            loaders.train.loader.dataset.crop.transforms[0] = crop
        return loaders

    def build(self, arch: str):
        return architectures.build(arch, len(self.classes), f"{self.args.pretrained}/{Path(arch).name}.pth")

    def fit(self, model, loss, loader, **options):
        settings = DEFAULTS | {"seed": self.number, "device": self.args.device} | options
        return loop.fit(model, loss, loader, None, **settings)[0]

    @functools.cached_property
    def teacher(self):
        loaders = self.loaders()
        return self.fit(self.build(TEACHER), cross_entropy, loaders.train).eval()

    @functools.cached_property
    def second_teacher(self):
        loaders, images = self.loaders(), architectures.input_config(SECOND_TEACHER)
        model = renormalized(self.build(SECOND_TEACHER), images, self.view)
        return self.fit(model, cross_entropy, loaders.train).eval()

    def teachers(self, names):
        return MeanOfLogits([getattr(self, name) for name in names])

    @functools.cached_property
    def weak_teacher(self):
        loaders = self.loaders()
        return self.fit(self.build(TEACHER), cross_entropy, loaders.train, epochs=2).eval()

    def fine_tune(self, model=None, loss=cross_entropy, crop=None, ema=False, **options):
        loaders = self.loaders(crop)
        model = self.build(TEACHER) if model is None else model
        if ema:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=True)

            def averaging(model, images, labels):
                average.update_parameters(model)
                return cross_entropy(model, images, labels)

            options |= {"deploy": lambda _: copy.deepcopy(average.module)}
            loss = averaging
        return metrics.evaluate(
            self.fit(model, loss, loaders.train, **options), loaders.test, self.args.device
        )

    def distill(self, teachers=("teacher",), epochs=8, lr=2e-4, mixed=False, **settings):
        loss = distillation_loss_fn(self.teachers(teachers), **KD | settings)
        loss = mixup(loss, len(self.classes)) if mixed else loss
        seeding.seed_everything(self.number)
        return self.fine_tune(self.build(STUDENT), loss, lr=lr, epochs=epochs)

    def prune(
        self, taught=True, recalibrate=True, *, kind="parameters", fraction=0.5, criterion="lamp",
        scope="global", reconstruct=False, mode=nn.Module.train, distillation=KD, teachers=("teacher",),
        mixed=False, crops=None, **options,
    ):  # fmt: skip
        teacher, batches = self.teacher, self.loaders().train
        network = {"classifier": architectures.classifier(teacher, len(self.classes)), "image_size": SIDE}
        score = importance.prepare(criterion, teacher, batches, self.args.device, kind)
        groups = pruning.rank(teacher, score, scope, **network)
        if kind == "parameters":
            budget = costs.parameter_budget(teacher, fraction)
        else:
            budget = costs.make_budget(kind, str(fraction), teacher, self.view, {})
        widths = widths_for_budget(teacher, groups, budget, **network)
        model = pruning.prune(teacher, groups, widths, **network)
        if reconstruct:
            kept = masking.verify(model, teacher, groups, widths, **network)
            reconstruction.least_squares(model, teacher, kept, itertools.islice(batches, 8), self.args.device)
        if recalibrate:
            update_bn(batches, model)
        loss = cross_entropy
        if taught:
            loss = distillation_loss_fn(
                self.teachers(teachers), keep_logits=crops is not None, **distillation
            )
        loss = mixup(loss, len(self.classes)) if mixed else loss
        options |= {"crops": crops, "before_epoch": lambda model, _epoch: mode(model)}
        return self.fine_tune(model, loss, **options)

    def quantize(self, taught: bool, epochs=2):
        loaders = self.loaders()
        torch.backends.quantized.engine = "qnnpack"
        prepared = quantization.prepare(self.teacher, TARGET_DEVICES["embedded"], SIDE)
        quantization.calibrate(prepared, loaders.train, self.args.device, 16)
        loss = distillation_loss_fn(self.teacher, **KD) if taught else cross_entropy
        freeze = functools.partial(quantization.freeze, epochs=epochs)
        options = {"epochs": epochs, "lr": 5e-5, "deploy": quantization.convert, "before_epoch": freeze}
        converted = self.fit(prepared, loss, loaders.train, **options)
        return metrics.evaluate(converted.int8, loaders.test, CPU)


CRITERIA = (
    ("reconstruction", "global"), ("lamp", "global"), ("taylor", "global"), ("magnitude", "local"),
)  # fmt: skip
TARGETS = {
    "50 % of the parameters": {"kind": "parameters", "fraction": 0.5},
    "50 % of the MACs": {"kind": "macs", "fraction": 0.5},
    "20 % of the parameters": {"kind": "parameters", "fraction": 0.2},  # in int8, 1/16 of the float file
}
FINE_TUNING = {
    "least squares": {"reconstruct": True, "mode": nn.Module.eval},
    "none": {"reconstruct": False, "mode": nn.Module.eval},
    "least squares, fine-tuned in training mode": {"reconstruct": True, "mode": nn.Module.train},
    "none, fine-tuned in training mode": {"reconstruct": False, "mode": nn.Module.train},
}
LOSSES = {
    "alpha 0.9": {},
    "alpha 0, cross-entropy only": {"alpha": 0.0},
    "alpha 0.3": {"alpha": 0.3},
    "standardized logits": {"temperature": 2.0, "standardize_logits": True},
    "alpha 0.9, temperature 2": {"temperature": 2.0},
    "DIST": DIST,
    "DIST, standardized logits": DIST | {"standardize_logits": True},
}
STUDENTS = {
    "student": {},
    "student of a weak teacher": {"teachers": ("weak_teacher",)},
    "student, mixup": {"mixed": True},
    "student, 60 epochs, mixup": {"epochs": 60, "mixed": True},
    "student of a weak teacher, 60 epochs, mixup": {
        "teachers": ("weak_teacher",),
        "epochs": 60,
        "mixed": True,
    },
}
TEACHERS = {
    "MobileNetV2, the network itself": {"teachers": ("teacher",)},
    "EfficientNet-Lite1": {"teachers": ("second_teacher",)},
    "mean of both": {"teachers": ("teacher", "second_teacher")},
}
TO_A_FIFTH = {  # of the parameters
    "criterion": "reconstruction", "reconstruct": True, "mode": nn.Module.eval, "fraction": 0.2,
}  # fmt: skip
LONG_RUNS = {
    f"{epochs} epochs, rate {lr}": {"epochs": epochs, "lr": lr}
    for epochs, lr in ((60, 2e-4), (60, 5e-4), (60, 1e-3), (150, 2e-4), (150, 5e-4))
}
SMALL_CROP = v2.Compose([v2.Resize(resized_side({"image_size": SIDE}), antialias=True), v2.RandomCrop(SIDE)])
VARIANTS = {  # the first of each group is the one that the others are compared with
    "teacher": {
        "AdamW, cosine, crop from 35 %": lambda fold: metrics.evaluate(
            fold.teacher, fold.loaders().test, fold.args.device
        ),
        "Adam, steps (the survey's)": lambda fold: fold.fine_tune(
            optimizer="adam", schedule="scaled steps", lr=1e-3, weight_decay=1e-3
        ),
        "SGD, cosine, rate 0.01": lambda fold: fold.fine_tune(optimizer="sgd", lr=0.01, weight_decay=1e-4),
        "no resized crop": lambda fold: fold.fine_tune(crop=SMALL_CROP),
        "label smoothing 0.1": lambda fold: fold.fine_tune(loss=smoothed),
        "EMA of the weights": lambda fold: fold.fine_tune(ema=True),
    },
    **{
        stage: {
            name: lambda fold, loss=loss, options=options: fold.distill(**loss, **options)
            for name, loss in LOSSES.items()
        }
        for stage, options in STUDENTS.items()
    },
    "student, standardized logits, mixup": {
        name: lambda fold, options=options: fold.distill(
            **LOSSES["standardized logits"], mixed=True, **options
        )
        for name, options in LONG_RUNS.items()
    },
    "pruning": {
        "recalibrated, teacher": lambda fold: fold.prune(True, True),
        "recalibrated, no teacher": lambda fold: fold.prune(False, True),
        "not recalibrated, teacher": lambda fold: fold.prune(True, False),
    },
    "pruning, distillation": {
        name: lambda fold, loss=loss: fold.prune(
            criterion="reconstruction", reconstruct=True, mode=nn.Module.eval, epochs=4, distillation=loss
        )
        for name, loss in {"KD": KD, "DIST": DIST}.items()
    },
    **{
        f"{text}, criterion": {
            f"{criterion}, {scope}": lambda fold, criterion=criterion, scope=scope, target=target: fold.prune(
                **target, criterion=criterion, scope=scope, reconstruct=True, epochs=0
            )
            for criterion, scope in CRITERIA
        }
        for text, target in TARGETS.items()
    },
    **{
        f"{text}, {epochs} epochs": {
            name: lambda fold, options=options, target=target, epochs=epochs: fold.prune(
                **target, criterion="reconstruction", epochs=epochs, **options
            )
            for name, options in FINE_TUNING.items()
            if epochs == 4 or options["mode"] == nn.Module.eval  # the modes are compared after 4 epochs
        }
        for text, target in itertools.islice(TARGETS.items(), 2)
        for epochs in (0, 4, 16)
    },
    "teachers": {
        name: lambda fold, name=name: metrics.evaluate(
            fold.teachers(TEACHERS[name]["teachers"]), fold.loaders().test, fold.args.device
        )
        for name in TEACHERS
    },
    "student, teachers": {
        name: lambda fold, options=options: fold.distill(**options, **DIST)
        for name, options in TEACHERS.items()
    },
    "pruning, teachers": {
        name: lambda fold, options=options: fold.prune(**TO_A_FIFTH, **options, epochs=8)
        for name, options in TEACHERS.items()
    },
    "pruning, mixup, 12 epochs": {
        name: lambda fold, crops=crops: fold.prune(**TO_A_FIFTH, epochs=12, mixed=True, crops=crops)
        for name, crops in {"new crops in each epoch": None, "--crops 3": 3}.items()
    },
    "quantization": {
        "teacher": lambda fold: fold.quantize(True),
        "no teacher": lambda fold: fold.quantize(False),
        "post-training": lambda fold: fold.quantize(False, epochs=0),
    },
}


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--pretrained", required=True, metavar="DIR", help="initial weights")
    parser.add_argument("--output", required=True, metavar="FILE.jsonl", help="continued if it exists")
    parser.add_argument("--only", choices=VARIANTS, nargs="+", default=list(VARIANTS), help="default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    options.add_cache_option(options.add_dataset_options(parser))
    return parser.parse_args(argv)


def main(args):
    output, args.device = Path(args.output), torch.device(args.device)
    splits = datasets.load_splits(args.dataset, args.data_dir, val_fraction=0)
    # divided by class, in a random order that is always the same
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0)).tolist()
    samples = sorted((splits.train[index] for index in order), key=lambda sample: sample[1])
    folds = [Fold(number, samples, splits.classes, args) for number in range(FOLDS)]
    done = read(output)
    for stage in args.only:
        for fold in folds:
            for name, run in VARIANTS[stage].items():
                if (stage, name, fold.number) not in done:
                    score = run(fold)
                    row = {"stage": stage, "variant": name, "fold": fold.number, "top1": score.top1}
                    row["correct"] = score.correct.int().tolist()
                    with output.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    print(f"{stage}, {name}, fold {fold.number}: {score}", flush=True)
    print(table(read(output)))


def read(path: Path) -> dict[tuple, list[int]]:
    """Which predictions of each run are correct, by stage, variant and fold."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["stage"], row["variant"], row["fold"]): row["correct"] for row in rows}


def table(done: dict[tuple, list[int]]) -> str:
    lines = [
        "| stage | recipe | folds 0, 1, 2 | mean | spread | difference | p |",
        "| :--- | :--- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for stage, variants in VARIANTS.items():
        first = None
        for name in variants:
            runs = [torch.tensor(done.get((stage, name, fold), [])).bool() for fold in range(FOLDS)]
            if not all(map(len, runs)):
                continue
            top1 = torch.tensor([run.double().mean() for run in runs])
            correct = torch.cat(runs)
            first = correct if first is None else first
            difference = 100 * float(correct.double().mean() - first.double().mean())
            p = metrics.mcnemar(correct, first)
            lines.append(
                f"| {stage} | {name} | {', '.join(f'{value:.1%}' for value in top1)} "
                f"| {correct.double().mean():.2%} | {100 * top1.std():.1f} | {difference:+.2f} "
                f"| {f'{p:.3f}' if p >= 0.0005 else '<0.001'} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    launch.run(main, parse_args)
