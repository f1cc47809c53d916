"""Compress to a budget: distill, prune and quantize as far as needed, and keep what is best on validation.

    python compress.py --weights resnet50 --target-size 4MB --student resnet18
    python compress.py --weights resnet50 --target-ram 512KB --image-size 224 160 128
    python compress.py --weights mobilenet_v2 --part nrf52840 --image-size 224 160

reads    weights/teacher_resnet50_<top-1>.pt, and the images of --dataset
writes   the winner into weights/, its report (.md, .png) beside it, all others into weights/candidates/
         for a microcontroller (--part, or --target-ram with --target-size) the winner in C, golden integers

The candidates are compared in short trials, and only the most promising are trained for all epochs: see
common/budget/search.py. The same command again resumes a search that was interrupted.
"""

import functools
import os
import re
from pathlib import Path

import export
import train_pruning
import train_quantization
import train_student
from common.cli import launch, options, parts, targets, teacher_options
from common.cli.parser import Parser, number, shell_join
from common.compression.target_devices import TARGET_DEVICES

SHARED = (  # options that all stages get as they are given here
    "dataset", "data_dir", "workers", "cache", "val_fraction", "batch_size", "weight_decay", "optimizer",
    "schedule", "seed", "device", "precision", "temperature", "alpha",
    "distillation", "standardize_logits", "mixup", "crops",
)  # fmt: skip
# of firmware/Makefile
BOARDS = {"Cortex-M4": "mps2-an386", "Cortex-M7": "mps2-an500", "Cortex-M33": "mps3-an524"}


def main(args):
    from common.budget.candidates import Candidate  # imported here, so that --help does not load torch
    from common.data import cache, datasets, loaders
    from common.evaluation import metrics, results
    from common.models import architectures, checkpoint, lineage

    # source, images
    launch.require_single_process()
    for arch in args.student:
        architectures.check(arch)
    launch.start(args.output_dir, args.device, args.seed)
    path, content = checkpoint.open_parent(args.weights, args.output_dir)
    sizes = sizes_that_fit(args, content)
    splits = datasets.load_splits(
        args.dataset, args.data_dir, args.val_fraction, index_dir=cache.folder_of(args.cache)
    )
    lineage.check_fits(content, splits)
    teacher_options.check(args, len(splits.classes))
    batches = functools.partial(
        loaders.make_loaders, splits, batch_size=args.batch_size, seed=args.seed, cache=args.cache,
        workers=args.workers,
    )  # fmt: skip
    size = content["image_size"] if content["image_size"] in sizes else sizes[0]
    val = batches(content | {"image_size": size}).of("val")
    score = metrics.evaluate(checkpoint.rebuild(content), val, val.device)
    source = teacher = Candidate("", path, content["image_size"], score.top1, score.ci95)
    if args.teacher:
        path, model = checkpoint.open_teacher(args.teacher, args.output_dir, content, splits)
        score = metrics.evaluate(model, val, val.device)
        teacher = Candidate("", path, size, score.top1, score.ci95)

    # distill, prune and quantize; validation selects the winner
    search = new_search(args, source, teacher, sizes)
    winner = search.run()
    report = search.report(winner, len(splits.train))

    # test the winner only, save
    created = checkpoint.load(winner.path)
    test = batches(created).test
    score = metrics.evaluate(checkpoint.rebuild(created), test, test.device)
    images = {"images": splits.fingerprint_of("test"), "image_size": created["image_size"]}
    kept = {key: created["metrics"][key] for key in ("params", "macs")} | {"validation": created["metrics"]}
    created["metrics"] = score.as_dict("test") | images | kept
    path = checkpoint.save(created, args.output_dir, once=True)
    report += f"\n\nOn the test images, which no other candidate has seen: {score}"
    results.write_text(f"{report}\n\n![limits]({path.stem}.png)", path.with_suffix(".md"))
    draw(args, search, path.with_suffix(".png"))
    print(f"\n{report}\nsaved {path}, {path.with_suffix('.md')}, {path.with_suffix('.png')}")
    return deploy(args, path, created)


