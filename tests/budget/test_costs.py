import pytest
import torch

from common.budget import costs, layer_costs
from common.budget.costs import RESERVE
from common.budget.widths import widths_for_budget
from common.compression import int8_engines, pruning, quantization
from common.deployment import instructions, integer_model, onnx_layers, onnx_writer
from common.evaluation import latency, memory, metrics
from common.evaluation.metrics import Score, count_parameters
from common.integer.graph import Tensor
from common.models import architectures, checkpoint, lineage
from common.system.errors import UserError
from tests.compression.networks import (
    CPU,
    EMBEDDED,
    SERVER,
    SYMMETRIC,
    each_target,
    network_options,
    pruned_by,
)

pytestmark = pytest.mark.usefixtures("shallow_networks")

CLASSES, SIDE = ["cat", "dog", "fox"], 32


def options_of(script):
    """What a script stores of its command line, about as many options as the real ones have."""
    return {
        "weights": "kd_squeezenet1_1_0.8912.pt", "teacher": "teacher_resnet50_0.9321.pt", "dataset": "folder",
        "data_dir": "/home/somebody/images/of/animals", "output_dir": "weights", "cache": "data/cache",
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


def metrics_on_test():
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
            metrics=metrics_on_test() | metrics.complexity(model, SIDE),
        )
        path = checkpoint.save(content, tmp_path)
        return model, checkpoint.load(path), path

    return save


def options(model):
    return network_options(model, len(CLASSES), SIDE)


def within(model, budget):
    groups = pruning.rank(model, "lamp", "global", **options(model))
    widths = widths_for_budget(model, groups, budget, **options(model))
    return pruning.prune(model, groups, widths, **options(model))


def save_pruned(model, parent, row, budget, folder):
    """Saves a checkpoint as train_pruning.py does."""
    steps = ({"pruned": 0.1, "recalibrated": 0.5, "fine_tuned": 0.85} for _ in range(3))
    content = lineage.child(
        parent,
        row,
        state_dict=checkpoint.float_state(model),
        metrics=metrics_on_test()
        | metrics.complexity(model, SIDE)
        | {"validation": [{"before": 0.8912}, *steps], "target": budget.achieved(model)},
    )
    return checkpoint.save(content, folder)


def save_quantized(model, path, target, folder):
    """Saves a checkpoint as train_quantization.py does."""
    parent = checkpoint.load(path)
    prepared = quantization.prepare(model, target, SIDE)
    quantization.calibrate(prepared, [(torch.randn(4, 3, SIDE, SIDE), None)], CPU, 1)
    other = {"top1": 0.8765, "agreement": 0.9876}
    content = lineage.child(
        parent,
        row_of(parent, path, "quantized"),
        **integer_model.to_content(integer_model.convert(prepared, SIDE), model, target),
        metrics=metrics_on_test()
        | metrics.complexity(model, SIDE)
        | {"engine": int8_engines.use(target), "fp32": other, "fake_quant": other},
    )
    return checkpoint.save(content, folder)


@pytest.mark.parametrize("arch", ["squeezenet1_1", "resnet18"])
def test_the_file_is_no_larger_than_estimated_and_not_much_smaller(arch, parent, tmp_path):
    model, content, path = parent(arch)
    row = row_of(content, path, "pruned")
    full = path.stat().st_size
    budget = costs.make_budget("size", "0.4", model, content, row, parent_bytes=full)
    assert 0 <= budget.start - full < 8192
    pruned = within(model, budget)
    saved = save_pruned(pruned, content, row, budget, tmp_path)
    assert 0 <= budget.cost(pruned) - saved.stat().st_size < 8192
    assert 0.35 * full < saved.stat().st_size <= 0.4 * full


@each_target
@pytest.mark.parametrize("arch", ["squeezenet1_1", "resnet18"])
def test_the_int8_file_is_no_larger_than_estimated_and_not_much_smaller(arch, target, parent, tmp_path):
    model, content, path = parent(arch)
    row = row_of(content, path, "pruned")
    budget = costs.make_budget("size", "400KB", model, content, row, precision="int8", target=target)
    pruned = pruned_by(model, 0.5, options(model))
    saved = save_quantized(pruned, save_pruned(pruned, content, row, budget, tmp_path), target, tmp_path)
    assert 0 <= budget.cost(pruned) - saved.stat().st_size < 8192


