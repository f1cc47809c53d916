import json

import pytest

from common.budget.limits import remembered
from common.budget.target import Budget
from common.system import units


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.pt"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def limits(tmp_path):
    return tmp_path / "candidates" / "limits.json"


@pytest.fixture
def limit(source, limits):
    """limit(measured, text, kind, path, conditions, size): of a search whose source costs `measured`."""

    def limit_of(measured, text="0.5", kind="latency", path=source, conditions="fp32, 1 thread(s)", size=224):
        amount, is_fraction = units.parse(kind, text)
        amount *= measured if is_fraction else 1
        budget = Budget(kind, amount, measured, float, "fp32", conditions)
        return remembered(budget, path, size, text, limits)

    return limit_of


def test_a_fraction_of_a_measurement_is_the_same_limit_in_a_second_search(limits, limit):
    assert limit(10.0) == 5
    assert limit(11.0) == limit(12.0, "0.50") == 5  # the same fraction, measured a little differently
    assert list(json.loads(limits.read_text()).values()) == [5]


def test_another_source_fraction_size_or_condition_is_measured_anew(tmp_path, limit):
    other = tmp_path / "other.pt"
    other.write_bytes(b"other weights")
    assert limit(10.0) == 5
    assert limit(12.0, path=other) == 6
    assert limit(12.0, "0.25") == 3
    assert limit(14.0, conditions="fp32, 2 thread(s)") == 7
    assert limit(4.0, size=160) == 2
    # and each of them is kept
    kept = [limit(99.0), limit(99.0, path=other), limit(99.0, "0.25"), limit(99.0, size=160)]
    assert kept == [5, 6, 3, 2]


def test_limits_that_need_no_measurement_are_not_kept(limits, limit):
    assert limit(10.0) == 5
    assert limit(12.0, "0.5", "size") == limit(12.0, "0.5", "macs") == 6  # the same fraction of another kind
    assert limit(14.0, "0.5", "size") == limit(14.0, "0.5", "macs") == 7
    assert limit(12.0, "5.5ms") == 5.5
    assert len(json.loads(limits.read_text())) == 1


@pytest.mark.parametrize("damaged", [b"", b'{"', b"\xff\xfe", b"[]", b"null", b"5"])
def test_a_damaged_file_of_limits_is_ignored_and_replaced(limits, limit, damaged):
    limits.parent.mkdir()
    limits.write_bytes(damaged)
    assert limit(10.0) == 5
    assert limit(12.0) == 5


@pytest.mark.parametrize("value", [None, "5", [5.0], {}])
def test_a_kept_limit_that_is_no_number_is_measured_anew(limits, limit, value):
    limit(10.0)
    limits.write_text(json.dumps(dict.fromkeys(json.loads(limits.read_text()), value)))
    assert limit(12.0) == limit(14.0) == 6
