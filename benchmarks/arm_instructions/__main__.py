"""Counts the instructions of one image in ONNX Runtime on ARM64, without a board: by emulation.

    bash benchmarks/arm_instructions/setup.sh kit
    python -m benchmarks.arm_instructions kit weights/*.pt

The counts are those of one thread, after a first run, in QEMU's user-mode emulation. They are the same each
time. They do not tell how long a board takes: one instruction may take longer than another, several may run
at a time, and the time that memory takes is not emulated.
"""

import os
import subprocess
import tempfile
from pathlib import Path

from common.cli import launch
from common.cli.parser import Parser
from common.deployment import onnx_model
from common.evaluation.tables import markdown
from common.models import checkpoint

CORES = {  # name in QEMU: (part number, features), as Linux shows them
    "cortex-a72": ("0xd08", "fp asimd aes pmull sha1 sha2 crc32"),
    "cortex-a76": ("0xd0b", "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp lrcpc asimddp"),
}
CPUINFO = "processor\t: 0\nFeatures\t: {1}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {0}\n"


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("kit", metavar="FOLDER", help="what setup.sh created")
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="float or int8")
    return parser.parse_args(argv)


def main(args):
    rows = [("file", *(f"{core}{part}" for core in CORES for part in (", all", ", SIMD and float")))]
    for path in map(Path, args.checkpoints):
        content = checkpoint.load(path)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.onnx")
            with onnx_model.export(content, checkpoint.rebuild(content), file):
                pass
            counts = [number for core in CORES for number in count(Path(args.kit).resolve(), core, file)]
        rows.append((path.name.removesuffix(".pt"), *(f"{number / 1e6:.1f} M" for number in counts)))
        print(rows[-1], flush=True)
    print(markdown(rows))


def count(kit: Path, core: str, file: Path) -> tuple[int, int]:
    """The instructions of one run of an ONNX file: all of them, and those of SIMD and floating point."""
    root = kit / "root"
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(CPUINFO.format(*CORES[core]))  # ONNX Runtime reads it
    done = subprocess.run(
        [
            kit / "usr/bin/qemu-aarch64", "-cpu", core, "-L", root, "-plugin", kit / "plugin.so",
            root / "usr/bin/python3.11", Path(__file__).with_name("count.py"), root / "site", file,
        ],
        env=os.environ | {"LD_LIBRARY_PATH": str(kit / "usr/lib/x86_64-linux-gnu")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    instructions, simd = done.stderr.split()[-2:]
    return int(instructions), int(simd)


if __name__ == "__main__":
    launch.run(main, parse_args)
