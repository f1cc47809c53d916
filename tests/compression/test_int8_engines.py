import pytest
import torch

from common.compression import int8_engines
from common.system.errors import UserError

LISTED = torch.backends.quantized.supported_engines


def test_the_engine_that_is_found_computes_what_fake_quantization_does():
    for backend in ("fbgemm", "qnnpack"):
        engine = int8_engines.use(backend)
        assert int8_engines.trial(backend, engine).failure == ""
        assert torch.backends.quantized.engine == engine
    assert engine == "qnnpack"


@pytest.mark.parametrize("engine", ["fbgemm", "x86"])
def test_an_engine_that_overflows_is_refused(engine):
    # qnnpack's models use all 8 bits of an activation: fbgemm's depthwise kernels, which the x86 engine takes
    # too beyond 100 channels, add two products of them in 16 bits
    if engine not in LISTED:
        pytest.skip(f"this machine's torch has no {engine}")
    with pytest.raises(UserError, match=f"made for qnnpack: {engine} gives wrong results.*overflow"):
        int8_engines.use("qnnpack", engine)


def test_an_engine_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"no engine neon9; it has .*qnnpack"):
        int8_engines.use("fbgemm", "neon9")


def test_the_own_engine_is_the_backend_s_where_it_is_right(monkeypatch):
    assert int8_engines.reference_engine("qnnpack") == "qnnpack"
    with monkeypatch.context() as patch:
        trials(patch, {"fbgemm": int8_engines.Trial("cannot run it", 0)})
        assert (
            int8_engines.reference_engine("fbgemm") is None
            and int8_engines.reference_engine("qnnpack") is None
        )


def trials(monkeypatch, results):
    monkeypatch.setattr(torch.backends.quantized.__class__, "supported_engines", [*results, "none"])
    monkeypatch.setattr(int8_engines, "trial", lambda backend, engine: results[engine])


def test_the_fastest_engine_that_is_right_is_taken(monkeypatch):
    right = {
        "qnnpack": int8_engines.Trial("", 9.0),
        "onednn": int8_engines.Trial("", 2.0),
        "x86": int8_engines.Trial("", 1.0),
    }
    with monkeypatch.context() as patch:
        trials(patch, right | {"fbgemm": int8_engines.Trial("gives wrong results", 0)})
        assert int8_engines.use("fbgemm") == "x86"


def test_a_difference_of_a_few_percent_does_not_change_the_engine(monkeypatch):
    with monkeypatch.context() as patch:
        trials(patch, {"onednn": int8_engines.Trial("", 1.0), "x86": int8_engines.Trial("", 0.95)})
        assert int8_engines.use("fbgemm") == "onednn"


def test_no_engine_that_is_right_says_what_each_did(monkeypatch):
    with monkeypatch.context() as patch:
        trials(
            patch,
            {"fbgemm": int8_engines.Trial("cannot run it", 0), "x86": int8_engines.Trial("gives wrong", 0)},
        )
        with pytest.raises(UserError, match="made for fbgemm: fbgemm cannot run it; x86 gives wrong"):
            int8_engines.use("fbgemm")


def test_a_trial_leaves_the_engine_and_the_random_numbers_alone():
    torch.backends.quantized.engine = "qnnpack"
    int8_engines._fake_quant.cache_clear()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    int8_engines.trial.__wrapped__("fbgemm", "qnnpack")
    assert torch.backends.quantized.engine == "qnnpack" and torch.equal(torch.rand(1), expected)
