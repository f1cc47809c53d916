import pytest
import torch

from common.budget.candidates import Candidate, Stages
from common.budget.search import PRECISIONS, RECIPES, Search
from common.budget.target import Budget
from common.models import checkpoint, lineage
from common.system import units
from common.system.errors import UserError

LIMIT, EPOCHS, SHORT, SIDE = 100, 16, 2, 64  # a trial with training has an eighth of the epochs
FIRST, SECOND = "reconstruction", "lamp"  # the importances of the recipes, in their order


class Results:
    """What the stages and the measurements of a search give, in place of real ones.

    `top1`: of what pruning creates, by some of precision, importance, size and epochs; the longest key that
    fits counts. Intervals are 0.1 wide on either side. `students`: a checkpoint by architecture, or top-1 by
    epochs. `starts`: the cost of a checkpoint before it is pruned, by (path, precision), or with a size.
    `costs`: of a finished checkpoint, by path. `calls`: of the stages, `taught`: by which teacher and alpha,
    `asked`: of the budgets.
    """

    def __init__(self, folder):
        self.folder, self.calls, self.taught, self.asked = folder, [], [], []
        self.top1, self.students, self.starts, self.costs = {}, {}, {}, {}
        self.source, self.unprunable = self.create("source", 0.8), None

    def create(self, name, top1, *, values=0, size=SIDE, epochs=0):
        """Saves a checkpoint with `values` numbers as its weights; of training, each epoch took 1.5 s."""
        content = lineage.new_checkpoint("resnet18", ["cat", "dog"], size) | {
            "stage": "pruned",
            "name": name,
            "state_dict": {"weight": torch.zeros(values)},
            "metrics": {"top1": top1, "ci95": [top1 - 0.1, top1 + 0.1], "n": 10, "params": 1, "macs": 1},
        }
        path = checkpoint.save(content, self.folder)
        if epochs:
            path.with_suffix(".csv").write_text("epoch,seconds\n" + "1,1.5\n" * epochs)
        return path

    def distill(self, arch, size, epochs, teacher, alpha):
        self.calls.append(("distill", arch, size, epochs))
        self.taught.append((teacher, alpha))
        made = self.students.get(f"{arch} again" if alpha == 0.3 else arch, self.students[arch])
        if isinstance(made, UserError):
            raise made
        if not isinstance(made, dict):
            return made
        return self.create(f"kd_{arch}", made[epochs], size=size, epochs=epochs)

    def prune(self, path, target, precision, importance, scope, size, epochs, teacher):
        assert target == "100.000000B" and (importance, scope) in RECIPES
        if path == self.unprunable:
            raise UserError("it cannot be pruned")
        self.calls.append(("prune", precision, importance, size, epochs))
        self.taught.append((teacher, None))
        asked = {precision, importance, size, epochs}
        fitting = [key for key in self.top1 if set(key) <= asked]
        top1 = self.top1[max(fitting, key=len)] if fitting else 0.1
        created = self.create(f"pruned_{precision}_{importance}", top1, size=size, epochs=epochs)
        self.costs[created] = 90
        return created

    def quantize(self, path, teacher):
        self.calls.append(("quantize", path))
        self.taught.append((teacher, None))
        created = self.create("quantized", 0.5, epochs=4)
        self.costs[created] = 80
        return created

    def budget(self, path, text, precision, size):
        self.asked.append((path, text, precision, size))
        start = self.starts.get((path, precision, size), self.starts.get((path, precision), 2 * LIMIT))
        if isinstance(start, str):
            raise UserError(start)
        return Budget("size", LIMIT, start, lambda model: 0.0, precision)

    def search(self, students=(), sizes=(SIDE,), epochs=EPOCHS, teacher=None, alpha=0.9):
        source = Candidate("", self.source, SIDE, 0.8, (0.7, 0.9))
        return Search(
            source,
            teacher or source,
            "size",
            "100B",
            alpha=alpha,
            stages=Stages(self.distill, self.prune, self.quantize),
            budget=self.budget,
            cost=lambda path: self.costs.get(path, 2 * LIMIT),
            students=list(students),
            sizes=list(sizes),
            epochs=epochs,
        )


