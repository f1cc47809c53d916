"""What the scripts print and write of their results: before and after, tables, logs."""

import csv
import json
from pathlib import Path

import torch

from common.comparison import Row
from common.files import written_whole
from common.metrics import wilson_interval
from common.plots import draw_curves

WIDTH = 120  # columns of a printed table
EXPLANATION = (
    "95 %: Wilson's interval. To parent: points of top-1 more than the file it was made from, on the same "
    "pictures; p: McNemar's exact test of that difference. Smaller: than the first ancestor's file."
)


def write_history(history: list[dict], checkpoint_path: Path) -> None:
    """Writes the rows of the epochs beside the checkpoint, as CSV and as curves in a PNG; nothing for no
    epochs.

    Raises UserError where a file cannot be written.
    """
    if history:
        _write_csv(history, checkpoint_path.with_suffix(".csv"))
        draw_curves(history, checkpoint_path.with_suffix(".png"))


def write_text(text: str, path: Path) -> None:
    """Writes `text` and an end of line. Raises UserError where the file cannot be written."""
    with written_whole(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def _write_csv(rows: list[dict], path: Path) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_rows_json(rows: list[Row], path: Path) -> None:
    """A JSON list of `Row.as_dict`. Raises UserError where the file cannot be written."""
    write_text(json.dumps([row.as_dict() for row in rows], indent=2), path)


def write_rows_csv(rows: list[Row], path: Path) -> None:
    """The same with the interval and the latency in columns of their own. Raises UserError."""
    flat = []
    for row in rows:
        content = row.as_dict()
        low, high = content.pop("ci95")
        latency = {f"latency_{key}": value for key, value in content.pop("latency_ms").items()}
        flat.append(content | {"ci95_low": low, "ci95_high": high} | latency)
    _write_csv(flat, path)


def write_markdown(rows: list[Row], conditions: str, path: Path) -> None:
    """The two tables, what they were measured on, and how each file was made. Raises UserError."""
    made = []
    for row in rows:
        options = row.content["lineage"][-1]["options"] if row.content["lineage"] else {}
        if "command" in options:
            made.append((f"`{row.path.name}`", f"`{options['command']}`", str(options["seed"])))
    parts = [accuracy_table(rows), cost_table(rows), f"{EXPLANATION} {conditions}"]
    if made:
        parts.append(markdown([("file", "made by", "seed"), *made], left=2))
    write_text("\n\n".join(parts), path)


def before_after(before: dict, before_path: Path | None, after: dict, after_path: Path) -> str:
    """`before => after` lines of two checkpoints' `metrics` and files; `before` may lack a file, and a top-1
    of the same split.
    """
    comparable = "top1" in before and before.get("split", "test") == after["split"]
    rows = [
        ("top-1", f"{before['top1']:.2%}" if comparable else "-", f"{after['top1']:.2%}"),
        (
            "parameters",
            f"{before['params']:,}",
            f"{after['params']:,} ({after['params'] / before['params']:.1%})",
        ),
        ("MACs", f"{before['macs']:,}", f"{after['macs']:,} ({after['macs'] / before['macs']:.1%})"),
    ]
    if before_path is not None:
        old, new = before_path.stat().st_size, after_path.stat().st_size
        rows.append(("bytes", f"{old:,}", f"{new:,} ({old / new:.1f} times smaller)"))
    return "\n".join(f"  {name:<11}{old:>15} => {new}" for name, old, new in rows)


def accuracy_table(rows: list[Row], width: int | None = None) -> str:
    """A Markdown table: top-1 and top-5 with their intervals, the difference to the parent and its p-value.

    Where it would be wider than `width` columns, the names are cut in the middle.
    """
    cells = [("file", "stage", "n", "top-1", "95 %", "top-5", "95 %", "to parent", "p")]
    for row in rows:
        delta, p = row.delta_top1, row.mcnemar_p
        cells.append(
            (
                row.path.name.removesuffix(".pt"),
                row.content["stage"],
                f"{row.score.n}",
                f"{row.score.top1:.2%}",
                interval(row.score.ci95),
                f"{row.score.top5:.2%}",
                interval(row.score.ci95_top5),
                "-" if delta is None else f"{100 * delta:+.2f}",
                "-" if p is None else f"{p:.3f}" if p >= 0.0005 else "<0.001",
            )
        )
    return markdown(cells, left=2, width=width)


def cost_table(rows: list[Row], width: int | None = None) -> str:
    """A Markdown table: parameters, MACs, file size, how many times smaller than the first ancestor, latency
    and what ran it. Names as in `accuracy_table`.
    """
    cells = [("file", "parameters", "MACs", "size", "smaller", "p50", "p95", "run by")]
    for row in rows:
        figures = row.content["metrics"]
        cells.append(
            (
                row.path.name.removesuffix(".pt"),
                f"{figures['params'] / 1e6:.2f} M" if figures["params"] else "-",
                f"{figures['macs'] / 1e6:.0f} M" if figures["macs"] else "-",
                f"{row.bytes / 1e6:.2f} MB",
                f"{row.compression:.1f} x" if row.compression else "-",
                f"{row.latency.p50:.2f} ms",
                f"{row.latency.p95:.2f} ms",
                row.engine,
            )
        )
    return markdown(cells, width=width)


def class_table(confusion: torch.Tensor, classes: list[str]) -> str:
    """A Markdown table of `confusion`, int [C, C] (see `Score.confusion`), the worst class first: pictures,
    top-1 with its interval, and what the others of its pictures were most often taken for.
    """
    cells = [("class", "n", "top-1", "95 %", "most often taken for")]
    counts, right = confusion.sum(1), confusion.diagonal()
    for index in (right / counts).argsort(stable=True).tolist():
        n, correct = int(counts[index]), int(right[index])
        wrong = confusion[index].clone()
        wrong[index] = 0
        mistake = f"{classes[int(wrong.argmax())]} ({int(wrong.max())})" if wrong.any() else "-"
        share, ci95 = (f"{correct / n:.1%}", interval(wilson_interval(correct, n))) if n else ("-", "-")
        cells.append((classes[index], str(n), share, ci95, mistake))
    return markdown(cells)


def interval(ci95: tuple[float, float]) -> str:
    """Both ends in percent."""
    low, high = ci95
    return f"{100 * low:.1f}-{100 * high:.1f}"


def markdown(rows: list[tuple[str, ...]], *, left: int = 1, width: int | None = None) -> str:
    """A Markdown table, aligned for reading as text too: `left` columns to the left, others to the right."""
    header, *body = rows
    lines = [header, (*[":---"] * left, *["---:"] * (len(header) - left)), *body]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    if width is not None:
        widths[0] = min(widths[0], width - sum(widths[1:]) - 3 * len(widths) - 1)
    return "\n".join(
        "| "
        + " | ".join(
            _shortened(cell, size).ljust(size) if column < left else cell.rjust(size)
            for column, (cell, size) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def _shortened(text: str, size: int) -> str:
    if len(text) <= size:
        return text
    head = (size - 1) // 2
    return f"{text[:head]}…{text[len(text) - (size - 1 - head) :]}"
