"""Quantization-aware training: fine-tune as if in int8, and convert to a model that runs in int8.

    python train_quantization.py --weights pruned_kd_resnet18 --target-device embedded

reads    weights/pruned_kd_resnet18_<top-1>.pt, and the images of --dataset
writes   weights/quantized_pruned_kd_resnet18_<top-1>.pt, and its log and curves beside it
"""

import functools
import itertools

from common.cli import launch, options, targets, teacher_options
from common.cli.parser import Parser, number
from common.compression.target_devices import TARGET_DEVICES


def main(args):
    # imported here, so that --help does not load torch
    from common.compression import int8_engines, quantization, reparameterization
    from common.deployment import integer_model, onnx_model
    from common.evaluation import int8_agreement
    from common.stage import Stage

    # model, data; traced, converted and exported first, so that what cannot be quantized or deployed fails
    # before the training; branches become one convolution (RepVGG)
    stage = Stage("quantized", args, parent=args.weights)
    model, target = reparameterization.fuse_branches(stage.model), TARGET_DEVICES[args.target_device]
    int8_engines.use(target, args.engine)
    check = functools.partial(onnx_model.check, stage.parent)
    bits = 8 if args.weight_bits == "8" else 4
    prepared = quantization.prepare(model, target, stage.image_size, check, bits)
    loss_fn = stage.loss_fn()
    if finished := stage.begin(model):
        return finished
    stage.validate(model, "float model")

    # 1. calibrate: training images set the first scales of the fake quantization
    quantization.calibrate(
        prepared.to(stage.device), stage.loaders.train, stage.device, args.calibration_batches
    )

    # 2. weights of 4 bits in some layers, rounded so that the errors of a layer compensate each other
    lower_bits(stage, prepared, model, target)

    # 3. train with fake quantization and fixed batch-norm statistics; of each epoch the integers are
    # evaluated and kept
    converted, history = stage.fit(
        prepared, loss_fn, deploy_device=stage.cpu,
        deploy=functools.partial(integer_model.convert, image_size=stage.image_size),
        before_epoch=functools.partial(quantization.freeze, epochs=args.epochs),
    )  # fmt: skip

    # 4. test the integers, and compare them with the models that they were created from
    scores = {"int8": stage.test(converted, stage.cpu)}
    if args.engine:
        scores[args.engine] = stage.test(converted.int8, stage.cpu)
    scores |= {"fp32": stage.test(model), "fake_quant": stage.test(converted.fake_quant)}
    int8_agreement.check(converted, scores, stage.test_loader)

    # save
    content = integer_model.to_content(converted, model, target)
    metrics = int8_agreement.as_metrics(converted, scores, content["state_dict"])
    return stage.save(
        model, scores["int8"], history, next_command="export.py {path} --output {path.stem}.onnx",
        summary=int8_agreement.summary(args.score, scores, metrics), extra_metrics=metrics, **content,
    )  # fmt: skip


def lower_bits(stage, prepared, model, target):
    """Chooses the layers whose weights get 4 bits, and rounds the weights."""
    from common.compression import rounding, weight_bits
    from common.system.errors import UserError

    args, layers = stage.args, weight_bits.layers_of(prepared)
    names = {"8": list, "4": lambda: layers, "mixed": lambda: choose_layers(stage, prepared, model, target)}
    for name in names[args.weight_bits]():
        weight_bits.use_4_bits(layers[name])
    if args.weight_rounding == "compensated":
        images = itertools.islice(stage.loaders.train, args.calibration_batches)
        try:
            print(rounding.summary(rounding.compensate(prepared, images, stage.device)))
        except UserError as error:
            print(f"note: rounded to the nearest integers: {error}")


def choose_layers(stage, prepared, model, target):
    """The names of the layers of --weight-bits mixed that get 4 bits."""
    from common.budget import costs
    from common.compression import mixed_precision
    from common.deployment import integer_model
    from common.system import units

    args = stage.args
    images = itertools.islice(stage.loaders.train, mixed_precision.BATCHES)
    rows, limit = mixed_precision.measure(prepared, images, stage.device), None
    content = integer_model.to_content(integer_model.convert(prepared, stage.image_size), model, target)
    size = costs.int8_file_bytes(stage.parent, stage.row, content)
    if args.target_size:
        limit, is_fraction = units.parse("size", args.target_size)
        limit *= stage.row["parent_bytes"] if is_fraction else 1
    chosen = mixed_precision.choose(rows, size, limit)
    print(mixed_precision.summary(rows, chosen))
    return chosen


def parse_args(argv=None):
    parser = Parser(__doc__, __file__)
    group = parser.add_argument_group("quantization")
    group.add_argument("--weights", required=True, metavar="CHECKPOINT", help=options.CHECKPOINT)
    targets.add_device_option(group)
    group.add_argument(
        "--calibration-batches",
        type=number(int, 1),
        default=16,
        metavar="N",
        help="batches of training images that set the first scales; with --epochs 0 (post-training "
        "quantization) the only ones; default: 16",
    )
    targets.add_bits_options(group)
    targets.add_engine_option(group, "evaluate with this engine of torch too")
    teacher_options.add_teacher_options(parser, required=False)
    options.add_data_options(parser)
    options.add_training_options(parser, epochs=10, lr=5e-5)
    options.add_stage_options(parser)
    args = parser.parse_args(argv)
    targets.settle_bits(parser, args)
    return args


if __name__ == "__main__":
    launch.run(main, parse_args)
