"""Integers of 4 bits, two to a byte: the first in the lower half, as in ONNX and LiteRT files.

Weights of 4 bits lie from -7 to 7, so that the zero point is 0, as for those of 8 bits from -127 to 127.
"""

import numpy as np

LARGEST = 7


def fit(values: np.ndarray) -> bool:
    """Whether weights have 4 bits. Those of a layer of 8 bits reach 63 or 127, or all are 0.

    Args:
        values: int8 [...].

    Returns:
        True if the largest absolute value is from 1 to 7.
    """
    return 0 < np.abs(values.astype(np.int16)).max(initial=0) <= LARGEST


def pack(values: np.ndarray) -> np.ndarray:
    """Stores two values in a byte.

    Args:
        values: Integers from -8 to 7, of any shape.

    Returns:
        uint8 [half of the values, rounded up]; the last half byte may be 0.
    """
    halves = values.ravel().astype(np.int16) & 15
    halves = np.pad(halves, (0, halves.size % 2)).reshape(-1, 2)
    return (halves[:, 0] | halves[:, 1] << 4).astype(np.uint8)


def unpack(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack`.

    Args:
        packed: uint8 [bytes].
        shape: Of the values.

    Returns:
        int8, of that shape.

    Raises:
        ValueError: The bytes are not as many as the shape needs.
    """
    count = int(np.prod(shape))
    if packed.shape != ((count + 1) // 2,):
        raise ValueError(f"{packed.size} bytes for {count} values of 4 bits")
    halves = np.stack([packed & 15, packed >> 4], 1).astype(np.int8).ravel()[:count]
    return ((halves ^ 8) - 8).reshape(shape)
