"""Int8 checkpoints, and their ONNX files, beside ONNX Runtime's own static quantization of the same parent.

    python -m benchmarks.onnx_peer --data-dir data --weights teacher_mobilenet_v2 quantized_mobilenet_v2

The first of --weights is the fp32 parent, the others int8 checkpoints of it. The peer is `quantize_static` of
the parent's ONNX file, in QDQ form, per channel, with the calibration images that train_quantization.py uses
by default. Everything is evaluated on the full test split and timed in this one run; the table is printed.
"""

import itertools
import tempfile
from pathlib import Path

import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from common.cli import launch, options
from common.cli.parser import Parser, number
from common.data import datasets
from common.data.loaders import DeviceLoader, make_loaders
from common.deployment import onnx_model
from common.evaluation import latency, metrics
from common.models import checkpoint, lineage
from common.system import seeding

CALIBRATION_BATCHES, BATCH = 16, 32


class Reader(CalibrationDataReader):
    def __init__(self, batches):
        self.batches = iter([{onnx_model.INPUT: images.numpy()} for images, _ in batches])

    def get_next(self):
        return next(self.batches, None)


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--weights", nargs="+", required=True, metavar="CHECKPOINT", help="fp32, then int8")
    parser.add_argument("--threads", type=number(int, 1), default=1, metavar="N", help="default: 1")
    options.add_cache_option(options.add_dataset_options(parser))
    options.add_output_dir_option(parser)
    return parser.parse_args(argv)


def statically_quantized(onnx_path: Path, train: DeviceLoader) -> Path:
    """ONNX Runtime's own quantization of the fp32 model in `onnx_path`, in a file beside it."""
    prepared, peer = onnx_path.with_name("prepared.onnx"), onnx_path.with_name("quantize_static.onnx")
    quant_pre_process(onnx_path, prepared)
    quantize_static(
        prepared,
        peer,
        Reader(itertools.islice(train, CALIBRATION_BATCHES)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return peer


def main(args):
    paths = [checkpoint.find(name, args.output_dir) for name in args.weights]
    parent = checkpoint.load(paths[0])
    splits = datasets.load_splits(args.dataset, args.data_dir, val_fraction=0.2)
    lineage.check_classes(parent, splits.classes)
    seeding.seed_everything(0)
    loaders = make_loaders(splits, parent, BATCH, seed=0, cache=args.cache, workers=args.workers)
    loads = []
    print("| model | runs in | test top-1 | file | p50 | p95 |")
    print("| :--- | :--- | ---: | ---: | ---: | ---: |")

    def row(name, runs_in, model, path, memory_format):
        loads.append(latency.others_load())
        times = latency.measure(
            model, parent["image_size"], batch=1, threads=args.threads, memory_format=memory_format
        )
        score = metrics.evaluate(model, loaders.test, torch.device("cpu"))
        size, speed = f"{path.stat().st_size / 1e6:.2f} MB", f"{times.p50:.2f} ms | {times.p95:.2f} ms"
        print(f"| {name} | {runs_in} | {score.top1:.2%} | {size} | {speed} |")

    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            content = checkpoint.load(path)
            model = checkpoint.rebuild(content)
            engine = f"torch, {torch.backends.quantized.engine}" if content["int8"] else "torch, fp32"
            row(path.stem, engine, model, path, torch.channels_last)
            exported = Path(folder) / f"{path.stem}.onnx"
            with onnx_model.export(content, model, exported):
                pass
            exported_model = onnx_model.OnnxModel(exported, args.threads)
            row(exported.name, "ONNX Runtime", exported_model, exported, torch.contiguous_format)
        peer = statically_quantized(Path(folder) / f"{paths[0].stem}.onnx", loaders.train)
        row(
            "quantize_static",
            "ONNX Runtime",
            onnx_model.OnnxModel(peer, args.threads),
            peer,
            torch.contiguous_format,
        )
    print("\n" + latency.conditions(args.threads, 1, loads))


if __name__ == "__main__":
    launch.run(main, parse_args)
