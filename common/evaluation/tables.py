"""Tables in Markdown, and the lines `before => after`."""

from pathlib import Path

import torch

from common.evaluation.comparison import Row
from common.evaluation.metrics import wilson_interval
from common.evaluation.results import write_text
from common.system import units

WIDTH = 120  # columns of a printed table
EXPLANATION = (
    "95 %: Wilson's interval. To parent: top-1 minus that of the file it was created from (if it is missing, "
    "of the nearest ancestor that is not), in points, on the same images; p: McNemar's exact test of that "
    "difference. Smaller: than the file of the first ancestor. MACs: of convolutions, linear layers and "
    "attention; with *: counted by an earlier version, with batch norm, activations and pooling too. RAM: "
    "the peak of the activations of one image, layer by layer, 4 bytes a value (1 in int8), without the "
    "weights; of a C file the bytes of its static array."
)


def write_markdown(rows: list[Row], conditions: str, path: Path) -> None:
    """Writes the two tables, how they were measured, and the command that created each file.

    Args:
        rows: The files of a comparison.
        conditions: How accuracy and latency were measured.
        path: The file.

    Raises:
        UserError: The file cannot be written.
    """
    created = []
    for row in rows:
        options = row.content["lineage"][-1]["options"] if row.content["lineage"] else {}
        if "command" in options:
            created.append((f"`{row.path.name}`", f"`{options['command']}`", str(options["seed"])))
    parts = [accuracy_table(rows), cost_table(rows), f"{EXPLANATION} {conditions}"]
    if created:
        parts.append(markdown([("file", "created by", "seed"), *created], left=2))
    write_text("\n\n".join(parts), path)


def before_after(before: dict, before_path: Path | None, after: dict, after_path: Path) -> str:
    """Compares a checkpoint with the one that it was created from.

    Args:
        before: The metrics of the first; its top-1 is left out where it is missing, or of other images.
        before_path: Its file, if there is one.
        after: The metrics of the second.
        after_path: Its file.

    Returns:
        A line for each that is known: top-1, parameters, MACs, RAM, bytes of the file, target of pruning.
    """
    # checkpoints of earlier versions name no images: then their number has to be enough
    keys = ("split", "image_size", "images" if "images" in before else "n")
    comparable = "top1" in before and all(before.get(key, "test") == after[key] for key in keys)
    rows = [
        ("top-1", f"{before['top1']:.2%}" if comparable else "-", f"{after['top1']:.2%}"),
        (
            "parameters",
            f"{before['params']:,}",
            f"{after['params']:,} ({after['params'] / before['params']:.1%})",
        ),
        ("MACs", f"{before['macs']:,}", f"{after['macs']:,} ({after['macs'] / before['macs']:.1%})"),
    ]
    if "ram_bytes" in before and "ram_bytes" in after:
        old, new = before["ram_bytes"], after["ram_bytes"]
        rows.append(("RAM, layer by layer", f"{old:,}", f"{new:,} bytes ({new / old:.1%})"))
    if before_path is not None:
        old, new = before_path.stat().st_size, after_path.stat().st_size
        rows.append(("bytes", f"{old:,}", f"{new:,} ({old / new:.1f} times smaller)"))
    if target := after.get("target"):
        limit, achieved = (
            units.describe(target["of"], target[key], target["precision"], target["conditions"])
            for key in ("limit", "achieved")
        )
        rows.append(("target", limit, achieved))
    return "\n".join(f"  {name:<19}{old:>15} => {new}" for name, old, new in rows)


def accuracy_table(rows: list[Row], width: int | None = None) -> str:
    """The table of `accuracy_cells`.

    Args:
        rows: The files of a comparison.
        width: Columns of text; where the table would be wider, names are shortened in the middle.

    Returns:
        Markdown.
    """
    return markdown(accuracy_cells(rows), left=2, width=width)


