import json

import pytest
import torch

from common.budget.search import RECIPES, Candidate, Search, Stages
from common.budget.target import Budget
from common.models import checkpoint, lineage
from common.system import units
from common.system.errors import UserError

LIMIT, EPOCHS = 100, 16
LAMP, TAYLOR = RECIPES


class Results:
    """What the stages and the measurements of a search give, in place of real ones.

    `top1`: of what pruning creates, by (precision, importance). `starts`: the cost of a checkpoint before it
    is pruned, by (path, precision). `costs`: of a finished checkpoint, by path. `calls`: of the stages.
    """

    def __init__(self, folder):
        self.folder, self.calls = folder, []
        self.top1, self.starts, self.costs = {}, {}, {}
        self.source = self.create("source", 0.8)

    def create(self, name, top1, values=0):
        """Saves a checkpoint with `values` numbers as its weights."""
        content = lineage.new_checkpoint("resnet18", ["cat", "dog"], 32) | {
            "stage": "pruned",
            "name": name,
            "state_dict": {"weight": torch.zeros(values)},
            "metrics": {"top1": top1, "ci95": [top1 - 0.1, top1 + 0.1], "n": 10, "params": 1, "macs": 1},
        }
        return checkpoint.save(content, self.folder)

    def distill(self, arch):
        self.calls.append(("distill", arch))
        return self.students[arch]

    def prune(self, path, target, precision, importance, scope, epochs):
        assert target == "100.000000B" and (importance, scope) in RECIPES
        self.calls.append(("prune", precision, importance, epochs))
        created = self.create(f"pruned_{precision}_{importance}", self.top1.get((precision, importance), 0.1))
        self.costs[created] = 90
        return created

    def quantize(self, path):
        self.calls.append(("quantize", path))
        created = self.create("quantized", 0.5)
        self.costs[created] = 80
        return created

    def budget(self, path, text, precision):
        start = self.starts.get((path, precision), 2 * LIMIT)
        if isinstance(start, str):
            raise UserError(start)
        return Budget("size", LIMIT, start, lambda model: 0.0, precision)

    def search(self, students=()):
        return Search(
            Candidate("", self.source, 0.8, (0.7, 0.9)),
            "size",
            "100B",
            stages=Stages(self.distill, self.prune, self.quantize),
            budget=self.budget,
            cost=lambda path: self.costs.get(path, 2 * LIMIT),
            students=list(students),
            epochs=EPOCHS,
            limits=self.folder / "limits.json",
        )


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def test_the_most_accurate_of_those_that_meet_the_budget_wins(results):
    # students that need no pruning; one of them fails, and one is larger than estimated
    students = {"too_large": (0.95, 101), "not_finished": (0.97, None), "larger": (0.9, 100),
                "smaller": (0.9, 60), "worse": (0.85, 10)}  # fmt: skip
    results.students = {
        arch: results.create(arch, top1, cost or 0) for arch, (top1, cost) in students.items()
    }
    for arch, (_, cost) in students.items():
        path = results.students[arch]
        results.costs[path] = cost
        results.starts[path, "fp32"] = "not possible" if cost is None else min(cost, LIMIT)
        results.starts[path, "int8"] = "not possible"
    search = results.search(students)
    results.starts[results.source, "fp32"] = results.starts[results.source, "int8"] = "not possible"
    winner = search.run()
    assert (winner.recipe, winner.cost, winner.note) == ("distill into smaller", 60, "the winner")
    assert [each.cost for each in search.tried] == [101, None, 100, 60, 10]
    *_, reason = search.report(winner).splitlines()
    assert reason.startswith("3 of them") and "90.00%, 0.00 points ahead" in reason


