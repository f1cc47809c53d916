"""Damaged, foreign and hostile files, names and options: refused in one line, never with a traceback."""

import contextlib
import io
import math
import os
import pickle
import random
import zipfile

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import train_pruning
import train_quantization
import train_student
import train_teacher
from common.cli.parser import Parser
from common.compression import quantization
from common.models import architectures, checkpoint, lineage
from common.system import files
from common.system.errors import UserError
from tests.test_checkpoint import content

MUTATIONS = 2000
ROW = {"options": {"lr": 0.1}, "split": "x", "parent": None, "parent_sha256": None}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one kind of damage: a bit, a byte, a stretch of them changed, moved, left out or put in."""
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
    """The bytes of a float and of an int8 checkpoint, small enough to be read hundreds of times."""
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
    prepared = quantization.prepare(model, "qnnpack", 16)
    quantization.calibrate(prepared, [(torch.randn(2, 3, 16, 16), None)], torch.device("cpu"), 1)
    int8 = {
        "state_dict": quantization.int8_state(quantization.convert(prepared).int8),
        "int8": {"backend": "qnnpack", "float_shapes": architectures.shapes(model)},
    }
    made = {}
    for name, changes in (("float", {"state_dict": checkpoint.float_state(model)}), ("int8", int8)):
        path = checkpoint.save(content(**changes, lineage=[ROW]), folder)
        made[name] = path.read_bytes()
    return made


def same(one, other) -> bool:
    return files.checksum(one) == files.checksum(other)


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_a_damaged_checkpoint_is_refused_or_is_what_was_written(saved, tmp_path, kind):
    """A zip file has bytes that mean nothing: damage there alone may pass."""
    path, rng, refused = tmp_path / "kd_x_0.5000.pt", random.Random(0), 0
    path.write_bytes(saved[kind])
    whole = checkpoint.load(path)
    for _ in range(MUTATIONS // 2):
        path.write_bytes(mutated(saved[kind], rng))
        try:
            assert same(checkpoint.load(path), whole)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
    assert refused > 0.7 * MUTATIONS / 2


class Runs:
    """A pickle that would make a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def _raw_pickle(path, place):
    path.write_bytes(pickle.dumps({"format": 2, "state_dict": Runs(place)}))


def _torch_pickle(path, place):
    torch.save({"format": 2, "state_dict": Runs(place)}, path)


def _old_torch_pickle(path, place):
    torch.save({"format": 2, "state_dict": Runs(place)}, path, _use_new_zipfile_serialization=False)


def _script(path, _):
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)


def _module(path, _):
    torch.save(torch.nn.Linear(2, 2), path)


def _packed(path, _):
    torch.save({"format": 2, "state_dict": {"x": torch.zeros(10**7)}}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    assert path.stat().st_size < 10**6


@pytest.mark.parametrize("write", [_raw_pickle, _torch_pickle, _old_torch_pickle, _script, _module, _packed])
def test_what_would_run_code_or_fill_the_memory_is_refused(tmp_path, write):
    path = tmp_path / "kd_x_0.5000.pt"
    write(path, tmp_path / "executed")
    with pytest.raises(UserError, match=r"is refused: it holds Python objects|is damaged or not a file"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../../elsewhere"}, "its name or its stage"),
        ({"stage": "finished"}, "its name or its stage"),
        ({"classes": ["cat", 3, "fox"]}, "its classes"),
        ({"classes": ["cat", "cat", "fox"]}, "its classes"),
        ({"image_size": 10**9}, "its image size"),
        ({"mean": [0.5, math.nan, 0.5]}, "its image size or normalisation"),
        ({"std": [0.5, 0.0, 0.5]}, "its image size or normalisation"),
        ({"metrics": {"top1": 10**400, "ci95": [0, 1], "n": 1, "params": 1, "macs": 1}}, "its metrics"),
        ({"metrics": {"top1": "1", "ci95": [0, 1], "n": 1, "params": 1, "macs": 1}}, "its metrics"),
        ({"lineage": ["teacher"]}, "its lineage"),
        ({"lineage": [ROW | {"options": None}]}, "its lineage"),
        ({"lineage": [{"options": {}, "split": "x"}]}, "its lineage"),
        ({"state_dict": {3: torch.zeros(1)}}, "its weights"),
        ({"int8": {"backend": "qnnpack"}}, "its int8 part"),
        ({"int8": {"backend": "qnnpack", "float_shapes": {"x": 5}}}, "its int8 part"),
        (
            {"int8": {"backend": "qnnpack", "float_shapes": {"x": [9**9, 9], "y": [-(9**9), 9]}}},
            "its int8 part",
        ),
        ({"int8": {"backend": "qnnpack", "float_shapes": {"x": [10**6, 10**6]}}}, "larger than the file"),
    ],
)
def test_content_that_no_stage_writes_is_refused_even_with_a_right_checksum(tmp_path, changes, message):
    path = tmp_path / "kd_x_0.5000.pt"
    files.save_checked(content(**changes), path)
    with pytest.raises(UserError, match=message):
        checkpoint.load(path)


