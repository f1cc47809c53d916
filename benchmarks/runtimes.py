"""Checkpoints in torch, ONNX Runtime and OpenVINO, beside two other tools that quantize the same parent.

    python -m benchmarks.runtimes --weights teacher_mobilenet_v2 quantized_mobilenet_v2 --data-dir data

The first of --weights is the fp32 parent, the others were created from it. The other tools are ONNX Runtime's
`quantize_static` (QDQ, per channel) and NNCF's post-training quantization, each with its defaults and with
its option against sums that overflow on x86 without VNNI. They get the parent's ONNX file and the calibration
images of `train_quantization.py`. OpenVINO and NNCF are optional: `pip install openvino nncf`. OpenVINO
computes in float32 what is not int8. All are evaluated on the test split and timed in turns; a Markdown table
is printed.
"""

import importlib.util
import itertools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from common.cli import launch, options
from common.cli.parser import Parser, number
from common.data import datasets
from common.data.loaders import DeviceLoader, make_loaders
from common.deployment import onnx_model
from common.deployment.onnx_latency import OpenVinoModel
from common.evaluation import latency, metrics
from common.evaluation.metrics import Score
from common.evaluation.tables import markdown
from common.models import checkpoint, lineage
from common.system import seeding

CALIBRATION_BATCHES, BATCH, TURNS = 16, 32, 5
RUNTIMES = ("torch", "ONNX Runtime", "OpenVINO")


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--weights", nargs="+", required=True, metavar="CHECKPOINT", help="fp32, then others")
    parser.add_argument("--threads", type=number(int, 1), default=1, metavar="N", help="default: 1")
    options.add_cache_option(options.add_dataset_options(parser))
    options.add_output_dir_option(parser)
    return parser.parse_args(argv)


class TorchModel(nn.Module):
    """The model of a checkpoint; torch has one engine at a time."""

    def __init__(self, content: dict):
        super().__init__()
        self.model = checkpoint.rebuild(content).eval()
        self.engine = torch.backends.quantized.engine

    def forward(self, images: Tensor) -> Tensor:
        torch.backends.quantized.engine = self.engine
        return self.model(images)


class Reader(CalibrationDataReader):
    """Calibration images for quantize_static."""

    def __init__(self, batches):
        self.batches = iter([{onnx_model.INPUT: images.numpy()} for images, _ in batches])

    def get_next(self):
        return next(self.batches, None)


@dataclass
class Entry:
    """A model in one runtime: its score, and the median of each turn in milliseconds."""

    name: str
    runtime: str
    path: Path
    model: nn.Module
    score: Score
    milliseconds: list[float] = field(default_factory=list)


