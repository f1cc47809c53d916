"""Write a checkpoint as an ONNX or LiteRT file, which runs without PyTorch, and check its predictions.

    python export.py quantized_pruned_kd_resnet18 --output resnet18.onnx
    python export.py quantized_pruned_kd_resnet18 --output resnet18.tflite --golden golden --rounding twice

reads    a checkpoint, and the test images of --dataset to check with
writes   FILE.onnx: float, or of an int8 checkpoint int8 weights behind DequantizeLinear;
         or FILE.tflite: of an int8 checkpoint; and with --golden a new folder: what a device should compute
"""

from pathlib import Path

from common.cli import launch, options
from common.cli.parser import Parser, new_file, new_folder, number

GOLDEN_IMAGES = 3
MIN_AGREEMENT = 0.99  # fraction of the images for which the predictions must be the same


def main(args):
    # imported here, so that --help does not load torch
    import torch

    from common.data import datasets, loaders
    from common.deployment import litert_model, onnx_model
    from common.deployment.integer_model import ReferenceModel
    from common.models import checkpoint, integers, lineage
    from common.system.errors import UserError

    # checkpoint, images
    path, output = checkpoint.find(args.checkpoint, args.output_dir), Path(args.output)
    content = checkpoint.load(path)
    graph = integers.read(content)
    model = ReferenceModel(graph) if graph else checkpoint.rebuild(content).eval()
    splits = datasets.load_test_split(args.dataset, args.data_dir)
    lineage.check_classes(content, splits.classes)
    samples = datasets.spread(splits.test, args.images)
    batches = loaders.eval_loader(samples, content, workers=args.workers)
    if args.golden and graph is None:
        raise UserError(f"--golden needs an int8 checkpoint without float layers, which {path} is not")

    # write, check, and only then put in place
    formats = {".onnx": ("ONNX Runtime", onnx_model), ".tflite": ("LiteRT", litert_model)}
    runtime, form = formats[output.suffix.lower()]
    with form.export(content, graph or model, output) as exported, torch.inference_mode():
        actual, expected = (torch.cat([m(images) for images, _ in batches]) for m in (exported, model))
        agreement = float((actual.argmax(1) == expected.argmax(1)).double().mean())
        difference = float((actual - expected).abs().max())
        equal = int((actual == expected).all(1).sum())
        print(
            f"{len(actual)} test images: {runtime} and the checkpoint agree on {agreement:.2%}, with equal "
            f"logits for {equal}; largest difference of a logit {difference:.4f}, largest logit "
            f"{float(expected.abs().max()):.2f}"
        )
        if not agreement >= MIN_AGREEMENT:
            raise UserError(f"{output} is not written: they must agree on at least {MIN_AGREEMENT:.0%}")
        if args.golden:
            write_golden(args, content, graph, splits.test)
    before, after = path.stat().st_size, output.stat().st_size
    print(f"saved {output}: {after:,} bytes, {after / before:.2f} times the checkpoint")
    print(f"next: python evaluate.py {path} {output}{options.data_arguments(args)}")


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
        "--output", required=True, type=new_file(".onnx", ".tflite"), metavar="FILE.onnx|FILE.tflite",
        help="replaced once the check has passed",
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
        "--rounding", choices=options.ROUNDINGS, default="once",
        help=f"of --golden; {options.ROUNDING}; default: once",
    )  # fmt: skip
    options.add_dataset_options(parser)
    options.add_output_dir_option(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    launch.run(main, parse_args)
