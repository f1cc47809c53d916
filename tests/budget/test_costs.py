import pytest
import torch

from common.budget import costs
from common.budget.costs import RESERVE
from common.budget.target import Budget
from common.budget.widths import widths_for_budget
from common.compression import int8_engines, pruning, quantization
from common.evaluation import latency, metrics
from common.evaluation.latency import Latency
from common.evaluation.metrics import Score, count_parameters
from common.models import architectures, checkpoint, lineage

CLASSES, SIDE = ["cat", "dog", "fox"], 32
BACKENDS = ["fbgemm", "qnnpack"]


def options_of(script):
    """What a script keeps of its command line, about as many options as the real ones have."""
    return {
        "weights": "kd_squeezenet1_1_0.8912.pt", "teacher": "teacher_resnet50_0.9321.pt", "dataset": "folder",
        "data_dir": "/home/somebody/pictures/of/animals", "output_dir": "weights", "cache": "data/cache",
        "importance": "lamp", "scope": "global", "target_size": "500KB", "target_precision": "int8",
        "epochs": 20, "batch_size": 32, "lr": 5e-4, "weight_decay": 0.05, "temperature": 3.0, "alpha": 0.9,
        "seed": 0, "val_fraction": 0.2, "device": "auto", "precision": "auto", "score": "test",
        "model_name": None, "script": script,
    }  # fmt: skip


def row_of(parent, path, stage):
    return lineage.new_row(
        parent, path, stage, options=options_of(stage), machine="cpu, Intel(R) Xeon(R), 2 threads, fp32",
        split="0123456789abcdef" * 4,
    )  # fmt: skip


def figures():
    labels = torch.arange(999) % 3
    return Score(labels, labels.flip(0), 999, 1234.5).as_dict("test")


@pytest.fixture
def parent(tmp_path):
    """parent(arch): a saved checkpoint as (model, its content, its path)."""

    def save(arch):
        model = architectures.build(arch, len(CLASSES))
        start = lineage.new_checkpoint(arch, CLASSES, SIDE)
        content = lineage.child(
            start,
            row_of(start, None, "teacher"),
            state_dict=checkpoint.float_state(model),
            metrics=figures() | metrics.complexity(model, SIDE),
        )
        path = checkpoint.save(content, tmp_path)
        return model, checkpoint.load(path), path

    return save


def limits(model):
    return {"protect": architectures.classifier(model, len(CLASSES))[1], "image_size": SIDE}


def within(model, budget):
    groups = pruning.rank(model, "lamp", "global", **limits(model))
    wanted = widths_for_budget(model, groups, budget, **limits(model))
    return pruning.prune(model, groups, wanted, **limits(model))


def save_pruned(model, parent, row, budget, folder):
    """As train_pruning.py does."""
    steps = ({"pruned": 0.1, "recalibrated": 0.5, "fine_tuned": 0.85} for _ in range(3))
    content = lineage.child(
        parent,
        row,
        state_dict=checkpoint.float_state(model),
        metrics=figures()
        | metrics.complexity(model, SIDE)
        | {"validation": [{"before": 0.8912}, *steps], "target": budget.achieved(model)},
    )
    return checkpoint.save(content, folder)


def save_quantized(model, path, backend, folder):
    """As train_quantization.py does."""
    parent = checkpoint.load(path)
    prepared = quantization.prepare(model, backend, SIDE)
    quantization.calibrate(prepared, [(torch.randn(4, 3, SIDE, SIDE), None)], torch.device("cpu"), 1)
    other = {"top1": 0.8765, "agreement": 0.9876}
    content = lineage.child(
        parent,
        row_of(parent, path, "quantized"),
        state_dict=quantization.int8_state(quantization.convert(prepared).int8),
        int8={"backend": backend, "float_shapes": architectures.shapes(model)},
        metrics=figures()
        | metrics.complexity(model, SIDE)
        | {"engine": int8_engines.use(backend), "fp32": other, "fake_quant": other},
    )
    return checkpoint.save(content, folder)


@pytest.mark.parametrize("arch", ["squeezenet1_1", "resnet18"])
def test_the_file_is_no_larger_than_foreseen_and_not_much_smaller(arch, parent, tmp_path):
    model, content, path = parent(arch)
    row = row_of(content, path, "pruned")
    whole = path.stat().st_size
    budget = costs.make_budget("size", "0.4", model, content, row, parent_bytes=whole)
    pruned = within(model, budget)
    saved = save_pruned(pruned, content, row, budget, tmp_path)
    assert 0 <= budget.cost(pruned) - saved.stat().st_size < 8192
    assert 0.35 * whole < saved.stat().st_size <= 0.4 * whole


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("arch", ["squeezenet1_1", "resnet18"])
def test_the_int8_file_is_no_larger_than_foreseen_and_not_much_smaller(arch, backend, parent, tmp_path):
    model, content, path = parent(arch)
    row = row_of(content, path, "pruned")
    budget = costs.make_budget("size", "400KB", model, content, row, precision="int8", backend=backend)
    groups = pruning.rank(model, "lamp", "local", **limits(model))
    pruned = pruning.prune(model, groups, pruning.widths_for_fraction(groups, 0.5), **limits(model))
    saved = save_quantized(pruned, save_pruned(pruned, content, row, budget, tmp_path), backend, tmp_path)
    assert 0 <= budget.cost(pruned) - saved.stat().st_size < 8192


