"""Structured pruning: remove whole channels, reconstruct the outputs of the layers, and fine-tune.

    python train_pruning.py --weights kd_resnet18 --pruning-ratio 0.4
    python train_pruning.py --weights kd_resnet18 --target-size 2MB --target-precision int8
    python train_pruning.py --weights kd_resnet18 --target-ram 150KB --ram-schedule camera

reads    weights/kd_resnet18_<top-1>.pt, and the images of --dataset
writes   weights/pruned_kd_resnet18_<top-1>.pt, and its log and curves beside it
"""

from common.cli import launch, options, targets, teacher_options
from common.cli.parser import Parser, new_file, number


def main(args):
    # imported here, so that --help does not load torch
    from common.compression import importance, masking, pruning
    from common.stage import Stage
    from common.training import batch_norm, loop

    # model, data
    stage = Stage("pruned", args, parent=args.weights, arch=args.model)
    model, loss_fn, steps = stage.model, stage.loss_fn(), args.pruning_steps
    if finished := stage.begin(model):
        return finished
    budget = None if args.channel_ratio else stage.budget(model)
    log, history = [{"before": stage.validate(model, "before pruning")}], []

    for step, epochs in enumerate(loop.split_epochs(args.epochs, steps), start=1):
        # 1. rank the channels; layers that must be pruned together form a group (DepGraph)
        kind = budget.kind if budget else ""
        score = importance.prepare(args.importance, model, stage.loaders.train, stage.device, kind)
        scope = args.scope or ("local" if args.channel_ratio else "global")
        groups = pruning.rank(model, score, scope, seed=(args.seed, step), **stage.network)
        if args.sensitivity and step == 1:
            draw_sensitivity(stage, model, groups, args.sensitivity)

        # 2. choose how many channels each layer keeps, and remove those with the lowest ranks
        widths = choose_widths(stage, model, groups, budget and budget.at_step(step, steps))
        original, model = model, pruning.prune(model, groups, widths, **stage.network)
        kept = masking.verify(model, original, groups, widths, **stage.network)
        print(f"step {step}/{steps}: {checked_size(stage, model)}")
        log.append({"pruned": stage.validate(model, "pruned")})

        # 3. reconstruct: fit each layer to the outputs that it had before (least squares)
        if args.reconstruct == "least-squares":
            stage.reconstruct(model, original, kept)
            log[-1]["reconstructed"] = stage.validate(model, "reconstructed")

        # 4. compute the batch-norm statistics of the smaller layers anew
        batch_norm.recalibrate(model, stage.loaders.train, stage.device)
        log[-1]["recalibrated"] = stage.validate(model, "with batch norm recalibrated")

        # 5. fine-tune in eval mode: with these statistics, without dropout
        model, rows = stage.fit(model, loss_fn, epochs, before_epoch=lambda model, _epoch: model.eval())
        log[-1]["fine_tuned"] = stage.validate(model, "fine-tuned")
        history += [{"step": step} | row for row in rows]

    return stage.save(
        model, stage.test(model), history, budget=budget, extra_metrics={"validation": log, "target": None},
        next_command="train_quantization.py --weights {path.name}",
    )  # fmt: skip


def choose_widths(stage, model, groups, budget):
    """How many channels each layer keeps: those of a resumed run, or of --channel-ratio, or of the budget."""
    from common.budget.widths import widths_for_budget
    from common.compression import pruning

    if state := stage.progress.upcoming():
        return pruning.widths_from_state(state["model"], groups)
    if budget is None:
        kept = (1 - stage.args.channel_ratio) ** (1 / stage.args.pruning_steps)
        return pruning.widths_for_fraction(groups, 1 - kept, stage.args.width_multiple or pruning.ROUND_TO)
    return widths_for_budget(model, groups, budget, multiple=stage.args.width_multiple, **stage.network)


def checked_size(stage, model):
    """Describes the size of a pruned network, and checks that its checkpoint will yield it."""
    from common.evaluation import metrics
    from common.models import checkpoint

    checkpoint.check_rebuilds(stage.parent, model)
    return metrics.describe_size(model, stage.image_size)


def draw_sensitivity(stage, model, groups, path):
    from common.compression import sensitivity
    from common.evaluation import metrics, plots

    def top1(pruned):
        return metrics.evaluate(pruned, stage.loaders.of("val"), stage.device).top1

    plots.draw_sensitivity(groups, sensitivity.measure(model, groups, top1, **stage.network), path)
    print(f"saved {path}")


def parse_args(argv=None):
    parser = Parser(__doc__, __file__)
    group = parser.add_argument_group("pruning")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", metavar="CHECKPOINT", help=options.CHECKPOINT)
    source.add_argument("--model", metavar="ARCH", help=f"{options.ARCHITECTURE}, built with --pretrained")
    options.add_pretrained_option(group)
    ratio = {"type": number(float, 0, 1, above=True), "metavar": "R"}
    target = group.add_mutually_exclusive_group()
    target.add_argument("--pruning-ratio", **ratio, help="fraction of the PARAMETERS to keep; default: 0.5")
    target.add_argument("--channel-ratio", **ratio, help="fraction of each layer's CHANNELS to remove")
    targets.add_budget_options(target)
    targets.add_precision_options(group)
    targets.add_conditions(group)
    targets.add_width_option(group)
    group.add_argument(
        "--importance", choices=targets.IMPORTANCES, default="reconstruction",
        help="what ranks the channels; reconstruction: the error that is left after least squares, for each "
        "parameter or MAC; default: reconstruction",
    )  # fmt: skip
    group.add_argument(
        "--scope", choices=targets.SCOPES,
        help="which channels compete: those of a layer, all, or those of all layers with the same structure; "
        "default: global, with --channel-ratio local",
    )  # fmt: skip
    group.add_argument(
        "--sensitivity", type=new_file(".png", ".svg"), metavar="FILE.png",
        help="draw the accuracy on validation with a fraction of one layer's channels removed",
    )  # fmt: skip
    group.add_argument(
        "--reconstruct", choices=("least-squares", "none"), default="least-squares",
        help="fit the layers that are left to the outputs that they had before; default: least-squares",
    )  # fmt: skip
    group.add_argument(
        "--calibration-batches", type=number(int, 1), default=8, metavar="N",
        help="batches of training images that --reconstruct uses; default: 8",
    )  # fmt: skip
    group.add_argument(
        "--pruning-steps", type=number(int, 1), default=1, metavar="N", help="prune and fine-tune N times"
    )
    teacher_options.add_teacher_options(parser, required=False)
    options.add_data_options(parser)
    options.add_training_options(parser, epochs=20, lr=5e-4)
    options.add_stage_options(parser)
    return targets.with_precision(parser, parser.parse_args(argv))


if __name__ == "__main__":
    launch.run(main, parse_args)
