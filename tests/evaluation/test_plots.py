import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common.compression.pruning import Group
from common.compression.sensitivity import FRACTIONS
from common.evaluation import figures, limit_plot, plots
from common.evaluation.limit_plot import Limit
from tests.evaluation.rows import row_of, score_of


@pytest.fixture
def saved(monkeypatch):
    """Every figure that is drawn, as matplotlib has it."""
    drawn = []
    for module in (plots, limit_plot):
        monkeypatch.setattr(module, "save", lambda *given: (drawn.append(given[0]), figures.save(*given)))
    return drawn


@pytest.fixture
def rows(tmp_path):
    teacher, child, other = (tmp_path / f"{name}.pt" for name in ("teacher", "child", "other"))
    for path, size in ((teacher, 4_000_000), (child, 1_000_000), (other, 5_000_000)):
        path.write_bytes(bytes(size))
    return [
        row_of(teacher, score=score_of(True, True, True, False)),
        row_of(child, score=score_of(True, True, False, False), parent=teacher),
        row_of(other, score=score_of(True, False, False, False)),
    ]


def test_tradeoffs_have_an_arrow_and_the_front(rows, saved, tmp_path):
    plots.draw_tradeoffs(rows, tmp_path / "p.png", "measured here")
    sizes, _, ram, latency = saved[0].axes
    assert [axes.get_xlabel() for axes in saved[0].axes] == list(plots.COSTS)
    front = next(line for line in sizes.lines if line.get_label() == "Pareto front")
    assert front.get_xydata().tolist() == [[1.0, 0.5], [4.0, 0.75]]  # the third is larger and less accurate
    arrows = [(note.xy, note.xyann) for note in sizes.texts if note.arrow_patch]
    assert arrows == [((1.0, 0.5), (4.0, 0.75))]
    assert [note.get_text() for note in latency.texts if note.get_text()] == ["1", "2", "3"]
    assert [note.get_text() for note in ram.texts] == ["not known"]
    legend = [text.get_text() for text in saved[0].legends[0].get_texts()]
    assert legend == ["1  teacher (fp32)", "2  child (fp32)", "3  other (fp32)"]
    with Image.open(tmp_path / "p.png") as image:
        assert image.width > 1000
    plots.draw_tradeoffs(rows, tmp_path / "p.svg", "")
    assert "<svg" in (tmp_path / "p.svg").read_text()[:999]


def test_a_file_whose_macs_are_not_known_is_not_in_that_plot(rows, saved, tmp_path):
    rows[0].content["metrics"]["macs"] = None
    plots.draw_tradeoffs(rows, tmp_path / "p.png", "")
    assert [note.get_text() for note in saved[0].axes[1].texts if note.get_text()] == ["2", "3"]


def test_each_limit_has_a_panel_with_a_line_and_all_networks(saved, tmp_path):
    networks = [("small.pt: lamp", 0.5, (0.4, 0.6)), ("large.pt: $x", 0.75, (0.7, 0.8))]
    limits = [
        Limit("part: RAM limit", "RAM, KiB", 240, [47.5, 90]),
        Limit("flash limit", "KiB", 992, [900, 999]),
    ]
    limit_plot.draw(networks, limits, tmp_path / "l.png")
    for axes, limit in zip(saved[0].axes, limits, strict=True):
        assert axes.get_xlabel() == limit.unit
        (line,) = (each for each in axes.lines if each.get_label().startswith(limit.name))
        assert line.get_label() == f"{limit.name}: {limit.amount}" and set(line.get_xdata()) == {limit.amount}
        points = [(note.get_text(), *note.xy) for note in axes.texts]
        assert points == [("1", limit.costs[0], 0.5), ("2", limit.costs[1], 0.75)]
        assert axes.get_xlim()[0] == 0 and axes.get_xlim()[1] > max(limit.amount, *limit.costs)
    assert saved[0].get_supxlabel() == "1  small.pt: lamp\n2  large.pt: \\$x"
    with Image.open(tmp_path / "l.png") as image:
        assert image.width > 1000


def test_the_sensitivity_has_a_row_for_each_group_and_no_number_where_nothing_was_pruned(saved, tmp_path):
    groups = [
        Group(layers, torch.rand(channels), torch.rand(channels))
        for layers, channels in ((("stem", "block.0"), 32), (("block.1",), 16), (("head",), 8))
    ]
    table = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.25], [math.nan, 0.5, 0.4, 0.3, 0.2], [math.nan] * 5])
    plots.draw_sensitivity(groups, table, str(tmp_path / "s.png"))
    axes = saved[0].axes[0]
    assert axes.images[0].get_array().shape == (3, len(FRACTIONS))
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["stem  (32)", "block.1  (16)", "head  (8)"]
    fractions = [label.get_text() for label in axes.get_xticklabels()]
    assert fractions == ["12.5%", "25.0%", "50.0%", "75.0%", "87.5%"]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(texts) == 9 and texts[4, 0] == "25%" and texts[1, 1] == "50%"
    with Image.open(tmp_path / "s.png") as image:
        assert image.width > 500


