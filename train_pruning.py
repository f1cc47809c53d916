"""Structured pruning: remove whole channels, and fine-tune what is left.

    python train_pruning.py --weights kd_resnet18 --pruning-ratio 0.4

reads    weights/kd_resnet18_<top-1>.pt, and the pictures of --dataset
writes   weights/pruned_kd_resnet18_<top-1>.pt, and its log and curves beside it
"""

from common import cli, options


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
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
        "--channel-ratio", type=ratio, metavar="R", help="share of each layer's CHANNELS to remove"
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
    return parser.parse_args(argv)


def main(args):
    # imported here: --help answers without torch
    import torch

    from common import (
        batches,
        checkpoint,
        data,
        distributed,
        machine,
        metrics,
        models,
        pruning,
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

    # baseline
    if loaders.val:
        print(f"before pruning, on validation: {metrics.evaluate(model, loaders.val, device, precision)}")

    # pruning and fine-tuning, step by step
    history, unhealed = [], []
    for step, epochs in enumerate(training.share_epochs(args.epochs, args.pruning_steps), start=1):
        _, protect = models.classifier(model, len(splits.classes))
        if args.channel_ratio:
            removed = 1 - (1 - args.channel_ratio) ** (1 / args.pruning_steps)
            model = pruning.prune_channels(model, removed, protect=protect, image_size=image_size)
        else:
            target = round(before["params"] * (args.pruning_ratio or 0.5) ** (step / args.pruning_steps))
            model = pruning.prune_to_parameters(model, target, protect=protect, image_size=image_size)
        after = metrics.size(model, image_size)
        print(f"step {step}/{args.pruning_steps}: {after['params']:,} parameters, {after['macs']:,} MACs")
        if loaders.val:
            score = metrics.evaluate(model, loaders.val, device, precision)
            unhealed.append(score.top1)
            print(f"pruned, on validation: {score}")
        # batch norm has the statistics of the whole layers: take new ones
        torch.optim.swa_utils.update_bn(loaders.train, model, device)
        distributed.share_buffers(model)
        if loaders.val:
            print(f"with batch norm recalibrated: {metrics.evaluate(model, loaders.val, device, precision)}")
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
        history += [{"step": step} | row for row in rows]

    # score on test, save
    test = metrics.evaluate(model, loaders.test, device)
    if not distributed.is_first():
        return
    child = checkpoint.child(
        parent,
        progress.row,
        state_dict=checkpoint.float_state(model),
        metrics=test.as_dict() | after | {"val_top1_before_fine_tuning": unhealed},
    )
    path = checkpoint.save(child, args.output_dir, once=args.resume)
    report.write_history(history, path)
    progress.finish()
    print(f"test: {test}")
    print(report.before_after(before, parent_path, child["metrics"], path))
    print(f"saved {path}")
    print(f"next: python train_quantization.py --weights {path.name}{options.data_arguments(args)}")


if __name__ == "__main__":
    cli.run(main, parse_args)
