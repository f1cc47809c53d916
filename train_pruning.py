"""Structured pruning: remove whole channels, and fine-tune what is left.

    python train_pruning.py --weights kd_resnet18 --pruning-ratio 0.4
    python train_pruning.py --weights kd_resnet18 --target-size 2MB --target-precision int8

reads    weights/kd_resnet18_<top-1>.pt, and the pictures of --dataset
writes   weights/pruned_kd_resnet18_<top-1>.pt, and its log and curves beside it
"""

from common import cli, options


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    group = parser.add_argument_group("pruning")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", metavar="CHECKPOINT", help="a path, a name, or the start of one")
    source.add_argument(
        "--model", metavar="ARCH", help="a torchvision model, with the weights of --pretrained"
    )
    options.add_pretrained_option(group)
    ratio = cli.number(float, 0, 1, above=True)
    target = group.add_mutually_exclusive_group()
    target.add_argument(
        "--pruning-ratio", type=ratio, metavar="R", help="share of PARAMETERS to keep; default: 0.5"
    )
    target.add_argument(
        "--channel-ratio",
        type=ratio,
        metavar="R",
        help="share of the CHANNELS to remove, of each layer alike",
    )
    options.add_target_options(target)
    group.add_argument(
        "--target-precision",
        choices=("fp32", "int8"),
        default="fp32",
        help="what the target is for: the pruned model, or what train_quantization.py will make of it; "
        "default: fp32",
    )
    options.add_target_conditions(group)
    group.add_argument(
        "--importance",
        choices=options.IMPORTANCES,
        default="lamp",
        help="what says which channels go; taylor looks at training pictures; default: lamp",
    )
    group.add_argument(
        "--scope",
        choices=options.SCOPES,
        help="which channels compete: those of a layer, of all, or of all layers of the same structure; "
        "default: global, with --channel-ratio local",
    )
    group.add_argument(
        "--sensitivity",
        type=cli.new_file(".png", ".svg"),
        metavar="FILE.png",
        help="draw the accuracy on validation when a share of one layer's channels is gone",
    )
    group.add_argument(
        "--pruning-steps",
        type=cli.number(int, 1),
        default=1,
        metavar="N",
        help="prune and fine-tune N times; default: 1",
    )
    options.add_teacher_options(parser, required=False)
    options.add_data_options(parser)
    options.add_training_options(parser, epochs=20, lr=5e-4)
    options.add_stage_options(parser)
    return parser.parse_args(argv)


def remove_channels(args, model, step, budget, parent, loaders, device, saved):
    """One step of the pruning: `model` without the channels that score lowest, as many as the `budget` or
    --channel-ratio says, or as were gone in `saved`, the state of a run that goes on.
    """
    from common import distributed, metrics, models, plots, pruning, seeds

    protect = models.classifier(model, len(parent["classes"]))[1]
    limits = {"protect": protect, "image_size": parent["image_size"]}
    if args.importance == "taylor":
        pruning.take_gradients(model, loaders.train, device)
    with seeds.drawing(args.seed, step):
        scope = args.scope or ("local" if args.channel_ratio else "global")
        groups = pruning.rank(model, args.importance, scope, **limits)
    if args.sensitivity and step == 1:

        def top1(pruned):
            return metrics.evaluate(pruned, loaders.val, device).top1

        table = pruning.sensitivity(model, groups, top1, **limits)
        if distributed.is_first():
            plots.draw_sensitivity(groups, table, args.sensitivity)
            print(f"saved {args.sensitivity}")
    if saved:
        widths = pruning.widths_of(saved["model"], groups)
    elif args.channel_ratio:
        widths = pruning.share_widths(groups, 1 - (1 - args.channel_ratio) ** (1 / args.pruning_steps))
    else:
        # by one process alone: where it measures, another would find other widths
        found = distributed.is_first() and pruning.budget_widths(model, groups, budget, **limits)
        widths = distributed.from_first(found)
    return pruning.prune(model, groups, widths, **limits)