def sizes_that_fit(args, content):
    """The image sizes to try; of a microcontroller those at which source and students fit into its RAM."""
    from common.budget import memory_limits
    from common.models import architectures, checkpoint
    from common.system.errors import UserError

    sizes = list(dict.fromkeys(args.image_size or [content["image_size"]]))
    if not args.memory:
        return sizes
    target, count = TARGET_DEVICES[args.target_device], len(content["classes"])
    networks = [checkpoint.rebuild(content), *(architectures.build(arch, count) for arch in args.student)]
    fitting, refused = [], []
    for size in sizes:
        try:
            for network in networks:
                graph = memory_limits.graph_of(network, target, size)
                schedule, extra = memory_limits.find_way(graph, args.memory[0])
                print(f"{type(network).__name__} fits at {size} pixels: {schedule}, {extra:.0%} more MACs")
            fitting.append(size)
        except UserError as error:
            refused.append(str(error))
    if not fitting:
        raise UserError("; ".join(refused))
    print("".join(f"note: {text}\n" for text in refused), end="")
    return fitting


def draw(args, search, path):
    """Draws the accuracy of what was finished against the budget; in C against both limits."""
    from common.budget import memory_limits
    from common.evaluation import limit_plot
    from common.evaluation.limit_plot import Limit
    from common.models import checkpoint
    from common.system import units

    finished = [each for each in search.tried if each.cost is not None]
    networks = [(f"{each.path.name}: {each.recipe}", each.top1, each.ci95) for each in finished]
    costs = [each.cost for each in finished]
    limits = [
        Limit("limit", units.describe(search.kind, search.limit).partition(" ")[2], search.limit, costs)
    ]
    if args.memory:
        part = f"{args.part}: " if args.part else ""
        sizes = [memory_limits.size_in_c(checkpoint.load(each.path), args.memory[0]) for each in finished]
        limits = [
            Limit(
                f"{part}{kind} limit",
                f"{kind} in C, KiB",
                args.memory[index] / 1024,
                [each[index] / 1024 for each in sizes],
            )
            for index, kind in enumerate(("RAM", "flash"))
        ]
    limit_plot.draw(networks, limits, path)


def deploy(args, path, content):
    """Writes the winner in C for a microcontroller, by the first schedule that fits, and golden integers."""
    from common.budget import memory_limits
    from common.deployment import c_model
    from common.evaluation import results
    from common.models import integers

    if not args.memory:
        print(f"next: python export.py {path} --output {path.stem}.onnx{options.data_arguments(args)}")
        return path
    schedule, extra = memory_limits.find_way(integers.read(content), args.memory[0])
    output = path.with_name(re.sub("[^a-z0-9_]", "_", path.stem.lower()) + ".c")
    words = [str(path), "--output", str(output), "--schedule", schedule, "--extra-macs", str(extra)]
    golden = output.with_name(f"{output.stem}_golden")  # where firmware/Makefile looks for it
    words += [] if golden.exists() else ["--golden", str(golden)]
    export.main(export.parse_args([*words, *options.data_words(args)]))
    written, (ram, flash) = c_model.CModel(output), args.memory
    text = (
        f"In C ({schedule}, {extra:.0%} more MACs): {written.ram:,} bytes of RAM, the limit is {ram:,}; "
        f"{written.flash:,} bytes of flash for constants, the limit is {flash:,}"
    )
    report = path.with_suffix(".md")
    results.write_text(f"{report.read_text(encoding='utf-8').rstrip()}\n\n{text}\n", report)
    board = BOARDS.get(parts.PARTS[args.part].core if args.part else None, "mps2-an500")
    print(f"{text}\nnext: make -C firmware run BOARD={board} NET={os.path.relpath(output, 'firmware')}")
    return output


