"""Compare checkpoints and exported files: accuracy beside their parents', size, RAM, latency here.

    python evaluate.py teacher_resnet50 quantized_resnet50 --plot resnet50.png

reads    the files named, or all checkpoints in --output-dir, and the test images of --dataset
writes   decoded images into --cache; and if asked: --json, --csv, --markdown, --plot, --per-class, --audit
"""

import functools
import tempfile
import textwrap
from pathlib import Path

from common.cli import launch, options, targets
from common.cli.parser import Parser, new_file, number


def main(args):
    # imported here, so that --help does not load torch
    from common.data import datasets, loaders
    from common.deployment import predictor
    from common.evaluation import comparison, latency, metrics
    from common.models import checkpoint, lineage
    from common.system.errors import UserError

    paths = [predictor.find(name, args.output_dir) for name in args.models]
    paths = paths or checkpoint.list_checkpoints(args.output_dir)
    baseline = find_baseline(args, paths) if args.audit else None
    splits = datasets.load_test_split(args.dataset, args.data_dir)

    def score(opened, model=None):
        lineage.check_classes(opened.content, splits.classes)
        batches = loaders.eval_loader(splits.test, opened.content, cache=args.cache, workers=args.workers)
        return metrics.evaluate(model or opened.model, batches, batches.device)

    # evaluate and time; one file after the other, since torch has one engine at a time
    measured, scores, loads = [], {}, []
    for path in paths:
        opened = predictor.load(path, args.engine, args.threads)
        if not args.models and (difference := lineage.class_difference(opened.content, splits.classes)):
            print(f"{path}: ignored, its classes are not those of this data set: {difference}")
            continue
        scores[path] = score(opened)
        print(f"{path}: {scores[path]}", flush=True)
        note_of_earlier_figure(opened, scores[path])
        loads.append(latency.others_load())
        latencies = latencies_of(args, opened, scores[path], score)
        measured.append((path, opened.content, opened.engine, latencies, ram_of(opened)))
    if not measured:
        raise UserError(f"no checkpoint in {args.output_dir} has the classes of this data set")

    # compare with the parents, also with those that were not asked for
    rows = []
    for path, content, engine, latencies, ram in measured:
        parent = comparison.find_parent(path, content, paths)
        if parent and parent not in scores:
            scores[parent] = score(predictor.load(parent, args.engine, args.threads))
        compared = (latencies, args.threads, parent, scores.get(parent))
        rows.append(comparison.Row(path, content, engine, scores[path], *compared, ram_bytes=ram))
    timing = latency.conditions(args.threads, args.batch_size, loads)
    conditions = f"{len(splits.test)} test images of {args.dataset}. {timing}{precision_note(args.runtimes)}"
    report(args, rows, splits.classes, conditions)
    if args.audit:
        audit(args, rows, baseline, splits, conditions)


def note_of_earlier_figure(opened, score):
    """Says where the accuracy in a file's name is that of an engine of torch, as in earlier versions."""
    stored = opened.content["metrics"]
    if opened.runtime != "integers" or "integers" in stored or stored["n"] != score.n:
        return
    if stored["top1"] != score.top1:
        print(
            f"note: its integers have {score.top1:.2%}; the {stored['top1']:.2%} in its name are of torch's "
            f"engine {stored.get('engine', '')}"
        )


def latencies_of(args, opened, expected, score):
    """The latencies of a file: as it was opened, and of a checkpoint its ONNX file.

    The predictions of the ONNX file are compared with `expected`, those of the checkpoint.
    """
    from common.deployment import onnx_latency
    from common.evaluation import int8_agreement, latency
    from common.models import checkpoint
    from common.system.errors import UserError

    latencies, side = {}, opened.content["image_size"]
    if opened.runtime != "integers":  # of these the ONNX file is timed
        latencies[opened.runtime] = latency.measure(
            opened.model, side, batch=args.batch_size, threads=args.threads,
            memory_format=opened.memory_format,
        )  # fmt: skip
    if opened.runtime not in ("torch", "integers"):
        return latencies

    def build():
        integers = opened.runtime == "integers"
        return opened.model.graph if integers else checkpoint.rebuild(checkpoint.load(opened.path))

    with tempfile.TemporaryDirectory() as folder:
        for runtime in args.runtimes:
            name = onnx_latency.RUNTIMES[runtime]
            try:
                model = onnx_latency.load(
                    opened.content, build, Path(folder, "model.onnx"), threads=args.threads, runtime=runtime,
                )  # fmt: skip
                timed = onnx_latency.measure(model, side, batch=args.batch_size, threads=args.threads)
                agreement = score(opened, model).agreement(expected)
            except UserError as error:
                print(f"note: no latency in {name}: {error}")
                continue
            latencies[name] = timed
            warning = "WARNING: " * (agreement < int8_agreement.WARN_BELOW)
            print(f"{warning}its ONNX file in {name} predicts the same for {agreement:.2%} of the images")
    return latencies


def precision_note(runtimes):
    """With OpenVINO, which has a precision for what is not int8, a sentence that names it."""
    return " OpenVINO computes in float32 what is not int8." if "openvino" in runtimes else ""