def test_a_fraction_is_one_of_what_the_float_model_costs_now(parent):
    model, content, path = parent("squeezenet1_1")
    row = row_of(content, path, "pruned")

    def limit(kind, **more):
        return costs.make_budget(kind, "0.25", model, content, row, **more).limit

    assert limit("macs") == 0.25 * metrics.complexity(model, SIDE)["macs"]
    assert limit("size", parent_bytes=1_000_000) == 250_000
    assert limit("size", precision="int8", target=SERVER, parent_bytes=1_000_000) == 250_000
    # a network without a file: what its file would take, and some more
    assert 0 <= 4 * limit("size") - path.stat().st_size < 2 * RESERVE
    assert costs.make_budget("macs", "3M", model, content, row).limit == 3_000_000


def test_a_budget_of_parameters_is_a_fraction_of_those_of_the_model(parent):
    model, _, _ = parent("squeezenet1_1")
    budget, count = costs.parameter_budget(model, 0.3), count_parameters(model)
    assert (budget.kind, budget.limit, budget.start) == ("parameters", round(0.3 * count), count)
    assert budget.cost(model) == count


@pytest.fixture
def counted(monkeypatch):
    """Each layer costs the number of its outputs, in thousandths; the layers that were measured."""
    measured = []

    def measure(parts, precision, threads):
        measured.extend((part, precision, threads) for part in parts)
        return [0.0 if isinstance(part, Tensor) else part.output.shape[0] / 1000 for part in parts]

    monkeypatch.setattr(onnx_layers, "milliseconds", measure)
    monkeypatch.setattr(latency, "cpu", lambda: "Abacus, NEON")
    return measured


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_latency_is_the_sum_over_the_layers_with_its_conditions(parent, counted, tmp_path, precision):
    model, content, path = parent("squeezenet1_1")
    more = {"precision": precision, "target": EMBEDDED, "threads": 2, "tables": tmp_path}
    budget = costs.make_budget("latency", "0.5", model, content, row_of(content, path, "pruned"), **more)
    assert {each[1:] for each in counted} == {(precision, 2)}
    graph, _ = layer_costs.layers_of(model, SIDE, EMBEDDED)
    expected = sum(operator.output.shape[0] for operator in graph.operators) / 1000
    assert budget.start == pytest.approx(expected) and budget.limit == budget.start / 2
    achieved = budget.achieved(model)
    assert achieved["conditions"].endswith("on Abacus, NEON, 2 thread(s)")
    assert achieved["conditions"].startswith(f"{precision} ONNX Runtime 1.")
    # what is known is not measured again, by no other budget either
    count = len(counted)
    assert costs.checkpoint_cost("latency", path, threads=2, latency_in="onnxruntime", tables=tmp_path) > 0
    assert len(counted) == (count if precision == "fp32" else 2 * count)
    again = costs.make_budget("latency", "0.5", model, content, row_of(content, path, "pruned"), **more)
    assert again.limit == budget.limit and len(counted) == (count if precision == "fp32" else 2 * count)


@pytest.mark.parametrize(
    "arch", ["squeezenet1_1", "resnet18", pytest.param("shufflenet_v2_x0_5", marks=pytest.mark.long)]
)
def test_a_latency_is_met_and_widths_cost_what_the_pruned_model_costs(parent, counted, tmp_path, arch):
    model, content, path = parent(arch)
    row = row_of(content, path, "pruned")
    budget = costs.make_budget("latency", "0.6", model, content, row, target=EMBEDDED, tables=tmp_path)
    assert (budget.cost_of_widths is None) == arch.startswith("shufflenet")
    groups = pruning.rank(model, "lamp", "global", **options(model))
    widths = widths_for_budget(model, groups, budget, **options(model))
    pruned = pruning.prune(model, groups, widths, **options(model))
    assert 0.9 * budget.limit < budget.cost(pruned) <= budget.limit
    if budget.cost_of_widths:
        assert budget.cost_of_widths(widths) == budget.cost(pruned)
    graph, _ = layer_costs.layers_of(pruned, SIDE, EMBEDDED)
    expected = sum(operator.output.shape[0] for operator in graph.operators) / 1000
    assert budget.cost(pruned) == pytest.approx(expected)


def test_for_a_device_with_zero_points_of_0_the_latency_in_onnx_runtime_is_refused(parent):
    model, content, path = parent("squeezenet1_1")
    more = {"precision": "int8", "target": SYMMETRIC}
    with pytest.raises(UserError, match=r"^with zero points of 0 the time in ONNX Runtime is no sum"):
        costs.make_budget("latency", "0.5", model, content, row_of(content, path, "pruned"), **more)


