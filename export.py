"""Write a checkpoint as an ONNX, LiteRT, ExecuTorch or C file, which runs without PyTorch, and check it.

    python export.py quantized_pruned_kd_resnet18 --output resnet18.onnx
    python export.py quantized_pruned_kd_resnet18 --output resnet18.tflite --golden golden --rounding twice
    python export.py quantized_pruned_kd_resnet18 --output resnet18.c --schedule camera

reads    a checkpoint, and the test images of --dataset to check with
writes   FILE.onnx: float, or of an int8 checkpoint int8 weights behind DequantizeLinear;
         or FILE.tflite, or FILE.pte (pip install executorch==1.5.1): of an int8 checkpoint;
         or FILE.c and FILE.h: of an int8 checkpoint, C99 without a library;
         and with --golden a new folder: what a device should compute
"""

from pathlib import Path

from common.cli import launch, options
from common.cli.parser import Parser, new_file, new_folder, number

GOLDEN_IMAGES = 3
MIN_AGREEMENT = 0.99  # fraction of the images for which the predictions must be the same


def main(args):
    # imported here, so that --help does not load torch
    from common.data import datasets, loaders
    from common.deployment.integer_model import ReferenceModel
    from common.models import checkpoint, integers, lineage
    from common.system.errors import UserError

    # checkpoint, images
    path, output = checkpoint.find(args.checkpoint, args.output_dir), Path(args.output)
    content = checkpoint.load(path)
    graph = integers.read(content)
    splits = datasets.load_test_split(args.dataset, args.data_dir)
    lineage.check_classes(content, splits.classes)
    samples = datasets.spread(splits.test, args.images)
    batches = loaders.eval_loader(samples, content, workers=args.workers)
    if args.golden and graph is None:
        raise UserError(f"--golden needs an int8 checkpoint without float layers, which {path} is not")
    # LiteRT's kernels for weights of 4 bits round twice
    narrow = graph is not None and graph.has_4_bits and output.suffix.lower() == ".tflite"
    rounding = args.rounding if args.schedule else "twice" if narrow else "once"
    model = ReferenceModel(graph, rounding) if graph else checkpoint.rebuild(content).eval()

    # write, check, and only then put in place
    with write(args, content, graph or model, output) as exported:
        if exported:
            check(output, exported, model, batches)
        if args.golden:
            write_golden(args, content, graph, splits.test)
    before, after = path.stat().st_size, output.stat().st_size
    print(f"saved {output}: {after:,} bytes, {after / before:.2f} times the checkpoint")
    print(f"next: python evaluate.py {path} {output}{options.data_arguments(args)}")


def write(args, content, model, output):
    """A context that writes the file and gives it, ready to run; None for C without a check."""
    from common.deployment import c_model, executorch_model, litert_model, onnx_model

    if args.schedule:
        how = args.schedule, args.rounding, args.extra_macs
        return c_model.export(content, model, output, *how, check=args.check)
    forms = {".onnx": onnx_model, ".tflite": litert_model, ".pte": executorch_model}
    return forms[output.suffix.lower()].export(content, model, output)


def check(output, exported, model, batches):
    """Compares the predictions of the file with those of the checkpoint."""
    import torch

    from common.deployment.predictor import EXPORTED
    from common.system.errors import UserError

    with torch.inference_mode():
        actual, expected = (torch.cat([m(images) for images, _ in batches]) for m in (exported, model))
    agreement = float((actual.argmax(1) == expected.argmax(1)).double().mean())
    difference = float((actual - expected).abs().max())
    equal = int((actual == expected).all(1).sum())
    runtime, _ = EXPORTED[output.suffix.lower()]
    print(
        f"{len(actual)} test images: {runtime} and the checkpoint agree on {agreement:.2%}, with equal "
        f"logits for {equal}; largest difference of a logit {difference:.4f}, largest logit "
        f"{float(expected.abs().max()):.2f}"
    )
    if runtime == "C":
        print(f"{exported.ram:,} bytes of RAM, {exported.flash:,} bytes of flash for constants")
    if runtime == "C" and equal < len(actual):
        raise UserError(f"{output} is not written: in C all logits must be equal")
    if not agreement >= MIN_AGREEMENT:
        raise UserError(f"{output} is not written: they must agree on at least {MIN_AGREEMENT:.0%}")


def write_golden(args, content, graph, samples):
    """Writes a few images, and the integers of every layer that a device should compute of them."""
    import torch

    from common.data import datasets, loaders
    from common.deployment import dumps

    chosen = datasets.spread(samples, GOLDEN_IMAGES)
    images = torch.cat([each for each, _ in loaders.eval_loader(chosen, content, workers=args.workers)])
    size = dumps.write(Path(args.golden), content["name"], graph, images, args.rounding)
    print(
        f"saved {args.golden}: {len(images)} test images, {len(graph.operators) + 1} layers, {size:,} bytes"
    )


def parse_args(argv=None):
    parser = Parser(__doc__)
    group = parser.add_argument_group("export")
    group.add_argument("checkpoint", metavar="CHECKPOINT", help=options.CHECKPOINT)
    group.add_argument(
        "--output", required=True, type=new_file(".onnx", ".tflite", ".pte", ".c"),
        metavar="FILE.onnx|.tflite|.pte|.c", help="replaced once the check has passed",
    )  # fmt: skip
    group.add_argument(
        "--images",
        "--pictures",
        type=number(int, 1),
        default=200,
        metavar="N",
        help="how many images of the test split, evenly spread, to check with; default: 200",
    )
    group.add_argument(
        "--golden",
        type=new_folder,
        metavar="DIR",
        help=f"write the integers of every layer for {GOLDEN_IMAGES} test images into a new folder, to be "
        "compared with those of a device by compare_layers.py",
    )
    group.add_argument(
        "--rounding", choices=options.ROUNDINGS,
        help=f"of FILE.c and of --golden; {options.ROUNDING}; default: twice for FILE.c, else once",
    )  # fmt: skip
    group.add_argument(
        "--schedule", choices=options.RAM_SCHEDULES,
        help=f"of FILE.c; {options.RAM_SCHEDULE}; default: rows",
    )  # fmt: skip
    group.add_argument(
        "--extra-macs", type=number(float, 0, 1), metavar="FRACTION",
        help="of FILE.c: how many multiply-accumulates may be added for less RAM, such as 0.1; default: 0",
    )  # fmt: skip
    group.add_argument(
        "--no-check", dest="check", action="store_false",
        help="write FILE.c without compiling and running it",
    )  # fmt: skip
    options.add_dataset_options(parser)
    options.add_output_dir_option(parser)
    args = parser.parse_args(argv)
    in_c = Path(args.output).suffix.lower() == ".c"
    if not in_c and (args.schedule or args.extra_macs or not args.check):
        parser.error("--schedule, --extra-macs and --no-check need --output FILE.c")
    args.schedule = args.schedule or "rows" if in_c else None
    args.extra_macs = args.extra_macs or 0.0
    args.rounding = args.rounding or ("twice" if in_c else "once")
    return args


if __name__ == "__main__":
    launch.run(main, parse_args)
