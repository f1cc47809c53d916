"""Compare checkpoints and ONNX files on a data set: accuracy beside their parents', size, and latency here.

    python evaluate.py teacher_resnet50 quantized_resnet50 --plot resnet50.png

reads    the files named, or all checkpoints in --output-dir, and the test pictures of --dataset
writes   decoded pictures into --cache; and if asked: --json, --csv, --markdown, --plot, --per-class
"""

import functools
import textwrap
from pathlib import Path

from common import cli, options


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "models", nargs="*", metavar="CHECKPOINT|FILE.onnx", help="default: all checkpoints in --output-dir"
    )
    options.add_output_dir_option(parser)
    options.add_cache_option(options.add_dataset_options(parser))
    group = parser.add_argument_group("latency")
    group.add_argument(
        "--batch-size", type=cli.number(int, 1), default=1, metavar="N", help="pictures at once; default: 1"
    )
    group.add_argument("--threads", type=cli.number(int, 1), default=1, metavar="N", help="default: 1")
    options.add_engine_option(group)
    group = parser.add_argument_group("results")
    group.add_argument("--json", type=cli.new_file(".json"), metavar="FILE", help="all figures, unrounded")
    group.add_argument("--csv", type=cli.new_file(".csv"), metavar="FILE", help="the same as a table")
    group.add_argument(
        "--markdown",
        type=cli.new_file(".md"),
        metavar="FILE",
        help="the tables, and the command of each file",
    )
    group.add_argument(
        "--plot",
        type=cli.new_file(".png", ".svg"),
        metavar="FILE",
        help="accuracy against size, MACs, latency",
    )
    group.add_argument(
        "--per-class",
        action="store_true",
        help="a table of the classes, and a confusion matrix in <file>_confusion.png beside each file",
    )
    return parser.parse_args(argv)


def main(args):
    # imported here: --help answers without torch
    import torch

    from common import batches, checkpoint, classifier, comparison, data, latency, metrics, plots, report
    from common.errors import UserError

    paths = [classifier.find(name, args.output_dir) for name in args.models]
    paths = paths or checkpoint.everything_in(args.output_dir)
    splits = data.load_splits(args.dataset, args.data_dir, val_fraction=0)

    def score(opened):
        checkpoint.check_classes(opened.content, splits.classes)
        pictures = batches.scoring_loader(splits.test, opened.content, cache=args.cache, workers=args.workers)
        return metrics.evaluate(opened.model, pictures, torch.device("cpu"))

    # score and time; one file after the other, since torch has one engine at a time
    measured, scores, loads = [], {}, []
    for path in paths:
        opened = classifier.load(path, args.engine, args.threads)
        if not args.models and opened.content["classes"] != splits.classes:
            print(f"{path}: left out, its classes are not those of this data set")
            continue
        scores[path] = score(opened)
        print(f"{path}: {scores[path]}", flush=True)
        loads.append(latency.others_load())
        timed = latency.measure(
            opened.model,
            opened.content["image_size"],
            batch=args.batch_size,
            threads=args.threads,
            memory_format=opened.memory_format,
        )
        measured.append((path, opened.content, opened.engine, timed))

    if not measured:
        raise UserError(f"no checkpoint in {args.output_dir} has the classes of this data set")

    # compare, with the parents that were not asked for as well
    rows = []
    for path, content, engine, timed in measured:
        parent = comparison.find_parent(path, content, paths)
        if parent and parent not in scores:
            scores[parent] = score(classifier.load(parent, args.engine, args.threads))
        rows.append(
            comparison.Row(
                path, content, engine, scores[path], timed, args.threads, parent, scores.get(parent)
            )
        )

    # show
    pictures = f"{len(splits.test)} test pictures of {args.dataset}"
    conditions = f"{pictures}. {latency.conditions(args.threads, args.batch_size, loads)}"
    print(f"\n{report.accuracy_table(rows, report.WIDTH)}\n\n{report.cost_table(rows, report.WIDTH)}")
    print(f"\n{textwrap.fill(f'{report.EXPLANATION} {conditions}', report.WIDTH)}")
    written = []
    if args.per_class:
        for row in rows:
            confusion = row.score.confusion(len(splits.classes))
            print(f"\n{row.path}\n{report.class_table(confusion, splits.classes)}")
            written.append(row.path.with_name(f"{row.path.stem}_confusion.png"))
            plots.draw_confusion(confusion.numpy(), splits.classes, written[-1])
    for file, write in (
        (args.json, report.write_rows_json),
        (args.csv, report.write_rows_csv),
        (args.markdown, functools.partial(report.write_markdown, conditions=conditions)),
        (args.plot, functools.partial(plots.draw_tradeoffs, note=conditions)),
    ):
        if file:
            write(rows, path=Path(file))
            written.append(file)
    for file in written:
        print(f"saved {file}")


if __name__ == "__main__":
    cli.run(main, parse_args)
