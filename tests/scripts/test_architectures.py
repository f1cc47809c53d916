"""Which networks go through the entire chain.

A run of the tests takes the networks of `EACH_TIME`, and with `--long` those of `LONG`, which pruning,
quantization and export treat differently. With `--write-docs` it takes all of `ARCHITECTURES`, which takes
about an hour, and writes the results into docs/: `git diff docs/` then shows what has changed.
"""

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torchvision

from tests.architectures import COMPILED, SIDES
from tests.conftest import REPOSITORY, write_images

TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet0_5", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large",
    "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet34", "resnet50",
    "resnext50_32x4d", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "squeezenet1_0", "squeezenet1_1", "swin_t",
    "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_16", "wide_resnet50_2",
)  # fmt: skip
TIMM = (
    "timm/convnextv2_atto", "timm/edgenext_xx_small", "timm/efficientnet_lite0", "timm/efficientvit_b0",
    "timm/fbnetc_100", "timm/ghostnetv2_100", "timm/lcnet_050", "timm/mixnet_s",
    "timm/mobilenetv4_conv_small", "timm/mobileone_s1", "timm/mobilevit_xxs", "timm/repghostnet_050",
    "timm/repvgg_a0", "timm/repvit_m0_9", "timm/rexnet_100", "timm/starnet_s1", "timm/tinynet_e",
    "timm/vit_tiny_patch16_224",
)  # fmt: skip
ARCHITECTURES = TORCHVISION + TIMM
# the others have the same layers, or layers that other tests use: test_export.py (squeezenet), test_chain.py
# (mobilenet), test_quantization.py (efficientnet), test_qdq.py (densenet, convnext), test_pruning.py (regnet)
EACH_TIME = ("timm/repghostnet_050",)
LONG = (*EACH_TIME, "mobilenet_v3_small", "shufflenet_v2_x0_5")
SLOWEST_FIRST = ("vit_b_16", "maxvit_t", "timm/vit_tiny_patch16_224", "swin_t", "swin_v2_t")
DOCUMENT = REPOSITORY / "docs" / "ARCHITECTURES.md"
TEXT = """# Architectures

Which networks can be pruned, quantized and exported?

| step | what is done |
| :--- | :--- |
| 1 | `train_pruning.py` removes a quarter of the channels of each layer, and reconstructs the others |
| 2 | `train_quantization.py --target-device embedded` creates an int8 model |
| 3 | `export.py` loads it, writes it as ONNX and checks the predictions |
| 4 | `export.py` writes it as LiteRT and checks the predictions |
| 5 | `export.py` writes it in C |

Each network starts from **random weights**, and runs in a process of its own. {works} of {all} work. The
others are refused in one line, before that stage trains. {litert} have a form in LiteRT, and {c} in C. The
images have 64 pixels; some networks need larger ones: {larger}.

{table}

- parameters: in millions, before and after pruning
- MACs: multiply-accumulates of the pruned network for one image, in millions
- RAM: peak of the activations of the int8 model for one image, in KiB; not known where a part of it computes
  in float32
- int8: fraction of the weights that are int8, at most 99 % where not all are. The others belong to functions
  that are called in place of layers, such as those of attention. They compute in float32.
- layers: how many layers were fitted to their former outputs by least squares
- size: of the int8 file, as a fraction of the pruned float file
- ONNX, LiteRT: size of the exported file, as a fraction of the int8 file, or what LiteRT has no form for
- C: RAM of the static array, in KiB, with the schedule "rows"; or what has no form there
- equal: "all" where ONNX Runtime, LiteRT (XNNPACK) and C compute the integers of the reference in every
  layer, bit for bit, on four random images; else the operator of the first layer that differs.
  "-": not compared since means and hard swish changed, or a part computes in float32, or (C) the pruned
  network has more than {compiled} million parameters

The networks are trained for only a moment, and saved even if int8 changes their predictions. The table shows
that they run, not how accurate they become.

## Networks of timm

timm is optional: `pip install timm`. Its networks are named `timm/NAME`, wherever a script takes an
architecture (`--teacher`, `--student`, `--model`):

```
python train_teacher.py --teacher timm/mobilenetv4_conv_small
python train_pruning.py --weights teacher_timm_mobilenetv4_conv_small --pruning-ratio 0.5
```

- weights: those of timm are downloaded; `--pretrained FILE` takes a file of timm (`.safetensors` or `.bin`),
  or one that its training script has written
- images: mean, standard deviation, size and `crop_pct` (with timm's rounding) are those of timm, and stored
  in the checkpoint; the interpolation is bilinear, also where timm's is bicubic
- a teacher and its student may be normalized differently: each sees the images as it was trained on
- names with `tf_` can be pruned, but not quantized: their padding depends on the size of the image

## What is left out

Not all channels can be pruned. Those of attention stay, and those that have another place afterwards: before
a channel shuffle (ShuffleNet), a flip, a roll, padding with channels (the shortcuts of ResNets for CIFAR), a
slice or a split (MixNet, CSPNet, RexNet). Grouped convolutions keep their groups equally wide.
After pruning, one image is computed twice, by the pruned network and by the original one with the removed
channels set to zero. The largest difference of the logits may be 0.1 % of the largest logit. Else the network
is refused before it is trained.

Blocks with branches (RepVGG, MobileOne, RepGhost) are pruned as they are. Then `train_quantization.py` and
`export.py` fuse the branches.

This file is written by `pytest tests/scripts/test_architectures.py --write-docs`, with timm {timm}. With
`--long` it takes {long} of the networks, else {part}, and compares their results with the last column.
"""


