"""The instructions of the layers of an int8 network in C on a Cortex-M, counted in QEMU.

They do not depend on the machine, and hardly on the weights. Boards, compiler options and the counter are
those of firmware/README.md.
"""

import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.deployment import c_kernels, c_writer
from common.integer.graph import Graph, Operator, Tensor
from common.integer.rows import height
from common.system.errors import UserError

BOARDS = {
    "cortex-m4": "mps2-an386",
    "cortex-m7": "mps2-an500",
    "cortex-m33": "mps3-an524",
    "cortex-m55": "mps3-an547",
}
COMPILER = "arm-none-eabi-gcc"
FIRMWARE = Path(__file__).parents[2] / "firmware"
WEIGHTS = re.compile(r"static const ALIGNED int8_t (\w+)\[(\d+)\] = \{[^}]*\};")
STATISTICS = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # of the images; they cost nothing


def count(graph: Graph, parts: Sequence[Operator | Tensor], core: str) -> list[float]:
    """Counts the instructions of layers, with the schedule "camera" and sums that are rounded twice.

    Args:
        graph: The network.
        parts: Some of its operators; or its image, which is given and costs nothing.
        core: Of `BOARDS`.

    Returns:
        The instructions of each for one image.

    Raises:
        UserError: A layer has no form in C, the network does not fit on the board, or a tool is missing.
    """
    written = c_writer.write(graph, "net", "camera", "twice", [], *STATISTICS)
    numbers = {operator.output.name: index for index, operator in enumerate(graph.operators)}
    layers = [part for part in parts if isinstance(part, Operator)]
    counted = ", ".join(f"{{{numbers[each.output.name]}, {height(each.output)}}}" for each in layers)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "net.c")
        program = (FIRMWARE / "count.c").read_text(encoding="utf-8")
        source.write_text(
            f"{_small(written.source)}\n#define COUNTED {{{counted}}}\n{program}", encoding="utf-8"
        )
        source.with_suffix(".h").write_text(written.header, encoding="utf-8")
        Path(folder, "logits.bin").touch()  # the Makefile asks for it
        printed = iter(_run(core, source).split())
    return [float(next(printed).replace(",", "")) if isinstance(part, Operator) else 0.0 for part in parts]


def _small(source: str) -> str:
    """All layers get the same weights: they would not fit, and the compiler would take long."""
    largest = max((int(size) for _, size in WEIGHTS.findall(source)), default=1)
    shared = f"static const ALIGNED int8_t shared[{largest}] = {{1}};"
    names = iter([shared])
    return WEIGHTS.sub(lambda match: f"{next(names, '')}\n#define {match[1]} shared", source)


def _run(core: str, source: Path) -> str:
    settings = {
        "BOARD": BOARDS[core], "NET": source, "GOLDEN": source.parent,
        "SOURCES": "startup.c measure.c semihosting.c",
    }  # fmt: skip
    words = ["make", "-s", "-C", str(FIRMWARE), "run", *(f"{key}={value}" for key, value in settings.items())]
    try:
        run = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise UserError(f"the instructions on {core} cannot be counted: make: {error.strerror}") from None
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if line.strip()] or [f"exit code {run.returncode}"]
        reason = next((line for line in lines if "***" in line or "the " in line), lines[-1])
        raise UserError(f"the instructions on {core} cannot be counted: {reason.strip()}")
    return run.stdout


def conditions(core: str) -> str:
    """What counts depend on.

    Args:
        core: Of `BOARDS`.

    Returns:
        The core, and a digest of our code for it.
    """
    digest = hashlib.sha256()
    for path in sorted(
        [*c_kernels.KERNELS.glob("*.c"), *c_kernels.KERNELS.parent.glob("c_*.py"), FIRMWARE / "Makefile"]
    ):
        digest.update(path.read_bytes())
    return f"{core}, kernels {digest.hexdigest()[:8]}"


@functools.cache
def compiler() -> str:
    """The version of the compiler; "" without one."""
    if not shutil.which(COMPILER):
        return ""
    run = subprocess.run([COMPILER, "-dumpfullversion"], capture_output=True, text=True, check=False)
    return run.stdout.strip()
