"""Budgets of bytes: compress.py beside other ways to meet them.

    python -m benchmarks.budgets --weights teacher_mobilenet_v2 --output-dir bench --pretrained . \
        --smaller squeezenet1_1 --output budgets.jsonl

The budgets are 1/2, 1/4, 1/8 and 1/16 of the file of --weights. The peers:
- ONNX Runtime's quantize_static of that file (see benchmarks.runtimes), and of each --smaller
- magnitude pruning, the same fraction of every layer, with as many epochs of fine-tuning, cross-entropy only
- each --smaller architecture, from its pretrained weights (ARCH.pth in --pretrained), with as many epochs
compress.py may distill into the --smaller ones too. Everything is trained on the same images, the epoch is
selected on validation, and the test split is evaluated once. Each file adds a line of JSON to --output; those
that are there are not repeated. --draw plots several such files.
"""

import json
import tempfile
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

import compress
import train_pruning
import train_teacher
from benchmarks.runtimes import statically_quantized
from common.cli import launch, options
from common.cli.parser import Parser
from common.data import datasets
from common.data.loaders import eval_loader, make_loaders
from common.deployment import onnx_model, predictor
from common.evaluation import metrics
from common.models import checkpoint

PARTS = (2, 4, 8, 16)
CHAIN, STATIC, UNIFORM = "compress.py", "quantize_static", "uniform magnitude pruning"
BATCH = 32


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--weights", metavar="CHECKPOINT", help="what is compressed")
    parser.add_argument("--smaller", nargs="+", default=[], metavar="ARCH", help="smaller architectures")
    parser.add_argument("--pretrained", metavar="DIR", help="their initial weights")
    parser.add_argument("--epochs", type=int, default=16, help="of distillation and fine-tuning; default: 16")
    parser.add_argument("--quantization-epochs", type=int, default=4, help="of QAT; default: 4")
    parser.add_argument("--target-device", default="embedded", help="default: embedded")
    parser.add_argument("--output", metavar="FILE.jsonl", help="continued if it exists")
    parser.add_argument("--draw", nargs="+", metavar="FILE", help="FILE.png and FILE.jsonl of each data set")
    options.add_dataset_options(parser)
    options.add_output_dir_option(parser)
    return parser.parse_args(argv)


def main(args):
    if args.draw:
        return draw(Path(args.draw[0]), [Path(path) for path in args.draw[1:]])
    output, folder = Path(args.output), Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    source = checkpoint.find(args.weights, args.output_dir)
    side = checkpoint.load(source)["image_size"]
    splits = datasets.load_splits(args.dataset, args.data_dir, val_fraction=0.2)
    where = ["--dataset", args.dataset, "--output-dir", str(folder)]
    where += ["--data-dir", args.data_dir] if args.data_dir else []
    total = args.epochs + args.quantization_epochs
    done = {row["name"]: row for row in read(output)}

    def note(name: str, method: str, create, part: int | None = None):
        """Evaluates the file that `create()` returns, and adds it to the output."""
        if name in done:
            return
        start = time.monotonic()
        path = create()
        seconds = round(time.monotonic() - start)
        opened = predictor.load(path, None, 2)
        loader = eval_loader(splits.test, opened.content, BATCH, cache="auto")
        score = metrics.evaluate(opened.model, loader, torch.device("cpu"))
        row = {
            "name": name, "method": method, "part": part, "file": path.name, "bytes": path.stat().st_size,
            "teacher": source.name, "teacher_bytes": source.stat().st_size, "dataset": args.dataset,
            "seconds": seconds, "correct": score.correct.int().tolist(),
        }  # fmt: skip
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name}: {path.name}, {row['bytes']:,} bytes, {seconds} s, {score}", flush=True)

    def run(script, *words):
        return script.main(script.parse_args([*map(str, words), *where]))

    def static(path: Path):
        def create():
            content = checkpoint.load(path)
            loaders = make_loaders(splits, content, BATCH, seed=0, cache="auto")
            with tempfile.TemporaryDirectory() as temporary:
                exported = Path(temporary) / f"{path.stem}.onnx"
                with onnx_model.export(content, checkpoint.rebuild(content), exported):
                    pass
                peer = statically_quantized(exported, loaders.train)
                return peer.rename(folder / f"static_{path.stem}.onnx")

        return create

    note(source.name, "before", lambda: source)
    note(f"{STATIC} of {source.name}", STATIC, static(source))
    for arch in args.smaller:
        weights = f"{args.pretrained}/{arch}.pth"
        small = run(
            train_teacher,
            "--teacher",
            arch,
            "--pretrained",
            weights,
            "--epochs",
            total,
            "--image-size",
            side,
            "--resume",
        )
        note(arch, arch, lambda small=small: small)
        note(f"{STATIC} of {arch}", f"{arch}, {STATIC}", static(small))
    for part in reversed(PARTS):
        limit = f"{source.stat().st_size // part}B"
        students = ["--student", *args.smaller] if args.smaller else []
        note(
            f"{CHAIN} 1/{part}", CHAIN,
            lambda limit=limit, students=students: run(
                compress, "--weights", source, "--target-size", limit, "--epochs", args.epochs,
                "--quantization-epochs", args.quantization_epochs, "--target-device", args.target_device,
                *students, "--pretrained", f"{args.pretrained}/{args.smaller[0]}.pth",
            ),
            part,
        )  # fmt: skip
        note(
            f"{UNIFORM} 1/{part}", UNIFORM,
            lambda limit=limit: run(
                train_pruning, "--weights", source, "--target-size", limit, "--importance", "magnitude",
                "--scope", "local", "--reconstruct", "none", "--epochs", total, "--resume",
            ),
            part,
        )  # fmt: skip
    print(table(read(output)))
    return None


