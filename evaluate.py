"""Compare checkpoints: accuracy and size in one Markdown table, and how fast they run here in another.

    python evaluate.py teacher_resnet50 quantized_resnet50 --latency

reads    the checkpoints named, or all in --output-dir, and ONNX files that export.py wrote; accuracy is what
each stage measured on the test split, latency is measured now, on this machine's CPU   writes   nothing
"""

from pathlib import Path

from common import cli


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "models", nargs="*", metavar="CHECKPOINT|FILE.onnx", help="default: all checkpoints in --output-dir"
    )
    cli.add_output_dir_option(parser)
    group = parser.add_argument_group("latency")
    group.add_argument(
        "--latency", action="store_true", help="measure milliseconds per picture, at batch 1 and --batch-size"
    )
    group.add_argument(
        "--batch-size", type=cli.number(int, 1), default=8, metavar="N", help="pictures at once; default: 8"
    )
    group.add_argument("--threads", type=cli.number(int, 1), default=1, metavar="N", help="default: 1")
    cli.add_engine_option(group)
    return parser.parse_args(argv)


def main(args):
    # imported here: --help answers without torch
    import torch

    from common import checkpoint, latency, onnx_file, report
    from common.errors import UserError

    onnx_paths = [Path(name) for name in args.models if name.endswith(".onnx")]
    names = [name for name in args.models if not name.endswith(".onnx")]
    if onnx_paths and not args.latency:
        raise UserError(f"{onnx_paths[0]} can only be timed: add --latency; export.py checks its answers")
    paths = [checkpoint.find(name, args.output_dir) for name in names]
    if not args.models:
        paths = checkpoint.everything_in(args.output_dir)
    rows = [(path, checkpoint.load(path)) for path in paths]
    if rows:
        print(report.comparison(rows))
        print("Top-1 on the test split, as each stage measured it.")
    if not args.latency:
        return

    # latency: the load is looked at before every model, so that a table in which something else ran says so
    timed, loads = [], []

    def measure(name, engine, model, image_size, memory_format):
        loads.append(latency.others_load())
        options = {"threads": args.threads, "memory_format": memory_format}
        timed.append(
            (
                name,
                engine,
                latency.measure(model, image_size, batch=1, **options),
                latency.measure(model, image_size, batch=args.batch_size, **options),
            )
        )

    for path, content in rows:
        model = checkpoint.rebuild(content, args.engine)
        engine = torch.backends.quantized.engine if content["int8"] else "fp32, channels_last"
        measure(path.stem, engine, model, content["image_size"], torch.channels_last)
    for path in onnx_paths:
        model = onnx_file.OnnxModel(path, args.threads)
        measure(path.name, "ONNX Runtime", model, int(model.metadata["image_size"]), torch.contiguous_format)
    print()
    print(report.latencies(timed))
    print(latency.conditions(args.threads, loads))


if __name__ == "__main__":
    cli.run(main, parse_args)