def ram_of(opened):
    """The RAM of one image, in bytes (see `tables.EXPLANATION`); None where it is unknown."""
    from common.evaluation import memory
    from common.system.errors import UserError

    if opened.runtime not in ("torch", "integers"):
        return opened.model.ram if opened.runtime == "C" else None
    try:
        network = opened.model.graph if opened.runtime == "integers" else opened.model
        return memory.checkpoint_bytes(opened.content, network)
    except UserError as error:
        print(f"note: {error}")
        return None


def report(args, rows, classes, conditions):
    """Prints the tables, and writes the files that were asked for."""
    from common.evaluation import plots, results, tables

    print(f"\n{tables.accuracy_table(rows, tables.WIDTH)}\n\n{tables.cost_table(rows, tables.WIDTH)}")
    print(f"\n{textwrap.fill(f'{tables.EXPLANATION} {conditions}', tables.WIDTH)}")
    written = []
    if args.per_class:
        for row in rows:
            confusion = row.score.confusion(len(classes))
            print(f"\n{row.path}\n{tables.class_table(confusion, classes)}")
            written.append(row.path.with_name(f"{row.path.stem}_confusion.png"))
            plots.draw_confusion(confusion.numpy(), classes, written[-1])
    for file, write in (
        (args.json, results.write_rows_json),
        (args.csv, results.write_rows_csv),
        (args.markdown, functools.partial(tables.write_markdown, conditions=conditions)),
    ):
        if file:
            write(rows, path=Path(file))
            written.append(file)
    if args.plot:
        plots.draw_tradeoffs(rows, Path(args.plot), note=conditions)
        written.append(args.plot)
    for file in written:
        print(f"saved {file}")


def find_baseline(args, paths):
    """The file that the first one is compared with by --audit: --baseline, or what it was created from."""
    from common.deployment import predictor
    from common.evaluation import comparison
    from common.system.errors import UserError

    if not args.models:
        raise UserError("--audit needs the name of a file")
    if Path(args.audit).is_file():
        raise UserError(f"--audit {args.audit}: this is a file, not a folder")
    if args.baseline:
        return predictor.find(args.baseline, args.output_dir)
    content = predictor.load(paths[0], args.engine, args.threads).content
    parent = comparison.find_parent(paths[0], content, paths)
    if parent is None:
        raise UserError(f"the file that {paths[0]} was created from is not known: name one with --baseline")
    return parent


def audit(args, rows, baseline, splits, conditions):
    """Compares the first file with its baseline, image by image, and writes the audit."""
    from common.audit import measure, report
    from common.deployment import predictor
    from common.models import lineage

    options = {"cache": args.cache, "workers": args.workers}
    opened = predictor.load(baseline, args.engine, args.threads)
    lineage.check_classes(opened.content, splits.classes)
    side = max(opened.content["image_size"], rows[0].content["image_size"])
    before = measure.measure(opened, splits.test, side, **options)
    opened = predictor.load(rows[0].path, args.engine, args.threads)
    after = measure.measure(opened, splits.test, side, **options)
    fitted = measure.fit_temperature(opened, args.dataset, args.data_dir, **options)
    result = report.Audit(baseline.name, rows[0], before, after, splits.test, splits.classes, *fitted)
    for file in report.write(result, rows, conditions, Path(args.audit)):
        print(f"saved {file}")


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument(
        "models", nargs="*", metavar="CHECKPOINT|FILE", help="default: all checkpoints in --output-dir"
    )
    options.add_output_dir_option(parser)
    options.add_cache_option(options.add_dataset_options(parser))
    group = parser.add_argument_group("latency")
    group.add_argument(
        "--batch-size", type=number(int, 1), default=1, metavar="N", help="images in a run; default: 1"
    )
    group.add_argument("--threads", type=number(int, 1), default=1, metavar="N", help="default: 1")
    targets.add_engine_option(group)
    group.add_argument(
        "--runtimes", nargs="*", choices=("onnxruntime", "openvino"), default=["onnxruntime"],
        help="time each checkpoint's ONNX file in these too; default: onnxruntime",
    )  # fmt: skip
    group = parser.add_argument_group("results")
    group.add_argument("--json", type=new_file(".json"), metavar="FILE", help="all metrics, unrounded")
    group.add_argument("--csv", type=new_file(".csv"), metavar="FILE", help="the same as a table")
    group.add_argument(
        "--markdown",
        type=new_file(".md"),
        metavar="FILE",
        help="the tables, and the command of each file",
    )
    group.add_argument(
        "--plot",
        type=new_file(".png", ".svg"),
        metavar="FILE",
        help="accuracy against size, MACs, RAM and the latency in ONNX Runtime",
    )
    group.add_argument(
        "--per-class",
        action="store_true",
        help="a table of the classes, and a confusion matrix in <file>_confusion.png beside each file",
    )
    group = parser.add_argument_group("audit")
    group.add_argument(
        "--audit",
        metavar="DIR",
        help="what the first file forgot of the one that it was created from: report.html and report.json",
    )
    group.add_argument(
        "--baseline", metavar="CHECKPOINT|FILE", help="of --audit; default: the file that it was created from"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    launch.run(main, parse_args)
