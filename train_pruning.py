"""Structured pruning: remove whole channels, and fine-tune what is left.

    python train_pruning.py --weights kd_resnet18 --pruning-ratio 0.4

reads    weights/kd_resnet18_<top-1>.pt, and the pictures of --dataset
writes   weights/pruned_kd_resnet18_<top-1>.pt, and its log and curves beside it
"""

from common import cli


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    group = parser.add_argument_group("pruning")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", metavar="CHECKPOINT", help="a path, a name, or the start of one")
    source.add_argument(
        "--model", metavar="ARCH", help="a torchvision model, with the weights of --pretrained"
    )
    cli.add_pretrained_option(group)
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
    cli.add_data_options(parser)
    cli.add_training_options(parser, epochs=20, lr=5e-4)
    return parser.parse_args(argv)


def main(args):
    from common import (
        checkpoint,
        data,
        metrics,
        models,
        pruning,
        report,
        training,
    )  # here: --help needs no torch
    from common.distillation import cross_entropy

    # model and data
    cli.check_output_dir(args.output_dir)
    device = cli.pick_device(args.device)
    cli.seed_everything(args.seed)
    if args.weights:
        parent_path, parent = checkpoint.open_parent(args.weights, args.output_dir, to="prune")
        model = checkpoint.rebuild(parent)
    else:
        models.check_arch(args.model)
    splits = data.load_splits(args.dataset, args.data_dir, args.val_fraction)
    if args.model:
        parent_path, parent = None, checkpoint.untrained(args.model, splits.classes, args.image_size)
        model = models.build(args.model, len(splits.classes), args.pretrained)
    parent["image_size"] = args.image_size or parent["image_size"]
    checkpoint.check_fits(parent, splits)
    models.check_image_size(model, parent["arch"], parent["image_size"])
    loaders = data.make_loaders(
        splits, parent, batch_size=args.batch_size, workers=args.workers, seed=args.seed
    )

    # baseline
    model.to(device)
    before = parent["metrics"] | metrics.size(model, parent["image_size"])
    print(f"{parent['arch']}: {before['params']:,} parameters, {before['macs']:,} MACs; {splits}")
    if loaders.val:
        print(f"before pruning, on validation: {metrics.evaluate(model, loaders.val, device)}")

    # pruning and fine-tuning, step by step
    history, unhealed = [], []
    for step, epochs in enumerate(training.share_epochs(args.epochs, args.pruning_steps), start=1):
        limits = {
            "protect": models.classifier(model, len(splits.classes))[1],
            "image_size": parent["image_size"],
        }
        if args.channel_ratio:
            removed = 1 - (1 - args.channel_ratio) ** (1 / args.pruning_steps)
            model = pruning.prune_channels(model, removed, **limits)
        else:
            kept = (args.pruning_ratio or 0.5) ** (step / args.pruning_steps)
            model = pruning.prune_to_parameters(model, round(kept * before["params"]), **limits)
        after = metrics.size(model, parent["image_size"])
        print(f"step {step}/{args.pruning_steps}: {after['params']:,} parameters, {after['macs']:,} MACs")
        if loaders.val:
            score = metrics.evaluate(model, loaders.val, device)
            unhealed.append(score.top1)
            print(f"before fine-tuning, on validation: {score}")
        model, rows = training.fit(
            model,
            cross_entropy,
            loaders.train,
            loaders.val,
            epochs=epochs,
            lr=args.lr,
            weight_decay=args.weight_decay,
            device=device,
        )
        history += [{"step": step} | row for row in rows]

    # score on test, save
    test = metrics.evaluate(model, loaders.test, device)
    row = checkpoint.lineage_row("pruned", vars(args), splits.fingerprint, parent_path)
    child = {
        **parent,
        "stage": "pruned",
        "name": checkpoint.next_name("pruned", parent["name"], args.model_name),
        "state_dict": checkpoint.float_state(model),
        "metrics": test.as_dict() | after | {"val_top1_before_fine_tuning": unhealed},
        "lineage": [*parent["lineage"], row],
    }
    path = checkpoint.save(child, args.output_dir)
    report.write_history(history, path)
    print(f"test: {test}")
    print(report.before_after(before, parent_path, child["metrics"], path))
    print(f"saved {path}")
    print(f"next: python train_quantization.py --weights {path.name}{cli.data_arguments(args)}")


if __name__ == "__main__":
    cli.run(main, parse_args)
