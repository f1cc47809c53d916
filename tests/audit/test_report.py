"""The page of an audit, from two made-up models whose numbers can be computed on paper."""

import dataclasses
import html.parser
import json
import shutil
import subprocess

import pytest
import torch
from PIL import Image

from common.audit import corruptions, report
from common.audit.measure import Measured
from common.evaluation.metrics import Score
from tests.evaluation.rows import row_of

EVIL = "<script>alert(1)</script>"
CLASSES = ["cat", EVIL]
LABELS = torch.tensor([0, 0, 0, 1])
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def measured(cats):
    """A model with these probabilities of a cat for the four images; corruptions change nothing."""
    probabilities = torch.tensor([[each, 1 - each] for each in cats], dtype=torch.float64)
    score = Score(LABELS, probabilities.argmax(1), 4, 1.0)
    keys = [(kind, strength) for kind in corruptions.KINDS for strength in corruptions.STRENGTHS]
    return Measured(score, probabilities.log().float(), dict.fromkeys(keys, score))


@pytest.fixture
def audit(tmp_path):
    for index in range(4):
        Image.new("RGB", (40, 30), (60 * index, 90, 120)).save(tmp_path / f"{index}.jpg")
    samples = [(tmp_path / f"{index}.jpg", int(label)) for index, label in enumerate(LABELS)]
    (tmp_path / "child.pt").write_bytes(bytes(1000))
    lineage = [{"stage": "kd", "parent": None, "options": {"command": f"python {EVIL}"}}]
    row = row_of(tmp_path / "child.pt", lineage)
    # the child loses the first two cats, the second one by more, and is sure of the others
    before, after = measured([0.8, 0.9, 0.6, 0.7]), measured([0.4, 0.2, 0.6, 0.1])
    return report.Audit("teacher.pt", row, before, after, samples, CLASSES, 2.0, "It was fitted on two.")


def test_the_numbers_are_those_of_the_two_models(audit):
    results = audit.as_dict()
    assert results["accuracy"]["before"]["top1"] == 0.75 and results["accuracy"]["after"]["top1"] == 0.5
    assert results["accuracy"]["p"] == 1.0  # two lost, one won: 2 * (1 + 3) / 8
    flips = results["flips"]
    assert (flips["forgotten"], flips["learned"], flips["different_predictions"]) == (2, 1, 3)
    assert [(each["image"], each["label"]) for each in flips["worst"]] == [("1.jpg", "cat"), ("0.jpg", "cat")]
    assert flips["worst"][0]["before"] == {"class": "cat", "probability": pytest.approx(0.9)}
    assert flips["worst"][0]["after"] == {"class": EVIL, "probability": pytest.approx(0.8)}
    cats, others = results["classes"]
    assert (cats["name"], cats["parent"], cats["child"]) == ("cat", 1.0, pytest.approx(1 / 3))
    assert (others["name"], others["parent"], others["child"]) == (EVIL, 0.0, 1.0)
    # four bins of one image: confidences 0.8, 0.9, 0.6, 0.7, the last of them wrong; and 0.6, 0.8, 0.6, 0.9
    assert results["calibration"]["before"]["error"] == pytest.approx((0.2 + 0.1 + 0.4 + 0.7) / 4)
    assert results["calibration"]["after"]["error"] == pytest.approx((0.6 + 0.8 + 0.4 + 0.1) / 4)
    assert len(results["corruptions"]) == 3 * len(corruptions.KINDS)
    assert {(row["before"], row["relative_drop_after"]) for row in results["corruptions"]} == {(0.75, 0.0)}


def test_a_model_without_a_correct_prediction_has_no_relative_drop(audit, tmp_path):
    wrong = measured([0.1, 0.1, 0.1, 0.9])
    none = dataclasses.replace(audit, after=wrong)
    assert {row["relative_drop_after"] for row in none.as_dict()["corruptions"]} == {None}
    report.write(none, [none.child], "measured here", tmp_path / "out")


class Elements(html.parser.HTMLParser):
    """The elements of a page and the addresses that they name."""

    def __init__(self, text):
        super().__init__()
        self.names, self.addresses = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href")]


def test_the_page_loads_nothing_and_names_cannot_act_on_it(audit, tmp_path):
    page, data = report.write(audit, [audit.child], "measured here", tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    elements = Elements(text)
    assert elements.names.isdisjoint({"script", "link", "iframe", "object"})
    assert elements.addresses and all(each.startswith("data:image/") for each in elements.addresses)
    assert "&lt;script&gt;alert(1)" in text and "default-src 'none'" in text
    assert sum(each.startswith("data:image/jpeg") for each in elements.addresses) == 2  # the gallery
    results = json.loads(data.read_text(encoding="utf-8"))
    assert results["files"][0]["name"] == "kd_x" and results["flips"]["forgotten"] == 2


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_the_page_without_an_error_or_a_request(audit, tmp_path):
    page, _ = report.write(audit, [audit.child], "measured here", tmp_path / "out")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"),
        *("--window-size=400,2000", f"--screenshot={tmp_path / 'page.png'}", f"--user-data-dir={tmp_path}"),
        page.as_uri(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ":CONSOLE" not in result.stderr, (
        result.stderr
    )  # the policy of the page reports each refused request
    with Image.open(tmp_path / "page.png") as screenshot:
        assert len(screenshot.convert("RGB").getcolors(2**24)) > 50
