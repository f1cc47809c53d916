import pytest
import torch

from common import engines
from common.errors import UserError

LISTED = torch.backends.quantized.supported_engines


def test_the_engine_that_is_found_computes_what_fake_quantization_does():
    for backend in ("fbgemm", "qnnpack"):
        engine = engines.use(backend)
        assert engines.trial(backend, engine).failure == ""
        assert torch.backends.quantized.engine == engine
    assert engine == "qnnpack"


@pytest.mark.parametrize("engine", ["fbgemm", "x86"])
def test_an_engine_that_overflows_is_refused(engine):
    # qnnpack's models use all 8 bits of an activation: fbgemm's depthwise kernels, which the x86 engine takes
    # too beyond 100 channels, add two products of them in 16 bits
    if engine not in LISTED:
        pytest.skip(f"this machine's torch has no {engine}")
    with pytest.raises(UserError, match=f"made for qnnpack: {engine} gives wrong results.*overflow"):
        engines.use("qnnpack", engine)


def test_an_engine_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"no engine neon9; it has .*qnnpack"):
        engines.use("fbgemm", "neon9")


def test_the_own_engine_is_the_backend_s_where_it_is_right(monkeypatch):
    assert engines.own("qnnpack") == "qnnpack"
    with monkeypatch.context() as patch:
        trials(patch, {"fbgemm": engines.Trial("cannot run it", 0)})
        assert engines.own("fbgemm") is None and engines.own("qnnpack") is None


def trials(monkeypatch, results):
    monkeypatch.setattr(torch.backends.quantized.__class__, "supported_engines", [*results, "none"])
    monkeypatch.setattr(engines, "trial", lambda backend, engine: results[engine])


def test_the_fastest_engine_that_is_right_is_taken(monkeypatch):
    right = {
        "qnnpack": engines.Trial("", 9.0),
        "onednn": engines.Trial("", 2.0),
        "x86": engines.Trial("", 1.0),
    }
    with monkeypatch.context() as patch:
        trials(patch, right | {"fbgemm": engines.Trial("gives wrong results", 0)})
        assert engines.use("fbgemm") == "x86"


def test_a_difference_of_a_few_percent_does_not_change_the_engine(monkeypatch):
    with monkeypatch.context() as patch:
        trials(patch, {"onednn": engines.Trial("", 1.0), "x86": engines.Trial("", 0.95)})
        assert engines.use("fbgemm") == "onednn"


def test_no_engine_that_is_right_says_what_each_did(monkeypatch):
    with monkeypatch.context() as patch:
        trials(patch, {"fbgemm": engines.Trial("cannot run it", 0), "x86": engines.Trial("gives wrong", 0)})
        with pytest.raises(UserError, match="made for fbgemm: fbgemm cannot run it; x86 gives wrong"):
            engines.use("fbgemm")


def test_a_trial_leaves_the_engine_and_the_random_numbers_alone():
    torch.backends.quantized.engine = "qnnpack"
    engines._fake_quant.cache_clear()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    engines.trial.__wrapped__("fbgemm", "qnnpack")
    assert torch.backends.quantized.engine == "qnnpack" and torch.equal(torch.rand(1), expected)
