"""--pretrained reads what common trainers write: torchvision's references, timm, Lightning, DataParallel."""

import argparse
import importlib.util
import os

import pytest
import torch

from common.models import architectures, pretrained
from common.system.errors import UserError

ARCH = "squeezenet1_1"


@pytest.fixture(scope="module")
def state():
    return architectures.build(ARCH, 3).state_dict()


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


OPTIONS = argparse.Namespace(lr=0.1, model=ARCH)
OTHER = torch.ones(7)
FORMS = {
    "timm": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {}, "args": OPTIONS},
    "torchvision": lambda state: {"model": state, "optimizer": {}, "epoch": 3, "args": OPTIONS},
    "DataParallel": lambda state: under("module.", state),
    "compiled": lambda state: under("_orig_mod.", state),
    "compiled, in parallel": lambda state: {"model": under("module._orig_mod.", state)},
    "Lightning": lambda state: {"state_dict": under("model.", state), "hyper_parameters": {"lr": 0.1}},
    "Lightning, with a loss": lambda state: {
        "state_dict": under("model._orig_mod.", state) | {"loss.weight": OTHER, "features.0.bias": OTHER}
    },
    "averaged": lambda state: {
        "model": dict.fromkeys(state, OTHER),
        "model_ema": under("module.", state) | {"n_averaged": torch.tensor(1)},
    },
    "averaged by timm": lambda state: {"state_dict": dict.fromkeys(state, OTHER), "state_dict_ema": state},
    "not averaged": lambda state: {"state_dict": state, "state_dict_ema": None},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_are_those_of_the_file(tmp_path, state, form):
    torch.save(FORMS[form](state), tmp_path / "weights.pth")
    own = architectures.build(ARCH, 3, str(tmp_path / "weights.pth")).state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())


def test_what_is_ignored_is_said(tmp_path, state, capsys):
    torch.save(FORMS["averaged"](state), tmp_path / "weights.pth")
    architectures.build(ARCH, 3, str(tmp_path / "weights.pth"))
    assert capsys.readouterr().out == (
        f"note: {tmp_path}/weights.pth: model_ema is used, and not model\n"
        f"note: {tmp_path}/weights.pth: ignored what is not under module, such as n_averaged\n"
    )
    torch.save(FORMS["torchvision"](state), tmp_path / "weights.pth")
    architectures.build(ARCH, 3, str(tmp_path / "weights.pth"))
    assert capsys.readouterr().out == ""


def test_safetensors_are_read_for_networks_of_torchvision(tmp_path, state, monkeypatch):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(state, tmp_path / "weights.safetensors")
    own = architectures.build(ARCH, 3, str(tmp_path / "weights.safetensors")).state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="safetensors, which is not installed: pip install safetensors"):
        pretrained.read(tmp_path / "weights.safetensors")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*jit.*:DeprecationWarning")
def test_a_program_of_torchscript_is_named(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(UserError, match="is a program of TorchScript, and not weights"):
        architectures.build(ARCH, 3, str(tmp_path / "script.pt"))


class Other:
    """Not a class that may be loaded."""

    def __init__(self, folder=None):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("beside", [False, True])
def test_other_objects_are_refused_and_their_code_does_not_run(tmp_path, state, beside):
    executed = str(tmp_path / "executed")
    options = argparse.Namespace(hidden=Other(executed)) if beside else Other(executed)
    torch.save({"model": state, "args": options}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="it holds Python objects"):
        architectures.build(ARCH, 3, str(tmp_path / "weights.pth"))
    assert not os.path.exists(executed)


def test_a_larger_network_under_a_prefix_does_not_fit(tmp_path):
    torch.save(under("module.", architectures.build("resnet34", 3).state_dict()), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"does not fit resnet18: layer1\.2\.conv1\.weight"):
        architectures.build("resnet18", 3, str(tmp_path / "weights.pth"))
