"""firmware/: a network in C, run on boards that QEMU emulates."""

import math
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

from common.deployment import c_writer, dumps
from common.integer import operators as ops
from common.integer.graph import Graph
from tests.conftest import REPOSITORY
from tests.deployment.graphs import CLASSES, SIDE, small_graph, tensor, weights, with_4_bits

TOOLS = "make", "arm-none-eabi-gcc", "qemu-system-arm"
MISSING = [tool for tool in TOOLS if not shutil.which(tool)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"there is no {' and no '.join(MISSING)}")
BOARDS = "mps2-an386", "mps2-an500", "mps3-an524", "mps3-an547"
NAMES = ["Abyssinian", "Beagle", "Chartreux", "Devon Rex", "Eurasier"]
assert len(NAMES) == CLASSES


def export(graph, folder, schedule="camera", rounding="twice", images=3, name="net"):
    """Writes NAME.c, NAME.h and NAME_golden; returns the bytes of the arena."""
    classes = NAMES[: graph.output.shape[0]]
    written = c_writer.write(graph, name, schedule, rounding, classes, [0.5] * 3, [0.25] * 3)
    (folder / f"{name}.c").write_text(written.source)
    (folder / f"{name}.h").write_text(written.header)
    dumps.write(folder / f"{name}_golden", name, graph, torch.randn(images, *graph.input.shape), rounding)
    return written.ram


def make(folder, board="mps2-an500", **variables):
    variables = {"BOARD": board, "NET": folder / "net.c"} | variables
    command = ["make", "-C", REPOSITORY / "firmware", "run", *(f"{k}={v}" for k, v in variables.items())]
    alone = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}  # of `make test`
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=alone)


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("rounding", ["once", "twice"])
def test_weights_of_4_bits_give_all_logits(tmp_path, board, rounding):
    export(with_4_bits(small_graph()), tmp_path, rounding=rounding)
    result = make(tmp_path, board)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("all logits equal") == 3


@pytest.mark.parametrize("rounding", ("once", "twice"))
@pytest.mark.parametrize("board", BOARDS)
def test_a_network_runs_on_a_board(board, rounding, tmp_path):
    arena = export(small_graph(), tmp_path, rounding=rounding)
    result = make(tmp_path, board)
    assert result.returncode == 0, result.stderr
    logits = np.fromfile(tmp_path / "net_golden" / "logits.bin", np.int8).reshape(3, CLASSES)
    images = re.findall(r"^image (\d): (.+), all logits equal, ([\d,]+) instructions$", result.stdout, re.M)
    assert [(index, name) for index, name, _ in images] == [
        (str(index + 1), NAMES[best]) for index, best in enumerate(logits.argmax(1))
    ]
    counts = [int(count.replace(",", "")) for *_, count in images]
    macs = 49 * 8 * (27 + 9) + 8 * CLASSES
    assert min(counts) > macs / 8 and max(counts) < 100 * macs and max(counts) < 1.2 * min(counts)
    (sizes,) = re.findall(
        rf"^{board}: arena (.+), stack (.+), flash (.+), of it code (.+) bytes$", result.stdout, re.M
    )
    found, stack, flash, code = (int(size.replace(",", "")) for size in sizes)
    assert found == arena and 100 < stack < 2048 and 3000 < code < flash < 20_000


def test_other_logits_fail(tmp_path):
    export(small_graph(), tmp_path)
    logits = bytearray((tmp_path / "net_golden" / "logits.bin").read_bytes())
    logits[CLASSES] ^= 1
    (tmp_path / "net_golden" / "logits.bin").write_bytes(logits)
    result = make(tmp_path)
    assert result.returncode and "run] Error 1" in result.stderr
    lines = [line.split(", ")[1] for line in result.stdout.splitlines() if line.startswith("image")]
    assert lines == ["all logits equal", "LOGITS DIFFER", "all logits equal"]


def test_a_network_may_have_another_name(tmp_path):
    arena = export(small_graph(), tmp_path, name="pruned_0_8068")
    result = make(tmp_path, NET=tmp_path / "pruned_0_8068.c")
    assert result.returncode == 0, result.stderr
    assert f"mps2-an500: arena {arena:,}, " in result.stdout


def test_an_arena_that_does_not_fit_is_named(tmp_path):
    given = tensor("input", (3, 256, 256), 0.02, 0)
    small, flat = tensor("small", (1, 1, 1), 0.02, 0), tensor("flat", (1,), 0.02, 0)
    convolution = ops.Convolution(
        (given,), small, **weights(np.random.default_rng(0), 1, 3, 3, 3), stride=(255, 255)
    )
    graph = Graph(given, (convolution, ops.Reshape((small,), flat)))
    assert export(graph, tmp_path, "rows", images=1) > math.prod(given.shape)
    result = make(tmp_path, "mps3-an524")
    assert result.returncode == 2
    assert "the arena does not fit into the RAM of this board: see export.py --schedule" in result.stderr
    (tmp_path / "net_golden").rename(tmp_path / "of rows")
    export(graph, tmp_path, "camera", images=1)
    assert make(tmp_path, "mps3-an524").returncode == 0


def test_mistakes_are_one_line(tmp_path):
    export(small_graph(), tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "images.bin").write_bytes(bytes(SIDE * SIDE * 3))
    (tmp_path / "other" / "logits.bin").write_bytes(bytes(2 * CLASSES))
    for variables, message in (
        ({"BOARD": "uno"}, "there is no BOARD=uno, but: mps2-an386"),
        ({"NET": tmp_path / "gone.c"}, "gone.c: python export.py CHECKPOINT --output firmware/net.c"),
        ({"NET": tmp_path / "net.h"}, "net.h: it must be a C file of export.py"),
        (
            {"GOLDEN": tmp_path / "gone"},
            "gone/logits.bin: python export.py CHECKPOINT --output firmware/net.c",
        ),
        ({"CC": "no-gcc"}, "no-gcc is missing: sudo apt install gcc-arm-none-eabi "),
        ({"QEMU": "no-qemu"}, "no-qemu is missing: sudo apt install gcc-arm-none-eabi "),
    ):
        result = make(tmp_path, **variables)
        assert result.returncode == 2 and result.stderr.count("\n") == 1, (variables, result.stderr)
        assert message in result.stderr and "***" in result.stderr
    result = make(tmp_path, GOLDEN=tmp_path / "other")
    assert result.returncode and "images.bin and logits.bin are not of this network\n" in result.stdout
    assert "run] Error 2" in result.stderr
