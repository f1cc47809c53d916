import pytest
import torch

from common.compression import int8_engines
from common.compression.int8_engines import Trial
from common.system.errors import UserError
from tests.compression.networks import EMBEDDED, SERVER, each_target

LISTED = torch.backends.quantized.supported_engines


@each_target
def test_the_engine_that_is_found_computes_what_fake_quantization_does(target):
    engine = int8_engines.use(target)
    assert int8_engines.trial(target, engine).failure == ""
    assert torch.backends.quantized.engine == engine


@pytest.mark.parametrize("engine", ["fbgemm", "x86"])
def test_an_engine_that_overflows_is_refused(engine):
    # models for embedded devices use all 8 bits of an activation: fbgemm's depthwise kernels, which the x86
    # engine takes too beyond 100 channels, add two products of them in 16 bits
    if engine not in LISTED:
        pytest.skip(f"this machine's torch has no {engine}")
    with pytest.raises(UserError, match=f"models for qnnpack: {engine} gives incorrect results.*overflow"):
        int8_engines.use(EMBEDDED, engine)


def test_a_missing_engine_is_named():
    with pytest.raises(UserError, match=r"no engine neon9; it has .*qnnpack"):
        int8_engines.use(SERVER, "neon9")


def test_the_reference_engine_is_that_of_the_backend_where_it_is_correct(monkeypatch):
    assert int8_engines.reference_engine(EMBEDDED) == "qnnpack"
    set_trials(monkeypatch, {"fbgemm": Trial("cannot run it", 0)})
    assert int8_engines.reference_engine(SERVER) is None and int8_engines.reference_engine(EMBEDDED) is None


def set_trials(monkeypatch, results):
    """Lets torch list the engines in `results`, and their trials have these results."""
    monkeypatch.setattr(torch.backends.quantized.__class__, "supported_engines", [*results, "none"])
    monkeypatch.setattr(int8_engines, "trial", lambda target, engine: results[engine])


def test_the_fastest_correct_engine_is_used(monkeypatch):
    correct = {"qnnpack": Trial("", 9.0), "onednn": Trial("", 2.0), "x86": Trial("", 1.0)}
    with monkeypatch.context() as patch:
        set_trials(patch, correct | {"fbgemm": Trial("gives incorrect results", 0)})
        assert int8_engines.use(SERVER) == "x86"


def test_a_difference_of_a_few_percent_does_not_change_the_engine(monkeypatch):
    with monkeypatch.context() as patch:
        set_trials(patch, {"onednn": Trial("", 1.0), "x86": Trial("", 0.95)})
        assert int8_engines.use(SERVER) == "onednn"


def test_without_a_correct_engine_the_reason_is_given_for_each(monkeypatch):
    with monkeypatch.context() as patch:
        set_trials(patch, {"fbgemm": Trial("cannot run it", 0), "x86": Trial("gives incorrect", 0)})
        with pytest.raises(UserError, match="models for fbgemm: fbgemm cannot run it; x86 gives incorrect"):
            int8_engines.use(SERVER)


def test_a_trial_changes_neither_the_engine_nor_the_random_numbers():
    torch.backends.quantized.engine = "qnnpack"
    int8_engines._fake_quant.cache_clear()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    int8_engines.trial.__wrapped__(SERVER, "qnnpack")
    assert torch.backends.quantized.engine == "qnnpack" and torch.equal(torch.rand(1), expected)
