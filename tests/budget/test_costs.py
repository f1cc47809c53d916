import pytest
import torch

from common.budget import costs
from common.budget.costs import RESERVE
from common.budget.widths import widths_for_budget
from common.compression import int8_engines, int8_state, pruning, quantization
from common.deployment import metadata, onnx_latency, onnx_model, onnx_writer
from common.evaluation import latency, memory, metrics
from common.evaluation.latency import Latency
from common.evaluation.metrics import Score, count_parameters
from common.models import architectures, checkpoint, lineage
from common.system.errors import UserError
from tests.compression.networks import CPU, EMBEDDED, SERVER, each_target, network_options, pruned_by

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
        state_dict=int8_state.extract(quantization.convert(prepared).int8),
        int8={"backend": target.backend, "float_shapes": architectures.shapes(model)},
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


@pytest.mark.parametrize(
    ("latency_in", "precision", "engine"),
    [
        ("onnxruntime", "fp32", "fp32 ONNX Runtime"),
        ("onnxruntime", "int8", "int8 ONNX Runtime"),
        ("torch", "fp32", "fp32"),
        ("torch", "int8", "int8, onednn"),
    ],
)
def test_what_was_achieved_is_stored_with_its_conditions(parent, monkeypatch, latency_in, precision, engine):
    model, content, path = parent("squeezenet1_1")
    monkeypatch.setattr(onnx_latency, "load", lambda *_, **__: None)
    monkeypatch.setattr(latency, "measure", lambda *_, **__: Latency(2.5, 3.0, 1))
    monkeypatch.setattr(latency, "ratio", lambda *_, **__: 1.0)
    monkeypatch.setattr(latency, "cpu", lambda: "Abacus, NEON")
    monkeypatch.setattr(int8_engines, "use", lambda target: "onednn")
    more = {"precision": precision, "target": EMBEDDED, "threads": 2, "latency_in": latency_in}
    budget = costs.make_budget("latency", "5ms", model, content, row_of(content, path, "pruned"), **more)
    assert budget.achieved(model) == {
        "of": "latency", "precision": precision, "limit": 5, "achieved": 2.5,
        "conditions": f"{engine.removeprefix('int8, ')} on Abacus, NEON, 2 thread(s)",
    }  # fmt: skip
    assert budget.describe(1.5) == f"1.50 ms ({engine} on Abacus, NEON, 2 thread(s))"


def test_a_latency_is_met(parent, monkeypatch):
    model, content, path = parent("squeezenet1_1")
    calls = []

    def milliseconds(measured, image_size, *, batch, threads, memory_format):
        calls.append((image_size, batch, threads, memory_format))
        return Latency(count_parameters(measured) / 1e5, 99.0, batch)

    def ratio(measured, reference, image_size, *, threads, memory_format):
        calls.append((image_size, 1, threads, memory_format))
        assert count_parameters(reference) == count_parameters(model)
        return count_parameters(measured) / count_parameters(reference)

    monkeypatch.setattr(latency, "measure", milliseconds)
    monkeypatch.setattr(latency, "ratio", ratio)
    row, more = row_of(content, path, "pruned"), {"threads": 2, "latency_in": "torch"}
    budget = costs.make_budget("latency", "0.5", model, content, row, **more)
    assert budget.limit == count_parameters(model) / 2e5
    pruned = within(model, budget)
    # three hundredths are left for the difference of the next measurement
    assert 0.85 * budget.limit < count_parameters(pruned) / 1e5 <= 0.97 * budget.limit
    assert set(calls) == {(SIDE, 1, 2, torch.channels_last)}


@pytest.mark.parametrize("latency_in", ["torch", "onnxruntime"])
def test_with_int8_the_latency_of_the_quantized_model_counts(parent, monkeypatch, latency_in):
    model, content, path = parent("squeezenet1_1")

    def milliseconds(measured):
        return 3.0 if any(key.endswith("_input_scale_0") for key in measured.state_dict()) else 8.0

    def ratio(measured, reference, *_, **__):
        return milliseconds(measured) / milliseconds(reference)

    monkeypatch.setattr(latency, "measure", lambda measured, *_, **__: Latency(milliseconds(measured), 9, 1))
    monkeypatch.setattr(latency, "ratio", ratio)
    monkeypatch.setattr(onnx_latency, "load", lambda _, build, *__, **___: build())
    row = row_of(content, path, "pruned")
    more = {"precision": "int8", "target": EMBEDDED, "latency_in": latency_in}
    budget = costs.make_budget("latency", "0.5", model, content, row, **more)
    before = [type(module) for module in model.modules()]
    # half of what the unpruned network takes in int8, not of what it takes in float32
    assert (budget.limit, budget.start, budget.cost(model)) == (1.5, 3, 3)
    assert costs.make_budget("latency", "0.5", model, content, row, **more | {"precision": "fp32"}).limit == 4
    assert [type(module) for module in model.modules()] == before


