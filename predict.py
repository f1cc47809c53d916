"""Classify images: the top-k classes and their probabilities.

    python predict.py quantized_mobilenet_v2 cat.jpg holiday/ --save labeled.png

reads    a checkpoint, float or int8, or a file of export.py; images, and folders of them
writes   nothing, unless asked: --save
"""

import json
import sys
from pathlib import Path

from common.cli import launch, options, targets
from common.cli.parser import Parser, new_file, number

MAX_DRAWN = 40  # images that --save has room for
DRAWN_SIDE = 640  # pixels of the longer side that --save keeps of an image; it draws up to 384


def main(args):
    # imported here, so that --help does not load torch
    from common.data.images import describe_left_out, find_images, read_image
    from common.deployment import predictor
    from common.evaluation import plots
    from common.system.errors import UserError

    opened = predictor.load(predictor.find(args.model, args.output_dir), args.engine, threads=0)
    found = [find_images(path) for path in args.paths]
    paths, left_out = ([file for both in found for file in both[index]] for index in (0, 1))
    note = describe_left_out(left_out)
    if not paths:
        raise UserError("; ".join(filter(None, [f"there is no image in {' '.join(args.paths)}", note])))
    if note:
        print(f"note: {note}", file=sys.stderr)

    predictions, drawn, status = [], [], 0
    for path in paths:
        try:
            image = read_image(path)
        except UserError as error:
            print(f"predict.py: {' '.join(str(error).split())}", file=sys.stderr)
            status = 2
            continue
        top = predictor.top_k(opened, image, args.top)
        lines = [f"{probability:7.2%}  {name}" for name, probability in top]
        predictions.append(
            {"path": str(path), "classes": [{"class": name, "probability": p} for name, p in top]}
        )
        if not args.json:
            print("\n  ".join([str(path), *lines]))
        if args.save and len(drawn) < MAX_DRAWN:
            image.thumbnail((DRAWN_SIDE, DRAWN_SIDE))
            drawn.append((image, path.name, lines))

    if args.json:
        print(json.dumps(predictions, indent=2, ensure_ascii=False))
    if drawn:
        plots.draw_predictions(drawn, Path(args.save))
        print(f"saved {args.save}, {len(drawn)} of {len(predictions)} images", file=sys.stderr)
    return status


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("model", metavar="CHECKPOINT|FILE", help=options.CHECKPOINT)
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="an image, or a folder of images at any depth"
    )
    parser.add_argument(
        "--top", type=number(int, 1), default=5, metavar="K", help="classes for each image; default: 5"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list in place of text")
    parser.add_argument(
        "--save",
        type=new_file(".png", ".svg"),
        metavar="FILE",
        help=f"draw the images (the first {MAX_DRAWN}) with their predictions",
    )
    options.add_output_dir_option(parser)
    targets.add_engine_option(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    launch.run(main, parse_args)
