"""Compare two forms of an int8 network layer by layer: find the first layer whose integers differ.

    python compare_layers.py quantized_mobilenet_v2 mobilenet_v2.tflite
    python compare_layers.py golden dumps

reads    two of: an int8 checkpoint, a .onnx or .tflite file of export.py, a folder of dumps (of export.py
         --golden, or what a device has computed); and test images of --dataset, unless a folder has them
writes   nothing; the exit code is 0 where all integers are equal, 1 where some differ, 2 for an error
"""

from common.cli import launch, options
from common.cli.parser import Parser, number

DIFFERENT = 1  # the exit code
MAX_ROUNDING = 0.01  # fraction of a layer's values that another rounding changes, at most, of equal inputs
ROUNDING = (
    "note: a few values that differ by 1 can come from rounding: microcontrollers round twice, ONNX Runtime "
    "and XNNPACK once; --rounding chooses, here or of export.py --golden"
)


def main(args):
    # imported here, so that --help does not load torch
    from common.deployment import layer_sources, layers

    # two forms of one network, and images for them
    pair = [layer_sources.open_source(each, args.output_dir) for each in (args.first, args.second)]
    layer_sources.check_one_network(*pair)
    folders = [source for source in pair if source.rounding]
    images = None
    if not folders:
        images = test_images(args, pair[0].content)
    elif len(folders) == 1:
        images = layer_sources.images_of(folders[0])
    rounding = args.rounding or (folders[0].rounding if folders else "once")

    # compute, compare
    for name, source in zip("AB", pair, strict=True):
        print(f"{name}: {source.path}, {source.runtimes[rounding]}")
    values = [source.compute(images, rounding) for source in pair]
    return report(list(layers.differences(*values)), values, pair)


def test_images(args, content):
    """Test images, evenly spread: float32 [N, 3, S, S]."""
    import torch

    from common.data import datasets, loaders

    samples = datasets.spread(datasets.load_test_split(args.dataset, args.data_dir).test, args.images)
    batches = loaders.eval_loader(samples, content, workers=args.workers)
    return torch.cat([images for images, _ in batches])


def report(found, values, pair):
    """Prints a line for each layer from the first one that differs, and a sentence; gives the exit code."""
    from common.evaluation import tables
    from common.system.errors import UserError

    if not found:
        raise UserError(f"{pair[0].path} and {pair[1].path} have no layer in common")
    known = [name for name in pair[0].layers if name in pair[1].layers]
    layers = f"{len(found)} layers" if len(found) == len(known) else f"{len(found)} of {len(known)} layers"
    images = min(len(each) for source in values for each in source.values())
    scope = f"{layers}, {images} image{'s' * (images > 1)}"
    first = next((index for index, each in enumerate(found) if each.count), None)
    if first is None:
        print(f"equal ({scope})")
        return 0
    rows = [("layer", "operator", "shape", "values", "differ", "steps")]
    for each in found[first:]:
        operator = pair[0].layers[each.layer].operator or "input"
        shape = "x".join(map(str, values[0][each.layer].shape[1:]))
        rows.append((each.layer, operator, shape, f"{each.values:,}", f"{each.count:,}", str(each.steps)))
    print(f"\n{tables.markdown(rows, left=3)}\n")
    print(f"different ({scope}): {conclusion(found, first, known)}")
    if found[first].steps == 1 and found[first].count < MAX_ROUNDING * found[first].values:
        print(ROUNDING)
    return DIFFERENT


def conclusion(found, first, known):
    """Which layer is the first that differs, by how much, and what is known of those before it."""
    layer, before = found[first], known.index(found[first].layer)
    steps = "1 step" if layer.steps == 1 else f"up to {layer.steps} steps"
    text = (
        f"{layer.layer} is the first layer that differs, in {layer.count:,} of {layer.values:,} values, by "
        f"{steps}; "
    )
    if not before:
        return f"{text}it is the input: the images were prepared differently"
    if not first:
        return f"{text}no layer before it was compared"
    text += f"before it, {first} layer{'s are' if first > 1 else ' is'} equal"
    skipped = before - 1 - known.index(found[first - 1].layer)
    return f"{text}, and {skipped} between them and it not compared" if skipped else text


def parse_args(argv=None):
    parser = Parser(__doc__)
    group = parser.add_argument_group("comparison")
    for name in ("first", "second"):
        group.add_argument(
            name, metavar="A" if name == "first" else "B",
            help="an int8 checkpoint (a path, a name, or the start of one), a .onnx or .tflite file, or a "
            "folder of dumps",
        )  # fmt: skip
    group.add_argument(
        "--rounding", choices=options.ROUNDINGS,
        help=f"of a checkpoint, and of the kernels for a .tflite file; {options.ROUNDING}; default: that of "
        "a folder, else once",
    )  # fmt: skip
    group.add_argument(
        "--images", type=number(int, 1), default=3, metavar="N",
        help="how many images of the test split, evenly spread, unless a folder has images; default: 3",
    )  # fmt: skip
    options.add_dataset_options(parser)
    options.add_output_dir_option(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    launch.run(main, parse_args)
