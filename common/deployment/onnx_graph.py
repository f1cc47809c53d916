"""Changes to the graph that torch.onnx writes: integer pooling, and the oldest versions that allow it."""

import onnx
from onnx import defs, helper, numpy_helper

OLDEST_OPSET = 13  # QuantizeLinear and DequantizeLinear have a scale for each channel since then
FLOAT8_ATTRIBUTES = {"saturate"}  # they change nothing for other types


def pool_globally(graph: onnx.GraphProto) -> None:
    """Writes each mean over height and width as GlobalAveragePool.

    Runtimes have no ReduceMean in int8: between a DequantizeLinear and a QuantizeLinear it computes in float.
    Sums of integers are faster, and exact: values in the middle between two integers are rounded as in torch.

    Args:
        graph: A graph with the shapes of its values in `value_info`; changed.
    """
    constants = {each.name: each for each in graph.initializer}
    ranks = {each.name: len(each.type.tensor_type.shape.dim) for each in graph.value_info}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        values, axes = node.input[:1], node.input[-1:]
        if node.op_type != "ReduceMean" or axes[0] not in constants or ranks.get(values[0]) != 4:
            continue
        if {int(axis) % 4 for axis in numpy_helper.to_array(constants[axes[0]])} != {2, 3}:
            continue
        (mean,) = node.output
        keeps_dimensions = all(each.i for each in node.attribute if each.name == "keepdims")
        pooled = mean if keeps_dimensions else f"{mean}_pooled"
        node.CopyFrom(helper.make_node("GlobalAveragePool", values, [pooled]))
        if not keeps_dimensions:
            graph.node.insert(index + 1, helper.make_node("Squeeze", [pooled, *axes], [mean]))
    used = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def lower_versions(proto: onnx.ModelProto) -> None:
    """Relabels a model with the lowest opset that has its operators, and the lowest IR version for it.

    An operator may be that of an older opset which has the same inputs, outputs and attributes with the same
    defaults. Then only its types may be fewer, and those of the graph are checked.

    Args:
        proto: A valid model; its versions are changed.
    """
    (opset,) = proto.opset_import
    newest = opset.version
    for version in range(OLDEST_OPSET, newest + 1):
        opset.version = version
        proto.ir_version = helper.find_min_ir_version_for([opset])
        if all(_equal(node.op_type, version, newest) for node in proto.graph.node) and _is_valid(proto):
            break


def _equal(operator: str, version: int, newest: int) -> bool:
    try:
        old, new = (_signature(defs.get_schema(operator, each)) for each in (version, newest))
    except defs.SchemaError:  # the operator is newer
        return False
    return old == new


def _signature(schema: defs.OpSchema) -> tuple:
    attributes = {
        name: (each.type, each.required, each.default_value.SerializeToString())
        for name, each in schema.attributes.items()
        if name not in FLOAT8_ATTRIBUTES
    }
    return attributes, [(each.name, each.option) for each in (*schema.inputs, *schema.outputs)]


def _is_valid(proto: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True
