"""Token ids in as few bits as the largest needs: rows of k ids, each row padded to whole bytes.

Id j of a row begins at bit j * bits, the least significant bit first.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PACKED_AT_ONCE = 2048  # rows: their bits lie in memory as bytes while they are packed
_ONE_WORD = 25  # bits that one aligned-to-bytes word of 32 holds wherever they begin in its first byte


def bits_for(largest: int) -> int:
    """Return how many bits the ids 0 .. largest need, at least one."""
    return max(1, largest.bit_length())


def row_bytes(k: int, bits: int) -> int:
    """Return the bytes of a row of k ids."""
    return (k * bits + 7) // 8


def pack(ids: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Return ids (T, k), all below 2 ** bits, as bytes (T, row_bytes(k, bits))."""
    packed = np.empty((len(ids), row_bytes(ids.shape[1], bits)), np.uint8)
    places = np.arange(bits, dtype=np.int32)
    for first in range(0, len(ids), _PACKED_AT_ONCE):
        part = ids[first : first + _PACKED_AT_ONCE]
        ones = (part[:, :, None] >> places & 1).astype(np.uint8)  # (t, k, bits)
        packed[first : first + len(part)] = np.packbits(ones.reshape(len(part), -1), axis=1, bitorder="little")
    return packed


def unpack(packed: NDArray[np.uint8], k: int, bits: int) -> NDArray[np.int32]:
    """Return the ids (T, k) of rows of bytes (T, row_bytes(k, bits)), all rows in eight passes."""
    rows, size = packed.shape
    word = 4 if bits <= _ONE_WORD else 8
    buffer = np.empty(rows * size + word, np.uint8)  # the last words reach beyond the last row
    buffer[: rows * size].reshape(rows, size)[:] = packed
    buffer[rows * size :] = 0
    ids = np.empty((rows, k), np.int32)
    mask: Any = np.dtype(f"<u{word}").type(2**bits - 1)
    for j in range(min(8, k)):  # ids j, j + 8, j + 16 ... begin `bits` bytes after each other, at the same bit
        at, shift = divmod(j * bits, 8)
        shape = (rows, len(range(j, k, 8)))
        words: NDArray[Any] = np.ndarray(shape, f"<u{word}", buffer, at, (size, bits))
        ids[:, j::8] = words >> shift & mask
    return ids