def main(args):
    # imported here: --help answers without torch
    import torch

    from common import (
        batches,
        budgets,
        checkpoint,
        data,
        distributed,
        machine,
        metrics,
        models,
        quantization,
        report,
        resume,
        training,
    )
    from common.distillation import cross_entropy, taught_by
    from common.errors import UserError

    # model and data
    device = cli.start(args.output_dir, args.device, args.seed)
    if args.weights:
        parent_path, parent = checkpoint.open_parent(
            args.weights, args.output_dir, args.image_size, to="prune"
        )
        model = checkpoint.rebuild(parent)
        splits = data.load_splits(args.dataset, args.data_dir, args.val_fraction)
        checkpoint.check_fits(parent, splits)
    else:
        models.check_arch(args.model)
        splits = data.load_splits(args.dataset, args.data_dir, args.val_fraction)
        parent_path, parent = None, checkpoint.untrained(args.model, splits.classes, args.image_size)
        model = models.build(args.model, len(splits.classes), args.pretrained)
    image_size = parent["image_size"]
    before = parent["metrics"] | metrics.size(model, image_size)
    loaders = batches.make_loaders(
        splits, parent, args.batch_size, args.seed, cache=args.cache, workers=args.workers, device=device
    )
    scored = loaders.scored(args.score)
    if args.sensitivity:
        loaders.scored("val")  # which it needs
    precision = machine.pick_precision(args.precision, device, model)
    computing = machine.summary(device, precision)
    print(f"{parent['arch']}: {before['params']:,} parameters, {before['macs']:,} MACs; {splits}")
    print(computing)

    # what is learned: the labels alone, or a teacher's answers as well
    loss_function, teacher_path = cross_entropy, None
    if args.teacher:
        teacher_path, teacher = checkpoint.open_teacher(args.teacher, args.output_dir, parent, splits)
        loss_function = taught_by(
            teacher.to(device),
            **options.of_distillation(args),
            precision=machine.pick_precision(args.precision, device, teacher),
        )
    elif args.mixup:
        raise UserError("--mixup needs --teacher")
    row = checkpoint.lineage_row(
        parent, parent_path, "pruned", options=vars(args), machine=computing, split=splits.fingerprint,
        teacher_path=teacher_path,
    )  # fmt: skip
    progress = resume.open_run(args.output_dir, row, resume=args.resume)
    if progress.finished:
        return progress.finished

    # how much is to go
    budget = budgets.parameters(round(before["params"] * (args.pruning_ratio or 0.5)))
    for kind in options.TARGETS:
        if text := getattr(args, f"target_{kind}"):
            backend = quantization.BACKENDS[args.target_device]
            budget = budgets.read(
                kind, text, model, parent, row,
                precision=args.target_precision, backend=backend, threads=args.threads,
                parent_bytes=row["parent_bytes"],
            )  # fmt: skip
    start = budget.cost(model)

    # baseline
    def validated(model, point):
        if loaders.val is None:
            return None
        score = metrics.evaluate(model, loaders.val, device, precision)
        print(f"{point}, on validation: {score}")
        return score.top1

    points = [{"before": validated(model, "before pruning")}]

    # pruning and fine-tuning, step by step
    history = []
    for step, epochs in enumerate(training.share_epochs(args.epochs, args.pruning_steps), start=1):
        wanted = None if args.channel_ratio else budget.on_the_way(start, step / args.pruning_steps)
        model = remove_channels(args, model, step, wanted, parent, loaders, device, progress.upcoming())
        after = metrics.size(model, image_size)
        print(f"step {step}/{args.pruning_steps}: {after['params']:,} parameters, {after['macs']:,} MACs")
        points.append({"pruned": validated(model, "pruned")})
        # batch norm has the statistics of the whole layers: take new ones
        torch.optim.swa_utils.update_bn(loaders.train, model, device)
        distributed.share_buffers(model)
        points[-1]["recalibrated"] = validated(model, "with batch norm recalibrated")
        model, rows = training.fit(
            model,
            loss_function,
            loaders.train,
            loaders.val,
            epochs=epochs,
            **options.of_fit(args),
            device=device,
            precision=precision,
            progress=progress,
        )
        points[-1]["fine_tuned"] = validated(model, "fine-tuned")
        history += [{"step": step} | row for row in rows]

    # score, save
    score = metrics.evaluate(model, scored, device)
    if not distributed.is_first():
        return None
    achieved = None if args.channel_ratio else budget.achieved(model)
    child = checkpoint.child(
        parent,
        progress.row,
        state_dict=checkpoint.float_state(model),
        metrics=score.as_dict(args.score) | after | {"validation": points, "target": achieved},
    )
    path = checkpoint.save(child, args.output_dir, once=args.resume)
    report.write_history(history, path)
    progress.finish()
    print(f"{args.score}: {score}")
    print(report.before_after(before, parent_path, child["metrics"], path))
    if achieved:
        print(f"  {'target':<11}{budget.shown(budget.limit):>15} => {budget.shown(achieved['achieved'])}")
    print(f"saved {path}")
    print(f"next: python train_quantization.py --weights {path.name}{options.data_arguments(args)}")
    return path


if __name__ == "__main__":
    cli.run(main, parse_args)
