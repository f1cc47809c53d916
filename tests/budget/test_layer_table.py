import json

import numpy as np
import pytest

from common.budget import layer_table
from common.budget.layer_table import LayerTable, key_of
from common.integer import operators as ops
from common.integer.graph import Graph
from tests.integer.graphs import values, weighted

IMAGE = values((3, 4, 4))
FIRST = ops.Convolution((IMAGE,), values((8, 4, 4), name="first"), **weighted(np.ones((8, 3, 1, 1))))
SECOND, THIRD = (
    ops.Convolution((source,), values((8, 4, 4), name=name), **weighted(np.ones((8, 8, 1, 1))))
    for source, name in ((FIRST.output, "second"), (values((8, 4, 4), name="second"), "third"))
)
GRAPH = Graph(IMAGE, (FIRST, SECOND, THIRD))
COSTS = {"x": 100.0, "first": 20.0, "second": 3.0, "third": 3.0}


class Ruler:
    """Measures by the name of the output, in place of a runtime; `calls` has the names of each call."""

    def __init__(self):
        self.calls = []

    def __call__(self, graph, parts):
        assert graph == GRAPH
        names = [getattr(part, "output", part).name for part in parts]
        self.calls.append(names)
        return [COSTS[name] for name in names]


def test_each_shape_is_measured_once_and_kept(tmp_path):
    ruler = Ruler()
    assert LayerTable(tmp_path, "Abacus 1.0, 2 thread(s)", ruler).total(GRAPH) == 126
    assert ruler.calls == [["x", "first", "third"]]  # which has the shape of the second
    assert LayerTable(tmp_path, "Abacus 1.0, 2 thread(s)", ruler).total(GRAPH) == 126
    assert len(ruler.calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["costs-abacus-1.0-2-thread-s.json"]
    # other conditions have another table
    assert LayerTable(tmp_path, "Abacus 1.0, 1 thread(s)", ruler).total(GRAPH) == 126
    assert len(ruler.calls) == 2


def test_what_another_process_has_measured_is_not_lost(tmp_path):
    both = [LayerTable(tmp_path, "Abacus", Ruler()) for _ in range(2)]
    both[0].costs = {"of another network": 5.0}
    both[0]._write()
    both[1].total(GRAPH)
    assert LayerTable(tmp_path, "Abacus", Ruler()).costs["of another network"] == 5


def test_a_table_of_another_version_is_replaced_and_any_serves_without_one(tmp_path):
    ruler = Ruler()
    LayerTable(tmp_path, "Abacus", ruler, "12.2").total(GRAPH)
    LayerTable(tmp_path, "Abacus", ruler, "").total(GRAPH)
    assert len(ruler.calls) == 1
    LayerTable(tmp_path, "Abacus", ruler, "13.1").total(GRAPH)
    assert len(ruler.calls) == 2


@pytest.mark.parametrize("damaged", [b"", b'{"', b"\xff\xfe", b"[]", b"null", b'{"costs": {"x": []}}'])
def test_a_damaged_table_counts_as_empty(tmp_path, damaged):
    ruler = Ruler()
    table = LayerTable(tmp_path, "Abacus", ruler)
    table.path.write_bytes(damaged)
    assert LayerTable(tmp_path, "Abacus", ruler).total(GRAPH) == 126
    assert json.loads(table.path.read_text())["conditions"] == "Abacus"


def test_layers_with_other_costs_have_other_keys():
    assert key_of(IMAGE) == "image 3x4x4"
    assert key_of(FIRST) == (
        "Convolution 3x4x4 > 8x4x4, stride 1x1, padding 0x0x0x0, dilation 1x1, groups 1, relu False, "
        "weight 8x3x1x1"
    )
    pooled = values((3, 2, 2), name="y")
    assert key_of(ops.MaxPool((IMAGE,), pooled, (2, 2), (2, 2))) == (
        "MaxPool 3x4x4 > 3x2x2, kernel 2x2, stride 2x2, padding 0x0x0x0"
    )
    functions = [
        ops.Table((IMAGE,), values((3, 4, 4), name="y"), name, np.zeros(256, np.int8))
        for name in ("sigmoid", "tanh")
    ]
    assert len({key_of(each) for each in functions}) == 2
    assert key_of(ops.Add((IMAGE, IMAGE), values((3, 4, 4), name="y"))).startswith("Add 3x4x4, 3x4x4 > 3x4x4")


def test_the_table_of_a_core_needs_no_emulator_for_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(layer_table.instructions, "compiler", lambda: "12.2")
    known = layer_table.open_table("instructions:cortex-m7", "int8", 1, tmp_path)
    known.measure = Ruler()
    known.total(GRAPH)
    monkeypatch.setattr(layer_table.instructions, "compiler", lambda: "")
    assert layer_table.open_table("instructions:cortex-m7", "int8", 1, tmp_path).total(GRAPH) == 126
