"""Write what TensorFlow Lite for Microcontrollers computes in every layer, in the form of export.py --golden.

    python dump_tflm.py mobilenet_v2.tflite golden dumps

Needs only the packages tflite-micro and numpy. A program for a board does the same in C++.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy
from tflite_micro import runtime

ARENA = 64 << 20  # bytes; with all tensors kept it is larger than on the board


def main(file, golden, dumps):
    dumps.mkdir()
    for name in ("manifest.json", "images.bin"):
        shutil.copy(golden / name, dumps)
    manifest = json.loads((golden / "manifest.json").read_text())
    content = file.read_bytes()
    graph = runtime.schema_fb.Model.GetRootAs(content, 0).Subgraphs(0)
    indices = {graph.Tensors(index).Name().decode(): index for index in range(graph.TensorsLength())}
    interpreter = runtime.Interpreter.from_bytes(
        content, arena_size=ARENA, intrepreter_config=runtime.InterpreterConfig.kPreserveAllTensors
    )
    shape = interpreter.get_input_details(0)["shape"]
    images = numpy.fromfile(golden / "images.bin", numpy.int8).reshape(-1, *shape)
    for image in images:
        interpreter.set_input(image, 0)
        interpreter.invoke()
        for layer in manifest["layers"][1:]:
            values = interpreter.GetTensor(indices[layer["name"]], 0)["tensor_data"]
            with (dumps / layer["file"]).open("ab") as output:  # one image after the other
                output.write(values.tobytes())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
