"""Training steps of several networks in float32 and in bfloat16: where is `--precision auto` faster?

    python -m benchmarks.precision

Random images of 224 px, batches of 32. Each measurement is a new process; the two precisions take turns.

prints   images per second, the median of the repeats (minimum to maximum), and what auto selects here
"""

import json
import statistics
import subprocess
import sys
import time

from common.cli import launch
from common.cli.parser import Parser

ARCHITECTURES = ("resnet18", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0")
REPEATS, WARM_UP, STEPS, BATCH = 3, 2, 5, 32


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--child", help="measures arch/precision; used by this program itself")
    return parser.parse_args(argv)


def main(args):
    if args.child:
        print(json.dumps(measure(*args.child.split("/"))))
        return
    print("| network | fp32 | bf16 | auto |\n| :--- | ---: | ---: | :--- |")
    for arch in ARCHITECTURES:
        rows = {"fp32": [], "bf16": []}
        for _ in range(REPEATS):
            for precision, measured in rows.items():
                command = [sys.executable, "-m", "benchmarks.precision", "--child", f"{arch}/{precision}"]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                measured.append(json.loads(done.stdout))
        texts = []
        for measured in rows.values():
            rates = [row["rate"] for row in measured]
            texts.append(f"{statistics.median(rates):.1f} ({min(rates):.1f}-{max(rates):.1f})")
        print(f"| {arch} | {' | '.join(texts)} | {rows['fp32'][0]['auto']} |", flush=True)


def measure(arch: str, precision: str) -> dict:
    import torch

    from benchmarks.speed import Fixed
    from common.compression.distillation import cross_entropy
    from common.models import architectures
    from common.system import hardware
    from common.training import loop

    device = torch.device("cpu")
    hardware.set_up(device)
    model = architectures.build(arch, 37, "none")
    auto = hardware.pick_precision("auto", device, model)
    batch = (torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH))

    def train(steps):
        loop.fit(
            model, cross_entropy, Fixed([batch] * steps), None, epochs=1, lr=1e-5, weight_decay=0.0,
            device=device, precision=hardware.pick_precision(precision, device, model),
            deploy=lambda trained: trained,
        )  # fmt: skip

    train(WARM_UP)
    start = time.perf_counter()
    train(STEPS)
    return {"rate": BATCH * STEPS / (time.perf_counter() - start), "auto": str(auto).removeprefix("torch.")}


if __name__ == "__main__":
    launch.run(main, parse_args)
