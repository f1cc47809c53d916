import pytest

from common.system import units


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("macs", "300M", (300e6, False)),
        ("macs", "1.5g", (1.5e9, False)),
        ("macs", "5", (5, False)),
        ("macs", "0.5K", (500, False)),
        ("size", "2MB", (2_000_000, False)),
        ("size", "2 MiB", (2 * 1024**2, False)),
        ("size", " .5kb ", (500, False)),
        ("size", "1B", (1, False)),
        ("size", "0.5", (0.5, True)),
        ("size", "1", (1, True)),
        ("size", "1.5", (1.5, False)),
        ("latency", "5ms", (5, False)),
        ("instructions", "300M", (3e8, False)),
        ("instructions", "0.5", (0.5, True)),
        ("latency", "0.005s", (5, False)),
        ("latency", "250us", (0.25, False)),
        ("latency", "5", (5, False)),
        ("latency", "0.5", (0.5, True)),
        ("latency", "0.5ms", (0.5, False)),
        ("ram", "512KB", (512_000, False)),
        ("ram", "0.5 MiB", (2**19, False)),
        ("ram", "512KiB", (2**19, False)),
        ("ram", "1MB", (1_000_000, False)),
        ("ram", "200000B", (200_000, False)),
        ("ram", "0.5", (0.5, True)),
    ],
)
def test_an_amount_has_a_unit_and_a_number_up_to_1_without_one_is_a_fraction(kind, text, expected):
    amount, is_fraction = units.parse(kind, text)
    assert (pytest.approx(amount), is_fraction) == expected


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(("size", text) for text in ("", "MB", "nan", "inf", "3XB", "1e9", "-1", "1,5MB", "2 MB x", "0x10")),
        *(("size", text) for text in ("0", "0.0", "0MB", "9" * 400)),
        *(("macs", text) for text in ("5ms", "5MB")),
        *(("ram", text) for text in ("1GB", "5ms")),
        *(("latency", text) for text in ("5M", "5MB", "50%")),
    ],
)
def test_other_text_and_amounts_of_0_are_refused(kind, text):
    with pytest.raises(ValueError, match=r"must be above 0|is not a number with one of"):
        units.parse(kind, text)


def test_an_error_names_the_units():
    with pytest.raises(ValueError, match="'5MB' is not a number with one of us, ms, s, nor a fraction"):
        units.parse("latency", "5MB")


@pytest.mark.parametrize(
    ("kind", "amount"),
    [
        *(("macs", amount) for amount in (1, 0.5 * 333_333_333, 123_456_789, 4.1e9)),
        *(("size", amount) for amount in (1, 0.5, 0.3 * 44_792_831, 10**9 + 1)),
        *(("latency", amount) for amount in (0.04, 1, 1 / 3, 12_345.678)),
        *(("ram", amount) for amount in (1, 0.5 * 1_505_280, 0.3 * 752_641)),
    ],
)
def test_the_exact_text_of_an_amount_is_parsed_to_the_same_amount_and_never_to_a_fraction(kind, amount):
    assert units.parse(kind, units.format_exact(kind, amount)) == (pytest.approx(amount, rel=2e-6), False)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("parameters", 1_200_000), "1,200,000 parameters"),
        (("macs", 333e6), "333,000,000 MACs"),
        (("size", 1_200_000, "int8"), "1,200,000 bytes (int8)"),
        (("latency", 4.567, "fp32", "2 threads"), "4.57 ms (2 threads)"),
        (("latency", 4.567, "int8", "2 threads"), "4.57 ms (int8, 2 threads)"),
        (("latency", 4.567, "int8", "int8 ONNX Runtime"), "4.57 ms (int8 ONNX Runtime)"),
        (("ram", 1_505_280, "int8"), "1,505,280 bytes of RAM (int8, layer by layer)"),
        (("ram", 9, "int8", "int8 in C, schedule rows"), "9 bytes of RAM (int8 in C, schedule rows)"),
    ],
)
def test_an_amount_is_described_with_its_precision_and_conditions(arguments, text):
    assert units.describe(*arguments) == text