def test_a_share_is_one_of_what_the_float_model_costs_now(parent):
    model, content, path = parent("squeezenet1_1")
    row = row_of(content, path, "pruned")

    def limit(kind, **more):
        return costs.make_budget(kind, "0.25", model, content, row, **more).limit

    assert limit("macs") == 0.25 * metrics.complexity(model, SIDE)["macs"]
    assert limit("size", parent_bytes=1_000_000) == 250_000
    assert limit("size", precision="int8", backend="fbgemm", parent_bytes=1_000_000) == 250_000
    # a network without a file: what its file would take, and some more
    assert 0 <= 4 * limit("size") - path.stat().st_size < 2 * RESERVE
    assert costs.make_budget("macs", "3M", model, content, row).limit == 3_000_000


def test_steps_on_the_way_take_equal_shares():
    budget = Budget("macs", 250, count_parameters)
    assert [budget.on_the_way(1000, done).limit for done in (0.5, 1)] == [500, 250]
    assert budget.on_the_way(2000, 1 / 3).limit == pytest.approx(1000)


def test_what_was_achieved_is_kept_with_its_conditions(parent, monkeypatch):
    model, content, path = parent("squeezenet1_1")
    monkeypatch.setattr(latency, "measure", lambda *_, **__: Latency(2.5, 3.0, 1))
    monkeypatch.setattr(latency, "cpu", lambda: "Abacus, NEON")
    row = row_of(content, path, "pruned")
    budget = costs.make_budget("latency", "5ms", model, content, row, threads=2)
    assert budget.achieved(model) == {
        "of": "latency", "precision": "fp32", "limit": 5, "achieved": 2.5,
        "conditions": "fp32 on Abacus, NEON, 2 thread(s)",
    }  # fmt: skip
    assert budget.shown(1.5) == "1.50 ms (fp32 on Abacus, NEON, 2 thread(s))"


def test_a_latency_is_met(parent, monkeypatch):
    model, content, path = parent("squeezenet1_1")
    asked = []

    def milliseconds(measured, image_size, *, batch, threads):
        asked.append((image_size, batch, threads))
        return Latency(count_parameters(measured) / 1e5, 99.0, batch)

    monkeypatch.setattr(latency, "measure", milliseconds)
    budget = costs.make_budget("latency", "0.5", model, content, row_of(content, path, "pruned"), threads=2)
    assert budget.limit == count_parameters(model) / 2e5
    pruned = within(model, budget)
    # three hundredths are left for what the next measurement will say
    assert 0.92 * budget.limit < count_parameters(pruned) / 1e5 <= 0.97 * budget.limit
    assert set(asked) == {(SIDE, 1, 2)}


def test_of_int8_it_is_the_latency_of_the_quantized_model_that_counts(parent, monkeypatch):
    model, content, path = parent("squeezenet1_1")

    def milliseconds(measured, *_, **__):
        quantized = any(key.endswith("_input_scale_0") for key in measured.state_dict())
        return Latency(3.0 if quantized else 8.0, 9.0, 1)

    monkeypatch.setattr(latency, "measure", milliseconds)
    budget = costs.make_budget(
        "latency", "0.5", model, content, row_of(content, path, "pruned"), precision="int8", backend="qnnpack"
    )
    before = [type(module) for module in model.modules()]
    assert (budget.limit, budget.cost(model)) == (4, 3)
    assert budget.conditions.startswith("qnnpack on ")
    assert [type(module) for module in model.modules()] == before


def test_what_was_fast_enough_at_first_and_not_at_a_second_look_is_made_smaller(parent):
    model, _, _ = parent("squeezenet1_1")
    limit = count_parameters(model) / 2

    def measured(lucky):
        """Takes `lucky` measurements for 10 % too little, and is right afterwards."""
        looks = []

        def cost(pruned):
            looks.append(pruned)
            return count_parameters(pruned) * (0.9 if len(looks) <= lucky else 1)

        return Budget("latency", limit, cost)

    # the whole, the least, and six to find one of 64 steps
    assert count_parameters(within(model, measured(8))) <= limit
    assert count_parameters(within(model, measured(1000))) > limit
