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


def test_file_names_end_in_top1_with_four_digits_and_no_file_is_replaced(tmp_path):
    paths = [checkpoint.save(content(top1=2 / 3), tmp_path) for _ in range(3)]
    assert [path.name for path in paths] == [
        "teacher_squeezenet1_1_0.6667.pt",
        "teacher_squeezenet1_1_0.6667-2.pt",
        "teacher_squeezenet1_1_0.6667-3.pt",
    ]
    assert all(path.exists() for path in paths) and len(list(tmp_path.iterdir())) == 3


def test_two_runs_that_end_at_the_same_time_write_two_files(tmp_path, monkeypatch):
    write = checkpoint.save_checked

    def write_slowly(given, path):
        write(given, path)
        if not (tmp_path / "teacher_squeezenet1_1_0.5000.pt").exists():
            (tmp_path / "teacher_squeezenet1_1_0.5000.pt").write_text("of the other run")

    monkeypatch.setattr(checkpoint, "save_checked", write_slowly)
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


def test_a_saved_model_gives_the_same_predictions(tmp_path):
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
    assert found("kd_resnet18") == "kd_resnet18_0.9050.pt"  # a full name before the start of a longer one
    assert found("kd_res") == "kd_resnet18_wide_0.9900.pt"  # the start of a name: the most accurate
    assert found("resnet50") == "teacher_resnet50_0.9200-2.pt"  # of equally accurate ones the newest
    with pytest.raises(
        UserError, match=r"no checkpoint 'vgg'; there is in .*: kd_resnet18_0.8990.pt, .*0\.9200\.pt$"
    ):
        found("vgg")
    with pytest.raises(UserError, match=r"no checkpoint 'resnet50'; there is in .*nowhere: none yet$"):
        checkpoint.find("resnet50", tmp_path / "nowhere")


def test_where_only_a_longer_name_matches_a_note_says_which_file_is_taken(tmp_path, capsys):
    for name in ("kd_resnet18_0.5000.pt", "kd_resnet18_wide_0.9000.pt"):
        (tmp_path / name).touch()

    def found(reference):
        return checkpoint.find(reference, tmp_path).name, capsys.readouterr()

    # a whole name, of however accurate a checkpoint, comes first and needs no note
    assert found("kd_resnet18") == ("kd_resnet18_0.5000.pt", ("", ""))
    assert found("kd_resnet18_wide") == ("kd_resnet18_wide_0.9000.pt", ("", ""))
    assert found("kd_resnet18_0.5000") == ("kd_resnet18_0.5000.pt", ("", ""))
    (tmp_path / "kd_resnet18_0.5000.pt").unlink()
    note = "note: 'kd_resnet18' is not a full name; kd_resnet18_wide_0.9000.pt begins with it\n"
    assert found("kd_resnet18") == ("kd_resnet18_wide_0.9000.pt", ("", note))


@pytest.fixture
def two_folders(tmp_path, monkeypatch):
    """(here/w, scripts/w): the folder "w" in the current folder, and beside the scripts."""
    folders = tmp_path / "here" / "w", tmp_path / "scripts" / "w"
    for folder in folders:
        folder.mkdir(parents=True)
    monkeypatch.setattr(checkpoint, "SCRIPTS", tmp_path / "scripts")
    monkeypatch.chdir(tmp_path / "here")
    return folders


def test_checkpoints_beside_the_scripts_are_found_from_another_folder(two_folders):
    here, scripts = two_folders
    (scripts / "kd_resnet18_0.9000.pt").touch()
    assert checkpoint.find("kd_resnet18", "w") == scripts / "kd_resnet18_0.9000.pt"
    assert checkpoint.list_checkpoints("w") == [scripts / "kd_resnet18_0.9000.pt"]
    # those of the current folder come first, also where they are less accurate
    (here / "kd_resnet18_0.5000.pt").touch()
    for found in (checkpoint.find("kd_resnet18", "w"), *checkpoint.list_checkpoints("w")):
        assert found.resolve() == here / "kd_resnet18_0.5000.pt"
    assert checkpoint.find("kd_resnet18_0.9000", "w") == scripts / "kd_resnet18_0.9000.pt"


