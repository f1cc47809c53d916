"""Stage: what the four training scripts have in common, from the command line to the saved checkpoint."""

import argparse
import itertools
from pathlib import Path

import torch
from torch import nn

from common.budget import costs
from common.budget.target import Budget
from common.cli import launch, options, targets, teacher_options
from common.compression import distillation, reconstruction
from common.compression.distillation import LossFn
from common.compression.target_devices import TARGET_DEVICES
from common.data import cache, datasets
from common.data.loaders import make_loaders
from common.data.transforms import CPU, renormalized
from common.evaluation import memory, metrics, results, tables
from common.models import architectures, checkpoint, lineage
from common.system import distributed, hardware
from common.system.errors import UserError
from common.training import loop, resume


class Stage:
    """The model of a training script, its images, and its place in the chain of checkpoints.

    Attributes:
        device: Where models are trained; `cpu` is where int8 models run.
        parent: The content of the checkpoint that the stage starts from.
        parent_path: Its file; None for a new architecture.
        model: The model of the parent, or of the new architecture, on the CPU.
        splits: The images; `num_classes` and `image_size` (pixels) describe them.
        classifier: Name of the layer of `model` that yields the logits; `network`: it and the image size.
        loaders: The batches, `row`: the stage's row of the lineage, `progress`: the state of the run; all
            three from `begin` on.
    """

    def __init__(
        self, name: str, args: argparse.Namespace, *, parent: str | None = None, arch: str | None = None
    ):
        """Opens the parent, or builds a new architecture, and lists the images.

        Args:
            name: The stage, of the table `STAGES`.
            args: The parsed command line.
            parent: The checkpoint to start from: see `checkpoint.find`.
            arch: Without a parent, the architecture to start from, with the weights of --pretrained; else
                that of a student, for which the images are normalized.

        Raises:
            UserError: Something is missing or does not fit.
        """
        self.name, self.args, self.cpu, self.parent_path, self.teacher_paths = name, args, CPU, None, []
        if arch is not None:
            architectures.check(arch)
        self.device = launch.start(args.output_dir, args.device, args.seed)
        if parent is not None:
            self.parent_path, self.parent = checkpoint.open_parent(parent, args.output_dir, args.image_size)
            self.model = checkpoint.rebuild(self.parent)
        self.splits = datasets.load_splits(
            args.dataset, args.data_dir, args.val_fraction, index_dir=cache.folder_of(args.cache)
        )
        self.num_classes = len(self.splits.classes)
        if "distillation" in args:
            teacher_options.settle(args, name, self.num_classes)
        if parent is not None:
            lineage.check_fits(self.parent, self.splits)
            if arch is not None:
                images = architectures.input_config(arch) | {"image_size": self.parent["image_size"]}
                self.model = renormalized(self.model, self.parent, images)
                self.parent |= images
        else:
            self.parent = lineage.new_checkpoint(arch, self.splits.classes, args.image_size)
            self.model = architectures.build(arch, self.num_classes, args.pretrained)
        self.image_size = self.parent["image_size"]
        self.classifier = architectures.classifier(self.model, self.num_classes)
        self.network = {"classifier": self.classifier, "image_size": self.image_size}
        self.before = self.parent["metrics"] | metrics.complexity(self.model, self.image_size)
        self.before |= memory.as_metric(self.parent, self.model)

    def loss_fn(self) -> LossFn:
        """Cross-entropy, or with --teacher the distillation loss; to be called before `begin`.

        Raises:
            UserError: A teacher is missing or does not fit, or an option needs one.
        """
        args = self.args
        if args.teacher:
            teacher = distillation.MeanOfLogits(self.open_teachers(args.teacher)).to(self.device)
            settings, precision = teacher_options.distillation_options(args), self.precision_for(teacher)
            return distillation.distillation_loss_fn(teacher, **settings, precision=precision)
        teacher_options.require_none(args)
        return distillation.cross_entropy

    def open_teachers(self, references: list[str]) -> list[nn.Module]:
        """Calls `checkpoint.open_teacher` for each, and keeps the paths for the lineage.

        Args:
            references: See `checkpoint.find`.

        Returns:
            The models.
        """
        place = self.args.output_dir, self.parent, self.splits
        opened = [checkpoint.open_teacher(each, *place) for each in references]
        self.teacher_paths = [path for path, _ in opened]
        return [teacher for _, teacher in opened]

    def precision_for(self, model: nn.Module) -> torch.dtype:
        """Chooses the precision of a model by --precision.

        Args:
            model: A float model.

        Returns:
            torch.bfloat16 or torch.float32.
        """
        return hardware.pick_precision(self.args.precision, self.device, model)

    def begin(self, model: nn.Module, *, arch: str | None = None, **row) -> Path | None:
        """Loads the images, and begins or resumes the run.

        Args:
            model: The float model that is trained or compressed.
            arch: Its architecture, where it is not that of the parent.
            **row: Further entries of the row of the lineage.

        Returns:
            The checkpoint of this run where it is finished already, else None.

        Raises:
            UserError: An image cannot be read, or the state of an interrupted run does not fit.
        """
        args, self.arch, self.precision = self.args, arch or self.parent["arch"], self.precision_for(model)
        images = self.splits.fingerprint_of(args.score)
        self.test_images = {"images": images, "image_size": self.image_size}
        self.loaders = make_loaders(
            self.splits, self.parent, args.batch_size, args.seed,
            cache=args.cache, workers=args.workers, device=self.device, test=args.score == "test",
        )  # fmt: skip
        self.test_loader = self.loaders.of(args.score)
        machine = hardware.summary(self.device, self.precision)
        print(f"{self.arch}: {metrics.describe_size(model, self.image_size)}; {self.splits}\n{machine}")
        new_row = lineage.new_row(
            self.parent, self.parent_path, self.name, arch=arch, options=vars(args), machine=machine,
            split=self.splits.training_fingerprint, teacher_paths=self.teacher_paths,
        )  # fmt: skip
        self.progress = resume.open_run(args.output_dir, new_row | row, resume=args.resume, images=images)
        self.row = distributed.broadcast(self.progress.row)
        if self.row["machine"] != machine:
            print(f"note: the run began with {self.row['machine']}; the rest has another precision or speed")
        return self.progress.finished

    def budget(self, model: nn.Module) -> Budget:
        """The budget of pruning: that of a --target option, else --pruning-ratio (half) of the parameters.

        Args:
            model: The float model before it is pruned.

        Returns:
            The budget.

        Raises:
            UserError: The model cannot be quantized, as --target-precision int8 asks for, or measured.
        """
        args = self.args
        if (target := targets.budget(args)) is None:
            return costs.parameter_budget(model, args.pruning_ratio or 0.5)
        return costs.make_budget(
            *target, model, self.parent, self.row, precision=args.target_precision, threads=args.threads,
            target=TARGET_DEVICES[args.target_device], ram_schedule=args.ram_schedule or "layers",
            parent_bytes=self.row["parent_bytes"], latency_in=args.latency_in,
            tables=cache.folder_of(args.cache) or Path(args.output_dir),
        )  # fmt: skip

    def validate(self, model: nn.Module, title: str) -> float | None:
        """Evaluates a float model on validation, and prints the result.

        Args:
            model: Moved to the device, and put into eval mode.
            title: What it is, for the line that is printed.

        Returns:
            Top-1 from 0 to 1; None without a validation split.
        """
        if self.loaders.val is None:
            return None
        score = metrics.evaluate(model, self.loaders.val, self.device, self.precision_for(model))
        print(f"{title}, on validation: {score}", flush=True)
        return score.top1

    def fit(self, model: nn.Module, loss_fn: LossFn, epochs: int | None = None, **hooks):
        """Trains a model with the options of the command line: see `loop.fit`.

        Args:
            model: Trained in place.
            loss_fn: See `distillation`.
            epochs: None for --epochs.
            **hooks: `deploy`, `deploy_device` and `before_epoch` of `loop.fit`.

        Returns:
            (deployed, history): the deployed model of the selected epoch, and a row for each epoch.
        """
        loss_fn = distillation.mixup(loss_fn, self.num_classes) if self.args.mixup else loss_fn
        return loop.fit(
            model, loss_fn, self.loaders.train, self.loaders.val, **options.fit_options(self.args),
            epochs=self.args.epochs if epochs is None else epochs,
            device=self.device, precision=self.precision, progress=self.progress, **hooks,
        )  # fmt: skip

    def reconstruct(self, model: nn.Module, original: nn.Module, kept: dict[str, torch.Tensor]) -> None:
        """Fits a pruned network to the outputs of the original one, on --calibration-batches of training.

        A network that this is not possible for stays as it is, with a note.

        Args:
            model: Moved to the device, and changed in place.
            original: The network before it was pruned; moved to the device.
            kept: The result of `masking.verify`.
        """
        batches = itertools.islice(self.loaders.train, self.args.calibration_batches)
        try:
            fits = reconstruction.least_squares(model, original, kept, batches, self.device)
        except UserError as error:
            print(f"note: pruned without reconstruction: {error}")
            return
        print(reconstruction.summary(fits))

    def test(self, model: nn.Module, device: torch.device | None = None) -> metrics.Score:
        """Evaluates a final model, in float32 or int8, on the split of --score.

        Args:
            model: Put into eval mode.
            device: Where it runs; None for the device of the stage.

        Returns:
            The score.
        """
        with hardware.full_float32():
            return metrics.evaluate(model, self.test_loader, device or self.device, title="test")

    def save(
        self, model: nn.Module, score: metrics.Score, history: list[dict], *, next_command: str,
        summary: str = "", budget: Budget | None = None, extra_metrics: dict | None = None, **content,
    ) -> Path | None:  # fmt: skip
        """Saves the checkpoint in the main process, and prints its score, before => after, the next command.

        Args:
            model: The float model; of an int8 model the one that it was created from.
            score: The result of `test`.
            history: The rows of `fit`.
            next_command: The next script and its arguments, with {path} in place of the checkpoint.
            summary: Printed in place of the score.
            budget: Stored with what the model costs, as the metric "target".
            extra_metrics: Further metrics.
            **content: For an int8 model its `state_dict` and `int8`.

        Returns:
            The checkpoint; None in other processes.
        """
        if not distributed.is_main_process():
            return None
        args, size = self.args, metrics.complexity(model, self.image_size)
        after = score.as_dict(args.score) | self.test_images | size | (extra_metrics or {})
        if budget:
            after["target"] = budget.achieved(model)
        content.setdefault("state_dict", checkpoint.float_state(model))
        child = lineage.child(self.parent, self.row, arch=self.arch, metrics=after, **content)
        child["metrics"] |= memory.as_metric(child, model)
        path = checkpoint.save(child, args.output_dir, once=args.resume)
        results.write_history(history, path)
        self.progress.finish()
        print(summary or f"{args.score}: {score}")
        if self.parent_path is not None or size["params"] != self.before["params"]:
            print(tables.before_after(self.before, self.parent_path, child["metrics"], path))
        print(f"saved {path}")
        print(f"next: python {next_command.format(path=path)}{options.data_arguments(args)}")
        return path
