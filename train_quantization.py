"""Quantization-aware training: fine-tune as if in int8, and convert to a model that runs in int8.

    python train_quantization.py --weights pruned_kd_resnet18 --target-device embedded

reads    weights/pruned_kd_resnet18_<top-1>.pt, and the pictures of --dataset
writes   weights/quantized_pruned_kd_resnet18_<top-1>.pt, and its log and curves beside it
"""

import functools

from common import cli, options


def parse_args(argv=None):
    parser = cli.Parser(__doc__, __file__)
    group = parser.add_argument_group("quantization")
    group.add_argument(
        "--weights", required=True, metavar="CHECKPOINT", help="a path, a name, or the start of one"
    )
    options.add_target_device_option(group)
    group.add_argument(
        "--calibration-batches",
        type=cli.number(int, 1),
        default=16,
        metavar="N",
        help="batches of training pictures that set the first scales; with --epochs 0 (post-training "
        "quantization) the only ones; default: 16",
    )
    options.add_engine_option(group)
    options.add_teacher_options(parser, required=False)
    options.add_data_options(parser)
    options.add_training_options(parser, epochs=10, lr=5e-5)
    options.add_stage_options(parser)
    return parser.parse_args(argv)


def main(args):
    # imported here: --help answers without torch
    import torch

    from common import (
        agreement,
        batches,
        checkpoint,
        data,
        distributed,
        engines,
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

    # model and data; the model is traced before anything that takes time
    device, cpu = cli.start(args.output_dir, args.device, args.seed), torch.device("cpu")
    parent_path, parent = checkpoint.open_parent(
        args.weights, args.output_dir, args.image_size, to="quantize"
    )
    model = checkpoint.rebuild(parent)
    before = parent["metrics"] | metrics.size(model, parent["image_size"])
    backend = quantization.BACKENDS[args.target_device]
    engine = engines.use(backend, args.engine)
    prepared = quantization.prepare(model, backend, parent["image_size"])
    splits = data.load_splits(args.dataset, args.data_dir, args.val_fraction)
    checkpoint.check_fits(parent, splits)
    loaders = batches.make_loaders(
        splits, parent, args.batch_size, args.seed, cache=args.cache, workers=args.workers, device=device
    )
    scored = loaders.scored(args.score)
    precision = machine.pick_precision(args.precision, device, model)
    computing = machine.summary(device, precision)
    print(f"{parent['arch']} for {backend}; {splits}\n{computing}")

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
        parent, parent_path, "quantized", options=vars(args), machine=computing, split=splits.fingerprint,
        teacher_path=teacher_path,
    )  # fmt: skip
    progress = resume.open_run(args.output_dir, row | {"engine": engine}, resume=args.resume)
    if progress.finished:
        return progress.finished
    engine = engines.use(backend, distributed.from_first(progress.row["engine"]))
    print(f"int8 is run by {engine}")

    # baseline
    if loaders.val:
        print(f"float model on validation: {metrics.evaluate(model, loaders.val, device, precision)}")

    # quantization-aware training; what is scored and kept is the converted int8 model
    quantization.calibrate(prepared.to(device), loaders.train, device, args.calibration_batches)
    converted, history = training.fit(
        prepared,
        loss_function,
        loaders.train,
        loaders.val,
        epochs=args.epochs,
        **options.of_fit(args),
        device=device,
        precision=precision,
        progress=progress,
        deploy=quantization.convert,
        deploy_device=cpu,
        before_epoch=functools.partial(quantization.freeze_late, epochs=args.epochs),
    )

    # score, save
    score = metrics.evaluate(converted.int8, scored, cpu)
    others = {
        "fp32": metrics.evaluate(model, scored, device),
        "fake_quant": metrics.evaluate(converted.fake_quant, scored, device),
    }
    agreement.check(converted, score, others["fake_quant"], scored, engine)
    if not distributed.is_first():
        return None
    child = checkpoint.child(
        parent,
        progress.row,
        state_dict=quantization.int8_state(converted.int8),
        int8={"backend": backend, "float_shapes": models.shapes(model)},
        metrics=score.as_dict(args.score)
        | {"params": before["params"], "macs": before["macs"], "engine": engine}
        | {name: {"top1": other.top1, "agreement": other.agreement(score)} for name, other in others.items()},
    )
    path = checkpoint.save(child, args.output_dir, once=args.resume)
    report.write_history(history, path)
    progress.finish()
    print(agreement.summary(args.score, score, engine, others))
    print(report.before_after(before, parent_path, child["metrics"], path))
    print(f"saved {path}")
    print(f"next: python export.py {path} --output {path.stem}.onnx{options.data_arguments(args)}")
    return path


if __name__ == "__main__":
    cli.run(main, parse_args)
