from dataclasses import replace

import pytest
import torch

from common.evaluation import tables
from common.evaluation.latency import Latency

TEST = {"split": "test", "n": 100, "images": "a1b2", "image_size": 64}


def test_before_and_after(tmp_path):
    (tmp_path / "a").write_bytes(bytes(400))
    (tmp_path / "b").write_bytes(bytes(100))
    before = {"top1": 0.9, "params": 1000, "macs": 5000, "ram_bytes": 8000} | TEST
    after = {"top1": 0.88, "params": 250, "macs": 1000, "ram_bytes": 2000} | TEST
    lines = tables.before_after(before, tmp_path / "a", after, tmp_path / "b").splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "top-1 90.00% => 88.00%",
        "parameters 1,000 => 250 (25.0%)",
        "MACs 5,000 => 1,000 (20.0%)",
        "RAM, layer by layer 8,000 => 2,000 bytes (25.0%)",
        "bytes 400 => 100 (4.0 times smaller)",
    ]
    assert len(tables.before_after({"params": 1, "macs": 1}, None, after, tmp_path / "b").splitlines()) == 3


def test_the_target_of_pruning_is_compared_with_what_was_achieved(tmp_path):
    metrics = {"top1": 0.9, "params": 1, "macs": 1} | TEST
    target = {"of": "size", "precision": "int8", "limit": 2000, "achieved": 1999, "conditions": ""}
    *_, line = tables.before_after(metrics, None, metrics | {"target": target}, tmp_path).splitlines()
    assert " ".join(line.split()) == "target 2,000 bytes (int8) => 1,999 bytes (int8)"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "90.00%"),
        ({"split": "val"}, "-"),
        ({"images": "c3d4"}, "-"),
        ({"image_size": 32}, "-"),
    ],
)
def test_accuracies_on_different_images_are_not_compared(tmp_path, changed, expected):
    metrics = {"top1": 0.9, "params": 1, "macs": 1} | TEST
    assert tables.before_after(metrics | changed, None, metrics, tmp_path).split()[1] == expected


@pytest.mark.parametrize(
    ("n", "split", "expected"), [(100, "test", "90.00%"), (99, "test", "-"), (100, "val", "-")]
)
def test_accuracies_of_an_earlier_version_are_compared_by_the_number_of_images(tmp_path, n, split, expected):
    # it evaluated only on test, and wrote down neither the split nor the images
    before = {"top1": 0.9, "params": 1, "macs": 1, "n": n, "image_size": 64}
    after = {"top1": 0.9, "params": 1, "macs": 1} | TEST | {"split": split}
    assert tables.before_after(before, None, after, tmp_path).split()[1] == expected


def cells_of(table):
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_tables_contain_the_values_of_the_rows(teacher_and_child):
    cells = cells_of(tables.accuracy_table(teacher_and_child))
    assert cells[2] == [
        "teacher_x_0.5000", "kd", "20", "50.00%", "29.9-70.1", "100.00%", "83.9-100.0", "-", "-",
    ]  # fmt: skip
    assert cells[3][3] == "25.00%" and cells[3][7:] == ["-25.00", "0.062"]  # 2 / 2^5
    teacher, child = teacher_and_child
    child = replace(child, ram_bytes=1470 * 1024, latencies={"LiteRT": Latency(6.0, 7.0, 1)})
    cells = cells_of(tables.cost_table([teacher, child]))
    assert cells[0][6:] == ["torch", "ONNX Runtime", "LiteRT", "engine"]
    assert cells[2] == [
        "teacher_x_0.5000", "2.00 M", "3 M", "4.00 MB", "1.0 x", "-", "4.00 ms", "2.00 ms", "-", "fp32 torch",
    ]  # fmt: skip
    assert (
        cells[3][3:9] == ["0.50 MB", "8.0 x", "1,470 KiB", "-", "-", "6.00 ms"]
        and "RAM: the peak" in tables.EXPLANATION
    )


def test_printed_tables_fit_the_width_however_long_the_names(teacher_and_child):
    teacher, child = teacher_and_child
    long = teacher.path.with_name("quantized_pruned_kd_" + "very" * 20 + "_long_0.5000.pt")
    teacher.path.rename(long)
    for table in (tables.accuracy_table, tables.cost_table):
        text = table([replace(teacher, path=long), child], tables.WIDTH)
        cells = cells_of(text)
        assert max(map(len, text.splitlines())) == tables.WIDTH
        assert cells[2][0].startswith("quantized_") and cells[2][0].endswith("long_0.5000")
        assert "…" in cells[2][0] and cells[3][0] == "kd_x_0.2500"


def test_the_markdown_file_has_the_command_that_created_each_file(teacher_and_child, tmp_path):
    rows = teacher_and_child
    tables.write_markdown(rows, "measured here", tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert tables.accuracy_table(rows) in text and tables.cost_table(rows) in text and "measured here" in text
    assert "`kd_x_0.2500.pt`" in text and "`python train_student.py --student x`" in text
    assert text.rstrip().endswith("3 |")


def test_the_classes_are_listed_from_the_worst():
    confusion = torch.tensor([[3, 1, 0], [0, 4, 0], [2, 1, 1]])
    cells = cells_of(tables.class_table(confusion, ["cat", "dog", "fox"]))
    assert [line[0] for line in cells[2:]] == ["fox", "cat", "dog"]
    assert cells[2][1:] == ["4", "25.0%", "4.6-69.9", "cat (2)"] and cells[4][4] == "-"


def test_a_bar_in_a_name_does_not_end_a_cell_of_markdown(teacher_and_child, tmp_path):
    assert tables.markdown([("a|b", "c"), ("||", "1")]).splitlines() == [
        r"| a\|b |    c |",
        r"| :--- | ---: |",
        r"| \|\| |    1 |",
    ]
    text = tables.class_table(torch.tensor([[1, 1], [0, 2]]), ["cat|tac", "dog"])
    assert r"| cat\|tac " in text
    teacher, child = teacher_and_child
    odd = teacher.path.with_name("a|b.pt")
    teacher.path.rename(odd)
    tables.write_markdown([replace(teacher, path=odd), child], "measured here", tmp_path / "r.md")
    lines = [line for line in (tmp_path / "r.md").read_text().splitlines() if line.startswith("|")]
    named = [line for line in lines if "a" + r"\|" + "b" in line]
    assert len(named) >= 2 and not any("a|b" in line for line in lines)


def test_macs_that_an_earlier_version_counted_are_marked(teacher_and_child):
    teacher, child = teacher_and_child
    teacher.content["metrics"] |= {"top1": 0.5}
    child.content["metrics"] |= {"top1": 0.5, "image_size": 32}
    cells = cells_of(tables.cost_table([teacher, child]))
    assert (cells[2][2], cells[3][2]) == ("3 M*", "3 M")