def test_values_that_take_no_memory_have_no_right_checksum(tmp_path):
    path = tmp_path / "kd_x_0.5000.pt"
    torch.save(content() | {"state_dict": {"x": torch.zeros(1).expand(10**9, 10**9)}, "checksum": "0"}, path)
    with pytest.raises(UserError, match="not what its checksum says"):
        checkpoint.load(path)


def test_files_of_the_first_format_are_read_and_a_missing_checksum_is_noticed(tmp_path):
    path = tmp_path / "kd_x_0.5000.pt"
    torch.save(content(format=1), path)
    assert checkpoint.load(path)["format"] == 1
    torch.save(content(format=2), path)
    with pytest.raises(UserError, match="it has no checksum"):
        checkpoint.load(path)


def test_the_checksum_follows_every_value_and_not_how_it_lies_in_memory():
    one = {"a": torch.arange(6.0).view(2, 3), "b": [1, "x", None, True], "c": {"d": 0.5}}
    assert files.checksum(one) == files.checksum(one | {"a": one["a"].t().contiguous().t()})
    assert files.checksum(one) == files.checksum(
        one | {"a": torch.arange(12.0).view(2, 6)[:, :3] * 0 + one["a"]}
    )
    for change in (
        {"a": one["a"].view(3, 2)}, {"a": one["a"].double()}, {"a": -one["a"]}, {"b": (1, "x", None, True)},
        {"b": [1, "x", None, 1]}, {"b": ["1", "x", None, True]}, {"c": {"d": 0.25}}, {"c": {"e": 0.5}},
        {"z": 0},
    ):  # fmt: skip
        assert files.checksum(one) != files.checksum(one | change)


SCRIPTS = {
    train_teacher: ["--teacher", "resnet18"],
    train_student: ["--teacher", "a", "--student", "b"],
    train_pruning: ["--weights", "a"],
    train_quantization: ["--weights", "a"],
}
QUICK = settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def parsed(script, arguments):
    """The namespace, or None where the arguments were refused, which must be in one line."""
    error, output = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(output):
        try:
            return script.parse_args(arguments)
        except SystemExit as stop:
            if stop.code:  # --help ends with 0
                assert stop.code == 2 and error.getvalue().count("\n") == 1, error.getvalue()
                assert ": error: " in error.getvalue()
            return None


def option_names(script):
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        patch.setattr(Parser, "parse_args", lambda self, _: seen.extend(self._option_string_actions))
        script.parse_args([])
    return sorted(seen)


@QUICK
@given(st.data())
def test_any_value_of_any_option_is_taken_or_refused_in_one_line(data):
    script = data.draw(st.sampled_from(list(SCRIPTS)))
    option = data.draw(st.sampled_from(option_names(script)))
    value = data.draw(st.one_of(st.text(), st.floats().map(str), st.integers().map(str)))
    parsed(script, [*SCRIPTS[script], f"{option}={value}"])


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.dates())


@QUICK
@given(st.data())
@example(None)
def test_any_config_is_taken_or_refused_in_one_line(tmp_path, data):
    path = tmp_path / "config.yaml"
    script = train_teacher
    if data is None:
        text = "epochs: 2001-99-99"
    else:
        script = data.draw(st.sampled_from(list(SCRIPTS)))
        names = st.one_of(st.text(), st.sampled_from([name[2:] for name in option_names(script)]))
        values = st.recursive(
            PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=4
        )
        mapping = st.dictionaries(names, values, max_size=4).map(
            lambda given: yaml.safe_dump(given, allow_unicode=True)
        )
        text = data.draw(st.one_of(st.text(), mapping))
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    parsed(script, [*SCRIPTS[script], "--config", str(path)])


@QUICK
@given(st.text())
@example("x" * 5000)
@example("\0")
@example("../" * 50)
def test_any_name_of_a_checkpoint_finds_one_or_says_what_there_is(tmp_path, name):
    (tmp_path / "kd_resnet18_0.5000.pt").touch()
    try:
        assert checkpoint.find(name, tmp_path).is_file()
    except UserError as error:
        assert "kd_resnet18_0.5000.pt" in str(error)


@QUICK
@given(st.text(), st.sampled_from(["teacher", "kd", "pruned", "quantized"]))
@example("x" * 300, "quantized")
def test_any_model_name_that_is_taken_can_stand_in_a_file_name(tmp_path, name, stage):
    args = parsed(train_teacher, ["--teacher", "x", f"--model-name={name}"])
    if args is not None:
        made = lineage.next_name(stage, "kd_resnet18", args.model_name)
        path = tmp_path / f"{made}_0.5000.pt"
        path.touch()
        assert path.parent == tmp_path and checkpoint.find(made, tmp_path) == path
        path.unlink()