def trials(*precisions, size=SIDE):
    """The calls that prune for trials without training."""
    return [("prune", each, importance, size, 0) for each in precisions for importance, _ in RECIPES]


def notes(search):
    return [each.note for each in search.tried]


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def test_the_most_accurate_of_those_that_meet_the_budget_wins(results):
    # students that need no pruning; one of them fails, and one is larger than estimated
    students = {"too_large": (0.95, 101), "not_finished": (0.97, None), "larger": (0.9, 100),
                "smaller": (0.9, 60), "worse": (0.85, 10)}  # fmt: skip
    for arch, (top1, cost) in students.items():
        path = results.students[arch] = results.create(arch, top1, values=cost or 0)
        results.costs[path] = cost
        results.starts[path, "fp32"] = "not possible" if cost is None else min(cost, LIMIT)
        results.starts[path, "int8"] = "not possible"
    search = results.search(students, epochs=1, alpha=0.3)
    results.unprunable = results.source
    winner = search.run()
    assert (winner.recipe, winner.cost, winner.note) == ("distill into smaller", 60, "the winner")
    assert [each.cost for each in search.tried] == [101, None, 100, 60, 10]
    *_, reason, _, trained = search.report(winner, 741).splitlines()
    assert reason.startswith("3 of them") and "90.00%, 0.00 points ahead" in reason
    assert "trained 0 epochs of 741 images" in trained and "at most 2 candidates were finished" in trained


@pytest.mark.parametrize(
    ("fits", "top1", "finished"),
    [
        # of each precision the better recipe; then what validation cannot distinguish from the best
        ((), {("fp32", SECOND): 0.3, ("int8", FIRST): 0.6}, [("int8", FIRST)]),
        ((), {("fp32", SECOND): 0.41, ("int8", FIRST): 0.6}, [("int8", FIRST), ("fp32", SECOND)]),
        (("int8",), {("fp32", FIRST): 0.9}, [("fp32", FIRST), ("int8", None)]),
        (("int8",), {("fp32", SECOND): 0.5}, [("int8", None)]),
    ],
)
def test_what_validation_cannot_distinguish_from_the_best_is_finished(results, fits, top1, finished):
    results.top1 = top1
    results.starts |= {(results.source, precision): LIMIT for precision in fits}
    search = results.search()
    search.run()
    tried = trials(*(precision for precision in ("fp32", "int8") if precision not in fits))
    expected = []
    for precision, importance in finished:
        if importance is not None:
            expected.append(("prune", precision, importance, SIDE, EPOCHS))
        if precision == "int8":
            expected.append(("quantize",))
    assert results.calls[: len(tried)] == tried
    later = [call[:1] if call[0] == "quantize" else call for call in results.calls[len(tried) :]]
    assert later == expected


def test_the_chosen_recipe_is_repeated_with_all_epochs_and_then_quantized(results):
    results.top1 = {("int8", SECOND): 0.6}
    search = results.search()
    winner = search.run()
    assert results.calls[4:] == [
        ("prune", "int8", SECOND, SIDE, EPOCHS),
        ("quantize", search.tried[4].path),
    ]
    assert winner.recipe == "prune for int8 by lamp, global, quantize" and winner.cost == 80
    trial = "a trial without training"
    assert notes(search) == [trial, trial, trial, f"{trial}, continued", "", "the winner"]
    assert [each.cost for each in search.tried] == [None] * 5 + [80]
    # 16 epochs of pruning and 4 of quantization, 1.5 s each
    assert "trained 20 epochs of 741 images in all, 30 s." in search.report(winner, 741)


def test_without_epochs_the_trial_itself_is_finished(results):
    results.top1 = {("fp32", SECOND): 0.6}
    search = results.search(epochs=0)
    winner = search.run()
    assert results.calls == trials("fp32", "int8") and winner.recipe == "prune for fp32 by lamp, global"


