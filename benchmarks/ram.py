"""The RAM of int8 checkpoints in C, by schedule and image size; and a picture of it.

    python -m benchmarks.ram quantized_mobilenet_v2 quantized_pruned_16th --image-size 224 160 96
    python -m benchmarks.ram quantized_mobilenet_v2 --plot docs/deploy/ram.png

Bytes of the activations, the image included, as `common.integer.planner` plans them. The static array of a C
file has a few KiB more: what the largest layer needs besides. At another image size than its own, a network
has the shapes of its layers and arbitrary weights, which do not matter here.
"""

from pathlib import Path

from common.budget import memory_limits
from common.cli import launch, options
from common.cli.parser import Parser
from common.compression.target_devices import by_backend
from common.evaluation.tables import markdown
from common.integer import recomputation
from common.models import architectures, checkpoint

KIB = 1024
COLUMNS = (("layers", 0.0), ("rows", 0.0), ("camera", 0.0), ("rows", 0.1), ("camera", 0.1))
OTHERS = {  # of quantized_mobilenet_v2 at 224 pixels: docs/DEPLOY.md, sections 6 and 7
    "TensorFlow Lite for Microcontrollers": 1_658_336,
    "Vela, Ethos-U55 (an NPU)": 1474 * KIB,
    "Vela --optimise Size (an NPU)": int(374.5 * KIB),
}


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help=options.CHECKPOINT)
    parser.add_argument("--image-size", type=int, nargs="+", help="default: that of the checkpoint")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the first one beside other tools")
    options.add_output_dir_option(parser)
    return parser.parse_args(argv)


def planned(content, side):
    """Bytes for each of `COLUMNS`."""
    model = architectures.rebuild(content["arch"], len(content["classes"]), content["int8"]["float_shapes"])
    graph = memory_limits.graph_of(model.eval(), by_backend(content["int8"]["backend"]), side)
    return [recomputation.plan(graph, *column)[1].arena for column in COLUMNS]


def plot(sizes, path):
    """Draws a bar for each schedule and each other tool."""
    from matplotlib.figure import Figure

    names = ["C, layer by layer", "C, rows", "C, image row by row"]
    bars = OTHERS | dict(zip(names, sizes, strict=False)) | {"C, image row by row, 5 % more MACs": sizes[-1]}
    bars = dict(sorted(bars.items(), key=lambda item: -item[1]))
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot(xlabel="RAM for one image of 224 pixels, int8 MobileNetV2, KiB")
    colors = ["tab:gray" if name in OTHERS else "tab:blue" for name in bars]
    drawn = axes.barh(list(bars), [size / KIB for size in bars.values()], color=colors)
    axes.bar_label(drawn, [f"{size / KIB:,.0f}" for size in bars.values()], padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1850)
    figure.savefig(path, dpi=130)


def main(args):
    rows = [("file", "pixels", *(f"{name}, +{extra:.0%}" if extra else name for name, extra in COLUMNS))]
    for reference in args.checkpoints:
        content = checkpoint.load(checkpoint.find(reference, args.output_dir))
        for side in args.image_size or [content["image_size"]]:
            sizes = planned(content, side)
            rows.append((reference, str(side), *(f"{size / KIB:,.1f}" for size in sizes)))
            print(rows[-1], flush=True)
            if args.plot and len(rows) == 2:
                plot(sizes, Path(args.plot))
    print(markdown(rows))


if __name__ == "__main__":
    launch.run(main, parse_args)