def test_instructions_are_those_of_int8_networks(parent, tmp_path, monkeypatch):
    model, content, path = parent("squeezenet1_1")
    row, cores = row_of(content, path, "pruned"), []

    def count(graph, parts, core):
        cores.append(core)
        return [10.0] * len(parts)

    monkeypatch.setattr(instructions, "count", count)
    more = {"target": EMBEDDED, "latency_in": "instructions:cortex-m4", "tables": tmp_path}
    budget = costs.make_budget("instructions", "1K", model, content, row, precision="int8", **more)
    graph, _ = layer_costs.layers_of(model, SIDE, EMBEDDED)
    assert budget.start == 10 * (len(graph.operators) + 1) and budget.limit == 1000
    assert budget.conditions.startswith("cortex-m4, kernels ") and set(cores) == {"cortex-m4"}
    with pytest.raises(UserError, match="cortex-m4 counts int8 networks: --target-precision int8"):
        costs.make_budget("instructions", "1K", model, content, row, **more)


@pytest.mark.parametrize("kind", ["macs", "latency"])
def test_an_int8_model_without_a_form_in_onnx_is_an_error_before_pruning(parent, monkeypatch, kind):
    def build(*_):
        raise UserError("the operation x cannot be written as ONNX")

    monkeypatch.setattr(onnx_writer, "build", build)
    model, content, path = parent("squeezenet1_1")
    more = {"precision": "int8", "target": EMBEDDED}
    with pytest.raises(UserError, match="the operation x cannot be written as ONNX"):
        costs.make_budget(kind, "0.5", model, content, row_of(content, path, "pruned"), **more)


def test_a_network_whose_layers_are_not_known_is_an_error_in_one_line(parent, monkeypatch, tmp_path):
    def read(*_):
        raise UserError("norm, the operator LayerNorm, has no integer form")

    monkeypatch.setattr(layer_costs.from_fx, "read", read)
    model, content, path = parent("squeezenet1_1")
    row = row_of(content, path, "pruned")
    with pytest.raises(UserError, match=r"^the latency of SqueezeNet is not known, layer by layer: norm, "):
        costs.make_budget("latency", "0.5", model, content, row, tables=tmp_path)


def test_ram_is_that_of_one_image_in_the_precision_of_the_target(parent):
    model, content, path = parent("squeezenet1_1")
    row = row_of(content, path, "pruned")
    values = 64 * 15**2 + 64 * 7**2  # before and after the first pooling
    for precision, size in (("fp32", 4), ("int8", 1)):
        budget = costs.make_budget("ram", "0.5", model, content, row, precision=precision, target=EMBEDDED)
        assert (budget.start, budget.limit) == (size * values, size * values / 2)
        assert budget.conditions == ""
    assert costs.make_budget("ram", "9KB", model, content, row).limit == 9000


def test_the_budget_of_a_checkpoint_is_that_of_its_model(parent, tmp_path):
    model, content, path = parent("squeezenet1_1")
    conditions = {
        "options": options_of("pruned"),
        "target": EMBEDDED,
        "threads": 1,
        "latency_in": "",
        "tables": tmp_path,
    }
    for kind, text in (("macs", "0.5"), ("size", "0.5"), ("size", "300KB")):
        budget = costs.checkpoint_budget(kind, path, text, "fp32", SIDE, **conditions)
        row, full = row_of(content, path, "pruned"), path.stat().st_size
        expected = costs.make_budget(kind, text, model, content, row, parent_bytes=full)
        assert budget.limit == expected.limit
        assert abs(budget.start - expected.start) < RESERVE  # the rows differ by a few characters
    larger = costs.checkpoint_budget("macs", path, "1M", "fp32", 2 * SIDE, **conditions)
    assert larger.start == metrics.complexity(model, 2 * SIDE)["macs"]


def test_the_cost_of_a_finished_checkpoint_is_found(parent, tmp_path):
    model, _, path = parent("squeezenet1_1")
    conditions = {"threads": 2, "latency_in": "onnxruntime", "tables": tmp_path}
    assert costs.checkpoint_cost("size", path, **conditions) == path.stat().st_size
    macs = costs.checkpoint_cost("macs", path, **conditions)
    assert macs == metrics.complexity(model, SIDE)["macs"]
    assert costs.checkpoint_cost("ram", path, **conditions) == 4 * memory.peak(model, SIDE).values


def test_an_int8_checkpoint_has_the_latency_of_the_network_that_was_pruned(parent, counted, tmp_path):
    model, content, path = parent("squeezenet1_1")
    row = row_of(content, path, "pruned")
    more = {"precision": "int8", "target": EMBEDDED, "tables": tmp_path}
    budget = costs.make_budget("latency", "0.7", model, content, row, **more)
    pruned = within(model, budget)
    saved = save_quantized(pruned, save_pruned(pruned, content, row, budget, tmp_path), EMBEDDED, tmp_path)
    conditions = {"threads": 1, "latency_in": "onnxruntime", "tables": tmp_path}
    assert costs.checkpoint_cost("latency", saved, **conditions) == budget.cost(pruned)