def accuracy_cells(rows: list[Row]) -> list[tuple[str, ...]]:
    """A table of top-1 and top-5 with their intervals, the difference to the parent and its p-value.

    Args:
        rows: The files of a comparison.

    Returns:
        The header, then a line for each file.
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
    return cells


def cost_table(rows: list[Row], width: int | None = None) -> str:
    """The table of `cost_cells`.

    Args:
        rows: The files of a comparison.
        width: Columns of text; where the table would be wider, names are shortened in the middle.

    Returns:
        Markdown.
    """
    return markdown(cost_cells(rows), width=width)


def cost_cells(rows: list[Row]) -> list[tuple[str, ...]]:
    """A table of parameters, MACs, file size, how many times smaller than the first ancestor, RAM, latencies.

    Where checkpoints have weights of 4 bits, a column tells how many.

    Args:
        rows: The files of a comparison.

    Returns:
        The header, then a line for each file.
    """
    runtimes = list(dict.fromkeys(runtime for row in rows for runtime in row.latencies))
    narrow = ["4 bits"] if any("int4_fraction" in row.content["metrics"] for row in rows) else []
    cells = [("file", "parameters", *narrow, "MACs", "size", "smaller", "RAM", *runtimes, "engine")]
    for row in rows:
        metrics = row.content["metrics"]
        fraction = metrics.get("int4_fraction")
        cells.append(
            (
                row.path.name.removesuffix(".pt"),
                f"{metrics['params'] / 1e6:.2f} M" if metrics["params"] else "-",
                *("-" if fraction is None else f"{fraction:.0%}" for _ in narrow),
                _macs(metrics),
                f"{row.file_bytes / 1e6:.2f} MB",
                f"{row.compression:.1f} x" if row.compression else "-",
                f"{row.ram_bytes / 1024:,.0f} KiB" if row.ram_bytes else "-",
                *(f"{row.latencies[name].p50:.2f} ms" if name in row.latencies else "-" for name in runtimes),
                row.engine,
            )
        )
    return cells


def _macs(metrics: dict) -> str:
    """The MACs in millions, marked where an earlier version counted them: it stored no image size."""
    counted_before = "top1" in metrics and "image_size" not in metrics
    return f"{metrics['macs'] / 1e6:.0f} M{'*' * counted_before}" if metrics["macs"] else "-"


def class_table(confusion: torch.Tensor, classes: list[str]) -> str:
    """A table of the classes, the worst first: images, top-1 with its interval, the most frequent mistake.

    Args:
        confusion: The result of `Score.confusion`, int64 [C, C].
        classes: The C names.

    Returns:
        Markdown.
    """
    cells = [("class", "n", "top-1", "95 %", "most frequent mistake")]
    counts, correct = confusion.sum(1), confusion.diagonal()
    for index in (correct / counts).argsort(stable=True).tolist():
        n, hits = int(counts[index]), int(correct[index])
        mistakes = confusion[index].clone()
        mistakes[index] = 0
        worst = f"{classes[int(mistakes.argmax())]} ({int(mistakes.max())})" if mistakes.any() else "-"
        top1, ci95 = (f"{hits / n:.1%}", interval(wilson_interval(hits, n))) if n else ("-", "-")
        cells.append((classes[index], str(n), top1, ci95, worst))
    return markdown(cells)


def interval(ci95: tuple[float, float]) -> str:
    """Writes an interval in percent.

    Args:
        ci95: Both ends, from 0 to 1.

    Returns:
        Such as "81.7-86.4".
    """
    low, high = ci95
    return f"{100 * low:.1f}-{100 * high:.1f}"


def markdown(rows: list[tuple[str, ...]], *, left: int = 1, width: int | None = None) -> str:
    """A table, aligned so that it can be read as plain text too.

    Args:
        rows: The header, then the lines, each of as many cells.
        left: How many columns are aligned to the left; the others are aligned to the right.
        width: Columns of text; where the table would be wider, the first cell of each line is shortened.

    Returns:
        Markdown.
    """
    header, *body = [tuple(cell.replace("|", r"\|") for cell in row) for row in rows]
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
