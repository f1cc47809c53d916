"""Int8 checkpoints in each runtime: accuracy, and the images whose logits differ from the reference.

    python -m benchmarks.integers quantized_mobilenet_v2 quantized_pruned_mobilenet_v2 --data-dir data

On all test images. ONNX Runtime and LiteRT (XNNPACK) are compared with the reference that rounds once;
TensorFlow Lite for Microcontrollers with the one that rounds twice (optional: `pip install tflite-micro`).
A Markdown table is printed, and for each runtime that differs the layers where images differ first.
"""

import collections
import importlib.util

import numpy as np
import torch

from common.cli import launch, options
from common.cli.parser import Parser
from common.data import datasets
from common.data.loaders import eval_loader
from common.deployment import layers, litert, onnx_writer
from common.deployment.onnx_session import open_session
from common.deployment.onnx_writer import INPUT, OUTPUT
from common.evaluation.tables import markdown
from common.integer import reference
from common.models import checkpoint, integers

TRACED = 4  # images of which all layers are compared, for each runtime that differs
RUNTIMES = {"ONNX Runtime": "once", "LiteRT (XNNPACK)": "once", "TFLM": "twice"}


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help=options.CHECKPOINT)
    options.add_dataset_options(parser)
    options.add_output_dir_option(parser)
    return parser.parse_args(argv)


def open_runtimes(graph):
    """Functions of normalized images that return the int8 logits, by the name of the runtime."""
    session = open_session(onnx_writer.build(graph), threads=1)
    content = litert.convert(graph, {})

    def onnx_runtime(images):
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return np.rint(logits / np.float32(graph.output.scale)) + graph.output.zero_point

    found = {
        "ONNX Runtime": onnx_runtime,
        "LiteRT (XNNPACK)": lambda images: layers.of_litert(content, images, threads=1)[OUTPUT],
    }
    if importlib.util.find_spec("tflite_micro"):
        from tflite_micro import runtime

        interpreter = runtime.Interpreter.from_bytes(content)

        def microcontroller(images):
            outputs = []
            for image in reference.quantize(images, graph.input).numpy():
                interpreter.set_input(np.ascontiguousarray(image.transpose(1, 2, 0))[None], 0)
                interpreter.invoke()
                outputs.append(interpreter.get_output(0)[0])
            return np.stack(outputs)

        found["TFLM"] = microcontroller
    return found, content


def first_layers(graph, content, runtime, images):
    """Where the images differ first: "layer (operator), values", by how many images."""
    operators = {step.output.name: type(step).__name__ for step in graph.operators}
    found = collections.Counter()
    for image in images.split(1):
        expected = layers.of_graph(graph, image)
        of_runtime = layers.of_onnx if runtime == "ONNX Runtime" else layers.of_litert
        actual = of_runtime(onnx_writer.build(graph) if runtime == "ONNX Runtime" else content, image)
        first = next(each for each in layers.differences(expected, actual) if each.count)
        name = graph.output.name if first.layer == OUTPUT else first.layer
        found[f"{name} ({operators[name]})"] += 1
    return found


def measure(name, path, samples, args):
    content = checkpoint.load(path)
    graph = integers.read(content)
    runtimes, litert_content = open_runtimes(graph)
    loader = eval_loader(samples, content, batch_size=8, workers=args.workers)
    labels, logits = [], collections.defaultdict(list)
    differing = collections.defaultdict(list)
    for images, targets in loader:
        labels.append(targets.numpy())
        integers_in = reference.quantize(images, graph.input)
        for rounding in reference.ROUNDINGS:
            logits[rounding].append(reference.run(graph, integers_in, rounding).numpy())
        for runtime, run in runtimes.items():
            logits[runtime].append(run(images).astype(np.int8))
            unequal = (logits[runtime][-1] != logits[RUNTIMES[runtime]][-1]).any(1)
            differing[runtime].extend(images[torch.from_numpy(unequal)])
    labels = np.concatenate(labels)
    row = {"file": name, "images": str(len(labels))}
    for rounding in reference.ROUNDINGS:
        row[f"top-1, {rounding}"] = (
            f"{100 * np.mean(np.concatenate(logits[rounding]).argmax(1) == labels):.2f}"
        )
    once, twice = (np.concatenate(logits[rounding]).argmax(1) for rounding in reference.ROUNDINGS)
    row["once = twice"] = f"{100 * np.mean(once == twice):.2f}"
    row |= {f"{runtime} differs": str(len(differing[runtime])) for runtime in runtimes}
    print(row, flush=True)
    for runtime, images in differing.items():
        if images and runtime != "TFLM":
            found = first_layers(graph, litert_content, runtime, torch.stack(images[:TRACED]))
            print(f"{name}, {runtime}: first differs in {dict(found)}", flush=True)
    return row


def main(args):
    torch.set_num_threads(1)
    samples = datasets.load_test_split(args.dataset, args.data_dir).test
    paths = {each: checkpoint.find(each, args.output_dir) for each in args.checkpoints}
    rows = [measure(name, path, samples, args) for name, path in paths.items()]
    columns = list(rows[0])
    print(markdown([columns, *([row.get(each, "") for each in columns] for row in rows)], left=1))


if __name__ == "__main__":
    launch.run(main, parse_args)