def test_at_most_two_candidates_of_a_network_are_finished(results):
    results.top1 = {("fp32", FIRST, size): top1 for size, top1 in ((64, 0.5), (48, 0.53), (32, 0.51))}
    results.top1 |= {("fp32", FIRST, 32, EPOCHS): 0.6}
    results.starts[results.source, "int8"] = "it cannot be quantized"
    search = results.search(sizes=(64, 48, 32))
    winner = search.run()
    assert [call for call in results.calls if call[-1] == EPOCHS] == [
        ("prune", "fp32", FIRST, 48, EPOCHS),
        ("prune", "fp32", FIRST, 32, EPOCHS),
    ]
    assert winner.recipe == "prune for fp32 by reconstruction, global at 32 pixels"
    assert search.refused == [f"in int8 at {size} pixels: it cannot be quantized" for size in (64, 48, 32)]


def test_image_sizes_are_compared_after_a_short_training(results):
    # at 48 pixels the source is far worse, until it is trained; at 64, int8 is far worse than fp32
    results.top1 = {
        ("fp32", FIRST, 64): 0.6, ("int8", FIRST, 64): 0.3, ("fp32", SECOND, 48): 0.2,
        ("int8", FIRST, 48): 0.3, ("fp32", SECOND, 48, SHORT): 0.3, ("int8", FIRST, 48, SHORT): 0.9,
    }  # fmt: skip
    search = results.search(sizes=(64, 48))
    winner = search.run()
    first = trials("fp32", "int8", size=64) + trials("fp32", "int8", size=48)
    assert results.calls[:8] == first
    assert results.calls[8:-1] == [
        ("prune", "fp32", FIRST, 64, SHORT),
        ("prune", "int8", FIRST, 48, SHORT),
        ("prune", "fp32", SECOND, 48, SHORT),
        ("prune", "int8", FIRST, 48, EPOCHS),
    ]
    assert results.calls[-1][0] == "quantize"
    assert winner.recipe == "prune for int8 by reconstruction, global at 48 pixels, quantize"
    assert notes(search)[6] == "a trial without training, continued"
    assert notes(search)[8:] == [
        "a trial of 2 epochs", "a trial of 2 epochs, continued", "a trial of 2 epochs", "", "the winner",
    ]  # fmt: skip
    # 3 trials of 2 epochs, 16 of pruning, 4 of quantization
    assert "trained 26 epochs of 741 images" in search.report(winner, 741)


def test_a_network_that_fits_at_another_image_size_is_fine_tuned_there(results):
    for precision in ("fp32", "int8"):
        results.starts[results.source, precision, 48] = LIMIT
    results.starts[results.source, "int8", 64] = LIMIT
    results.top1 = {("fp32", 48): 0.7, ("int8", 48): 0.75, ("int8", 48, EPOCHS): 0.78}
    search = results.search(sizes=(64, 48))
    search.run()
    # at its own size it is quantized as it is; at the other one nothing is pruned, so one recipe is enough
    assert results.calls[:6] == [
        *trials("fp32", size=64), ("prune", "fp32", FIRST, 48, 0), ("prune", "int8", FIRST, 48, 0),
        ("prune", "int8", FIRST, 48, SHORT), ("prune", "fp32", FIRST, 48, SHORT),
    ]  # fmt: skip
    names = [each.recipe for each in search.tried]
    assert names[2:4] == [f"fine-tune for {precision} at 48 pixels" for precision in ("fp32", "int8")]
    # the source (0.8) and the best of the trials
    assert results.calls[6:8] == [("quantize", results.source), ("prune", "int8", FIRST, 48, EPOCHS)]
    assert names[-1] == "fine-tune for int8 at 48 pixels, quantize"


def test_a_source_that_fits_at_its_own_image_size_is_fine_tuned(results):
    results.starts[results.source, "fp32", SIDE] = LIMIT
    results.starts[results.source, "int8"] = "it cannot be quantized"
    results.top1 = {("fp32", SIDE): 0.8}
    winner = results.search(sizes=(96, SIDE)).run()
    assert winner.path != results.source and winner.recipe == "fine-tune for fp32 at 64 pixels"
    assert results.calls[-1] == ("prune", "fp32", FIRST, SIDE, EPOCHS)


