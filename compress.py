"""Compress to a budget: distil, prune and quantize as far as it takes, and keep what is best on validation.

    python compress.py --weights resnet50 --target-size 4MB --student resnet18

reads    weights/teacher_resnet50_<top-1>.pt, and the pictures of --dataset
writes   the winner into weights/, its report (.md) beside it, every stage tried into weights/candidates/
"""

from common import cli, options

SHARED = (  # options that all stages get as they are given here
    "dataset", "data_dir", "workers", "cache", "image_size", "val_fraction", "batch_size", "weight_decay",
    "optimizer", "schedule", "seed", "device", "precision", "temperature", "alpha", "mixup",
)  # fmt: skip


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    group = parser.add_argument_group("compression")
    group.add_argument(
        "--weights", required=True, metavar="CHECKPOINT", help="a path, a name, or the start of one"
    )
    options.add_target_options(group.add_mutually_exclusive_group(required=True))
    options.add_target_conditions(group)
    group.add_argument(
        "--student", nargs="+", default=[], metavar="ARCH", help="smaller architectures, to distil into first"
    )
    options.add_pretrained_option(group)
    group.add_argument(
        "--quantization-epochs",
        type=cli.number(int, 0),
        default=10,
        metavar="N",
        help="of quantization-aware training, at its own learning rate; default: 10",
    )
    options.add_teacher_options(parser, required=False)
    options.add_data_options(parser)
    options.add_training_options(parser, epochs=20, lr=5e-4)
    parser.set_defaults(resume=True)
    args = parser.parse_args(argv)
    args.shared = []
    for name in SHARED:
        value = getattr(args, name)
        if value != parser.get_default(name):
            args.shared += [f"--{name.replace('_', '-')}"] + (
                [] if value is True else ["off" if value is None else str(value)]
            )
    return args


def main(args):
    # imported here: --help answers without torch
    import torch

    from common import batches, checkpoint, data, distributed, metrics, models, report
    from common.compression import Candidate, Compression
    from common.errors import UserError

    if distributed.size() > 1:
        raise UserError("compress.py is one process; torchrun can run its stages one by one")
    for arch in args.student:
        models.check_arch(arch)
    cpu = torch.device("cpu")
    cli.start(args.output_dir, args.device, args.seed)
    source_path, content = checkpoint.open_parent(
        args.weights, args.output_dir, args.image_size, to="compress"
    )
    splits = data.load_splits(args.dataset, args.data_dir, args.val_fraction)
    checkpoint.check_fits(content, splits)
    loaders = batches.make_loaders(
        splits, content, args.batch_size, args.seed, cache=args.cache, workers=args.workers
    )
    score = metrics.evaluate(checkpoint.rebuild(content), loaders.scored("val"), cpu)
    source = Candidate("", source_path, score.top1, score.ci95)
    compression = Compression(args, source)
    if (now := compression.cost(source)) <= compression.limit:
        raise UserError(f"nothing to do: {source_path} takes {compression.shown(now)} already")
    winner = compression.run()

    text = compression.report(winner)

    # the winner alone sees the test pictures
    made = checkpoint.load(winner.path)
    score = metrics.evaluate(checkpoint.rebuild(made), loaders.test, cpu)
    validation = made["metrics"]
    sizes = {"params": validation["params"], "macs": validation["macs"]}
    made["metrics"] = score.as_dict("test") | sizes | {"validation": validation}
    path = checkpoint.save(made, args.output_dir, once=True)
    text += f"\n\nOn the test pictures, which it alone has seen: {score}"
    report.write_text(text, path.with_suffix(".md"))
    print(f"\n{text}\nsaved {path}, {path.with_suffix('.md')}")
    where = options.data_arguments(args)
    print(f"next: python export.py {path} --output {path.stem}.onnx{where}")
    return path


if __name__ == "__main__":
    cli.run(main, parse_args)