@pytest.mark.parametrize(
    ("fits", "trials", "chosen"),
    [
        # intervals are 0.1 wide on either side; of each precision the better recipe
        ((), {("fp32", "lamp"): 0.3, ("int8", "taylor"): 0.6}, [("int8", TAYLOR)]),
        ((), {("fp32", "lamp"): 0.41, ("int8", "taylor"): 0.6}, [("fp32", LAMP), ("int8", TAYLOR)]),
        (("int8",), {("fp32", "taylor"): 0.9}, [("fp32", TAYLOR), ("int8", None)]),
        (("int8",), {("fp32", "lamp"): 0.5}, [("int8", None)]),
        (("fp32", "int8"), {}, [("fp32", None), ("int8", None)]),
    ],
)
def test_what_validation_cannot_tell_from_the_most_promising_is_continued(results, fits, trials, chosen):
    results.top1 = trials
    for precision in fits:
        results.starts[results.source, precision] = 50
    search = results.search()
    plans = search._promising(search.source)
    assert [(plan.precision, plan.recipe) for plan in plans] == chosen
    expected = [trials[precision, recipe[0]] if recipe else 0.8 for precision, recipe in chosen]
    assert [plan.candidate.top1 for plan in plans] == expected
    assert all(plan.start is search.source for plan in plans)
    # each trial has an eighth of the epochs
    precisions = [precision for precision in ("fp32", "int8") if precision not in fits]
    assert results.calls == [
        ("prune", precision, importance, EPOCHS // 8) for precision in precisions for importance, _ in RECIPES
    ]


def test_the_chosen_recipe_is_repeated_with_all_epochs_and_then_quantized(results):
    results.top1 = {("int8", "taylor"): 0.6}
    search = results.search()
    winner = search.run()
    assert results.calls[4:] == [
        ("prune", "int8", "taylor", EPOCHS),
        ("quantize", search.tried[4].path),
    ]
    assert winner.recipe == "prune for int8 by taylor, isomorphic, quantize" and winner.cost == 80
    assert [each.note for each in search.tried] == [
        "a trial of 2 epochs", "a trial of 2 epochs", "a trial of 2 epochs",
        "a trial of 2 epochs, continued", "", "the winner",
    ]  # fmt: skip
    assert [each.cost for each in search.tried] == [None] * 5 + [80]


def test_a_recipe_that_fails_is_noted_and_the_others_continue(results):
    def quantize(path):
        raise UserError("it cannot be quantized")

    results.quantize = quantize
    search = results.search()
    winner = search.run()
    assert winner.recipe == "prune for fp32 by lamp, global"
    assert search.refused == ["in int8: it cannot be quantized"]
    assert "in int8: it cannot be quantized" in search.report(winner)


def test_a_student_is_compressed_by_the_same_recipes_as_the_source(results):
    results.students = {"mobilenet_v2": results.create("kd_mobilenet_v2", 0.7)}
    search = results.search(["mobilenet_v2"])
    results.starts[results.source, "fp32"] = results.starts[results.source, "int8"] = "it cannot be pruned"
    winner = search.run()
    assert search.refused == ["in fp32: it cannot be pruned", "in int8: it cannot be pruned"]
    assert results.calls[0] == ("distill", "mobilenet_v2")
    assert [call[:3] for call in results.calls[1:5]] == [
        ("prune", precision, importance) for precision in ("fp32", "int8") for importance, _ in RECIPES
    ]
    assert winner.recipe == "distill into mobilenet_v2, prune for int8 by lamp, global, quantize"


def test_a_student_that_is_refused_is_noted_and_the_search_goes_on(results):
    def distill(arch):
        if arch == "vgg11":
            raise UserError("the images are too small")
        return results.create(f"kd_{arch}", 0.7)

    results.distill = distill
    search = results.search(["vgg11", "mobilenet_v2"])
    winner = search.run()
    assert search.refused == ["distill into vgg11: the images are too small"]
    assert "| distill into vgg11: the images are too small " in search.report(winner)
    assert "distill into mobilenet_v2" in [each.recipe for each in search.tried]


def test_with_macs_int8_is_not_tried(results):
    search = results.search()
    search.kind, search.target = "macs", "100.000000B"
    search.run()
    assert {call[1] for call in results.calls} == {"fp32"}


def test_nothing_is_tried_where_the_source_meets_the_budget(results):
    results.costs[results.source] = LIMIT
    with pytest.raises(UserError, match=r"nothing to do: .*source.* has 100 bytes already"):
        results.search()


@pytest.mark.parametrize(
    ("kind", "precisions"), [("macs", ["fp32"]), ("size", ["fp32", "int8"]), ("ram", ["fp32", "int8"])]
)
def test_int8_is_tried_where_it_costs_less(results, kind, precisions):
    asked = []

    def budget(path, text, precision):
        asked.append((text, precision))
        return Budget(kind, LIMIT, LIMIT if precision == "int8" else 2 * LIMIT, lambda model: 0.0, precision)

    results.prune = lambda path, target, *_: results.create("pruned", 0.5)
    search = Search(
        Candidate("", results.source, 0.8, (0.7, 0.9)), kind, "0.5",
        stages=Stages(None, results.prune, results.quantize), budget=budget, cost=lambda path: 2 * LIMIT,
        students=[], epochs=EPOCHS, limits=results.folder / "limits.json",
    )  # fmt: skip
    search._promising(search.source)
    # the fraction is one of the float model; what follows has to meet the same amount
    assert asked[0] == ("0.5", "fp32") and [precision for _, precision in asked[1:]] == precisions
    assert {units.parse(kind, text) for text, _ in asked[1:]} == {(LIMIT, False)}


def test_where_nothing_meets_the_budget_each_reason_is_given(results):
    results.starts[results.source, "int8"] = "it cannot be quantized"

    def prune(*arguments):
        created = results.create("pruned", 0.5)
        results.costs[created] = 101
        return created

    results.prune = prune
    with pytest.raises(UserError) as error:
        results.search().run()
    assert str(error.value) == (
        "nothing meets 100 bytes: in int8: it cannot be quantized; prune for fp32 by lamp, global: 101 bytes"
    )


@pytest.fixture
def limit(results):
    """limit(measured, text, kind, path, conditions): that of a new search, whose source costs `measured`."""

    def limit_of(measured, text="0.5", kind="latency", path=results.source, conditions="fp32, 1 thread(s)"):
        amount, is_fraction = units.parse(kind, text)
        amount *= measured if is_fraction else 1
        return Search(
            Candidate("", path, 0.8, (0.7, 0.9)),
            kind,
            text,
            stages=None,
            budget=lambda *_: Budget(kind, amount, measured, float, "fp32", conditions),
            cost=lambda path: measured,
            students=[],
            epochs=EPOCHS,
            limits=results.folder / "candidates" / "limits.json",
        ).limit

    return limit_of


def test_a_fraction_of_a_measurement_is_the_same_limit_in_a_second_search(results, limit):
    assert limit(10.0) == 5
    assert limit(11.0) == limit(12.0, "0.50") == 5  # the same fraction, measured a little differently
    assert list(json.loads((results.folder / "candidates" / "limits.json").read_text()).values()) == [5]


def test_another_source_fraction_or_condition_is_measured_anew(results, limit):
    other = results.create("other", 0.7, values=9)
    assert limit(10.0) == 5
    assert limit(12.0, path=other) == 6
    assert limit(12.0, "0.25") == 3
    assert limit(14.0, conditions="fp32, 2 thread(s)") == 7
    # and each of them is kept
    assert [limit(99.0), limit(99.0, path=other), limit(99.0, "0.25")] == [5, 6, 3]


def test_limits_that_need_no_measurement_are_not_kept(results, limit):
    assert limit(10.0) == 5
    assert limit(12.0, "0.5", "size") == limit(12.0, "0.5", "macs") == 6  # the same fraction of another kind
    assert limit(14.0, "0.5", "size") == limit(14.0, "0.5", "macs") == 7
    assert limit(12.0, "5.5ms") == 5.5
    assert len(json.loads((results.folder / "candidates" / "limits.json").read_text())) == 1


@pytest.mark.parametrize("damaged", [b"", b'{"', b"\xff\xfe", b"[]", b"null", b"5"])
def test_a_damaged_file_of_limits_is_ignored_and_replaced(results, limit, damaged):
    limits = results.folder / "candidates" / "limits.json"
    limits.parent.mkdir()
    limits.write_bytes(damaged)
    assert limit(10.0) == 5
    assert limit(12.0) == 5


@pytest.mark.parametrize("value", [None, "5", [5.0], {}])
def test_a_kept_limit_that_is_no_number_is_measured_anew(results, limit, value):
    limit(10.0)
    limits = results.folder / "candidates" / "limits.json"
    limits.write_text(json.dumps(dict.fromkeys(json.loads(limits.read_text()), value)))
    assert limit(12.0) == limit(14.0) == 6
