"""Constants in C: numbers, arrays, and weights in the order in which the kernels read them."""

import numpy as np

from common.integer import nibbles

SIZES = {"int8_t": 1, "uint8_t": 1, "uint16_t": 2, "int32_t": 4, "float": 4}
OVERREAD = 48  # bytes that a kernel may read after the weights, and does not use


def array(kind: str, name: str, values) -> str:
    """A constant array.

    Args:
        kind: The type of its values.
        name: Its name.
        values: Numbers, in any shape.

    Returns:
        Its definition.
    """
    flat = [
        c_float(value) if kind == "float" else str(value) for value in np.asarray(values).ravel().tolist()
    ]
    lines = [",".join(flat[start : start + 24]) for start in range(0, len(flat), 24)]
    return f"static const {kind} {name}[{len(flat)}] = {{\n" + ",\n".join(lines) + "};\n"


def bytes_of(kind: str, values) -> int:
    """The size of a constant array.

    Args:
        kind: See `array`.
        values: See there.

    Returns:
        Bytes.
    """
    return SIZES[kind.split()[-1]] * np.asarray(values).size


def c_float(value: float) -> str:
    """A float32 in C.

    Args:
        value: A number.

    Returns:
        The literal of its value in float32.
    """
    return f"{float(value).hex()}f"


def c_string(text: str) -> str:
    """A text in C.

    Args:
        text: Any.

    Returns:
        The literal of its bytes in UTF-8.
    """
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in text.encode(errors="surrogateescape")
    )
    return f'"{escaped}"'


def braces(values) -> str:
    """The values of a struct or of an array.

    Args:
        values: What can be written in C as it is.

    Returns:
        An initializer.
    """
    return "{" + ", ".join(map(str, values)) + "}"


def padded(count: int) -> int:
    """The next multiple of 4.

    Args:
        count: A number of values.

    Returns:
        It, or up to 3 more.
    """
    return -(-count // 4) * 4


def blocks_of(weight: np.ndarray, groups: int) -> np.ndarray:
    """The weights of a convolution in the order in which `products.c` reads them.

    Args:
        weight: int8 [O, C / groups, kernel height, kernel width].
        groups: Of channels.

    Returns:
        int8: [groups][outputs / 4][values / 4][4 outputs][4 values] with zeros in what is not there, and 48
        zeros; a value is one of a row, a column and a channel.
    """
    rows = _rows_of(weight, groups, 4)
    blocks = rows.reshape(groups, rows.shape[1] // 4, 4, -1, 4).transpose(0, 1, 3, 2, 4)
    return np.pad(blocks.ravel(), (0, OVERREAD))


def narrow_blocks_of(weight: np.ndarray, groups: int) -> np.ndarray:
    """The weights of 4 bits of a convolution in the order in which `products_narrow.c` reads them.

    Args:
        weight: See `blocks_of`.
        groups: Of channels.

    Returns:
        int8: [groups][outputs / 4][values / 8][4 outputs][4 bytes], two values in each byte: k and k + 4.
    """
    rows = _rows_of(weight, groups, 8)
    blocks = rows.reshape(groups, rows.shape[1] // 4, 4, -1, 2, 4).transpose(0, 1, 3, 2, 5, 4)
    return nibbles.pack(blocks).view(np.int8)


def narrow_filters_of(weight: np.ndarray) -> np.ndarray:
    """The weights of 4 bits of a depthwise convolution in the order in which `filter_narrow.c` reads them.

    Args:
        weight: int8 [C, 1, kernel height, kernel width].

    Returns:
        int8: [kernel height][kernel width][C / 2], two channels in each byte.
    """
    taps = weight[:, 0].transpose(1, 2, 0)
    return nibbles.pack(np.pad(taps, ((0, 0), (0, 0), (0, len(weight) % 2)))).view(np.int8)


def _rows_of(weight: np.ndarray, groups: int, multiple: int) -> np.ndarray:
    """[groups, outputs, values], with zeros up to 4 outputs and a multiple of values."""
    outputs = len(weight) // groups
    rows = weight.transpose(0, 2, 3, 1).reshape(groups, outputs, -1)
    return np.pad(rows, ((0, 0), (0, -outputs % 4), (0, -rows.shape[2] % multiple)))
