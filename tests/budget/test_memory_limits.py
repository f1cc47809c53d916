import pytest
import torch
from torch import nn

from common.budget import memory_limits, widths
from common.budget.target import Budget
from common.compression import int8_engines, pruning, quantization
from common.deployment import c_writer, integer_model
from common.evaluation.memory import LiveTensor
from common.integer import from_fx, planner
from common.models import architectures
from common.system.errors import UserError
from tests.compression.networks import EMBEDDED

pytestmark = pytest.mark.usefixtures("shallow_networks")

STATISTICS = [0.5] * 3, [0.5] * 3
IMAGE = frozenset()


@pytest.fixture(autouse=True)
def engine():
    int8_engines.use(EMBEDDED)


def network():
    """8 pixels: 16 channels, 64, filtered by 3 x 3, a pooling, and 24 channels of 4 x 4 for the mean."""
    filters = nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 64, 1), nn.ReLU(), filters,
        nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 24, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def live(values, channels, *layers):
    return LiveTensor(values, channels, frozenset(layers))


SCRATCH = live(4 * 64, 64, "4")  # two pixels of the pooled filters, as int16
RINGS = [
    live(8 * 16, 16, "0"), live(3 * 8 * 64, 64, "2"), live(2 * 8 * 64, 64, "4"), live(4 * 64, 64, "4"),
    live(4 * 4 * 24, 24, "8"), SCRATCH,
]  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "image", "tensors"),
    [
        ("layers", 0, [live(64 * 64, 64, "2"), live(64 * 64, 64, "4"), SCRATCH]),
        # the last tensor is written over the image, row by row
        ("rows", 3 * 8 * 8, [live(3 * 8 * 8, 3), *RINGS]),
        ("camera", 0, [live(3 * 8 * 3, 3), *RINGS]),
    ],
)
def test_the_peak_is_where_the_plan_has_it(schedule, image, tensors):
    needed, found = memory_limits.peak(network(), EMBEDDED, 8, schedule)
    assert (needed, list(found)) == (sum(each.values for each in tensors) - image, tensors)


@pytest.mark.parametrize("schedule", planner.SCHEDULES)
@pytest.mark.parametrize("arch", ["mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_the_ram_is_that_of_the_quantized_network_in_c(arch, schedule):
    model = architectures.build(arch, 5)
    prepared = quantization.prepare(model, EMBEDDED, 64)
    quantization.calibrate(prepared, [(torch.randn(4, 3, 64, 64), None)], torch.device("cpu"), 1)
    graph = from_fx.read(integer_model.convert(prepared, 64).int8, 64)
    written = c_writer.write(graph, "net", schedule, "twice", [], *STATISTICS)
    assert memory_limits.peak(model, EMBEDDED, 64, schedule)[0] == written.ram


def within(limit, schedule="rows"):
    """The widths of `network` with this limit, and its RAM."""
    model, options = network(), {"classifier": "12", "image_size": 8}
    peak = memory_limits.peak_function(8, "int8", EMBEDDED, schedule)
    conditions, hint = memory_limits.describe(schedule, 8)
    budget = Budget(
        "ram", limit, peak(model)[0], lambda model: peak(model)[0], "int8", conditions, peak, hint
    )
    groups = pruning.rank(model, "lamp", "global", **options)
    found = widths.widths_for_budget(model, groups, budget, **options)
    return found, budget.cost(pruning.prune(model, groups, found, **options))


def test_rows_prune_what_is_at_the_peak_of_rows():
    # of the 64 channels each has 3 + 2 rows of 8 bytes, 4 bytes of a row that is pooled and 4 of scratch
    assert within(3584) == ({}, 3584)
    for removed in (8, 16):
        found, needed = within(3584 - removed * 48)
        assert found == {"2": 64 - removed, "4": 64 - removed} and needed == 3584 - removed * 48


def test_an_image_that_is_too_large_is_an_error_that_names_what_helps():
    with pytest.raises(UserError) as error:
        within(191)
    assert str(error.value).startswith(
        "this network cannot be pruned to 191 bytes of RAM (int8 in C, schedule rows): "
    )
    assert str(error.value).endswith(
        "; the image alone takes 192 bytes, which arrive row by row with --ram-schedule camera; a smaller "
        "--image-size takes less"
    )
    with pytest.raises(
        UserError, match=r"schedule camera.*[0-9] bytes of RAM; a smaller --image-size takes less"
    ):
        within(191, "camera")
    assert memory_limits.describe("layers", 8) == ("", "; a smaller --image-size takes less")
