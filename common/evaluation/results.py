"""Results as files: text, CSV, JSON."""

import csv
import json
from pathlib import Path

from common.evaluation.comparison import Row
from common.evaluation.plots import draw_curves
from common.system.files import atomic_write


def write_history(history: list[dict], checkpoint_path: Path) -> None:
    """Writes the history of a training run beside its checkpoint, as CSV and as a plot; nothing for 0 epochs.

    Args:
        history: A row for each epoch, see `loop.fit`.
        checkpoint_path: The checkpoint; the other files differ from it in their suffix.

    Raises:
        UserError: A file cannot be written.
    """
    if history:
        _write_csv(history, checkpoint_path.with_suffix(".csv"))
        draw_curves(history, checkpoint_path.with_suffix(".png"))


def write_text(text: str, path: Path) -> None:
    """Writes a text file.

    Args:
        text: The content, without the last line break.
        path: The file.

    Raises:
        UserError: The file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def _write_csv(rows: list[dict], path: Path) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({key: _literal(value) for key, value in row.items()} for row in rows)


def _literal(value):
    """A text that a spreadsheet would run as a formula gets an apostrophe, which shows it as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def write_rows_json(rows: list[Row], path: Path) -> None:
    """Writes a JSON list of `Row.as_dict`.

    Args:
        rows: The files of a comparison.
        path: The file.

    Raises:
        UserError: The file cannot be written.
    """
    write_text(json.dumps([row.as_dict() for row in rows], indent=2), path)


def write_rows_csv(rows: list[Row], path: Path) -> None:
    """Writes `Row.as_dict` as CSV, with a column for each end of the interval and each part of each latency.

    Args:
        rows: The files of a comparison.
        path: The file.

    Raises:
        UserError: The file cannot be written.
    """
    flat = []
    for row in rows:
        content = row.as_dict()
        low, high = content.pop("ci95")
        latencies = {
            f"latency_{runtime}_{key}": value
            for runtime, latency in content.pop("latency_ms").items()
            for key, value in latency.items()
        }
        flat.append(content | {"ci95_low": low, "ci95_high": high} | latencies)
    _write_csv(flat, path)
