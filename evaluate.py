"""Compare checkpoints: accuracy and size in one Markdown table, and how fast they run here in another.

    python evaluate.py teacher_resnet50 quantized_resnet50 --latency

reads    the checkpoints named, or all in --output-dir, and ONNX files that export.py wrote
writes   nothing: accuracy is what each stage measured on the test split; latency is measured now, on this CPU
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
    if paths:
        print(report.comparison([(path, checkpoint.load(path)) for path in paths]))
        print("Top-1 on the test split, as each stage measured it.")
    if not args.latency:
        return

    # each model is built right before it is timed, since torch has one engine at a time
    timed, loads = [], []
    for path in [*paths, *onnx_paths]:
        if path in onnx_paths:
            model, layout = onnx_file.OnnxModel(path, args.threads), torch.contiguous_format
            name, engine, side = path.name, "ONNX Runtime", int(model.metadata["image_size"])
        else:
            content = checkpoint.load(path)
            model, layout = checkpoint.rebuild(content, args.engine), torch.channels_last
            engine = torch.backends.quantized.engine if content["int8"] else "fp32, channels_last"
            name, side = path.stem, content["image_size"]
        loads.append(latency.others_load())
        options = {"threads": args.threads, "memory_format": layout}
        alone = latency.measure(model, side, batch=1, **options)
        together = latency.measure(model, side, batch=args.batch_size, **options)
        timed.append((name, engine, alone, together))
    print()
    print(report.latencies(timed))
    print(latency.conditions(args.threads, loads))


if __name__ == "__main__":
    cli.run(main, parse_args)
