"""What a stage writes beside its checkpoint and prints at its end; the tables of checkpoints."""

import csv
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.files import written_whole
from common.latency import Latency


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


def comparison(rows: list[tuple[Path, dict]]) -> str:
    """A Markdown table of (path, checkpoint): accuracy and size; sizes are compared with the first row."""
    first_bytes = rows[0][0].stat().st_size
    cells = [("checkpoint", "top-1", "95 % interval", "n", "parameters", "MACs", "file", "smaller")]
    for path, content in rows:
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
            )
        )
    return _markdown(cells)


def latencies(rows: list[tuple[str, str, Latency, Latency]]) -> str:
    """A Markdown table of (name, engine, latency of one picture alone, latency in a batch).

    How many times as fast a row is goes by the medians for one picture alone, against the first row.
    """
    single, batched = f"batch {rows[0][2].batch}", f"batch {rows[0][3].batch}"
    cells = [("model", "engine", f"{single}: p50", "p95", "faster", f"{batched}: p50", "p95")]
    for name, engine, alone, together in rows:
        cells.append(
            (
                name,
                engine,
                f"{alone.p50:.2f} ms",
                f"{alone.p95:.2f} ms",
                f"{rows[0][2].p50 / alone.p50:.1f} x",
                f"{together.p50:.2f} ms",
                f"{together.p95:.2f} ms",
            )
        )
    return _markdown(cells)


def _markdown(rows: list[tuple[str, ...]]) -> str:
    """Aligned for reading as text too: the first column to the left, the others to the right."""
    header, *body = rows
    lines = [header, (":---", *["---:"] * (len(header) - 1)), *body]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in lines
    )
