import json
import os
import shutil

import pytest
import torch
from PIL import Image

import export
import train_quantization
import train_teacher
from common.data.images import read_image
from common.data.transforms import eval_transform
from common.models import checkpoint
from tests.conftest import write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def place(pictures, tmp_path_factory):
    """A folder with a resnet of cat, dog and fox that tells their colours apart, its int8 form, its ONNX
    file.
    """
    folder = tmp_path_factory.mktemp("weights")
    where = ("--dataset", "folder", "--data-dir", pictures, "--output-dir", folder, "--workers", 0)
    training = (*where, "--batch-size", 8, "--image-size", 40, "--lr", 0.001)
    for script, *options in (
        (train_teacher, "--teacher", "resnet18", "--pretrained", "none", "--epochs", 3, *training),
        (train_quantization, "--weights", "resnet18", "--epochs", 0, *training),
        (export, "quantized_resnet18", "--output", folder / "m.onnx", *where),
    ):
        script.main(script.parse_args(list(map(str, options))))
    return folder


@pytest.fixture
def odd(pictures, tmp_path):
    """One fox (blue) in every form that a picture comes in."""
    folder = tmp_path / "odd"
    (folder / "deeper").mkdir(parents=True)
    fox = Image.open(pictures / "test" / "fox" / "fox0.jpg").convert("RGB")
    cat = Image.open(pictures / "test" / "cat" / "cat0.jpg").convert("RGB")
    fox.save(folder / "a.jpg")
    fox.save(folder / "b.webp")
    fox.save(folder / "c.gif", save_all=True, append_images=[cat])
    fox.convert("CMYK").save(folder / "d.jpg")
    fox.convert("RGBA").save(folder / "e.png")
    fox.convert("P").save(folder / "deeper" / "f.PNG")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_every_kind_of_picture_and_of_model(run, place, odd):
    for model in ("teacher_resnet18", "quantized_resnet18", place / "m.onnx"):
        result = run("predict", model, odd, "--json", "--output-dir", place)
        assert result.code == 0, result.err
        answers = json.loads(result.out)
        assert [answer["path"] for answer in answers] == [
            str(odd / name) for name in ("a.jpg", "b.webp", "c.gif", "d.jpg", "e.png", "deeper/f.PNG")
        ]
        for answer in answers:
            assert answer["classes"][0]["class"] == "fox"
            assert sum(each["probability"] for each in answer["classes"]) == pytest.approx(1)


def test_the_answer_is_that_of_the_model(run, place, pictures):
    path = pictures / "test" / "dog" / "dog1.jpg"
    content = checkpoint.load(checkpoint.find("teacher_resnet18", place))
    with torch.inference_mode():
        logits = checkpoint.rebuild(content).eval()(eval_transform(Image.open(path), content))
    wanted = float(logits.softmax(1)[0, 1])
    result = run("predict", "resnet18", path, "--json", "--output-dir", place)
    (answer,) = json.loads(result.out)
    assert answer["classes"][0] == {"class": "dog", "probability": pytest.approx(wanted, abs=1e-5)}


def test_text_names_the_likeliest_and_a_broken_picture_is_one_line(run, place, odd, tmp_path):
    (odd / "broken.jpg").write_bytes((odd / "a.jpg").read_bytes()[:400])
    (odd / "empty.png").touch()
    result = run("predict", "resnet18", odd, tmp_path / "none.jpg", "--top", 2, "--output-dir", place)
    lines = result.out.splitlines()
    assert len(lines) == 6 * 3 and lines[0] == str(odd / "a.jpg") and lines[1].endswith("%  fox")
    assert result.code == 2
    broken = (odd / "broken.jpg", odd / "empty.png", tmp_path / "none.jpg")
    assert [line.split(":")[1] for line in result.err.splitlines()] == [
        f" cannot read the picture {path}" for path in broken
    ]


def test_names_that_are_no_text_or_hold_line_breaks(run, place, odd, tmp_path):
    folder = tmp_path / "names"
    folder.mkdir()
    try:
        shutil.copy(odd / "a.jpg", folder / os.fsdecode(b"caf\xe9.jpg"))
        (folder / "new\nline.jpg").write_bytes(b"no picture")
    except OSError:
        pytest.skip("this file system has no such names")
    result = run("predict", "resnet18", folder, "--json", "--output-dir", place)
    assert [answer["path"] for answer in json.loads(result.out)] == [f"{folder}/caf\udce9.jpg"]
    assert result.code == 2 and result.err == (
        f"predict.py: cannot read the picture {folder}/new line.jpg: it is of no known format\n"
    )


def test_the_pictures_are_drawn_with_their_labels(run, place, odd, tmp_path):
    result = run("predict", "resnet18", odd, "--save", tmp_path / "p.png", "--output-dir", place)
    assert result.code == 0 and "6 of 6 pictures" in result.err
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 1000


def test_mistakes_end_in_one_line(run, place, tmp_path):
    (tmp_path / "hollow").mkdir()
    picture = tmp_path / "odd.jpg"
    Image.new("RGB", (9, 9)).save(picture)
    for arguments, expected in (
        (("resnet18", tmp_path / "hollow"), "there is no picture in"),
        (("resnet50", picture), "no checkpoint 'resnet50'"),
        (("nowhere.onnx", picture), "nowhere.onnx"),
        (("resnet18", picture, "--save", "p.jpg"), "must end in .png or .svg"),
        (("resnet18", picture, "--save", tmp_path / "no" / "p.png"), "there is no folder"),
        (("resnet18", picture, "--top", 0), "at least 1"),
    ):
        result = run("predict", *arguments, "--output-dir", place)
        assert result.code == 2 and expected in result.err and result.err.count("\n") == 1, result.err


def test_a_picture_is_upright_and_transparent_parts_are_white(tmp_path):
    left_red = Image.new("RGB", (40, 20), "blue")
    left_red.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    left_red.save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "turned.png")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (255, 0, 0) and upright.getpixel((10, 35)) == (0, 0, 255)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)
