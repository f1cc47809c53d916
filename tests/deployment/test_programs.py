"""The program of docs/DEPLOY.md, run without torch and without this repository."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from common.data.loaders import eval_loader
from common.deployment import onnx_model
from tests.compression.networks import EMBEDDED, float_fake_quant_int8
from tests.conftest import REPOSITORY
from tests.deployment.contents import content_of

pytestmark = pytest.mark.usefixtures("shallow_networks")

NEEDED = (
    "numpy",
    "PIL",
    "onnxruntime",
    "flatbuffers",
    "google",
    "packaging",
)  # the last three by onnxruntime
CLASSIFY = REPOSITORY / "docs" / "deploy" / "classify.py"


@pytest.fixture
def classify(tmp_path):
    """classify(*arguments): runs classify.py with only the packages that it needs."""
    site = tmp_path / "site"
    site.mkdir()
    for name in NEEDED:
        package = Path(importlib.util.find_spec(name).submodule_search_locations[0])
        (site / name).symlink_to(package)
        if (libraries := package.parent / f"{'pillow' if name == 'PIL' else name}.libs").exists():
            (site / libraries.name).symlink_to(libraries)

    def run(*arguments):
        program = (
            f"import sys, runpy; sys.path[:0] = [{str(site)!r}]; sys.argv = {list(map(str, arguments))!r}\n"
            "try:\n    import torch\nexcept ImportError:\n    pass\nelse:\n    sys.exit('torch is here')\n"
            f"sys.argv.insert(0, 'classify.py'); runpy.run_path({str(CLASSIFY)!r}, run_name='__main__')"
        )
        command = [sys.executable, "-I", "-S", "-c", program]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An int8 ONNX file, which the program only reads, and the content of its checkpoint."""
    path = tmp_path_factory.mktemp("exported") / "m.onnx"
    model, _, int8_model = float_fake_quant_int8("squeezenet1_1", EMBEDDED)
    content = content_of("squeezenet1_1", model, int8_model, EMBEDDED)
    with onnx_model.export(content, int8_model, path):
        pass
    path.chmod(0o444)
    return path, content


def test_it_prints_the_probabilities_that_the_project_computes(classify, exported, tmp_path):
    path, content = exported
    samples = []
    for number, size in enumerate([(90, 130), (201, 99), (73, 73)]):
        noise = Image.effect_noise(size, 90).convert("L")
        samples.append((tmp_path / f"p{number}.png", 0))
        image = Image.merge("RGB", [noise, noise.rotate(90).resize(size), noise.rotate(180)])
        exif = Image.Exif()
        exif[0x0112] = (1, 8, 3)[number]  # upright, rotated by a quarter, upside down
        if number == 2:
            image.putalpha(noise)
        image.save(samples[-1][0], exif=exif)
    done = classify(path, *(sample for sample, _ in samples))
    assert done.returncode == 0, done.stderr
    images = next(iter(eval_loader(samples, content)))[0]
    expected = onnx_model.OnnxModel(path)(images).softmax(1)
    blocks = done.stdout.strip().split("\n")
    for number, probabilities in enumerate(expected):
        name, *lines = blocks[6 * number : 6 * number + 6]
        assert name == str(samples[number][0])
        printed = {line.split("%", 1)[1].strip(): float(line.split("%")[0]) / 100 for line in lines}
        correct = dict(zip(content["classes"], probabilities.tolist(), strict=True))
        assert printed == pytest.approx(correct, abs=6e-5)


def test_a_broken_image_is_one_line_and_the_others_are_classified(classify, exported, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (80, 80)).save(tmp_path / "black.png")
    done = classify(exported[0], tmp_path / "broken.jpg", tmp_path / "black.png")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "broken.jpg" in done.stderr
    assert "black.png" in done.stdout and done.stdout.count("%") == 5


def test_a_file_that_is_no_model_is_one_line(classify, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    done = classify(tmp_path / "m.onnx", tmp_path / "a.png")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot use" in done.stderr


@pytest.mark.parametrize(
    ("flags", "overflow"),
    [
        ("flags : avx2 avx512f", True),
        ("flags : avx2 avx512_vnni fma", False),
        ("flags : avx_vnni", False),
        ("flags : amx_int8", False),
        (None, True),
    ],
)
def test_it_asks_for_exact_sums_unless_the_cpu_has_vnni(exported, monkeypatch, flags, overflow):
    def read(_path):
        if flags is None:
            raise FileNotFoundError
        return flags

    spec = importlib.util.spec_from_file_location("classify", CLASSIFY)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.setattr(Path, "read_text", read)
    session, _ = program.load(exported[0])
    try:
        setting = session.get_session_options().get_session_config_entry("session.x64quantprecision")
    except RuntimeError:  # it is not set
        setting = None
    assert setting == ("1" if overflow else None)
