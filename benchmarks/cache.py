"""What the image cache costs, and that neither the time nor the memory for an image grows with the data set.

    python -m benchmarks.cache

Caches the synthetic data set, its images repeated up to each of the sizes, in a temporary folder, and reads
one epoch of random crops. The memory is that of the process itself: pages of the mapped file belong to the
system's cache.
"""

import itertools
import multiprocessing
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from common.data import datasets
from common.data.loaders import make_loaders
from common.data.transforms import IMAGENET_MEAN, IMAGENET_STD

SIZES = (1_000, 10_000, 100_000)
IMAGE_SIZE = 64


def main():
    splits = datasets.load_splits("synthetic", None, val_fraction=0)
    print("| images | cache | decode and write, per image | read and crop, per image | own memory |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            # a process of its own, so that the memory is that of this size
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                print(pool.submit(row, splits, size, folder).result(), flush=True)


def row(splits: datasets.Splits, size: int, folder: str) -> str:
    torch.set_num_threads(1)
    samples = list(itertools.islice(itertools.cycle(splits.train), size))
    repeated = datasets.Splits(samples, [], splits.test[:1], splits.classes)
    view = {"image_size": IMAGE_SIZE, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    start = time.perf_counter()
    loaders = make_loaders(repeated, view, 32, 0, cache=folder)
    built = time.perf_counter() - start
    start = time.perf_counter()
    for _ in loaders.train:
        pass
    read = time.perf_counter() - start
    bytes_kept = sum(file.stat().st_size for file in Path(folder).glob("resize_shorter_side-*"))
    own = int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    for file in Path(folder).iterdir():
        file.unlink()
    times = " | ".join(f"{seconds / size * 1000:.2f} ms" for seconds in (built, read))
    return f"| {size:,} | {bytes_kept / 1e6:,.0f} MB | {times} | {own / 1024:,.0f} MiB |"


if __name__ == "__main__":
    main()
