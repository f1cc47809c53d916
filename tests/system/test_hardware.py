import math
import os

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from common.evaluation import metrics
from common.stage import Stage
from common.system import hardware

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({}, math.inf),
    ],
)
def test_the_quota_of_a_container_is_read_from_its_control_group(tmp_path, files, quota):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert hardware._quota(tmp_path) == quota


def test_cores_are_those_of_the_affinity_or_the_quota_rounded_up(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    for quota, cores in ((math.inf, 16), (1.5, 2), (0.2, 1), (64.0, 16)):
        monkeypatch.setattr(hardware, "_quota", lambda _, quota=quota: quota)
        assert hardware.cores() == cores


def test_the_number_of_threads_is_that_of_the_cores_unless_the_user_sets_it(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(hardware, "cores", lambda: before + 1)
        monkeypatch.setenv("OMP_NUM_THREADS", str(before))
        hardware.set_up(CPU)
        assert torch.get_num_threads() == before
        monkeypatch.delenv("OMP_NUM_THREADS")
        hardware.set_up(CPU)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arch", "capabilities", "expected"),
    [
        ("resnet18", {}, torch.float32),
        ("resnet18", {"avx512_bf16": True}, torch.bfloat16),
        ("resnet18", {"amx_bf16": True}, torch.bfloat16),
        ("resnext50_32x4d", {"avx512_bf16": True}, torch.bfloat16),  # grouped, not depthwise
        ("mobilenet_v2", {"avx512_bf16": True}, torch.float32),
    ],
)
def test_auto_is_bf16_where_the_machine_supports_it_and_the_network_is_faster(
    monkeypatch, arch, capabilities, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    model = get_model(arch, weights=None)
    assert hardware.pick_precision("auto", CPU, model) == expected
    assert hardware.pick_precision("bf16", CPU, model) == torch.bfloat16
    assert hardware.pick_precision("fp32", CPU, model) == torch.float32


def test_autocast_is_enabled_only_for_bf16():
    layer, x = torch.nn.Linear(4, 2), torch.ones(1, 4)
    for precision in (torch.bfloat16, torch.float32):
        with hardware.autocast(CPU, precision):
            assert layer(x).dtype == precision


def test_the_summary_counts_the_threads(monkeypatch):
    for count, text in ((1, "cpu, 1 thread, bfloat16"), (2, "cpu, 2 threads, bfloat16")):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        assert hardware.summary(CPU, torch.bfloat16) == text


class Copied:
    """Stands in for a tensor, and notes how it is copied."""

    def to(self, device, non_blocking=False):
        self.target, self.non_blocking = device, non_blocking
        return self


@pytest.mark.parametrize(("device", "expected"), [("cpu", False), ("cuda:1", True), ("mps", True)])
def test_only_a_copy_to_an_accelerator_is_asynchronous(device, expected):
    values = Copied()
    assert hardware.copy_to(values, torch.device(device)) is values
    assert (values.target, values.non_blocking) == (torch.device(device), expected)


def float32_flags():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture
def tf32():
    """TF32 is allowed, as on a machine that trains; what was before comes back."""
    before = float32_flags()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield ("high", True)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_in_full_float32_nothing_is_tf32_and_after_it_all_is_as_before(tf32):
    with hardware.full_float32():
        assert float32_flags() == ("highest", False)
    assert float32_flags() == tf32


def test_full_float32_ends_with_an_error_too(tf32):
    with pytest.raises(KeyError), hardware.full_float32():
        raise KeyError
    assert float32_flags() == tf32


def test_a_stage_tests_in_full_float32(monkeypatch, tf32):
    seen = []
    monkeypatch.setattr(metrics, "evaluate", lambda *_, **__: seen.append(float32_flags()))
    stage = Stage.__new__(Stage)
    stage.test_loader, stage.device = [], CPU
    stage.test(torch.nn.Identity())
    assert seen == [("highest", False)] and float32_flags() == tf32


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(3, 16, 1, stride=2), torch.contiguous_format),  # as in RepVGG
        (nn.Conv2d(3, 16, 1), torch.channels_last),
        (nn.Conv2d(3, 16, 3, stride=2), torch.channels_last),
        (nn.Conv2d(16, 16, 1, stride=2), torch.channels_last),
    ],
)
def test_networks_with_a_layer_that_onednn_computes_wrongly_are_not_in_channels_last(layer, expected):
    model = nn.Sequential(nn.Conv2d(3, 3, 3), layer)
    assert hardware.memory_format(model, torch.device("cpu")) == expected
    assert hardware.memory_format(model, torch.device("cuda")) == torch.channels_last


def test_networks_with_weights_of_five_dimensions_are_not_in_channels_last():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv3d(1, 4, (1, 3, 3)))
    for device in ("cpu", "cuda"):
        assert hardware.memory_format(model, torch.device(device)) == torch.contiguous_format
    hardware.set_memory_format(model, torch.channels_last)
    assert model[0].weight.is_contiguous()
    hardware.set_memory_format(model[0], torch.channels_last)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