def test_the_confusion_matrix_shows_counts_shaded_by_row(saved, tmp_path):
    plots.draw_confusion(np.array([[3, 1], [0, 4]]), ["cat", "dog"], tmp_path / "c.png")
    axes = saved[0].axes[0]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 1.0]]
    assert {(*text.get_position(), text.get_text()) for text in axes.texts} == {
        (0, 0, "3"),
        (1, 0, "1"),
        (1, 1, "4"),
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


def test_predictions_are_drawn_below_their_images(saved, tmp_path):
    images = [(Image.new("RGB", (30, 20)), f"{index}.jpg", ["99.00%  cat"]) for index in range(5)]
    plots.draw_predictions(images, tmp_path / "p.png")
    drawn = [axes for axes in saved[0].axes if axes.images]
    assert [axes.get_title() for axes in drawn] == [f"{index}.jpg" for index in range(5)]
    assert drawn[4].texts[0].get_text() == "99.00%  cat"


def test_names_with_dollars_and_names_that_are_no_text_can_be_drawn(tmp_path):
    odd = ["$5 $a^.jpg", b"\xff.jpg".decode(errors="surrogateescape")]
    plots.draw_confusion(np.eye(2, dtype=int), odd, tmp_path / "c.svg")
    plots.draw_predictions([(Image.new("RGB", (9, 9)), name, [name]) for name in odd], tmp_path / "p.svg")
    for path in (tmp_path / "c.svg", tmp_path / "p.svg"):
        # in an SVG each text is a comment above its outlines
        assert "<!-- $5 $a^.jpg -->" in path.read_text() and r"<!-- \udcff.jpg -->" in path.read_text()


def test_the_confusion_matrix_of_a_thousand_classes_fits_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "DPI", 20)
    plots.draw_confusion(np.eye(1000, dtype=int), [str(label) for label in range(1000)], tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.width < 20 * 60


NAMES = {
    "chinese": "猫",
    "japanese": "ねこ",
    "korean": "고양이",
    "russian": "кошка",
    "arabic": "قطة",
    "hindi": "बिल्ली",
    "emoji": "🐈",
    "unassigned": "\U000e0fff",
    "control": "a\x00b\x1b[31m\x07\r\tc\x7f\x9b",
    "directions": "cat\u202etac\u2066",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.filterwarnings("error")
def test_names_in_any_script_are_drawn_without_a_warning(name, rows, tmp_path):
    plots.draw_confusion(np.eye(2, dtype=int), [name, "dog"], tmp_path / "c.png")
    plots.draw_predictions([(Image.new("RGB", (9, 9)), name, [f"99.00%  {name}"])], tmp_path / "p.svg")
    if "\0" not in name:
        path = rows[0].path.with_name(f"{name}.pt")
        rows[0].path.rename(path)
        plots.draw_tradeoffs([replace(rows[0], path=path), *rows[1:]], tmp_path / "t.png", "")


def test_control_characters_are_drawn_as_their_codes(saved, tmp_path):
    plots.draw_confusion(np.eye(2, dtype=int), ["a\x1b[31m", "b\x00"], tmp_path / "c.svg")
    names = [label.get_text() for label in saved[0].axes[0].get_yticklabels()]
    assert names == [r"a\x1b[31m", r"b\x00"]


def test_lines_of_predictions_stay_lines(saved, tmp_path):
    plots.draw_predictions([(Image.new("RGB", (9, 9)), "a.jpg", ["cat", "dog"])], tmp_path / "p.png")
    assert saved[0].axes[0].texts[0].get_text() == "cat\ndog"


@pytest.mark.filterwarnings("error")
def test_files_with_any_name_are_drawn(tmp_path):
    for stem in ("猫 $a $b^", "a\x1bb", b"\xff".decode(errors="surrogateescape")):
        plots.draw_confusion(np.eye(2, dtype=int), ["cat", "dog"], tmp_path / f"{stem}_confusion.png")
        plots.draw_curves([{"train_loss": 2.0, "train_top1": 0.2}], tmp_path / f"{stem}.png")
