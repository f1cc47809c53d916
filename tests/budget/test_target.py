import pytest

from common.budget.target import Budget
from common.evaluation.metrics import count_parameters
from tests.compression.networks import chain


def test_each_pruning_step_removes_the_same_fraction():
    budget = Budget("macs", 250, 1000, count_parameters)
    assert [budget.at_step(step, 2).limit for step in (1, 2)] == [500, 250]
    assert Budget("macs", 250, 2000, count_parameters).at_step(1, 3).limit == pytest.approx(1000)


def test_a_step_changes_only_the_limit():
    budget = Budget("latency", 1, 4, count_parameters, "int8", "measured here")
    step = budget.at_step(1, 2)
    assert (step.kind, step.limit, step.start, step.cost) == ("latency", 2, 4, count_parameters)
    assert (step.precision, step.conditions) == ("int8", "measured here")


@pytest.mark.parametrize("kind", ["parameters", "macs", "size", "latency", "instructions", "ram"])
def test_only_parameters_may_be_exceeded(kind):
    assert Budget(kind, 1, 2, count_parameters).strict == (kind != "parameters")


def test_a_cost_is_described_with_its_unit_and_its_conditions():
    assert Budget("parameters", 1, 2, count_parameters).describe(1200) == "1,200 parameters"
    assert Budget("size", 1, 2, count_parameters, "int8").describe(1200) == "1,200 bytes (int8)"
    latency = Budget("latency", 1, 2, count_parameters, "int8", "qnnpack on NEON")
    assert latency.describe(1.5) == "1.50 ms (int8, qnnpack on NEON)"


def test_an_unreachable_limit_is_an_error_that_names_the_least():
    budget = Budget("ram", 1000, 4000, count_parameters, "int8", hint="; crop the image")
    assert str(budget.unreachable(1500, 4000)) == (
        "this network cannot be pruned to 1,000 bytes of RAM (int8, layer by layer): 1,500 bytes of RAM is "
        "the least, 37.5% of 4,000 bytes of RAM; crop the image"
    )


def test_what_was_achieved_is_the_cost_of_the_pruned_model():
    model, _ = chain(8, 8)
    assert Budget("parameters", 99, 200, count_parameters).achieved(model) == {
        "of": "parameters", "precision": "fp32", "limit": 99, "achieved": count_parameters(model),
        "conditions": "",
    }  # fmt: skip