def read(path: Path) -> list[dict]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def table(rows: list[dict]) -> str:
    """Of each method the file that fits each budget; p against compress.py, on the same images."""
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "before"))
    methods = [CHAIN, *(method for method in methods if method != CHAIN)]
    lines = [f"| method | {' | '.join(f'1/{part}' for part in PARTS)} |", "| :--- |" + " ---: |" * len(PARTS)]
    for method in methods:
        cells = []
        for part in PARTS:
            limit = rows[0]["teacher_bytes"] // part
            own = [row for row in rows if row["method"] == method and row["part"] in (part, None)]
            chain = [row for row in rows if row["method"] == CHAIN and row["part"] == part]
            fitting = [row for row in own if row["bytes"] <= limit]
            if not fitting:
                least = min((row["bytes"] for row in own), default=None)
                cells.append(f"does not fit ({least / 1e6:.2f} MB)" if least else "-")
                continue
            correct = torch.tensor(fitting[0]["correct"]).bool()
            cell = f"{correct.double().mean():.2%}, {fitting[0]['bytes'] / 1e6:.2f} MB"
            if method != CHAIN and chain:
                p = metrics.mcnemar(correct, torch.tensor(chain[0]["correct"]).bool())
                cell += f", p {p:.3f}" if p >= 0.0005 else ", p <0.001"
            cells.append(cell)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, files: list[Path]) -> None:
    figure = Figure(figsize=(6.5 * len(files), 5), layout="constrained")
    colors = {}
    for axes, file in zip(figure.subplots(1, len(files), squeeze=False)[0], files, strict=True):
        rows = read(file)
        for method in dict.fromkeys(row["method"] for row in rows):
            color = colors.setdefault(method, f"C{len(colors)}")
            own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["bytes"])
            counts = [(sum(row["correct"]), len(row["correct"])) for row in own]
            top1 = [correct / n for correct, n in counts]
            ends = [metrics.wilson_interval(*count) for count in counts]
            bars = [[abs(y - end[side]) for y, end in zip(top1, ends, strict=True)] for side in (0, 1)]
            sizes = [row["bytes"] / 1e6 for row in own]
            axes.errorbar(sizes, top1, bars, label=method, color=color, marker="o", capsize=3)
        for part in PARTS:
            limit = rows[0]["teacher_bytes"] / part / 1e6
            axes.axvline(limit, color="grey", linestyle=":", lw=1)
            axes.annotate(f"1/{part}", (limit, 1.01), xycoords=("data", "axes fraction"), ha="center")
        axes.set(xscale="log", xlabel="file, MB", ylabel="top-1 on test")
        axes.set_title(f"{rows[0]['teacher'].removesuffix('.pt')}, {rows[0]['dataset']}", pad=20)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    launch.run(main, parse_args)
