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
from common.evaluation import plots
from common.models import checkpoint
from tests.conftest import write_images

pytestmark = pytest.mark.usefixtures("shallow_networks")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def place(shallow_networks, images, tmp_path_factory):
    """A folder with a resnet that distinguishes the colors of cat, dog and fox, in float, int8 and ONNX."""
    folder = tmp_path_factory.mktemp("weights")
    where = ("--dataset", "folder", "--data-dir", images, "--output-dir", folder, "--workers", 0)
    training = (*where, "--cache", "off", "--batch-size", 8, "--image-size", 40, "--lr", 0.001)
    for script, *options in (
        (train_teacher, "--teacher", "resnet18", "--pretrained", "none", "--epochs", 3, *training),
        (train_quantization, "--weights", "resnet18", "--epochs", 0, *training),
        (export, "quantized_resnet18", "--output", folder / "m.onnx", *where),
    ):
        script.main(script.parse_args(list(map(str, options))))
    return folder


@pytest.fixture
def odd(images, tmp_path):
    """One fox (blue) in every form that an image file can have."""
    folder = tmp_path / "odd"
    (folder / "deeper").mkdir(parents=True)
    fox = Image.open(images / "test" / "fox" / "fox0.jpg").convert("RGB")
    cat = Image.open(images / "test" / "cat" / "cat0.jpg").convert("RGB")
    fox.save(folder / "a.jpg")
    fox.save(folder / "b.webp")
    fox.save(folder / "c.gif", save_all=True, append_images=[cat])
    fox.convert("CMYK").save(folder / "d.jpg")
    fox.convert("RGBA").save(folder / "e.png")
    fox.convert("P").save(folder / "deeper" / "f.PNG")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_checkpoint_beside_the_scripts_is_found_from_another_folder(run, place, odd, tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "weights").symlink_to(place)
    monkeypatch.setattr(checkpoint, "SCRIPTS", tmp_path / "scripts")
    monkeypatch.chdir(odd)
    result = run("predict", "teacher_resnet18", "a.jpg", "--json")
    assert (result.code, result.err) == (0, "")
    (prediction,) = json.loads(result.out)
    assert prediction["path"] == "a.jpg" and prediction["classes"][0]["class"] == "fox"
    # the note on a name that is not complete does not disturb the JSON
    result = run("predict", "teacher_res", "a.jpg", "--json")
    assert json.loads(result.out) == [prediction] and "note: 'teacher_res' is not a full name" in result.err
    # what is found nowhere is looked up in both folders
    result = run("predict", "vgg", "a.jpg")
    assert result.code == 2 and f"in {odd}/weights: none yet; in {tmp_path}/scripts/weights: " in result.err


def test_every_kind_of_image_and_of_model(run, place, odd):
    for model in ("teacher_resnet18", "quantized_resnet18", place / "m.onnx"):
        result = run("predict", model, odd, "--json", "--output-dir", place)
        assert result.code == 0, result.err
        predictions = json.loads(result.out)
        assert [prediction["path"] for prediction in predictions] == [
            str(odd / name) for name in ("a.jpg", "b.webp", "c.gif", "d.jpg", "e.png", "deeper/f.PNG")
        ]
        for prediction in predictions:
            assert prediction["classes"][0]["class"] == "fox"
            assert sum(each["probability"] for each in prediction["classes"]) == pytest.approx(1)


def test_the_prediction_is_that_of_the_model(run, place, images):
    path = images / "test" / "dog" / "dog1.jpg"
    content = checkpoint.load(checkpoint.find("teacher_resnet18", place))
    with torch.inference_mode():
        logits = checkpoint.rebuild(content).eval()(eval_transform(Image.open(path), content))
    expected = float(logits.softmax(1)[0, 1])
    result = run("predict", "resnet18", path, "--json", "--output-dir", place)
    (prediction,) = json.loads(result.out)
    assert prediction["classes"][0] == {"class": "dog", "probability": pytest.approx(expected, abs=1e-5)}


