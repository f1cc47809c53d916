"""What a stage writes beside its checkpoint and prints at its end; the table of checkpoints."""

import csv
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.files import written_whole


def write_history(history: list[dict], checkpoint_path: Path) -> None:
    """Writes the rows of the epochs beside the checkpoint, as CSV and as curves in a PNG; nothing for no
    epochs.

    Raises UserError where a file cannot be written.
    """
    if history:
        _write_csv(history, checkpoint_path.with_suffix(".csv"))
        _draw_curves(history, checkpoint_path.with_suffix(".png"))


def _write_csv(history: list[dict], path: Path) -> None:
    columns = list(dict.fromkeys(key for row in history for key in row))
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(history)


def _draw_curves(history: list[dict], path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = range(1, len(history) + 1)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "top1"), strict=True):
        for part, label in (("train", "training"), ("val", "validation")):
            values = [row.get(f"{part}_{quantity}") for row in history]
            if None not in values:
                axes.plot(epochs, values, marker="o", markersize=3, label=label)
        axes.set(xlabel="epoch", title="top-1" if quantity == "top1" else "loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    figure.suptitle(path.stem)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120)


def before_after(before: dict, before_path: Path | None, after: dict, after_path: Path) -> str:
    """`before => after` lines of two checkpoints' `metrics` and files; `before` may lack top-1 and a file."""
    rows = [
        ("top-1", f"{before['top1']:.2%}" if "top1" in before else "-", f"{after['top1']:.2%}"),
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


def comparison(rows: list[tuple[Path, dict, float]], threads: int) -> str:
    """A Markdown table of (path, checkpoint, ms for a picture); sizes are compared with the first row."""
    header = (
        "checkpoint",
        "top-1",
        "95 % interval",
        "n",
        "parameters",
        "MACs",
        "file",
        "smaller",
        "latency",
        "engine",
    )
    first_bytes = rows[0][0].stat().st_size
    cells = [header]
    for path, content, milliseconds in rows:
        figures, size = content["metrics"], path.stat().st_size
        cells.append(
            (
                path.stem,
                f"{figures['top1']:.2%}",
                "{:.1%} to {:.1%}".format(*figures["ci95"]),
                f"{figures['n']}",
                f"{figures['params'] / 1e6:.2f} M",
                f"{figures['macs'] / 1e6:.0f} M",
                f"{size / 1e6:.2f} MB",
                f"{first_bytes / size:.1f} x",
                f"{milliseconds:.2f} ms",
                content["int8"]["backend"] if content["int8"] else "fp32",
            )
        )
    cells.insert(1, [":---"] + ["---:"] * (len(header) - 1))
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        first, *others = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        lines.append("| " + " | ".join([first.strip().ljust(widths[0]), *others]) + " |")
    notes = [
        f"Top-1 on the test split; latency of one picture with {threads} thread(s) on this machine's CPU."
    ]
    if any(content["int8"] and content["int8"]["backend"] == "qnnpack" for _, content, _ in rows):
        notes.append("qnnpack is made for ARM: its latency on another CPU says nothing about an ARM board.")
    return "\n".join([*lines, "", *notes])