def test_a_student_is_distilled_at_the_first_image_size_and_compressed_at_all(results):
    results.unprunable = results.source
    student = results.students["vgg11"] = results.create("kd_vgg11", 0.7, size=96)
    results.starts[student, "fp32"] = "not possible"
    results.starts[student, "int8"] = LIMIT
    results.top1 = {("int8", SIDE): 0.65}
    results.search(["vgg11"], sizes=(96, SIDE)).run()
    # at its own size, 96, it is quantized as it is
    assert results.calls == [
        ("distill", "vgg11", 96, EPOCHS),
        ("prune", "int8", FIRST, SIDE, 0), ("prune", "int8", FIRST, SIDE, SHORT),
        ("quantize", student), ("prune", "int8", FIRST, SIDE, EPOCHS), results.calls[-1],
    ]  # fmt: skip


def test_a_budget_is_one_of_the_first_image_size_and_is_built_once_for_each_network(results):
    results.students = {"vgg11": {SHORT: 0.5, EPOCHS: 0.6}}
    search = results.search(["vgg11"], sizes=(48, 64))
    search.run()
    student = next(each.path for each in search.tried if each.epochs == EPOCHS and each.top1 == 0.6)
    assert results.asked[0] == (results.source, "100B", "fp32", 48)
    assert {text for _, text, *_ in results.asked[1:]} == {"100.000000B"}
    built = [(path, precision, size) for path, _, precision, size in results.asked]
    assert built == [
        (path, precision, size)
        for path in (results.source, student)
        for size in (48, 64)
        for precision in ("fp32", "int8")
    ]


def test_a_recipe_that_fails_is_noted_and_the_others_continue(results):
    def quantize(path, teacher):
        raise UserError("it cannot be quantized")

    results.quantize = quantize
    search = results.search()
    winner = search.run()
    assert winner.recipe == "prune for fp32 by reconstruction, global"
    assert search.refused == ["in int8: it cannot be quantized"]
    assert "in int8: it cannot be quantized" in search.report(winner, 10)


def test_a_student_is_compressed_by_the_same_recipes_as_the_source(results):
    results.students = {"mobilenet_v2": {EPOCHS: 0.7}}
    search = results.search(["mobilenet_v2"])
    results.unprunable = results.source
    winner = search.run()
    assert search.refused == ["in fp32: it cannot be pruned", "in int8: it cannot be pruned"]
    assert results.calls[:5] == [("distill", "mobilenet_v2", SIDE, EPOCHS), *trials("fp32", "int8")]
    assert winner.recipe == "distill into mobilenet_v2, prune for int8 by reconstruction, global, quantize"
    assert notes(search)[0] == ""


def test_a_student_that_is_worse_than_another_is_dropped_after_a_trial(results):
    # the best trial of a student is 0.3, its interval begins at 0.2; that of the source is 0.6
    results.top1 = {("int8", FIRST, 0): 0.6, ("int8", FIRST, EPOCHS): 0.6}
    results.students = {
        "dropped": {SHORT: 0.09}, "best": {SHORT: 0.3, EPOCHS: 0.4}, "continued": {SHORT: 0.11, EPOCHS: 0.5}
    }  # fmt: skip
    search = results.search(results.students, sizes=(SIDE,))
    winner = search.run()
    distilled = [call for call in results.calls if call[0] == "distill"]
    assert distilled == [
        ("distill", "dropped", SIDE, SHORT),
        ("distill", "best", SIDE, SHORT),
        ("distill", "continued", SIDE, SHORT),
        ("distill", "best", SIDE, EPOCHS),
        ("distill", "continued", SIDE, EPOCHS),
    ]
    # the trials of all come first, then the source is finished, then the students
    assert [call[0] for call in results.calls[:9]] == ["prune"] * 4 + ["distill"] * 3 + ["prune", "quantize"]
    assert [call[0] for call in results.calls[9:14]] == ["distill"] + ["prune"] * 4
    trial = "a trial of 2 epochs"
    assert notes(search)[4:7] == [f"dropped after {trial}", f"{trial}, continued", f"{trial}, continued"]
    assert "dropped after a trial of 2 epochs |" in search.report(winner, 10)


