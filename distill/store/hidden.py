"""Teacher states (T, D) in two bytes, one byte, or R coordinates instead of D, and back as float32."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.store.basis import Basis

Kept = dict[str, NDArray[Any]]


def encode(states: NDArray[np.float32], kind: str, basis: Basis | None) -> tuple[dict[str, Any], Kept]:
    """Return (parameters, sections) of states kept as "bf16", "int8" or "svd".

    Without a basis "svd" falls back on bfloat16, which is exacter and larger: `kept` among the parameters says so.
    """
    states = states.astype(np.float32)
    width = states.shape[1]
    if kind == "int8":
        scale = np.abs(states).max(1) / np.float32(127)
        whole = np.rint(states / np.where(scale > 0, scale, 1)[:, None]).clip(-127, 127).astype("i1")
        return {"kept": "int8", "width": width}, {"states": whole, "scale": scale.astype("<f4")}
    if kind == "svd" and basis is not None:
        along = states @ basis.directions.T  # (T, R)
        scale = np.abs(along).max(1)  # so that float16 can neither overflow nor lose the small rows
        coordinates = (along / np.where(scale > 0, scale, 1)[:, None]).astype("<f2")
        return (
            {"kept": "svd", "width": width, "basis": basis.name},
            {"states": coordinates, "scale": scale.astype("<f4")},
        )
    return {"kept": "bf16", "width": width}, {"states": _to_bfloat16(states)}


def decode(
    kept: Kept, parameters: dict[str, Any], rows: slice | NDArray[np.int64], basis: Basis | None
) -> NDArray[np.float32]:
    """Return some tokens' states, (T, D)."""
    states = kept["states"][rows]
    if parameters["kept"] == "bf16":
        return (states.astype(np.uint32) << 16).view(np.float32)
    scaled: NDArray[np.float32] = states.astype(np.float32) * kept["scale"][rows, None]
    if parameters["kept"] == "int8":
        return scaled
    assert basis is not None, parameters["basis"]
    found: NDArray[np.float32] = scaled @ basis.directions
    return found


def _to_bfloat16(states: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return bfloat16's bit patterns, rounded to nearest, ties to even."""
    whole = np.ascontiguousarray(states).view(np.uint32)
    return ((whole + (0x7FFF + (whole >> 16 & 1))) >> 16).astype("<u2")
