"""Damaged and hostile files, and any name of a checkpoint: an error of one line, never a traceback."""

import os
import pickle
import random
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common.compression import int8_state, quantization
from common.compression.target_devices import TARGET_DEVICES
from common.models import architectures, checkpoint
from common.system import files
from common.system.errors import UserError
from tests.models.test_checkpoint import content
from tests.models.test_schema import ROW

MUTATIONS = 2000
QUICK = settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one damage: a flipped bit, or bytes that are replaced, removed, inserted or moved."""
    text, start = bytearray(data), rng.randrange(len(data))
    length = min(len(data) - start, rng.choice((1, 2, 8, 64, 512, 4096)))
    match rng.randrange(7):
        case 0:
            text[start] ^= 1 << rng.randrange(8)
        case 1:
            text[start : start + length] = rng.randbytes(length)
        case 2:
            text[start : start + length] = bytes(length)
        case 3:
            del text[start : start + length]
        case 4:
            text[start:start] = rng.randbytes(length)
        case 5:
            del text[start:]
        case 6:
            other = rng.randrange(len(data))
            text[start : start + length] = data[other : other + length]
    return bytes(text)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a float and of an int8 checkpoint, small enough to be read thousands of times."""
    folder = tmp_path_factory.mktemp("saved")
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 3),
    )
    torch.manual_seed(0)
    prepared = quantization.prepare(model, TARGET_DEVICES["embedded"], 16)
    quantization.calibrate(prepared, [(torch.randn(2, 3, 16, 16), None)], torch.device("cpu"), 1)
    int8 = {
        "state_dict": int8_state.extract(quantization.convert(prepared).int8),
        "int8": {"backend": "qnnpack", "float_shapes": architectures.shapes(model)},
    }
    saved = {}
    for name, changes in (("float", {"state_dict": checkpoint.float_state(model)}), ("int8", int8)):
        path = checkpoint.save(content(**changes, lineage=[ROW]), folder)
        saved[name] = path.read_bytes()
    return saved


def same(one, other) -> bool:
    return files.checksum(one) == files.checksum(other)


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_a_damaged_checkpoint_is_refused_or_has_its_original_content(saved, tmp_path, kind):
    """A zip file has bytes without meaning: damage only there is not noticed."""
    path, rng, refused = tmp_path / "kd_x_0.5000.pt", random.Random(0), 0
    path.write_bytes(saved[kind])
    original = checkpoint.load(path)
    for _ in range(MUTATIONS // 2):
        path.write_bytes(mutated(saved[kind], rng))
        try:
            assert same(checkpoint.load(path), original)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
    assert refused > 0.7 * MUTATIONS / 2


class Hostile:
    """An object whose pickle would create a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def _raw_pickle(path, folder):
    path.write_bytes(pickle.dumps({"format": 2, "state_dict": Hostile(folder)}))


def _torch_pickle(path, folder):
    torch.save({"format": 2, "state_dict": Hostile(folder)}, path)


def _old_torch_pickle(path, folder):
    torch.save({"format": 2, "state_dict": Hostile(folder)}, path, _use_new_zipfile_serialization=False)


def _script(path, _):
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)


def _module(path, _):
    torch.save(torch.nn.Linear(2, 2), path)


def _compressed(path, _):
    torch.save({"format": 2, "state_dict": {"x": torch.zeros(10**7)}}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    assert path.stat().st_size < 10**6


@pytest.mark.parametrize(
    "write", [_raw_pickle, _torch_pickle, _old_torch_pickle, _script, _module, _compressed]
)
def test_files_that_would_run_code_or_fill_the_memory_are_refused(tmp_path, write):
    path = tmp_path / "kd_x_0.5000.pt"
    write(path, tmp_path / "executed")
    with pytest.raises(UserError, match=r"it holds Python objects|is damaged or not a file|of TorchScript"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()


def test_an_expanded_tensor_has_no_correct_checksum(tmp_path):
    path = tmp_path / "kd_x_0.5000.pt"
    torch.save(content() | {"state_dict": {"x": torch.zeros(1).expand(10**9, 10**9)}, "checksum": "0"}, path)
    with pytest.raises(UserError, match="its content does not match its checksum"):
        checkpoint.load(path)


def test_files_of_format_1_are_read_and_later_ones_need_a_checksum(tmp_path):
    path = tmp_path / "kd_x_0.5000.pt"
    torch.save(content(format=1), path)
    assert checkpoint.load(path)["format"] == 1
    torch.save(content(format=2), path)
    with pytest.raises(UserError, match="it has no checksum"):
        checkpoint.load(path)


@QUICK
@given(st.text())
@example("x" * 5000)
@example("\0")
@example("../" * 50)
def test_any_name_finds_a_checkpoint_or_lists_those_that_exist(tmp_path, name):
    (tmp_path / "kd_resnet18_0.5000.pt").touch()
    try:
        assert checkpoint.find(name, tmp_path).is_file()
    except UserError as error:
        assert "kd_resnet18_0.5000.pt" in str(error)