def test_the_folder_of_the_scripts_is_that_of_the_repository():
    assert {"train_teacher.py", "predict.py"} <= {path.name for path in checkpoint.SCRIPTS.iterdir()}


def test_where_nothing_is_found_the_folders_that_were_searched_are_named(two_folders, monkeypatch):
    here, scripts = two_folders
    (scripts / "kd_resnet18_0.9000.pt").touch()
    with pytest.raises(UserError) as error:
        checkpoint.find("vgg", "w")
    listed = f"in {here}: none yet; in {scripts}: kd_resnet18_0.9000.pt"
    assert str(error.value) == f"no checkpoint 'vgg'; there is {listed}"
    (scripts / "kd_resnet18_0.9000.pt").unlink()
    with pytest.raises(UserError) as error:
        checkpoint.list_checkpoints("w")
    assert str(error.value) == f"there is no checkpoint in {here} or {scripts}"
    # from the folder of the scripts both are the same one, which is named once
    monkeypatch.chdir(scripts.parent)
    with pytest.raises(UserError) as error:
        checkpoint.find("vgg", "w")
    assert str(error.value) == f"no checkpoint 'vgg'; there is in {scripts}: none yet"


def test_a_pickle_with_code_is_refused_and_the_code_is_not_run(tmp_path):
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


def test_an_int8_model_cannot_be_a_parent(tmp_path):
    checkpoint.save(content("quantized_x", int8={"backend": "fbgemm", "float_shapes": {}}), tmp_path)
    with pytest.raises(UserError, match="is an int8 model, the end of a chain"):
        checkpoint.open_parent("quantized_x", tmp_path)


def test_the_parent_is_announced_with_its_accuracy_and_may_get_another_image_size(tmp_path, capsys):
    path = checkpoint.save(content(), tmp_path)
    found, parent = checkpoint.open_parent("squeezenet1_1", tmp_path, image_size=32)
    assert found == path and parent["image_size"] == 32
    assert checkpoint.open_parent("squeezenet1_1", tmp_path)[1]["image_size"] == 64
    line = f"{path}: teacher squeezenet1_1, test top-1 50.00%\n"
    assert capsys.readouterr().out == line * 2


def test_checkpoints_are_listed_from_the_oldest_to_the_newest(tmp_path):
    names = ["kd_resnet18_0.9050.pt", "teacher_resnet50_0.9160.pt", "kd_resnet18_0.8990.pt"]
    for age, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "notes.pt").touch()
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == names
    with pytest.raises(UserError, match="there is no checkpoint in"):
        checkpoint.list_checkpoints(tmp_path / "nowhere")


def test_a_pruned_network_whose_shapes_do_not_determine_it_is_refused():
    parent = content()
    model = checkpoint.rebuild(parent)
    checkpoint.check_rebuilds(parent, model)
    model.features[3].squeeze.stride = (2, 2)  # no shape tells it
    with pytest.raises(UserError, match="the pruned squeezenet1_1 would yield another network"):
        checkpoint.check_rebuilds(parent, model)


def test_a_teacher_with_another_normalization_sees_the_images_of_its_student(tmp_path):
    student, splits = content(), Splits([], [], [], ["cat", "dog", "fox"])
    path = checkpoint.save(content("teacher_darker", mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5]), tmp_path)
    _, teacher = checkpoint.open_teacher(str(path), str(tmp_path), student, splits)
    pixels = torch.rand(1, 3, 64, 64)

    def normalize(of):
        return (pixels - torch.tensor(of["mean"]).view(3, 1, 1)) / torch.tensor(of["std"]).view(3, 1, 1)

    own = checkpoint.load(path)
    with torch.no_grad():
        expected = checkpoint.rebuild(own).eval()(normalize(own))
        assert torch.allclose(teacher.eval()(normalize(student)), expected, atol=1e-4)
