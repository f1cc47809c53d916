"""Layers of a network in C, counted on boards that QEMU emulates."""

import re
import shutil

import pytest

from common.cli import targets
from common.deployment import instructions
from common.system.errors import UserError
from tests.deployment.graphs import small_graph
from tests.scripts.test_firmware import MISSING, export, make

needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"there is no {' and no '.join(MISSING)}")


def test_the_option_names_the_cores_that_have_a_board():
    assert tuple(instructions.BOARDS) == targets.CORES


@needs_tools
@pytest.mark.parametrize("core", ["cortex-m7", "cortex-m55"])
def test_the_layers_of_a_network_have_its_instructions(core, tmp_path):
    graph = small_graph()
    counts = instructions.count(graph, [graph.input, *graph.operators], core)
    assert counts[0] == 0 and counts == instructions.count(graph, [graph.input, *graph.operators], core)
    # each layer alone has the count that it has among the others, but for the 40 instructions of a tick
    some = graph.operators[1:3]
    assert instructions.count(graph, some, core) == pytest.approx(counts[2:4], abs=80)
    export(graph, tmp_path, images=1)
    printed = make(tmp_path, instructions.BOARDS[core]).stdout
    (whole,) = re.findall(r"([\d,]+) instructions", printed)
    # the rest calls the layers: 3 % of this small network, less than 0.1 % of MobileNetV2
    assert 0.95 < sum(counts) / int(whole.replace(",", "")) < 1


@pytest.mark.parametrize("there", [[], ["make", "which"]])
def test_without_the_tools_one_line_tells_what_is_missing(there, tmp_path, monkeypatch):
    for tool in there:
        if not (found := shutil.which(tool)):
            pytest.skip(f"there is no {tool}")
        (tmp_path / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    instructions.compiler.cache_clear()
    assert instructions.compiler() == ""
    instructions.compiler.cache_clear()
    graph = small_graph()
    with pytest.raises(
        UserError, match="on cortex-m7 cannot be counted: .*" + ("missing" if there else "make")
    ) as error:
        instructions.count(graph, graph.operators[:1], "cortex-m7")
    assert "\n" not in str(error.value)


@needs_tools
def test_a_network_that_does_not_fit_on_the_board_is_an_error_in_one_line(monkeypatch):
    written = instructions.c_writer.write

    def large(*args):
        result = written(*args)
        source = result.source.replace("int8_t bytes[", "int8_t bytes[5000000 + ")
        return type(result)(source, result.header, result.ram, result.flash)

    monkeypatch.setattr(instructions.c_writer, "write", large)
    graph = small_graph()
    with pytest.raises(UserError, match=r"cortex-m7 cannot be counted: .*does not fit") as error:
        instructions.count(graph, graph.operators[:1], "cortex-m7")
    assert "\n" not in str(error.value)
