"""The audit of a compressed model, what it forgot of the one that it comes from: one page, and JSON."""

import base64
import io
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2

from common.audit import calibration, charts, corruptions, forgetting
from common.audit.measure import Measured
from common.data.images import read_image
from common.data.transforms import center_crop, resized_side
from common.evaluation import metrics, plots, tables
from common.evaluation.comparison import Row
from common.evaluation.results import write_text
from common.system.errors import UserError

GALLERY, THUMBNAIL = 12, 160  # images, pixels
TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class Audit:
    """A compressed model beside the model that it comes from.

    Attributes:
        parent: The name of the file before compression.
        child: The row of the compressed file.
        before: What was measured of the first.
        after: What was measured of the second.
        samples: (path, label) of the images.
        classes: Their names.
        temperature: What the child's logits should be divided by; None where it could not be fitted.
        temperature_note: On which images it was fitted, or why it was not.
    """

    parent: str
    child: Row
    before: Measured
    after: Measured
    samples: list
    classes: list[str]
    temperature: float | None
    temperature_note: str

    def as_dict(self) -> dict:
        """All results as JSON values: fractions from 0 to 1."""
        labels = self.after.score.labels
        return {
            "baseline": self.parent,
            "model": self.child.path.name,
            "n": self.after.score.n,
            "accuracy": self._accuracy(),
            "flips": self._flips(),
            "classes": [
                asdict(change) | {"name": self.classes[change.label], "difference": change.difference}
                for change in forgetting.class_changes(self.before.score, self.after.score, len(self.classes))
            ],
            "calibration": {
                "bins": calibration.BINS,
                "before": self._calibration(self.before),
                "after": self._calibration(self.after),
                "temperature": self.temperature,
                "temperature_note": self.temperature_note,
                "after_with_temperature": self.temperature
                and calibration.expected_calibration_error(
                    (self.after.logits.double() / self.temperature).softmax(1), labels
                ),
            },
            "corruptions": [self._corruption(kind, strength) for kind, strength in self.after.corrupted],
            "lineage": [
                {key: row.get(key) for key in ("stage", "name", "parent", "parent_sha256", "machine")}
                | {"command": row["options"].get("command"), "versions": row.get("versions")}
                for row in self.child.content["lineage"]
            ],
        }

    def _accuracy(self) -> dict:
        before, after = self.before.score, self.after.score
        return {
            "before": before.as_dict("test"),
            "after": after.as_dict("test"),
            "difference": after.top1 - before.top1,
            "interval": forgetting.paired_interval(before.correct, after.correct),
            "p": metrics.mcnemar(after.correct, before.correct),
        }

    def _flips(self) -> dict:
        flips = forgetting.flips(self.before.score, self.after.score)
        before, after, labels = self.before.probabilities, self.after.probabilities, self.after.score.labels
        gallery = forgetting.worst(flips.forgotten, before, after, labels, GALLERY)

        def prediction(probabilities, index):
            label = int(probabilities[index].argmax())
            return {"class": self.classes[label], "probability": float(probabilities[index, label])}

        return {
            "forgotten": len(flips.forgotten),
            "learned": len(flips.learned),
            "different_predictions": len(flips.changed),
            "p": flips.p,
            "worst": [
                {
                    "index": index,
                    "image": Path(self.samples[index][0]).name,
                    "label": self.classes[int(labels[index])],
                    "before": prediction(before, index),
                    "after": prediction(after, index),
                }
                for index in gallery
            ],
        }

    def _calibration(self, measured: Measured) -> dict:
        of = (measured.probabilities, measured.score.labels)
        return {
            "error": calibration.expected_calibration_error(*of),
            "interval": calibration.bootstrap_interval(*of),
            "reliability": [asdict(each) for each in calibration.reliability(*of)],
        }

    def _corruption(self, kind: str, strength: int) -> dict:
        before, after = self.before.corrupted[kind, strength], self.after.corrupted[kind, strength]
        return {
            "kind": kind,
            "strength": strength,
            "parameter": corruptions.KINDS[kind][1][strength - 1],
            "before": before.top1,
            "after": after.top1,
            "relative_drop_before": _relative_drop(self.before.score.top1, before.top1),
            "relative_drop_after": _relative_drop(self.after.score.top1, after.top1),
            "p": metrics.mcnemar(after.correct, before.correct),
        }


def _relative_drop(clean: float, corrupted: float) -> float | None:
    return 1 - corrupted / clean if clean else None


def write(audit: Audit, rows: list[Row], conditions: str, folder: Path) -> list[Path]:
    """Writes report.html and report.json.

    The page is one file: it loads nothing, and contains no script.

    Args:
        audit: The audit.
        rows: All files of the comparison, for the tables and the plot.
        conditions: How accuracy and latency were measured.
        folder: Created if it is missing.

    Returns:
        The two files.

    Raises:
        UserError: A file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}") from None
    results = audit.as_dict()
    worst = [row["index"] for row in results["flips"]["worst"]]
    bins = {key: [calibration.Bin(**each) for each in results["calibration"][key]["reliability"]]
            for key in ("before", "after")}  # fmt: skip
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": lambda value: "-" if value is None else f"{100 * value:.1f} %",
        "points": lambda value: f"{100 * value:+.1f}",
        "p": lambda value: f"{value:.3f}" if value >= 0.0005 else "<0.001",
    }
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        audit=results,
        accuracy=tables.accuracy_cells(rows),
        costs=tables.cost_cells(rows),
        conditions=f"{tables.EXPLANATION} {conditions}",
        tradeoffs=_tradeoffs(rows, conditions),
        curves=_picture(audit.child.path.with_suffix(".png")),
        thumbnails={index: _thumbnail(audit.samples[index][0]) for index in worst},
        reliability=_svg(charts.draw_reliability(bins)),
        corruptions=_svg(_corruption_chart(results)),
    )  # fmt: skip
    files = [folder / "report.html", folder / "report.json"]
    write_text(page, files[0])
    results["files"] = [row.as_dict() for row in rows]
    write_text(json.dumps(results, indent=1, ensure_ascii=False), files[1])
    return files


def _corruption_chart(results: dict) -> str:
    kinds: dict[str, dict[str, list[float]]] = {}
    for row in results["corruptions"]:
        models = kinds.setdefault(row["kind"], {"before": [], "after": []})
        for name, values in models.items():
            values.append(row[name])
    clean = {name: results["accuracy"][name]["top1"] for name in ("before", "after")}
    return charts.draw_corruptions(clean, kinds)


def _tradeoffs(rows: list[Row], conditions: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tradeoffs.svg")
        plots.draw_tradeoffs(rows, path, note=conditions)
        return _svg(path.read_text(encoding="utf-8"))


def _svg(text: str) -> str:
    """As the address of an image: what is in it cannot act on the page."""
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"


def _picture(path: Path) -> str | None:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.is_file() else None


def _thumbnail(path: Path) -> str:
    buffer = io.BytesIO()
    center_crop(read_image(path), THUMBNAIL, resized_side({"image_size": THUMBNAIL})).save(
        buffer, "JPEG", quality=80
    )
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
