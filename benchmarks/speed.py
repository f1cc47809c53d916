"""How much faster the stages train than the plain recipe, measured side by side.

    python -m benchmarks.speed --data-dir data

The plain recipe is what the survey's repository does: float32, NCHW, every image decoded and resized by
Pillow in every epoch, one process, torch's own fake quantization. Each measurement is a new process, which
warms up on two batches and then times one epoch of the training images (or one pass over the test images),
without validation; the variants take turns. "fixed" is this project's loop on one batch that stays in
memory: its time does not include the data.

prints   for each stage the images per second and the median of the ratios (minimum to maximum), the fraction
         of the time that the data takes, the limit by matrix multiplication, and the peak memory in MiB
"""

import copy
import itertools
import json
import statistics
import subprocess
import sys
import time

from common.cli import launch, options
from common.cli.parser import Parser, device_name, number

STAGES = ("teacher", "student", "quantization", "validation")
VARIANTS = ("plain", "ours", "fixed")
WARM_UP = 2  # batches


class Fixed(list):
    """Batches in memory, the same in every epoch."""

    def at(self, epoch, first=0):
        return iter(self[first:])

    def count(self, batch):
        return len(self[batch][1])


def parse_args(argv=None):
    parser = Parser(__doc__)
    options.add_cache_option(options.add_dataset_options(parser))
    parser.add_argument("--stages", default=",".join(STAGES), help="default: all of %(default)s")
    parser.add_argument("--arch", default="resnet18", help="default: resnet18")
    parser.add_argument(
        "--teacher", default="resnet50", metavar="ARCH", help="of the student; default: resnet50"
    )
    parser.add_argument("--image-size", type=number(int, 32), default=224, help="default: 224")
    parser.add_argument("--batch-size", type=number(int, 2), default=32, help="default: 32")
    parser.add_argument("--repeats", type=number(int, 1), default=5, help="default: 5")
    parser.add_argument("--device", type=device_name, default="auto", help="default: auto")
    parser.add_argument("--precision", choices=options.PRECISIONS, default="auto", help="default: auto")
    parser.add_argument("--child", help="measures one variant: stage/variant; used by this program itself")
    return parser.parse_args(argv)


def main(args):
    if args.child:
        print(json.dumps(measure(*args.child.split("/"), args)))
        return
    for stage in args.stages.split(","):
        # the data are the same in all stages
        variants = VARIANTS if stage in ("teacher", "validation") else VARIANTS[:2]
        results = {variant: [] for variant in variants}
        for _ in range(args.repeats):
            for variant in variants:
                results[variant].append(in_a_new_process(stage, variant))
        report(stage, results)


def in_a_new_process(stage: str, variant: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.speed", *sys.argv[1:], "--child", f"{stage}/{variant}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def report(stage: str, results: dict[str, list[dict]]) -> None:
    rates = {
        variant: statistics.median(row["images"] / row["seconds"] for row in rows)
        for variant, rows in results.items()
    }
    ratios = [
        plain["seconds"] / ours["seconds"]
        for plain, ours in zip(results["plain"], results["ours"], strict=True)
    ]
    first = results["ours"][0]
    limit = statistics.median(row["limit"] for row in results["ours"])
    data_fractions = [
        1 - fixed["seconds"] / ours["seconds"]
        for ours, fixed in zip(results["ours"], results.get("fixed", []), strict=False)
    ]
    data = f"{statistics.median(data_fractions):.1%}" if data_fractions else "-"
    print(
        f"| {stage} | {first['what']} | {rates['plain']:.1f} | {rates['ours']:.1f} | "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | {data} | "
        f"{limit:.0f} | {rates['ours'] / limit:.0%} | "
        f"{max(row['mib'] for row in results['plain'])} / {max(row['mib'] for row in results['ours'])} |",
        flush=True,
    )


def measure(stage: str, variant: str, args) -> dict:
    import resource

    import torch

    from common.data import datasets
    from common.data.loaders import make_loaders
    from common.models import architectures
    from common.models.lineage import new_checkpoint
    from common.system import hardware

    torch.manual_seed(0)
    device = launch.pick_device(args.device)
    splits = datasets.load_splits(args.dataset, args.data_dir, val_fraction=0.2)
    view = new_checkpoint(args.arch, splits.classes, args.image_size)
    model = architectures.build(args.arch, len(splits.classes), "none")
    teacher = architectures.build(args.teacher, len(splits.classes), "none") if stage == "student" else None
    if variant == "plain":
        from benchmarks import plain

        loader = plain.loader(splits, view, args.batch_size, training=stage != "validation")
        epoch, precision = plain.epoch(stage, model, teacher, args.image_size, device), torch.float32
    else:
        hardware.set_up(device)
        loaders = make_loaders(
            splits, view, args.batch_size, 0, cache=args.cache, workers=args.workers, device=device
        )
        loader = loaders.test if stage == "validation" else loaders.train
        precision = hardware.pick_precision(args.precision, device, model)
        epoch = ours(stage, model, teacher, args, device, precision)
        if variant == "fixed":
            loader = Fixed([next(iter(loader))] * len(loader))
    epoch(Fixed(itertools.islice(loader, WARM_UP)))
    start = time.perf_counter()
    epoch(loader)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "images": len(splits.test if stage == "validation" else splits.train),
        "what": f"{args.arch}, {str(precision).removeprefix('torch.')}",
        "limit": matmul_rate(device, precision) / operations(stage, model, teacher, args.image_size),
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def ours(stage, model, teacher, args, device, precision):
    """A function that runs one epoch of `stage` on batches, as this project does."""
    from common.compression import quantization
    from common.compression.distillation import cross_entropy, distillation_loss_fn
    from common.compression.target_devices import TARGET_DEVICES
    from common.evaluation import metrics
    from common.system import hardware
    from common.training import loop

    if stage == "validation":
        return lambda loader: metrics.evaluate(model, loader, device, precision)
    loss = cross_entropy
    if stage == "student":
        loss = distillation_loss_fn(
            teacher.to(device),
            temperature=3.0,
            alpha=0.9,
            precision=hardware.pick_precision(args.precision, device, teacher),
        )
    if stage == "quantization":
        model = quantization.trace(copy.deepcopy(model), TARGET_DEVICES["embedded"], args.image_size)

    def epoch(loader):
        loop.fit(
            model, loss, loader, None, epochs=1, lr=1e-5, weight_decay=0.0, device=device,
            precision=precision, deploy=lambda trained: trained,
        )  # fmt: skip

    return epoch


def operations(stage: str, model, teacher, image_size: int) -> float:
    """Floating-point operations for an image: two for each multiply-accumulate, three times that with the
    backward pass.
    """
    from common.evaluation import metrics

    own = 2 * metrics.complexity(model.cpu(), image_size)["macs"]
    if stage == "validation":
        return own
    return 3 * own + (2 * metrics.complexity(teacher.cpu(), image_size)["macs"] if teacher else 0)


def matmul_rate(device, precision, side: int = 4096, runs: int = 5) -> float:
    """Operations per second of a large matrix multiplication, the best of `runs`."""
    import torch

    left, right = (torch.randn(side, side, device=device).to(precision) for _ in range(2))
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        float((left @ right)[0, 0])
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


if __name__ == "__main__":
    launch.run(main, parse_args)
