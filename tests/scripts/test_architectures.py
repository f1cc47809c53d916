"""Which of torchvision's networks go through the entire chain.

A run of the tests takes the networks of `EACH_TIME`, one of each kind that pruning, quantization and export
treat differently. With `--write-docs` it takes all of `ARCHITECTURES`, which takes a few minutes, and writes
the results into docs/: `git diff docs/` then shows what has changed.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import REPOSITORY, write_images

ARCHITECTURES = (
    "resnet18", "resnet34", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "efficientnet_b0", "squeezenet1_1", "mnasnet1_0", "densenet121", "shufflenet_v2_x1_0", "regnet_y_400mf",
    "vgg11_bn", "googlenet", "resnext50_32x4d", "convnext_tiny",
)  # fmt: skip
# the others have the same layers, or layers that other tests use: test_export.py (squeezenet), test_chain.py
# (mobilenet), test_quantization.py (efficientnet), test_qdq.py (densenet, convnext); the slowest comes first,
# since two run at a time
EACH_TIME = ("regnet_y_400mf", "mobilenet_v3_small", "shufflenet_v2_x1_0")
DOCUMENT = REPOSITORY / "docs" / "ARCHITECTURES.md"
TEXT = """# Architectures

Which networks of torchvision can be pruned, quantized and exported?

| step | what is done |
| :--- | :--- |
| 1 | `train_pruning.py` removes a quarter of the channels of each layer, and reconstructs the others |
| 2 | `train_quantization.py --target-device embedded` creates an int8 model |
| 3 | `export.py` loads it, writes it as ONNX and checks the predictions |
| 4 | `export.py` writes it as LiteRT and checks the predictions |

Each network starts from random weights, sees images of 64 pixels, and runs in a process of its own.
{works} of {all} work. The others are refused before they are trained. {litert} have a form in LiteRT.

{table}

- parameters: in millions, before and after pruning
- layers: how many layers were fitted to their former outputs by least squares
- int8: size of the int8 file, as a fraction of the pruned float file
- ONNX, LiteRT: size of the exported file, as a fraction of the int8 file, or what LiteRT has no form for

The networks are trained for only a moment, and saved even if int8 changes their predictions. The table shows
that they run, not how accurate they become.

This file is written by `pytest tests/scripts/test_architectures.py --write-docs`. Without the option, the
test takes {part} of the networks and compares their results with the last column.
"""


HEADER = """| architecture | parameters | layers | int8 | ONNX | LiteRT | result |
| :--- | ---: | ---: | ---: | ---: | :--- | :--- |"""


def chain(arch, folder, images):
    (folder / arch).mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.architectures", arch, folder / arch, images],
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
    cells = [result["arch"], "-", "-", "-", "-", "-", verdict(result)]
    if "bytes" in result:
        size = result["bytes"]
        cells[1] = " => ".join(f"{count / 1e6:.2f}" for count in result["parameters"])
        cells[2] = str(result["reconstructed"])
        cells[3:5] = f"{size['int8'] / size['pruned']:.2f}", f"{size['onnx'] / size['int8']:.2f}"
        cells[5] = f"{size['litert'] / size['int8']:.2f}" if "litert" in size else result["no_litert"]
    return f"| {' | '.join(cells)} |"


@pytest.fixture(scope="module")
def results(tmp_path_factory, request):
    archs = ARCHITECTURES if request.config.getoption("--write-docs") else EACH_TIME
    folder = tmp_path_factory.mktemp("architectures")
    images = write_images(folder / "images", train=8, test=4, side=72)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda arch: chain(arch, folder, images), archs))


def test_a_network_works_or_is_refused_before_it_is_trained(results):
    assert [result for result in results if "died" in result or result.get("after_training")] == []


def test_int8_and_onnx_files_are_as_small_as_promised(results):
    for result in results:
        if "bytes" in result:
            assert result["bytes"]["int8"] < 0.35 * result["bytes"]["pruned"], result["arch"]
            for file in {"onnx", "litert"} & result["bytes"].keys():
                assert result["bytes"][file] <= 1.15 * result["bytes"]["int8"], (result["arch"], file)


def text_of(rows):
    works = sum(line.endswith("| works |") for line in rows)
    litert = sum(line.split("|")[6].strip().replace(".", "").isdigit() for line in rows)
    table = "\n".join([HEADER, *rows])
    return TEXT.format(table=table, works=works, litert=litert, all=len(rows), part=len(EACH_TIME))


def test_the_document_contains_the_results(results, request):
    if request.config.getoption("--write-docs"):
        DOCUMENT.write_text(text_of([row(result) for result in results]), encoding="utf-8")
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    documented = {cells[1].strip(): cells[7].strip() for line in lines if len(cells := line.split("|")) == 9}
    assert {result["arch"]: verdict(result) for result in results}.items() <= documented.items()
    assert set(ARCHITECTURES) <= documented.keys()


def test_the_document_has_the_text_of_this_file():
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = text.partition(f"{HEADER}\n")[2].partition("\n\n")[0].splitlines()
    assert len(rows) == len(ARCHITECTURES) and text == text_of(rows)
    assert sum(line.endswith("| works |") for line in rows) >= 0.75 * len(rows)