def test_a_student_that_is_worse_than_what_is_finished_is_not_compressed(results):
    # untrained, the source is no better than the student; once it is finished, its interval begins at 0.8
    results.top1 = {("fp32", FIRST): 0.5, ("fp32", FIRST, EPOCHS): 0.9}
    results.students = {"vgg11": {SHORT: 0.5, EPOCHS: 0.69}, "resnet18": {SHORT: 0.5, EPOCHS: 0.71}}
    search = results.search(results.students)
    search.run()
    distilled = [each for each in search.tried if each.recipe.startswith("distill") and each.epochs == EPOCHS]
    assert [each.note for each in distilled[:2]] == ["dropped after 16 epochs", ""]
    compressed = {each.recipe.partition(",")[0] for each in search.tried if "prune" in each.recipe}
    assert "distill into resnet18" in compressed and "distill into vgg11" not in compressed


def test_no_trial_of_a_student_is_as_long_as_its_distillation(results):
    results.students = {"vgg11": {1: 0.3}, "resnet18": {1: 0.3}}
    search = results.search(results.students, epochs=1)
    search.run()
    distilled = [call for call in results.calls if call[0] == "distill"]
    assert distilled == [("distill", "vgg11", SIDE, 1), ("distill", "resnet18", SIDE, 1)]


def test_the_only_student_of_a_weak_source_needs_no_trial(results):
    """After two epochs it would be far behind the source, in the end it is better."""
    results.top1 = {("int8", FIRST, 0): 0.5, ("int8", FIRST, EPOCHS): 0.6}
    results.students = {"vgg11": {SHORT: 0.05, EPOCHS: 0.79}}
    search = results.search(["vgg11"])
    search.run()
    assert [call[3] for call in results.calls if call[0] == "distill"] == [EPOCHS]
    assert any(each.recipe.startswith("distill into vgg11, prune") and each.cost for each in search.tried)


def test_a_student_that_is_refused_is_noted_and_the_search_goes_on(results):
    def distill(arch, size, epochs, *_):
        if arch == "vgg11":
            raise UserError("the images are too small")
        return results.create(f"kd_{arch}", 0.7)

    results.distill = distill
    search = results.search(["vgg11", "mobilenet_v2"])
    winner = search.run()
    assert search.refused == ["distill into vgg11: the images are too small"]
    assert "| distill into vgg11: the images are too small " in search.report(winner, 10)
    assert "distill into mobilenet_v2" in [each.recipe for each in search.tried]


def test_a_student_that_is_as_good_as_its_teacher_is_distilled_again_with_a_small_alpha(results):
    results.students = {
        "better": {SHORT: 0.8, EPOCHS: 0.81}, "better again": {EPOCHS: 0.9},
        "worse": {SHORT: 0.8, EPOCHS: 0.8}, "worse again": {EPOCHS: 0.79},
        "below": {SHORT: 0.8, EPOCHS: 0.79},
    }  # fmt: skip
    search = results.search(["better", "worse", "below"])
    winner = search.run()
    distilled = [
        each for each in search.tried if each.recipe.startswith("distill") and "," not in each.recipe
    ]
    again = [each for each in search.tried if each.recipe.endswith("alpha 0.3")]
    assert [each.recipe for each in again] == [
        f"distill into {arch}, kd, alpha 0.3" for arch in ("better", "worse")
    ]
    # three trials; two distilled with all epochs reach the source, which has 80 %
    reached = "as good as its teacher (80.00%): tried again"
    assert [each.note for each in distilled[3:]] == [reached, reached, ""]
    assert f"| {reached} |" in search.report(winner, 10) and again[0].note == again[1].note == ""
    # the better of the two is compressed
    names = {each.recipe for each in search.tried if "prune" in each.recipe}
    by = ", prune for int8 by lamp, global"
    assert f"distill into better, kd, alpha 0.3{by}" in names and f"distill into worse{by}" in names
    assert f"distill into better{by}" not in names and f"distill into worse, kd, alpha 0.3{by}" not in names
    assert [alpha for _, alpha in results.taught if alpha] == [0.9, 0.9, 0.9, 0.9, 0.3, 0.9, 0.3, 0.9]


