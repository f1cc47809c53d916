"""compress.py as a user runs it, on a few pictures; and what the stages need for it."""

import re
from types import SimpleNamespace

import pytest

from common.budget.search import Candidate, Compression
from common.evaluation import int8_agreement
from common.models import checkpoint
from common.system import files
from common.system.errors import UserError
from tests.conftest import write_pictures


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with pictures and the options that all scripts get here."""
    monkeypatch.setattr(
        int8_agreement, "MIN_AGREEMENT", 0.0
    )  # what has learned nothing has answers all alike
    write_pictures(tmp_path / "data", train=10)
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


def test_the_winner_meets_the_budget_and_alone_is_scored_on_test(script, teacher, place):
    budget = ("--target-size", "0.5MB", "--student", "squeezenet1_1", "--pretrained", "none")
    out = script("compress", "--weights", "squeezenet1_1", *budget, *OPTIONS)
    made = place / "weights" / re.search(r"saved \S*/(\S+\.pt), \S+\.md\n", out)[1]
    content = checkpoint.load(made)
    assert made.stat().st_size <= 0.5e6
    assert content["metrics"]["split"] == "test" and content["metrics"]["n"] == 12
    tried = [checkpoint.load(path) for path in (place / "weights" / "candidates").glob("*.pt")]
    assert tried and all(each["metrics"]["split"] == "val" for each in tried)
    assert {each["name"] for each in tried} >= {"kd_squeezenet1_1", "pruned_squeezenet1_1"}

    # the winner is the most accurate on validation of those that meet it
    text = made.with_suffix(".md").read_text()
    assert text in f"{out}\n" and text.count("the winner |") == 1
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    finished = {row[1]: row for row in rows[2:] if row[4].endswith("bytes")}
    assert all(
        float(row[2][:-1]) <= 100 * content["metrics"]["validation"]["top1"] for row in finished.values()
    )
    winner = next(row for row in finished.values() if row[5] == "the winner")
    same = checkpoint.load(place / "weights" / "candidates" / winner[1])
    assert files.checksum(same["state_dict"]) == files.checksum(content["state_dict"])
    assert content["lineage"] == same["lineage"] and f"{100 * same['metrics']['top1']:.2f}%" == winner[2]


def test_finished_stages_are_not_run_again(script, teacher, place, monkeypatch):
    compress = ("compress", "--weights", "squeezenet1_1", "--target-size", "0.6MB", *OPTIONS)
    first = script(*compress)
    there = sorted((place / "weights").rglob("*"))
    monkeypatch.setattr("common.training.fit", lambda *args, **options: pytest.fail("trained again"))
    again = script(*compress)
    assert again.count("finished before") == first.count("\n$ python") > 1
    assert sorted((place / "weights").rglob("*")) == there
    assert again.splitlines()[-4:] == first.splitlines()[-4:]


def test_an_unreachable_budget_names_the_least_of_every_way(script, teacher):
    err = script("compress", "--weights", "squeezenet1_1", "--target-size", "9KB", *OPTIONS, code=2)
    assert err.count("\n") == 1 and err.startswith("compress.py: error: nothing meets 9,000 bytes: in fp32")
    assert len(re.findall(r"[\d,]+ bytes(?: \(int8\))? is the least", err)) == 2


def test_a_budget_that_is_met_already_is_said(script, teacher):
    err = script("compress", "--weights", "squeezenet1_1", "--target-macs", "10G", *OPTIONS, code=2)
    assert "nothing to do" in err and "MACs already" in err


def test_without_validation_pictures_nothing_is_compressed(script, teacher, place):
    err = script("compress", "--weights", "squeezenet1_1", "--target-macs", 0.5, "--val-fraction", 0, code=2)
    assert "needs validation pictures" in err and not (place / "weights" / "candidates").exists()


def test_macs_are_met_by_pruning_alone(script, teacher, place):
    script("compress", "--weights", "squeezenet1_1", "--target-macs", 0.5, *OPTIONS)
    content = checkpoint.load(checkpoint.find("pruned_squeezenet1_1", place / "weights"))
    target, whole = content["metrics"]["validation"]["target"], checkpoint.load(teacher)["metrics"]["macs"]
    assert content["metrics"]["macs"] == target["achieved"] <= target["limit"] == pytest.approx(whole / 2)


def test_test_pictures_are_not_looked_at_when_validation_is_scored(script, teacher, place):
    for path in (place / "data" / "test").rglob("*.jpg"):
        path.write_bytes(b"no picture")
    options = ("--weights", "squeezenet1_1", "--pruning-ratio", 0.5, "--epochs", 0, "--cache", "off")
    assert "val: top-1" in script("train_pruning", *options, "--score", "val")
    assert "cannot read the picture" in script("train_pruning", *options, code=2)


def test_a_finished_run_is_found_by_its_options_and_parents(script, teacher, place):
    options = ("--weights", "squeezenet1_1", "--epochs", 0, "--resume")
    first = script("train_pruning", *options)
    assert "finished before" not in first
    path = checkpoint.find("pruned_squeezenet1_1", place / "weights")
    assert f"finished before: {path}" in script("train_pruning", *options)
    for other in (("--seed", 5), ("--lr", 0.1), ("--score", "val")):
        assert "finished before" not in script("train_pruning", *options, *other)
    path.write_bytes(path.read_bytes()[:-100])  # damaged: it does not count
    for other in (place / "weights").glob("pruned_*-*.pt"):
        other.unlink()
    assert "finished before" not in script("train_pruning", *options)


def test_accuracies_before_and_after_are_kept_for_each_step(script, teacher, place):
    out = script("train_pruning", "--weights", "squeezenet1_1", "--pruning-steps", 2, "--epochs", 2)
    made = checkpoint.load(checkpoint.find("pruned_squeezenet1_1", place / "weights"))
    points = made["metrics"]["validation"]
    assert [list(each) for each in points] == [["before"], *[["pruned", "recalibrated", "fine_tuned"]] * 2]
    shown = re.findall(r"(before pruning|pruned|recalibrated|fine-tuned), on validation: top-1 (\S+)%", out)
    assert [float(share) for _, share in shown] == pytest.approx(
        [round(100 * share, 2) for each in points for share in each.values()]
    )
    options = ("--val-fraction", 0, "--epochs", 0, "--model-name", "x")
    script("train_pruning", "--weights", "squeezenet1_1", *options)
    points = checkpoint.load(checkpoint.find("pruned_x", place / "weights"))["metrics"]["validation"]
    assert set(points[1].values()) == {None}


@pytest.fixture
def compression(tmp_path):
    """A Compression to 100 bytes whose stages are made up; `tried(way, top1, cost)` adds a candidate."""
    made = object.__new__(Compression)
    (tmp_path / "source.pt").write_bytes(b"")
    made.kind, made.limit, made.target, made.tried, made.refused = "size", 100, "100B", [], []
    made.args = SimpleNamespace(epochs=16, target_device="server", threads=1, lr=0.1, output_dir=tmp_path)
    made.source = Candidate("", tmp_path / "source.pt", 0.8, (0.7, 0.9))
    made.teacher = made.source.path

    def tried(way, top1, cost=None):
        path = tmp_path / f"{len(made.tried)}.pt"
        path.write_bytes(bytes(int(cost or 0)))
        made.tried.append(Candidate(way, path, top1, (top1 - 0.1, top1 + 0.1), cost))
        return made.tried[-1]

    made.add = tried
    return made


def test_the_most_accurate_of_those_that_meet_the_budget_wins(compression, monkeypatch):
    monkeypatch.setattr(Compression, "_students", lambda self: ())
    monkeypatch.setattr(Compression, "_promising", lambda self, start: ())
    compression.add("too large", 0.95, 101)
    compression.add("not finished", 0.97)
    compression.add("larger", 0.9, 100)
    compression.add("smaller", 0.9, 60)
    compression.add("worse", 0.85, 10)
    winner = compression.run()
    assert winner.way == "smaller"
    *_, why = compression.report(winner).splitlines()
    assert why.startswith("3 of them") and "90.00%, 0.00 points ahead" in why


@pytest.mark.parametrize(
    ("fits", "trials", "chosen"),
    [
        # intervals are 0.1 wide on either side; of each precision the better recipe
        ((), {("fp32", "lamp"): 0.3, ("int8", "taylor"): 0.6}, [("int8", "taylor")]),
        ((), {("fp32", "lamp"): 0.41, ("int8", "taylor"): 0.6}, [("fp32", "lamp"), ("int8", "taylor")]),
        (("int8",), {("fp32", "taylor"): 0.9}, [("fp32", "taylor"), ("int8", None)]),
        (("int8",), {("fp32", "lamp"): 0.5}, [("int8", None)]),
        (("fp32", "int8"), {}, [("fp32", None), ("int8", None)]),
    ],
)
def test_what_validation_cannot_tell_from_the_most_promising_goes_on(
    compression, monkeypatch, fits, trials, chosen
):
    def budget(self, start, text, precision):
        return SimpleNamespace(cost=lambda model: 50 if precision in fits else 200)

    def stage(self, script, way, *words):
        options = dict(zip(words[::2], words[1::2], strict=True))
        assert options["--epochs"] == 2 and options["--target-size"] == "100B"
        key = (options["--target-precision"], options["--importance"])
        return self.add(way, trials.get(key, 0.1))

    monkeypatch.setattr(Compression, "_budget", budget)
    monkeypatch.setattr(Compression, "_stage", stage)
    monkeypatch.setattr(Compression, "_content", lambda self, candidate: {})
    monkeypatch.setattr("common.checkpoint.rebuild", lambda content: None)
    ways = compression._promising(compression.source)
    found = [(precision, words and words[words.index("--importance") + 1]) for _, precision, words in ways]
    assert found == chosen
    assert [trial.top1 for trial, _, _ in ways] == [trials.get(way, 0.8) for way in chosen]


def test_a_way_that_fails_is_noted_and_the_others_go_on(compression, monkeypatch):
    def finish(self, trial, precision, words):
        if precision == "int8":
            raise UserError("it cannot be quantized")
        self.add("pruned", 0.5, 90)

    monkeypatch.setattr(Compression, "_students", lambda self: ())
    ways = [(None, "int8", None), (None, "fp32", None)]
    monkeypatch.setattr(Compression, "_promising", lambda self, start: ways)
    monkeypatch.setattr(Compression, "_finish", finish)
    winner = compression.run()
    assert winner.way == "pruned" and compression.refused == ["in int8: it cannot be quantized"]
    assert "in int8: it cannot be quantized" in compression.report(winner)