def new_search(args, source, teacher, sizes):
    """The search for the budget of `args`, from the candidate `source`, at the image sizes `sizes`."""
    from common.budget import costs
    from common.budget.search import Search
    from common.data import cache
    from common.models import checkpoint

    kind, text = targets.budget(args)
    folder = cache.folder_of(args.cache) or Path(args.output_dir, checkpoint.CANDIDATES)
    conditions = {"threads": args.threads, "latency_in": args.latency_in, "tables": folder}
    target = TARGET_DEVICES[args.target_device]
    return Search(
        source, teacher, kind, text, alpha=args.alpha, stages=stages(args),
        budget=functools.partial(
            costs.checkpoint_budget, kind, options=vars(args), target=target, **conditions
        ),
        cost=functools.partial(costs.checkpoint_cost, kind, **conditions),
        students=args.student, sizes=sizes, epochs=args.epochs,
        precisions=("int8",) if args.memory else None,
    )  # fmt: skip


def stages(args):
    """The stages as functions, with the options of `args`; they write into the folder of the candidates."""
    from common.budget.candidates import Stages
    from common.models import checkpoint

    folder = Path(args.output_dir) / checkpoint.CANDIDATES

    def run(script, **settings):
        words = args.shared + [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
        words += ["--output-dir", str(folder), "--score", "val", "--resume"]
        print(f"\n$ {shell_join(['python', Path(script.__file__).name, *words])}", flush=True)
        return script.main(script.parse_args(words))

    def at(size):
        return {"image_size": size} if args.image_size else {}

    def distill(arch, size, epochs, teacher, alpha):
        return run(
            train_student, teacher=teacher, student=arch, pretrained=args.pretrained, epochs=epochs,
            lr=args.lr, **at(size), **({} if alpha == args.alpha else {"distillation": "kd", "alpha": alpha}),
        )  # fmt: skip

    def prune(path, target, precision, importance, scope, size, epochs, teacher):
        kind, _ = targets.budget(args)
        return run(
            train_pruning, weights=path, teacher=teacher, **{targets.option(kind): target},
            target_precision=precision, target_device=args.target_device, threads=args.threads,
            latency_in=args.latency_in, importance=importance, scope=scope, lr=args.lr, epochs=epochs,
            **at(size), **({"width_multiple": args.width_multiple} if args.width_multiple else {}),
        )  # fmt: skip

    def quantize(path, teacher):
        return run(
            train_quantization, weights=path, teacher=teacher, epochs=args.quantization_epochs,
            target_device=args.target_device,
        )  # fmt: skip

    return Stages(distill, prune, quantize)


def parse_args(argv=None):
    parser = Parser(__doc__)
    group = parser.add_argument_group("compression")
    group.add_argument("--weights", required=True, metavar="CHECKPOINT", help=options.CHECKPOINT)
    targets.add_budget_options(group)
    group.add_argument(
        "--part", choices=parts.PARTS, metavar="NAME",
        help="a microcontroller: the network in C fits into its RAM and flash, with room for the rest of a "
        f"program; {', '.join(parts.PARTS)}; another one: --target-ram and --target-size together",
    )  # fmt: skip
    targets.add_conditions(group)
    targets.add_width_option(group)
    group.add_argument(
        "--student", nargs="+", default=[], metavar="ARCH", help="architectures to distill into first"
    )
    options.add_pretrained_option(group)
    group.add_argument(
        "--quantization-epochs",
        type=number(int, 0),
        default=10,
        metavar="N",
        help="of quantization-aware training, at its own learning rate; default: 10",
    )
    teacher_options.add_teacher_options(
        parser, required=False, default="the checkpoint of --weights",
        distillation="dist for a student of more than two classes, else kd", several=False,
    )  # fmt: skip
    options.add_data_options(parser, several_sizes=True)
    options.add_training_options(parser, epochs=20, lr=5e-4)
    parser.set_defaults(resume=True)
    args = parser.parse_args(argv)
    try:
        args.memory = parts.limits(args)
    except ValueError as error:
        parser.error(str(error))
    args.shared = []
    for name in SHARED:
        value = getattr(args, name)
        if value != parser.get_default(name):
            args.shared += [f"--{name.replace('_', '-')}"] + (
                [] if value is True else ["off" if value is None else str(value)]
            )
    return args


if __name__ == "__main__":
    launch.run(main, parse_args)
