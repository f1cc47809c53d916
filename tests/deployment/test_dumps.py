"""Folders of dumps: in the layout of devices, written completely or not at all, checked when read."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.deployment import dumps, layers
from common.integer.graph import Graph
from common.system.errors import UserError
from tests.deployment.graphs import SIDE, small_graph

IMAGES = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def golden(tmp_path):
    dumps.write(tmp_path / "golden", "toy", small_graph(), IMAGES, "twice")
    return tmp_path / "golden"


def test_the_files_are_int8_with_channels_last(golden):
    expected = layers.of_graph(small_graph(), IMAGES, "twice")
    assert (golden / "stem.bin").read_bytes() == expected["stem"].transpose(0, 2, 3, 1).tobytes()
    assert (golden / "logits.bin").read_bytes() == expected["logits"].tobytes()
    manifest = json.loads((golden / "manifest.json").read_text())
    rows = manifest.pop("layers")
    assert manifest == {"network": "toy", "rounding": "twice", "images": 2}
    assert rows[1] == {
        "name": "stem", "operator": "Convolution", "shape": [7, 7, 8], "scale": float(np.float32(0.0231)),
        "zero_point": -128, "file": "stem.bin",
    }  # fmt: skip
    assert {row["file"] for row in rows} | {"manifest.json"} == {path.name for path in golden.iterdir()}


def test_what_is_written_is_read(golden):
    manifest = dumps.read_manifest(golden)
    assert (manifest.network, manifest.rounding) == ("toy", "twice")
    assert manifest.layers == {name: layer for name, (_, layer) in layers.in_graph(small_graph()).items()}
    values = dumps.read(golden, manifest)
    found = list(layers.differences(layers.of_graph(small_graph(), IMAGES, "twice"), values))
    assert len(found) == 8 and not any(each.count for each in found)


def test_a_device_may_have_some_layers_and_fewer_images(golden, capsys):
    for path in golden.glob("*.bin"):
        if path.stem not in ("stem", "logits"):
            path.unlink()
    (golden / "stem.bin").write_bytes((golden / "stem.bin").read_bytes()[: 7 * 7 * 8])
    (golden / "scratch.bin").write_bytes(b"1")
    values = dumps.read(golden, dumps.read_manifest(golden))
    assert {name: each.shape for name, each in values.items()} == {"stem": (1, 8, 7, 7), "logits": (2, 5)}
    assert capsys.readouterr().out == f"note: no layer of toy has the name of {golden}/scratch.bin\n"


def test_an_existing_folder_stays(tmp_path):
    (tmp_path / "golden").mkdir()
    with pytest.raises(UserError, match="golden exists: remove it, or name another folder"):
        dumps.write(tmp_path / "golden", "toy", small_graph(), IMAGES, "once")
    assert list(tmp_path.rglob("*")) == [tmp_path / "golden"]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    write, written = Path.write_bytes, []

    def fail_at_the_third(self, content):
        written.append(self)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", fail_at_the_third)
    with pytest.raises(UserError, match=r"cannot write .*golden: No space left on device"):
        dumps.write(tmp_path / "golden", "toy", small_graph(), IMAGES, "once")
    assert len(written) == 3 and list(tmp_path.iterdir()) == []


def test_a_name_that_leaves_the_folder_is_refused(tmp_path):
    graph = small_graph()
    first, *others = graph.operators
    renamed = replace(first.output, name="../stem")
    operators = [replace(first, output=renamed)]
    for each in others:
        inputs = tuple(renamed if tensor == first.output else tensor for tensor in each.inputs)
        operators.append(replace(each, inputs=inputs))
    with pytest.raises(UserError, match=r"'\.\./stem' has a name that no file can have"):
        dumps.write(tmp_path / "golden", "toy", Graph(graph.input, tuple(operators)), IMAGES, "once")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("stem", 500, r"stem.bin has 500 bytes, not 392 for each image: int8 \[7, 7, 8\]"),
        ("logits", 0, r"logits.bin has 0 bytes, not 5 for each image: int8 \[5\]"),
    ],
)
def test_a_file_of_another_size_is_refused(golden, name, size, message):
    (golden / f"{name}.bin").write_bytes(bytes(size))
    with pytest.raises(UserError, match=message):
        dumps.read(golden, dumps.read_manifest(golden))


def test_a_folder_without_dumps_is_refused(golden):
    for path in golden.glob("*.bin"):
        path.unlink()
    with pytest.raises(UserError, match=r"golden has no file of a layer, such as images\.bin"):
        dumps.read(golden, dumps.read_manifest(golden))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../stem"), ("name", 7), ("operator", 7), ("shape", [7, 7]), ("shape", [7.0, 7.0, 8.0]),
        ("shape", [0, 7, 8]), ("shape", "abc"), ("scale", -1), ("scale", "1"), ("zero_point", 128),
    ],
)  # fmt: skip
def test_a_wrong_row_of_a_manifest_is_refused(golden, key, value):
    content = json.loads((golden / "manifest.json").read_text())
    content["layers"][1][key] = value
    (golden / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"manifest\.json is not a manifest of export\.py --golden"):
        dumps.read_manifest(golden)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "7", "[" * 100_000, '{"layers": [], "network": "a", "rounding": "once"}', "\xff"]
)
def test_another_file_is_no_manifest(golden, text):
    (golden / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"manifest\.json is not a manifest of export\.py --golden"):
        dumps.read_manifest(golden)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no manifest\.json: copy that of export\.py --golden into it"):
        dumps.read_manifest(tmp_path)