def quantize_with_onnx_runtime(onnx_path: Path, train: DeviceLoader, peer: Path, narrow: bool) -> None:
    """Writes ONNX Runtime's own quantization of an fp32 model; `narrow`: with weights of 7 bits."""
    prepared = onnx_path.with_name("prepared.onnx")
    quant_pre_process(onnx_path, prepared)
    quantize_static(
        prepared,
        peer,
        Reader(itertools.islice(train, CALIBRATION_BATCHES)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=narrow,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def quantize_with_nncf(onnx_path: Path, train: DeviceLoader, peer: Path, narrow: bool) -> None:
    """Writes NNCF's post-training quantization of an fp32 model; `narrow`: with weights of 7 bits."""
    import nncf
    from nncf.quantization.advanced_parameters import OverflowFix

    batches = itertools.islice(train, CALIBRATION_BATCHES)
    images = [{onnx_model.INPUT: image[None].numpy()} for images, _ in batches for image in images]
    parent = onnx.load(onnx_path)
    settings = nncf.AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE if narrow else None)
    quantized = nncf.quantize(
        parent, nncf.Dataset(images), subset_size=len(images), advanced_parameters=settings
    )
    onnx.helper.set_model_props(quantized, {prop.key: prop.value for prop in parent.metadata_props})
    onnx.save(quantized, peer)


PEERS = {  # how to quantize, whether with weights of 7 bits
    "quantize_static": (quantize_with_onnx_runtime, False),
    "quantize_static, reduce_range": (quantize_with_onnx_runtime, True),
    "NNCF": (quantize_with_nncf, False),
    "NNCF, overflow_fix": (quantize_with_nncf, True),
}


def main(args):
    paths = [checkpoint.find(name, args.output_dir) for name in args.weights]
    parent = checkpoint.load(paths[0])
    splits = datasets.load_splits(args.dataset, args.data_dir, val_fraction=0.2)
    lineage.check_classes(parent, splits.classes)
    seeding.seed_everything(0)
    loaders = make_loaders(splits, parent, BATCH, seed=0, cache=args.cache, workers=args.workers)
    side, with_openvino = parent["image_size"], bool(importlib.util.find_spec("openvino"))
    entries = []

    def add(name, runtime, path, model):
        score = metrics.evaluate(model, loaders.test, torch.device("cpu"))
        entries.append(Entry(name, runtime, path, model, score))
        print(f"{name} in {runtime}: {score}", flush=True)

    def add_onnx(name, path, exported):
        add(name, "ONNX Runtime", path, onnx_model.OnnxModel(exported, args.threads))
        if with_openvino:
            add(name, "OpenVINO", path, OpenVinoModel(exported, args.threads))

    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            content, exported = checkpoint.load(path), Path(folder) / f"{path.stem}.onnx"
            model = TorchModel(content)
            add(path.stem, "torch", path, model)
            with onnx_model.export(content, model.model, exported):
                pass
            add_onnx(path.stem, path, exported)
        fp32 = Path(folder) / f"{paths[0].stem}.onnx"
        for name, (quantize, narrow) in PEERS.items():
            if quantize is quantize_with_onnx_runtime or importlib.util.find_spec("nncf"):
                peer = Path(folder) / f"{name}.onnx"
                quantize(fp32, loaders.train, peer, narrow)
                add_onnx(name, peer, peer)
        print("latency, in turns", flush=True)
        loads = time_in_turns(entries, side, args.threads)
        report(entries, loads, args.threads)


def time_in_turns(entries: list[Entry], side: int, threads: int) -> list[float | None]:
    """Fills `milliseconds`; returns how busy other programs were before each turn."""
    loads = []
    for _ in range(TURNS):
        loads.append(latency.others_load())
        for entry in entries:
            form = torch.channels_last if entry.runtime == "torch" else torch.contiguous_format
            timed = latency.measure(entry.model, side, batch=1, threads=threads, memory_format=form)
            entry.milliseconds.append(timed.p50)
    return loads


def report(entries: list[Entry], loads: list[float | None], threads: int) -> None:
    """Prints a row for each model, and how each checkpoint compares with each of the other tools."""
    cells = [("model", "bytes", "equal to fp32", *(f"{each}, top-1" for each in RUNTIMES), *RUNTIMES)]
    by_name = {name: {each.runtime: each for each in group} for name, group in
               itertools.groupby(entries, key=lambda each: each.name)}  # fmt: skip
    fp32 = next(iter(by_name.values()))
    for name, row in by_name.items():
        last = row["ONNX Runtime"]
        equal = float((last.score.predictions == fp32["ONNX Runtime"].score.predictions).double().mean())
        tops = [f"{row[each].score.top1:.2%}" if each in row else "-" for each in RUNTIMES]
        times = [f"{np.median(row[each].milliseconds):.2f} ms" if each in row else "-" for each in RUNTIMES]
        cells.append((name, f"{last.path.stat().st_size:,}", f"{equal:.2%}", *tops, *times))
    print(markdown(cells, left=1))
    for peer, name in itertools.product([each for each in PEERS if each in by_name], list(by_name)[1:]):
        for runtime in RUNTIMES[1:]:
            if name in PEERS or runtime not in by_name[name] or runtime not in by_name[peer]:
                continue
            ours, theirs = by_name[name][runtime], by_name[peer][runtime]
            difference = 100 * (ours.score.top1 - theirs.score.top1)
            p = metrics.mcnemar(ours.score.correct, theirs.score.correct)
            ratio = np.median([a / b for a, b in zip(ours.milliseconds, theirs.milliseconds, strict=True)])
            print(
                f"{name} against {peer} in {runtime}: {difference:+.2f} points, p {p:.3f}; time {ratio:.2f}"
            )
    print("\n" + latency.conditions(threads, 1, loads))


if __name__ == "__main__":
    launch.run(main, parse_args)
