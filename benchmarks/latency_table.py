"""The cost of pruned networks by the tables of layers, against that of the entire network.

    python -m benchmarks.latency_table --cache /tmp/tables > latency_table.md

20 random networks: MobileNetV2 and ResNet-18 at two sizes, each group of layers with a random part of its
channels. In ONNX Runtime (int8, one thread) all networks take turns; each run is measured in CPU time of its
thread, without that of other programs, and the shortest one counts. On the Cortex-M firmware/main.c counts
the whole network, at 96 pixels; what does not fit on the board is left out.
"""

import argparse
import random
import re
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from common.budget import layer_costs, layer_table
from common.compression import pruning
from common.deployment import c_writer, dumps, instructions, onnx_session, onnx_writer
from common.evaluation import tables
from common.integer import resizing
from common.integer.graph import Graph
from common.models import architectures

CASES = (("mobilenet_v2", 160), ("mobilenet_v2", 224), ("resnet18", 128), ("resnet18", 160))
CLASSES, PER_CASE, SEED, SMALL = 37, 5, 0, 96
ROUNDS, RUNS = 60, 5
CORE = "cortex-m7"


def random_networks() -> list[tuple[str, int, object]]:
    """(architecture, pixels, pruned model)."""
    generator, found = random.Random(SEED), []
    for arch, side in CASES:
        model = architectures.build(arch, CLASSES)
        options = {"classifier": architectures.classifier(model, CLASSES), "image_size": side}
        groups = pruning.rank(model, "magnitude", "local", **options)
        for _ in range(PER_CASE):
            mean = generator.uniform(0.1, 0.7)
            widths = {}
            for group in groups:
                fraction = min(0.95, max(0.0, generator.gauss(mean, 0.15)))
                widths |= dict.fromkeys(group.layers, group.width(group_quantile(group, fraction)))
            found.append((arch, side, pruning.prune(model, groups, widths, **options)))
    return found


def group_quantile(group: pruning.Group, fraction: float) -> float:
    """The quantile below which a fraction of the channels of a group lies."""
    return float(np.quantile(group.quantiles.numpy(), fraction))


def shortest_runs(graphs: list) -> list[float]:
    """Milliseconds of each network in ONNX Runtime; they take turns."""
    sessions = [onnx_session.open_session(onnx_writer.build(graph), 1) for graph in graphs]
    shortest = [np.inf] * len(graphs)
    for _ in range(ROUNDS):
        for index, (session, graph) in enumerate(zip(sessions, graphs, strict=True)):
            images = {onnx_writer.INPUT: np.zeros((1, *graph.input.shape), np.float32)}
            for _ in range(RUNS):
                start = time.thread_time()
                session.run(None, images)
                shortest[index] = min(shortest[index], 1000 * (time.thread_time() - start))
    return shortest


def print_table(title: str, networks: list, predicted: list[float], measured: list[float], form: str) -> None:
    """Prints a row for each network, and the median error."""
    rows = [("network", "pixels", "predicted", "measured", "ratio")]
    ratios = [first / second for first, second in zip(predicted, measured, strict=True)]
    for (arch, side, *_), first, second, ratio in zip(networks, predicted, measured, ratios, strict=True):
        rows.append((arch, str(side), form.format(first), form.format(second), f"{ratio:.4f}"))
    errors = np.abs(np.array(ratios) - 1)
    print(f"{title}\n\n{tables.markdown(rows, left=1)}\n")
    print(f"Median error {np.median(errors):.2%}, largest {errors.max():.2%}.\n", flush=True)


def run_on_board(graph: Graph) -> float | None:
    """The instructions that firmware/main.c counts; None for a network that does not fit."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "net.c")
        written = c_writer.write(graph, "net", "camera", "twice", ["x"] * CLASSES, *instructions.STATISTICS)
        source.write_text(written.source)
        source.with_suffix(".h").write_text(written.header)
        images = torch.zeros(1, 3, SMALL, SMALL)
        dumps.write(Path(folder, "net_golden"), "net", graph, images, "twice")
        settings = [f"BOARD={instructions.BOARDS[CORE]}", f"NET={source}"]
        words = ["make", "-s", "-C", str(instructions.FIRMWARE), "run", *settings]
        run = subprocess.run(words, capture_output=True, text=True, check=False)
    counted = re.search(r"logits equal, ([\d,]+) instructions", run.stdout)
    return float(counted[1].replace(",", "")) if counted else None


def main(args: argparse.Namespace) -> None:
    """Prints both tables."""
    networks = random_networks()
    graphs = [layer_costs.layers_of(model, side, None)[0] for _, side, model in networks]
    table = layer_table.open_table("onnxruntime", "int8", 1, args.cache)
    predicted = [table.total(graph) for graph in graphs]
    print_table(table.conditions, networks, predicted, shortest_runs(graphs), "{:.3f} ms")

    table = layer_table.open_table(f"instructions:{CORE}", "int8", 1, args.cache)
    fitting, predicted, measured = [], [], []
    for arch, _, model in networks:
        graph = resizing.resize(layer_costs.layers_of(model, SMALL, None)[0], {})
        if counted := run_on_board(graph):
            fitting.append((arch, SMALL))
            predicted.append(table.total(graph))
            measured.append(counted)
    print_table(f"Instructions, {table.conditions}", fitting, predicted, measured, "{:,.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder of the tables")
    main(parser.parse_args())
