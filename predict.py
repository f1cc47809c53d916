"""Say what is in pictures: the likeliest classes and their probabilities.

    python predict.py quantized_mobilenet_v2 photo.jpg holiday/ --save labelled.png

reads    a checkpoint, float or int8, or an ONNX file of export.py; pictures, and folders of them
writes   nothing, unless asked: --save
"""

import json
import sys
from pathlib import Path

from common import cli, options

DRAWN = 40  # pictures that --save has room for


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("model", metavar="CHECKPOINT|FILE.onnx", help="a path, a name, or the start of one")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="a picture, or a folder of them at any depth"
    )
    parser.add_argument(
        "--top", type=cli.number(int, 1), default=5, metavar="K", help="classes for each picture; default: 5"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list in place of text")
    parser.add_argument(
        "--save",
        type=cli.new_file(".png", ".svg"),
        metavar="FILE",
        help=f"draw the pictures (the first {DRAWN}) with their labels",
    )
    options.add_output_dir_option(parser)
    options.add_engine_option(parser)
    return parser.parse_args(argv)


def main(args):
    # imported here: --help answers without torch
    import torch

    from common import batches, classifier, data, plots
    from common.errors import UserError

    opened = classifier.load(classifier.find(args.model, args.output_dir), args.engine, threads=0)
    content = opened.content
    paths = [file for path in args.paths for file in data.pictures_in(path)]
    if not paths:
        raise UserError(f"there is no picture in {' '.join(args.paths)}")

    answers, drawn, status = [], [], 0
    for path in paths:
        try:
            picture = data.read_picture(path)
        except UserError as error:
            print(f"predict.py: {' '.join(str(error).split())}", file=sys.stderr)
            status = 2
            continue
        images = batches.eval_transform(picture, content).contiguous(memory_format=opened.memory_format)
        with torch.inference_mode():
            probabilities = opened.model(images)[0].softmax(0)
        best = probabilities.argsort(descending=True, stable=True)[: args.top].tolist()
        likeliest = [(content["classes"][index], float(probabilities[index])) for index in best]
        lines = [f"{probability:7.2%}  {name}" for name, probability in likeliest]
        answers.append(
            {"path": str(path), "classes": [{"class": name, "probability": p} for name, p in likeliest]}
        )
        if not args.json:
            print("\n  ".join([str(path), *lines]))
        if args.save and len(drawn) < DRAWN:
            drawn.append((picture, path.name, lines))
    if args.json:
        print(json.dumps(answers, indent=2, ensure_ascii=False))
    if drawn:
        plots.draw_predictions(drawn, Path(args.save))
        print(f"saved {args.save}, {len(drawn)} of {len(answers)} pictures", file=sys.stderr)
    return status


if __name__ == "__main__":
    cli.run(main, parse_args)