def test_the_text_has_the_top_k_and_a_broken_image_is_one_line(run, place, odd, tmp_path):
    (odd / "broken.jpg").write_bytes((odd / "a.jpg").read_bytes()[:400])
    (odd / "empty.png").touch()
    result = run("predict", "resnet18", odd, tmp_path / "none.jpg", "--top", 2, "--output-dir", place)
    lines = result.out.splitlines()
    assert len(lines) == 6 * 3 and lines[0] == str(odd / "a.jpg") and lines[1].endswith("%  fox")
    assert result.code == 2
    broken = (odd / "broken.jpg", odd / "empty.png", tmp_path / "none.jpg")
    assert [line.split(":")[1] for line in result.err.splitlines()] == [
        f" cannot read the image {path}" for path in broken
    ]


def test_photos_in_a_folder_that_cannot_be_read_are_counted_on_stderr(run, place, odd):
    for name in ("x.HEIC", "deeper/y.heic", "z.dng"):
        (odd / name).touch()
    result = run("predict", "resnet18", odd, "--json", "--output-dir", place)
    assert result.code == 0 and len(json.loads(result.out)) == 6
    assert result.err.startswith("note: 3 photos are left out") and result.err.count("\n") == 1
    assert "2 .heic (pillow-heif reads them), 1 .dng (rawpy reads them)" in result.err
    (odd / "deeper" / "f.PNG").unlink()
    result = run("predict", "resnet18", odd / "deeper", "--output-dir", place)
    assert result.code == 2 and "there is no image in" in result.err and "1 .heic" in result.err


def test_names_that_are_no_text_or_contain_line_breaks(run, place, odd, tmp_path):
    folder = tmp_path / "names"
    folder.mkdir()
    try:
        shutil.copy(odd / "a.jpg", folder / os.fsdecode(b"caf\xe9.jpg"))
        (folder / "new\nline.jpg").write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system has no such names")
    result = run("predict", "resnet18", folder, "--json", "--output-dir", place)
    assert [prediction["path"] for prediction in json.loads(result.out)] == [f"{folder}/caf\udce9.jpg"]
    assert result.code == 2 and result.err == (
        f"predict.py: cannot read the image {folder}/new line.jpg: its format is unknown\n"
    )


def test_the_images_are_drawn_with_their_predictions(run, place, odd, tmp_path):
    result = run("predict", "resnet18", odd, "--save", tmp_path / "p.png", "--output-dir", place)
    assert result.code == 0 and "6 of 6 images" in result.err
    with Image.open(tmp_path / "p.png") as image:
        assert image.width > 1000


def test_large_images_are_kept_small_until_they_are_drawn(run, place, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "draw_predictions", lambda images, path: drawn.extend(images))
    for name, size in (("a.png", (1300, 650)), ("b.png", (30, 20))):
        Image.new("RGB", size).save(tmp_path / name)
    options = ("--save", tmp_path / "p.png", "--output-dir", place)
    assert run("predict", "resnet18", tmp_path / "a.png", tmp_path / "b.png", *options).code == 0
    assert [image.size for image, _, _ in drawn] == [(640, 320), (30, 20)]


def test_errors_are_one_line(run, place, tmp_path):
    (tmp_path / "hollow").mkdir()
    image = tmp_path / "odd.jpg"
    Image.new("RGB", (9, 9)).save(image)
    for arguments, expected in (
        (("resnet18", tmp_path / "hollow"), "there is no image in"),
        (("resnet50", image), "no checkpoint 'resnet50'"),
        (("nowhere.onnx", image), "nowhere.onnx"),
        (("resnet18", image, "--save", "p.jpg"), "must end in .png or .svg"),
        (("resnet18", image, "--save", tmp_path / "no" / "p.png"), "there is no folder"),
        (("resnet18", image, "--top", 0), "at least 1"),
    ):
        result = run("predict", *arguments, "--output-dir", place)
        assert result.code == 2 and expected in result.err and result.err.count("\n") == 1, result.err


def test_an_image_is_upright_and_transparent_parts_are_white(tmp_path):
    left_red = Image.new("RGB", (40, 20), "blue")
    left_red.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise by a quarter
    left_red.save(tmp_path / "rotated.png", exif=exif)
    upright = read_image(tmp_path / "rotated.png")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (255, 0, 0) and upright.getpixel((10, 35)) == (0, 0, 255)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)
