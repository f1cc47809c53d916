"""compress.py as a user runs it, on a few images; and what it needs of the stages."""

import re
import shutil
from pathlib import Path

import pytest

from common.budget import search
from common.data import datasets, loaders
from common.deployment import dumps
from common.deployment.c_model import CModel
from common.evaluation import int8_agreement, limit_plot, memory
from common.evaluation.metrics import evaluate
from common.models import checkpoint
from common.system import files
from common.training import loop
from tests.conftest import write_images

pytestmark = pytest.mark.usefixtures("shallow_networks")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with images in `data`, for checkpoints in `weights`."""
    # hardly trained networks have logits so close to each other that int8 swaps some
    monkeypatch.setattr(int8_agreement, "MIN_AGREEMENT", 0.0)
    write_images(tmp_path / "data", train=10)
    return tmp_path


@pytest.fixture
def script(run, place):
    """script(name, *options, code=0): its output, on standard error where a code other than 0 is expected."""

    def run_script(name, *options, code=0):
        result = run(
            name, *options, "--dataset", "folder", "--data-dir", place / "data", "--output-dir",
            place / "weights", "--workers", 0, "--batch-size", 8,
        )  # fmt: skip
        assert result.code == code, result.err
        return result.err if code else result.out

    return run_script


@pytest.fixture
def teacher(script, place):
    """An untrained network."""
    options = ("--pretrained", "none", "--image-size", 32, "--epochs", 0, "--seed", 1)
    script("train_teacher", "--teacher", "squeezenet1_1", *options)
    return checkpoint.find("squeezenet1_1", place / "weights")


OPTIONS = ("--epochs", 1, "--quantization-epochs", 1)


def test_the_winner_meets_the_budget_and_only_it_is_evaluated_on_test(script, teacher, place, monkeypatch):
    monkeypatch.setattr(search, "RECIPES", (("lamp", "global"),))  # one is enough here
    budget = ("--target-size", "0.5MB", "--student", "squeezenet1_1", "--pretrained", "none")
    out = script("compress", "--weights", "squeezenet1_1", *budget, *OPTIONS, "--width-multiple", 16)
    assert out.count("--width-multiple=16") == out.count("$ python train_pruning.py") > 0
    created = place / "weights" / re.search(r"saved \S*/(\S+\.pt), \S+\.md, \S+\.png\n", out)[1]
    content = checkpoint.load(created)
    assert created.stat().st_size <= 0.5e6
    assert content["metrics"]["split"] == "test" and content["metrics"]["n"] == 12
    tried = [checkpoint.load(path) for path in (place / "weights" / "candidates").glob("*.pt")]
    assert tried and all(each["metrics"]["split"] == "val" for each in tried)
    assert {each["name"] for each in tried} >= {"kd_squeezenet1_1", "pruned_squeezenet1_1"}

    # the winner is the most accurate on validation of those that meet the budget
    text = created.with_suffix(".md").read_text()
    report, _, picture = text.rpartition("\n\n")
    assert report in out and picture == f"![limits]({created.stem}.png)\n" and text.count("the winner |") == 1
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    finished = {row[1]: row for row in rows[2:] if row[4].endswith("bytes")}
    best = round(100 * content["metrics"]["validation"]["top1"], 2)
    assert all(float(row[2][:-1]) <= best for row in finished.values())
    winner = next(row for row in finished.values() if row[5] == "the winner")
    same = checkpoint.load(place / "weights" / "candidates" / winner[1])
    assert files.checksum(same["state_dict"]) == files.checksum(content["state_dict"])
    assert content["lineage"] == same["lineage"] and f"{100 * same['metrics']['top1']:.2f}%" == winner[2]


def test_several_image_sizes_compete_and_finished_stages_are_not_run_again(
    script, teacher, place, monkeypatch
):
    monkeypatch.setattr(search, "RECIPES", (("lamp", "global"),))  # one is enough here
    full = memory.checkpoint_bytes(content := checkpoint.load(teacher), checkpoint.rebuild(content))
    compress = ("compress", "--weights", "squeezenet1_1", "--target-ram", 0.6, *OPTIONS)
    first = script(*compress, "--image-size", 32, 24)
    created = place / "weights" / re.search(r"saved \S*/(\S+\.pt), \S+\.md, \S+\.png\n", first)[1]
    content = checkpoint.load(created)
    size, metrics = content["image_size"], content["metrics"]
    assert size in (32, 24) and metrics["image_size"] == size and metrics["split"] == "test"
    # the accuracy is that of the saved model, on test images of its own size
    splits = datasets.load_splits("folder", place / "data", 0.2)
    test = loaders.eval_loader(splits.test, content, workers=0)
    assert evaluate(checkpoint.rebuild(content), test, test.device).top1 == metrics["top1"]

    # the budget is a fraction of what the source needs at the first size, for candidates of either size
    text = created.with_suffix(".md").read_text()
    assert f"meet the budget, {0.6 * full:,.0f} bytes of RAM" in text
    recipes = (
        "prune for fp32 by lamp, global at 32 pixels",
        "fine-tune for fp32 at 24 pixels",
        "| quantize ",
    )
    assert all(recipe in text for recipe in recipes)
    tried = [checkpoint.load(path) for path in (place / "weights" / "candidates").glob("*.pt")]
    assert {each["image_size"] for each in tried} == {32, 24}
    assert all(each["metrics"]["image_size"] == each["image_size"] for each in tried)
    assert all(each["lineage"][1]["options"].get("image_size", 32) == each["image_size"] for each in tried)
    epochs = sum(each["lineage"][-1]["options"]["epochs"] for each in tried)
    assert f"trained {epochs} epochs of 24 images in all" in text

    before = sorted((place / "weights").rglob("*"))
    monkeypatch.setattr(loop, "fit", lambda *args, **options: pytest.fail("trained again"))
    again = script(*compress, "--image-size", 32, 24)
    assert again.count("finished before") == first.count("\n$ python") > 1
    assert sorted((place / "weights").rglob("*")) == before
    assert again.splitlines()[-4:] == first.splitlines()[-4:]
    assert created.with_suffix(".md").read_text() == text


def test_a_budget_that_cannot_be_met_names_the_least_of_every_precision(script, teacher):
    err = script("compress", "--weights", "squeezenet1_1", "--target-size", "9KB", *OPTIONS, code=2)
    assert err.count("\n") == 1 and err.startswith("compress.py: error: nothing meets 9,000 bytes: in fp32")
    assert len(re.findall(r"[\d,]+ bytes is the least", err)) == 2


def test_a_budget_that_is_met_already_is_refused(script, teacher):
    err = script("compress", "--weights", "squeezenet1_1", "--target-macs", "10G", *OPTIONS, code=2)
    assert "nothing to do" in err and "MACs already" in err


def test_without_validation_images_nothing_is_compressed(script, teacher, place):
    err = script("compress", "--weights", "squeezenet1_1", "--target-macs", 0.5, "--val-fraction", 0, code=2)
    assert "needs validation images" in err and not (place / "weights" / "candidates").exists()


def test_macs_are_met_by_pruning_alone(script, teacher, place):
    script("compress", "--weights", "squeezenet1_1", "--target-macs", 0.5, *OPTIONS)
    content = checkpoint.load(checkpoint.find("pruned_squeezenet1_1", place / "weights"))
    target, full = content["metrics"]["validation"]["target"], checkpoint.load(teacher)["metrics"]["macs"]
    assert content["metrics"]["macs"] == target["achieved"] <= target["limit"] == pytest.approx(full / 2)


def test_test_images_are_not_read_when_validation_is_evaluated(script, teacher, place):
    for path in (place / "data" / "test").rglob("*.jpg"):
        path.write_bytes(b"no image")
    options = ("--weights", "squeezenet1_1", "--pruning-ratio", 0.5, "--epochs", 0)
    for cache in ("off", place / "cache"):
        options_with = (*options, "--cache", cache)
        assert "val: top-1" in script("train_pruning", *options_with, "--score", "val")
        assert "cannot read 12 images" in script("train_pruning", *options_with, code=2)


def test_a_finished_run_is_found_by_its_options_and_parents(script, teacher, place):
    options = ("--weights", "squeezenet1_1", "--epochs", 0, "--resume")
    first = script("train_pruning", *options)
    assert "finished before" not in first
    path = checkpoint.find("pruned_squeezenet1_1", place / "weights")
    assert f"finished before: {path}" in script("train_pruning", *options)
    for other in (("--seed", 5), ("--lr", 0.1), ("--score", "val")):
        assert "finished before" not in script("train_pruning", *options, *other)
    path.write_bytes(path.read_bytes()[:-100])  # damaged, so it does not count
    for other in (place / "weights").glob("pruned_*-*.pt"):
        other.unlink()
    assert "finished before" not in script("train_pruning", *options)


def test_the_accuracies_before_and_after_each_step_are_stored(script, teacher, place):
    out = script("train_pruning", "--weights", "squeezenet1_1", "--pruning-steps", 2, "--epochs", 2)
    created = checkpoint.load(checkpoint.find("pruned_squeezenet1_1", place / "weights"))
    stored = created["metrics"]["validation"]
    points = ["pruned", "reconstructed", "recalibrated", "fine_tuned"]
    assert [list(each) for each in stored] == [["before"], points, points]
    titles = "before pruning|pruned|reconstructed|recalibrated|fine-tuned"
    printed = re.findall(rf"({titles}), on validation: top-1 (\S+)%", out)
    assert [float(percentage) for _, percentage in printed] == pytest.approx(
        [round(100 * top1, 2) for each in stored for top1 in each.values()]
    )
    options = ("--val-fraction", 0, "--epochs", 0, "--model-name", "x", "--reconstruct", "none")
    assert "reconstructed" not in script("train_pruning", "--weights", "squeezenet1_1", *options)
    stored = checkpoint.load(checkpoint.find("pruned_x", place / "weights"))["metrics"]["validation"]
    assert set(stored[1].values()) == {None}


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_for_a_microcontroller_the_winner_is_written_in_c(script, teacher, place, monkeypatch):
    monkeypatch.setattr(search, "RECIPES", (("lamp", "global"),))
    drawn, draw = [], limit_plot.draw
    monkeypatch.setattr(limit_plot, "draw", lambda *given: (drawn.append(given[:2]), draw(*given)))
    limits = ("--target-ram", "13KB", "--target-size", "0.5MB", "--image-size", 64, 32)
    out = script("compress", "--weights", "squeezenet1_1", *limits, *OPTIONS)
    assert "SqueezeNet fits at 32 pixels: " in out and "at 64 pixels the network needs " in out
    written = re.search(r"saved (\S+\.c): ", out)[1]
    model = CModel(written)
    assert model.content["image_size"] == 32 and model.flash <= 0.5e6
    golden = Path(written.replace(".c", "_golden"))  # for firmware/Makefile
    assert dumps.read_manifest(golden).rounding == "twice" and (golden / "images.bin").exists()
    assert "C and the checkpoint agree on 100.00%" in out
    report = next((place / "weights").glob("quantized_*.md")).read_text()
    picture, (_, limits) = next((place / "weights").glob("quantized_*.png")), drawn[0]
    assert f"({picture.name})" in report
    assert [(each.name, each.unit, each.amount) for each in limits] == [
        ("RAM limit", "RAM in C, KiB", 13_000 / 1024), ("flash limit", "flash in C, KiB", 500_000 / 1024)
    ]  # fmt: skip
    assert (model.ram / 1024, model.flash / 1024) in zip(*(each.costs for each in limits), strict=True)
    assert re.search(r"next: make -C firmware run BOARD=mps2-an500 NET=\S+\.c\n", out)
    assert f"{model.ram:,} bytes of RAM, the limit is 13,000; {model.flash:,} bytes of flash" in report


def test_limits_of_a_microcontroller(script, teacher, place):
    refused = script(
        "compress", "--weights", "squeezenet1_1", "--target-ram", "1KB", "--target-size", "1MB", code=2
    )
    assert re.search(r"at 32 pixels the network needs [\d,]+ bytes of RAM in C, more than 1,000\n", refused)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--target-ram", "0.5", "--target-size", "1MB"), "both must be in bytes"),
        (("--part", "nrf52840", "--target-size", "1MB"), "give one --target"),
        (("--target-macs", "0.5", "--target-size", "1MB"), "give one --target"),
        ((), "give one --target"),
    ],
)
def test_limits_that_do_not_go_together_are_refused(script, options, text):
    assert text in script("compress", "--weights", "squeezenet1_1", *options, code=2)
