"""Fine-tune a torchvision model: the teacher, or the network to compress.

    python train_teacher.py --teacher resnet50

reads    the pictures of --dataset, and torchvision's ImageNet weights
writes   weights/teacher_resnet50_<top-1>.pt, and its log and curves beside it
"""

from common import cli, options


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    group = parser.add_argument_group("teacher")
    group.add_argument(
        "--teacher", required=True, metavar="ARCH", help="a classification model of torchvision"
    )
    options.add_pretrained_option(group)
    options.add_data_options(parser)
    options.add_training_options(parser, epochs=20, lr=5e-4)
    options.add_stage_options(parser)
    return parser.parse_args(argv)


def main(args):
    # imported here: --help answers without torch
    from common import (
        batches,
        checkpoint,
        data,
        distributed,
        machine,
        metrics,
        models,
        report,
        resume,
        training,
    )
    from common.distillation import cross_entropy

    # model and data
    models.check_arch(args.teacher)
    device = cli.start(args.output_dir, args.device, args.seed)
    splits = data.load_splits(args.dataset, args.data_dir, args.val_fraction)
    blank = checkpoint.untrained(args.teacher, splits.classes, args.image_size)
    model = models.build(args.teacher, len(splits.classes), args.pretrained)
    size = metrics.size(model, blank["image_size"])
    loaders = batches.make_loaders(
        splits, blank, args.batch_size, args.seed, cache=args.cache, workers=args.workers, device=device
    )
    scored = loaders.scored(args.score)
    precision = machine.pick_precision(args.precision, device, model)
    computing = machine.summary(device, precision)
    print(f"{args.teacher}: {size['params']:,} parameters; {splits}\n{computing}")
    row = checkpoint.lineage_row(
        blank, None, "teacher", options=vars(args), machine=computing, split=splits.fingerprint
    )
    progress = resume.open_run(args.output_dir, row, resume=args.resume)
    if progress.finished:
        return progress.finished

    # fine-tuning
    best, history = training.fit(
        model,
        cross_entropy,
        loaders.train,
        loaders.val,
        epochs=args.epochs,
        **options.of_fit(args),
        device=device,
        precision=precision,
        progress=progress,
    )

    # score, save
    score = metrics.evaluate(best, scored, device)
    if not distributed.is_first():
        return None
    teacher = checkpoint.child(
        blank, progress.row, state_dict=checkpoint.float_state(best), metrics=score.as_dict(args.score) | size
    )
    path = checkpoint.save(teacher, args.output_dir, once=args.resume)
    report.write_history(history, path)
    progress.finish()
    print(f"{args.score}: {score}")
    print(f"saved {path}")
    where = options.data_arguments(args)
    print(f"next: python train_student.py --teacher {path.name} --student resnet18{where}")
    return path


if __name__ == "__main__":
    cli.run(main, parse_args)
