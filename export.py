"""Write a checkpoint as an ONNX file, which runs without PyTorch, and check that it gives the same answers.

    python export.py quantized_pruned_kd_resnet18 --output resnet18.onnx

reads    a checkpoint, and the test pictures of --dataset to check with
writes   the ONNX file: float, or of an int8 checkpoint int8 weights behind DequantizeLinear
"""

from pathlib import Path

from common import cli, options

AGREEMENT = 0.99  # share of the pictures that the file must answer as the checkpoint does


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    group = parser.add_argument_group("export")
    group.add_argument("checkpoint", metavar="CHECKPOINT", help="a path, a name, or the start of one")
    group.add_argument(
        "--output", required=True, metavar="FILE.onnx", help="replaced once the check is passed"
    )
    group.add_argument(
        "--pictures",
        type=cli.number(int, 1),
        default=200,
        metavar="N",
        help="how many pictures of the test split, evenly spread, to check with; default: 200",
    )
    options.add_engine_option(group)
    options.add_dataset_options(parser)
    options.add_output_dir_option(parser)
    return parser.parse_args(argv)


def main(args):
    # imported here: --help answers without torch
    import torch

    from common import batches, checkpoint, data, engines, onnx_file
    from common.errors import UserError

    # the checkpoint and the pictures
    path, output = checkpoint.find(args.checkpoint, args.output_dir), Path(args.output)
    content = checkpoint.load(path)
    own_engine = engines.own(content["int8"]["backend"]) if content["int8"] else None
    model = checkpoint.rebuild(content, args.engine or own_engine).eval()
    splits = data.load_splits(args.dataset, args.data_dir, val_fraction=0)
    checkpoint.check_classes(content, splits.classes)
    count = min(args.pictures, len(splits.test))
    spread = [splits.test[index * len(splits.test) // count] for index in range(count)]
    pictures = batches.scoring_loader(spread, content, workers=args.workers)

    # write, check, and only then put in place
    with onnx_file.written(content, model, output) as onnx_model, torch.inference_mode():
        given, wanted = (torch.cat([m(images) for images, _ in pictures]) for m in (onnx_model, model))
        agreement = float((given.argmax(1) == wanted.argmax(1)).double().mean())
        difference = float((given - wanted).abs().max())
        print(
            f"{len(given)} test pictures: ONNX Runtime answers {agreement:.2%} as the checkpoint does; "
            f"largest difference of a logit {difference:.4f}, largest logit {float(wanted.abs().max()):.2f}"
        )
        if not agreement >= AGREEMENT:
            raise UserError(
                f"{output} is not written: at least {AGREEMENT:.0%} of the answers must be the same"
            )
    before, after = path.stat().st_size, output.stat().st_size
    print(f"saved {output}: {after:,} bytes, {after / before:.2f} times the checkpoint")
    print(f"next: python evaluate.py {path} {output}{options.data_arguments(args)}")


if __name__ == "__main__":
    cli.run(main, parse_args)