def test_a_student_is_kept_when_its_second_distillation_fails(results):
    results.students = {"vgg11": {SHORT: 0.8, EPOCHS: 0.81}, "vgg11 again": UserError("training diverged")}
    search = results.search(["vgg11"])
    search.run()
    assert search.refused == ["distill into vgg11, kd, alpha 0.3: training diverged"]
    assert any(each.recipe.startswith("distill into vgg11, prune") for each in search.tried)


def test_a_small_alpha_is_not_made_smaller(results):
    results.students = {"vgg11": {EPOCHS: 0.9}}
    results.search(["vgg11"], alpha=0.3).run()
    assert [alpha for _, alpha in results.taught if alpha] == [0.3]


def test_a_network_that_is_better_than_the_teacher_teaches_itself(results):
    teacher = Candidate("", results.create("teacher", 0.6), SIDE, 0.6, (0.5, 0.7))
    results.students = {"vgg11": {SHORT: 0.5, EPOCHS: 0.59}}
    results.top1 = {("int8", FIRST): 0.7}
    search = results.search(["vgg11"], teacher=teacher)
    search.run()
    teachers = [path for path, _ in results.taught]

    def of(*call):
        return teachers[results.calls.index(call)]

    # the source has 80 %, what pruning creates 70 %, the student 59 %
    assert of("prune", "int8", FIRST, SIDE, EPOCHS) == results.source
    assert of("distill", "vgg11", SIDE, EPOCHS) == teacher.path
    pruned = next(each for each in search.tried if each.epochs == EPOCHS)
    assert of("quantize", pruned.path) == pruned.path
    # what is pruned from the student, after the last distillation
    assert teachers[results.calls.index(("distill", "vgg11", SIDE, EPOCHS)) + 1] == teacher.path


def test_every_kind_of_budget_has_precisions():
    assert set(PRECISIONS) == set(units.UNITS)


def test_nothing_is_tried_where_the_source_meets_the_budget(results):
    results.costs[results.source] = LIMIT
    with pytest.raises(UserError, match=r"nothing to do: .*source.* has 100 bytes already"):
        results.search()


@pytest.mark.parametrize(
    ("kind", "precisions"), [("macs", ["fp32"]), ("size", ["fp32", "int8"]), ("ram", ["fp32", "int8"])]
)
def test_int8_is_tried_where_it_costs_less(results, kind, precisions):
    asked = []

    def budget(path, text, precision, size):
        asked.append((text, precision))
        return Budget(kind, LIMIT, LIMIT if precision == "int8" else 2 * LIMIT, lambda model: 0.0, precision)

    def prune(path, target, precision, *_):
        assert units.parse(kind, target) == (LIMIT, False)
        return results.create("pruned", 0.5)

    source = Candidate("", results.source, SIDE, 0.8, (0.7, 0.9))
    search = Search(
        source, source, kind, "0.5", alpha=0.9,
        stages=Stages(None, prune, results.quantize), budget=budget, cost=lambda path: 2 * LIMIT,
        students=[], sizes=[SIDE], epochs=EPOCHS,
    )  # fmt: skip
    with pytest.raises(UserError, match="nothing meets"):
        search.run()
    # the fraction is one of the float model; what follows has to meet the same amount
    assert asked[0] == ("0.5", "fp32") and [precision for _, precision in asked] == precisions
    assert {units.parse(kind, text) for text, _ in asked[1:]} <= {(LIMIT, False)}


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
        "nothing meets 100 bytes: in int8: it cannot be quantized; "
        "prune for fp32 by reconstruction, global: 101 bytes"
    )