def test_in_onnx_runtime_each_network_is_exported_once_with_what_a_file_needs(parent, monkeypatch):
    model, content, path = parent("squeezenet1_1")
    exported, compared = [], []

    def load(content, build, file, *, threads):
        metadata.of(content)
        assert content["int8"] == {"backend": "qnnpack"} and threads == 2
        exported.append((file.name, content["image_size"]))
        return file.name

    def ratio(measured, reference, image_size, *, threads, memory_format):
        assert memory_format == torch.contiguous_format
        compared.append((measured, reference))
        return 0.5

    monkeypatch.setattr(onnx_latency, "load", load)
    monkeypatch.setattr(latency, "measure", lambda *_, **__: Latency(4.0, 5.0, 1))
    monkeypatch.setattr(latency, "ratio", ratio)
    more = {"precision": "int8", "target": EMBEDDED, "threads": 2}
    budget = costs.make_budget("latency", "5ms", model, content, row_of(content, path, "pruned"), **more)
    pruned = [pruned_by(model, 0.5, options(model)) for _ in range(2)]
    assert [budget.cost(other) for other in (model, *pruned)] == [2, 2, 2]
    # equal networks have one file, and each is compared with the first
    start, smaller = exported[0], exported[2]
    assert exported == [start, start, smaller, smaller] and start[1] == SIDE
    assert compared == [(start[0], start[0]), (smaller[0], start[0]), (smaller[0], start[0])]
    assert start != smaller
    # also of an architecture that is not yet a checkpoint
    content = lineage.new_checkpoint("squeezenet1_1", CLASSES, SIDE)
    costs.make_budget("latency", "5ms", model, content, {}, **more)


@pytest.mark.parametrize("kind", ["macs", "latency"])
def test_an_int8_model_without_a_form_in_onnx_is_an_error_before_pruning(parent, monkeypatch, kind):
    def build(*_):
        raise UserError("the operation x cannot be written as ONNX")

    monkeypatch.setattr(onnx_writer, "build", build)
    model, content, path = parent("squeezenet1_1")
    more = {"precision": "int8", "target": EMBEDDED}
    with pytest.raises(UserError, match="the operation x cannot be written as ONNX"):
        costs.make_budget(kind, "0.5", model, content, row_of(content, path, "pruned"), **more)


def test_a_model_without_a_form_in_onnx_is_an_error_that_names_the_other_engine(parent, monkeypatch):
    def export(*_):
        raise UserError("x cannot be written as ONNX")

    monkeypatch.setattr(onnx_model, "export", export)
    model, content, path = parent("squeezenet1_1")
    with pytest.raises(UserError, match=r"x cannot be written as ONNX; --latency-in torch"):
        costs.make_budget("latency", "0.5", model, content, row_of(content, path, "pruned"))


def test_ram_is_that_of_one_image_in_the_precision_of_the_target(parent):
    model, content, path = parent("squeezenet1_1")
    row = row_of(content, path, "pruned")
    values = 64 * 15**2 + 64 * 7**2  # before and after the first pooling
    for precision, size in (("fp32", 4), ("int8", 1)):
        budget = costs.make_budget("ram", "0.5", model, content, row, precision=precision, target=EMBEDDED)
        assert (budget.start, budget.limit) == (size * values, size * values / 2)
        assert budget.conditions == ""
    assert costs.make_budget("ram", "9KB", model, content, row).limit == 9000


def test_the_budget_of_a_checkpoint_is_that_of_its_model(parent):
    model, content, path = parent("squeezenet1_1")
    conditions = {"options": options_of("pruned"), "target": EMBEDDED, "threads": 1, "latency_in": "torch"}
    for kind, text in (("macs", "0.5"), ("size", "0.5"), ("size", "300KB")):
        budget = costs.checkpoint_budget(kind, path, text, "fp32", SIDE, **conditions)
        row, full = row_of(content, path, "pruned"), path.stat().st_size
        expected = costs.make_budget(kind, text, model, content, row, parent_bytes=full)
        assert budget.limit == expected.limit
        assert abs(budget.start - expected.start) < RESERVE  # the rows differ by a few characters
    larger = costs.checkpoint_budget("macs", path, "1M", "fp32", 2 * SIDE, **conditions)
    assert larger.start == metrics.complexity(model, 2 * SIDE)["macs"]


def test_the_cost_of_a_finished_checkpoint_is_measured(parent, monkeypatch):
    model, _, path = parent("squeezenet1_1")
    conditions = {"threads": 2, "latency_in": "onnxruntime"}
    assert costs.checkpoint_cost("size", path, **conditions) == path.stat().st_size
    macs = costs.checkpoint_cost("macs", path, **conditions)
    assert macs == metrics.complexity(model, SIDE)["macs"]
    assert costs.checkpoint_cost("ram", path, **conditions) == 4 * memory.peak(model, SIDE).values
    calls = []

    def load(content, build, file, *, threads):
        assert count_parameters(build()) == count_parameters(model) and not file.exists()
        calls.append(("load", content["image_size"], threads))
        return build()

    def measure(measured, image_size, *, batch, threads, memory_format):
        calls.append((count_parameters(measured), image_size, batch, threads))
        return Latency(2.5, 3.0, batch)

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(onnx_latency, "load", load)
    for runtime in ("onnxruntime", "torch"):
        assert costs.checkpoint_cost("latency", path, threads=2, latency_in=runtime) == 2.5
    timed = (count_parameters(model), SIDE, 1, 2)
    assert calls == [("load", SIDE, 2), timed, timed]
