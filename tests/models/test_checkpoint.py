import os

import pytest
import torch

from common.data.datasets import Splits
from common.models import architectures, checkpoint, lineage
from common.system.errors import UserError


def content(name="teacher_squeezenet1_1", top1=0.5, **changes):
    model = architectures.build("squeezenet1_1", 3)
    return {
        **lineage.new_checkpoint("squeezenet1_1", ["cat", "dog", "fox"], 64),
        "stage": name.partition("_")[0],
        "name": name,
        "state_dict": checkpoint.float_state(model),
        "metrics": {"top1": top1, "ci95": [0.4, 0.6], "n": 100, "params": 724_000, "macs": 1},
    } | changes


@pytest.mark.parametrize(
    ("stage", "base", "model_name", "expected"),
    [
        ("teacher", "resnet50", None, "teacher_resnet50"),
        ("kd", "resnet18", None, "kd_resnet18"),
        ("pruned", "teacher_resnet50", None, "pruned_resnet50"),
        ("pruned", "kd_mobilenet_v2", None, "pruned_kd_mobilenet_v2"),
        ("quantized", "pruned_kd_resnet18", None, "quantized_pruned_kd_resnet18"),
        ("pruned", "pruned_resnet18", None, "pruned_pruned_resnet18"),
        ("pruned", "resnet18", None, "pruned_resnet18"),
        ("quantized", "pruned_kd_resnet18", "cats", "quantized_pruned_kd_cats"),
        ("teacher", "resnet50", "cats", "teacher_cats"),
    ],
)
def test_names_tell_the_chain(stage, base, model_name, expected):
    assert lineage.next_name(stage, base, model_name) == expected


def test_the_file_name_ends_in_top1_with_four_digits_and_files_are_never_replaced(tmp_path):
    paths = [checkpoint.save(content(top1=2 / 3), tmp_path) for _ in range(3)]
    assert [path.name for path in paths] == [
        "teacher_squeezenet1_1_0.6667.pt",
        "teacher_squeezenet1_1_0.6667-2.pt",
        "teacher_squeezenet1_1_0.6667-3.pt",
    ]
    assert all(path.exists() for path in paths) and len(list(tmp_path.iterdir())) == 3


def test_two_runs_that_end_at_once_keep_both_their_files(tmp_path, monkeypatch):
    write = checkpoint.save_checked

    def slow(given, path):
        write(given, path)
        if not (tmp_path / "teacher_squeezenet1_1_0.5000.pt").exists():
            (tmp_path / "teacher_squeezenet1_1_0.5000.pt").write_text("of the other run")

    monkeypatch.setattr(checkpoint, "save_checked", slow)
    assert checkpoint.save(content(), tmp_path).name == "teacher_squeezenet1_1_0.5000-2.pt"
    assert (tmp_path / "teacher_squeezenet1_1_0.5000.pt").read_text() == "of the other run"


def test_with_once_the_same_content_is_not_written_twice(tmp_path):
    given = content()
    first = checkpoint.save(given, tmp_path, once=True)
    assert checkpoint.save(given, tmp_path, once=True) == first
    other = checkpoint.save(given | {"image_size": 32}, tmp_path, once=True)
    assert other.name == "teacher_squeezenet1_1_0.5000-2.pt"
    first.write_bytes(b"damaged")
    assert checkpoint.save(given | {"image_size": 32}, tmp_path, once=True) == other


def test_a_saved_model_answers_the_same(tmp_path):
    saved = content()
    images = torch.randn(2, 3, 64, 64)
    model = architectures.build("squeezenet1_1", 3)
    model.load_state_dict(saved["state_dict"])
    loaded = checkpoint.load(checkpoint.save(saved, tmp_path))
    assert loaded["classes"] == ["cat", "dog", "fox"]
    assert torch.equal(checkpoint.rebuild(loaded).eval()(images), model.eval()(images))


def test_references_find_files(tmp_path):
    names = [
        "teacher_resnet50_0.9160.pt", "teacher_resnet50_0.9200.pt", "teacher_resnet50_0.9200-2.pt",
        "kd_resnet18_0.9050.pt", "kd_resnet18_0.8990.pt", "kd_resnet18_wide_0.9900.pt", "notes.pt",
    ]  # fmt: skip
    for age, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))

    def found(reference):
        return checkpoint.find(reference, tmp_path).name

    assert found("resnet50_0.9160.pt") == "teacher_resnet50_0.9160.pt"
    assert found("teacher_resnet50_0.9160") == "teacher_resnet50_0.9160.pt"
    assert found(str(tmp_path / "notes.pt")) == "notes.pt"
    assert found("kd_resnet18") == "kd_resnet18_0.9050.pt"  # its own name before a longer one
    assert found("kd_res") == "kd_resnet18_wide_0.9900.pt"  # the start of a name: the most accurate
    assert found("resnet50") == "teacher_resnet50_0.9200-2.pt"  # of equals the newest
    with pytest.raises(
        UserError, match=r"no checkpoint 'vgg'; in .* there is: kd_resnet18_0.8990.pt, .*0\.9200\.pt$"
    ):
        found("vgg")
    with pytest.raises(UserError, match="no checkpoint yet"):
        checkpoint.find("resnet50", tmp_path / "nowhere")


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "kd_x_0.5000.pt"
    torch.save({"format": 1, "state_dict": Hostile()}, path)
    with pytest.raises(UserError, match="holds Python objects"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = checkpoint.save(content(), tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "checkpoint format 99"),
        ({"classes": "cat"}, "'classes' is missing or of the wrong kind"),
        ({"state_dict": None}, "'state_dict' is missing"),
        ({"metrics": {"top1": 0.5}}, "its metrics lack 'ci95'"),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path, changes, message):
    path = checkpoint.save(content(**changes), tmp_path)
    with pytest.raises(UserError, match=message):
        checkpoint.load(path)


def test_a_bare_state_dict_is_refused_with_a_hint(tmp_path):
    torch.save(architectures.build("squeezenet1_1", 3).state_dict(), tmp_path / "x.pt")
    with pytest.raises(UserError, match="--pretrained"):
        checkpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {"arch": "resnet18"},
        {"classes": ["cat", "dog"]},
        {"int8": {"backend": "fbgemm", "float_shapes": {}}},
        {"state_dict": {"features.0.weight": torch.zeros(3)}},
    ],
)
def test_weights_that_do_not_fit_are_refused(changes):
    with pytest.raises(UserError):
        checkpoint.rebuild(content(**changes))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dog", "cat", "fox"], "in another order"),
        (["cat", "dog"], "3 classes, not 2"),
        (["cat", "dog", "owl"], "no class 'owl'"),
    ],
)
def test_other_classes_are_refused(classes, message):
    with pytest.raises(UserError, match=message):
        lineage.check_fits(content(), Splits([], [], [], classes))


def test_another_split_is_mentioned(capsys):
    splits = Splits([], [], [], ["cat", "dog", "fox"])
    lineage.check_fits(content(lineage=[{"split": splits.fingerprint}]), splits)
    assert capsys.readouterr().out == ""
    lineage.check_fits(content(lineage=[{"split": "0123"}]), splits)
    assert "another split" in capsys.readouterr().out


def test_an_int8_file_is_no_parent(tmp_path):
    checkpoint.save(content("quantized_x", int8={"backend": "fbgemm", "float_shapes": {}}), tmp_path)
    with pytest.raises(UserError, match="is an int8 model, the end of a chain"):
        checkpoint.open_parent("quantized_x", tmp_path, None, to="prune")
