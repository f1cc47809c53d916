"""Compare checkpoints: accuracy, size and speed in one Markdown table.

    python evaluate.py teacher_resnet50 kd_resnet18 pruned_kd_resnet18 quantized_pruned_kd_resnet18

reads    the checkpoints named, or all in --output-dir; accuracy is what each stage measured on the test
split, latency is measured now, on this machine's CPU, one picture at a time writes   nothing
"""

from common import cli


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT", help="default: all in --output-dir")
    cli.add_output_dir_option(parser)
    parser.add_argument(
        "--threads", type=cli.number(int, 1), default=1, metavar="N", help="for the latency; default: 1"
    )
    return parser.parse_args(argv)


def main(args):
    # imported here: --help answers without torch
    from common import checkpoint, metrics, report

    paths = [checkpoint.find(reference, args.output_dir) for reference in args.checkpoints]
    rows = []
    for path in paths or checkpoint.everything_in(args.output_dir):
        content = checkpoint.load(path)
        model = checkpoint.rebuild(content)
        milliseconds = metrics.latency_ms(model, content["image_size"], threads=args.threads)
        rows.append((path, content, milliseconds))
    print(report.comparison(rows, args.threads))


if __name__ == "__main__":
    cli.run(main, parse_args)