COLUMNS = (
    "architecture", "parameters", "MACs", "RAM", "int8", "layers", "size", "ONNX", "equal", "LiteRT", "equal",
    "C", "equal", "result",
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n|{' :--- |'}{' ---: |' * 7}{' :--- |' * 6}"


def chain(arch, folder, images):
    own = folder / arch.replace("/", "_")
    own.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.architectures", arch, own, images],
        cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        return {"arch": arch, "died": f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"}
    return json.loads(done.stdout.splitlines()[-1])


def verdict(result):
    if "died" in result:
        return f"FAILS: {result['died']}"
    if "refused" in result:
        late = " AFTER TRAINING" if result["after_training"] else ""
        return f"refused{late} by `{result['by']}.py`: {result['refused']}"
    return "works"


def row(result):
    cells = [result["arch"], *["-"] * 12, verdict(result)]
    if "bytes" in result:
        size, ram = result["bytes"], result["ram_bytes"]
        cells[1] = " => ".join(f"{count / 1e6:.2f}" for count in result["parameters"])
        cells[2] = f"{result['macs'] / 1e6:.0f}"
        cells[3] = f"{ram / 1024:.0f}" if ram else "-"
        int8 = result["int8_fraction"]
        cells[4:6] = f"{int8 if int8 == 1 else min(int8, 0.99):.0%}", str(result["reconstructed"])
        cells[6:8] = f"{size['int8'] / size['pruned']:.2f}", f"{size['onnx'] / size['int8']:.2f}"
        cells[8] = result["equal"].get("onnx", "-")
        cells[9] = f"{size['litert'] / size['int8']:.2f}" if "litert" in size else result["no_litert"]
        cells[10] = result["equal"].get("litert", "-")
        cells[11] = f"{result['c_ram_bytes'] / 1024:.0f}" if "c" in result else result["no_c"]
        cells[12] = result["equal"].get("c", "-")
    return f"| {' | '.join(cells)} |"


@pytest.fixture(scope="module")
def results(tmp_path_factory, request):
    archs = LONG if request.config.getoption("--long") else EACH_TIME
    if request.config.getoption("--write-docs"):
        archs = ARCHITECTURES
    if importlib.util.find_spec("timm") is None:
        archs = [arch for arch in archs if arch not in TIMM] or LONG[1:]
    folder = tmp_path_factory.mktemp("architectures")
    images = write_images(folder / "images", train=8, test=4, side=72)
    order = sorted(archs, key=lambda arch: arch not in SLOWEST_FIRST)
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(order, pool.map(lambda arch: chain(arch, folder, images), order), strict=True))
    return [results[arch] for arch in archs]


def test_a_network_works_or_is_refused_before_it_is_trained(results):
    assert [result for result in results if "died" in result or result.get("after_training")] == []


def test_int8_and_exported_files_are_as_small_as_promised(results):
    for result in results:
        if "bytes" in result:
            # of a weight, 1 byte in place of 4; a network of a few hundred kB has relatively many scales
            floats = 1 - result["int8_fraction"]
            assert result["bytes"]["int8"] < (0.35 + floats) * result["bytes"]["pruned"], result["arch"]
            for file in {"onnx", "litert"} & result["bytes"].keys():
                assert result["bytes"][file] <= 1.35 * result["bytes"]["int8"], (result["arch"], file)


def test_c_has_the_integers_of_the_reference(results):
    assert [result["arch"] for result in results if result.get("equal", {}).get("c", "all") != "all"] == []


def text_of(rows):
    works = sum(line.endswith("| works |") for line in rows)
    litert, c = (
        sum(line.split("|")[column].strip().replace(".", "").isdigit() for line in rows)
        for column in (10, 12)
    )
    pinned = (REPOSITORY / "tests" / "requirements.txt").read_text().partition("timm==")[2].split()[0]
    table = "\n".join([HEADER, *rows])
    return TEXT.format(
        table=table, works=works, litert=litert, c=c, all=len(rows), timm=pinned,
        part=len(EACH_TIME), long=len(LONG), compiled=COMPILED,
        larger=", ".join(f"{arch} ({side})" for arch, side in SIDES.items()),
    )  # fmt: skip


def test_the_document_contains_the_results(results, request):
    if request.config.getoption("--write-docs"):
        DOCUMENT.write_text(text_of([row(result) for result in results]), encoding="utf-8")
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    documented = {
        cells[1].strip(): cells[14].strip() for line in lines if len(cells := line.split("|")) == 16
    }
    assert {result["arch"]: verdict(result) for result in results}.items() <= documented.items()
    assert set(ARCHITECTURES) <= documented.keys()


def test_the_document_has_the_text_of_this_file():
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = text.partition(f"{HEADER}\n")[2].partition("\n\n")[0].splitlines()
    assert len(rows) == len(ARCHITECTURES) and text == text_of(rows)
    working = {line.split("|")[1].strip() for line in rows if line.endswith("| works |")}
    assert len(working) >= 30 and len(working & set(TORCHVISION)) >= 24 and len(working & set(TIMM)) >= 8


def test_every_family_of_torchvision_is_in_the_table():
    def family(arch):
        return torchvision.models.get_model_builder(arch).__module__

    known = torchvision.models.list_models(module=torchvision.models)
    assert set(map(family, TORCHVISION)) == set(map(family, known))
