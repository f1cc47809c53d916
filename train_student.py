"""Knowledge distillation: a small network learns from a large one's answers as well as from the labels.

    python train_student.py --teacher resnet50 --student resnet18

reads    weights/teacher_resnet50_<top-1>.pt, and the pictures of --dataset
writes   weights/kd_resnet18_<top-1>.pt, and its log and curves beside it
"""

from common import cli, options


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    options.add_teacher_options(parser, required=True)
    group = parser.add_argument_group("student")
    group.add_argument(
        "--student", required=True, metavar="ARCH", help="a classification model of torchvision"
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
    from common.distillation import taught_by

    # teacher, data and student
    models.check_arch(args.student)
    device = cli.start(args.output_dir, args.device, args.seed)
    teacher_path, parent = checkpoint.open_parent(args.teacher, args.output_dir, args.image_size, to="teach")
    teacher = checkpoint.rebuild(parent).to(device)
    before = parent["metrics"] | metrics.size(teacher, parent["image_size"])
    splits = data.load_splits(args.dataset, args.data_dir, args.val_fraction)
    checkpoint.check_fits(parent, splits)
    student = models.build(args.student, len(splits.classes), args.pretrained)
    size = metrics.size(student, parent["image_size"])
    loaders = batches.make_loaders(
        splits, parent, args.batch_size, args.seed, cache=args.cache, workers=args.workers, device=device
    )
    scored = loaders.scored(args.score)
    precision = machine.pick_precision(args.precision, device, student)
    teacher_precision = machine.pick_precision(args.precision, device, teacher)
    computing = machine.summary(device, precision)
    print(f"{args.student}: {size['params']:,} parameters; {splits}\n{computing}")
    row = checkpoint.lineage_row(
        parent, teacher_path, "kd", arch=args.student, options=vars(args), machine=computing,
        split=splits.fingerprint,
    )  # fmt: skip
    progress = resume.open_run(args.output_dir, row, resume=args.resume)
    if progress.finished:
        return progress.finished

    # baseline
    if loaders.val:
        print(f"teacher on validation: {metrics.evaluate(teacher, loaders.val, device, teacher_precision)}")

    # distillation
    best, history = training.fit(
        student,
        taught_by(teacher, **options.of_distillation(args), precision=teacher_precision),
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
    child = checkpoint.child(
        parent,
        progress.row,
        arch=args.student,
        state_dict=checkpoint.float_state(best),
        metrics=score.as_dict(args.score) | size,
    )
    path = checkpoint.save(child, args.output_dir, once=args.resume)
    report.write_history(history, path)
    progress.finish()
    print(f"{args.score}: {score}")
    print(report.before_after(before, teacher_path, child["metrics"], path))
    print(f"saved {path}")
    where = options.data_arguments(args)
    print(f"next: python train_pruning.py --weights {path.name} --pruning-ratio 0.5{where}")
    return path


if __name__ == "__main__":
    cli.run(main, parse_args)
