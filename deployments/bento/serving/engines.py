"""Two engines that do the same steps: PyTorch on the checkpoint's own weights, ONNX Runtime on 8-bit ones.

Rows of a batch are padded on the left, so that their newest tokens stand in one column. A `past` is what an engine
remembers of the tokens so far; only the engine that made it knows what is in it.
"""

import json
import os
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Past: TypeAlias = Any

ONNX = "model.onnx"
ROOM = 32  # what is remembered is copied when so many more tokens have come [tokens]


class Engine(Protocol):
    """B rows, T new tokens each, S tokens of which T are new."""

    def forward(self, tokens: Ints, mask: Ints, past: Past) -> tuple[Ints, NDArray[np.float32], Past]:
        """Take tokens (B, T) with mask (B, S); return the likeliest next ones (B,), log-probabilities and past."""

    def merge(self, parts: list[tuple[Past, list[int]]], width: int) -> Past:
        """Return the past of these rows of some pasts, `width` columns of it: the newest, or zeros before all."""


def engine(checkpoint: Path, vocabulary: int) -> Engine:
    """Return the engine for what the folder holds; ids from `vocabulary` on are never chosen."""
    if (checkpoint / ONNX).is_file():
        return OnnxEngine(checkpoint / ONNX)
    return TorchEngine(checkpoint, vocabulary)


def positions(mask: Ints, new: int) -> Ints:
    """Return where in its text each of the newest `new` columns stands, (B, T)."""
    found: Ints = np.maximum(mask.cumsum(1) - 1, 0)[:, -new:]
    return found


class TorchEngine:
    """The checkpoint's own weights: in float32 on a CPU, in their own format on a GPU."""

    def __init__(self, checkpoint: Path, vocabulary: int) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve a busy machine
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.torch, self.vocabulary, self.layer = torch, vocabulary, _layer_with_room()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = "auto" if device == "cuda" else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).to(device).eval()

    def forward(self, tokens: Ints, mask: Ints, past: Past) -> tuple[Ints, NDArray[np.float32], Past]:
        """Take one step, see Engine."""
        torch, device = self.torch, self.model.device
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.from_numpy(tokens).to(device),
                attention_mask=torch.from_numpy(mask).to(device),
                position_ids=torch.from_numpy(positions(mask, tokens.shape[1])).to(device),
                past_key_values=self._nothing() if past is None else past,
                use_cache=True,
                logits_to_keep=1,
            )
            scores = output.logits[:, -1, : self.vocabulary].float()  # beyond is padding: no text has these ids
            best = scores.max(-1)
            logprobs = best.values - scores.logsumexp(-1)
        past = output.past_key_values
        if any(type(layer) is not self.layer for layer in getattr(past, "layers", [None])):
            raise RuntimeError(
                f"a {type(self.model).__name__} does not remember its tokens as keys and values, one a token: "
                "this service cannot put its rows together"
            )
        return best.indices.cpu().numpy(), logprobs.cpu().numpy(), past

    def merge(self, parts: list[tuple[Past, list[int]]], width: int) -> Past:
        """Put rows together, see Engine."""
        with self.torch.inference_mode():
            for layers in zip(*(past.layers for past, _ in parts), strict=True):
                both = (
                    [(getattr(layer, name), rows) for layer, (_, rows) in zip(layers, parts, strict=True)]
                    for name in ("keys", "values")
                )
                layers[0].fill(*(_merged(each, width, ROOM) for each in both), width)
        return parts[0][0]

    def _nothing(self) -> Past:
        from transformers import DynamicCache

        past = DynamicCache()
        past.layer_class_to_replicate = self.layer
        return past


def _layer_with_room() -> Any:
    """Return transformers' cache of one layer, but with room for more tokens: its own is copied at each of them."""
    from transformers.cache_utils import DynamicLayer

    class LayerWithRoom(DynamicLayer):  # type: ignore[misc]
        """Keys and values are the first columns of what is kept."""

        def fill(self, keys: Any, values: Any, size: int) -> None:
            """Keep arrays (B, H, C, D), of which `size` columns are in use."""
            self.kept, self.keys, self.values = (keys, values), keys[:, :, :size], values[:, :, :size]

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            """Take in the newest tokens, and return all."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.fill(key_states[:, :, :0], value_states[:, :, :0], 0)
            old, size = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
            if size > self.kept[0].shape[2]:
                batch, heads, _, width = key_states.shape
                shape = (batch, heads, size + ROOM, width)
                grown = [part.new_empty(shape) for part in (key_states, value_states)]
                grown[0][:, :, :old], grown[1][:, :, :old] = self.keys, self.values
                self.kept = tuple(grown)
            self.kept[0][:, :, old:size], self.kept[1][:, :, old:size] = key_states, value_states
            self.fill(*self.kept, size)
            return self.keys, self.values

    return LayerWithRoom


class OnnxEngine:
    """8-bit weights by ONNX Runtime; the graph itself chooses the token (deployments/bento/onnx_graph.py)."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # see OMP_WAIT_POLICY
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.value = onnxruntime.OrtValue.ortvalue_from_numpy
        self.names = [output.name for output in self.session.get_outputs()]
        about = json.loads(self.session.get_modelmeta().custom_metadata_map["past"])
        self.pasts, self.heads, self.width = about["names"], about["heads"], about["width"]

    def forward(self, tokens: Ints, mask: Ints, past: Past) -> tuple[Ints, NDArray[np.float32], Past]:
        """Take one step, see Engine."""
        batch, new = tokens.shape
        if past is None:
            nothing = np.zeros((batch, self.heads, 0, self.width), np.float32)
            past = [self.value(nothing) for _ in self.pasts]
        size = mask.shape[1]
        # (B, 1, T, S): no token sees padding or what comes after it
        seen = np.tri(new, size, size - new, dtype=bool)[None, None] & (mask[:, None, None, :] > 0)
        bias = np.where(seen, np.float32(0), np.float32(-1e9))
        feed = {"tokens": tokens, "positions": positions(mask, new), "bias": bias}
        inputs = {name: self.value(np.ascontiguousarray(array)) for name, array in feed.items()}
        outputs = self.session.run_with_ort_values(self.names, inputs | dict(zip(self.pasts, past, strict=True)))
        return outputs[0].numpy(), outputs[1].numpy(), outputs[2:]

    def merge(self, parts: list[tuple[Past, list[int]]], width: int) -> Past:
        """Put rows together, see Engine."""
        arrays = zip(*([value.numpy() for value in past] for past, _ in parts), strict=True)
        rows = [rows for _, rows in parts]
        return [self.value(_merged(list(zip(each, rows, strict=True)), width)) for each in arrays]


def _merged(parts: list[tuple[Any, list[int]]], width: int, room: int = 0) -> Any:
    """Return (rows, H, width + room, D) of arrays (B, H, S, D).

    Their newest columns stand at the right of `width`, with zeros at the left; the room holds anything.
    """
    first = parts[0][0]
    shape = (sum(len(rows) for _, rows in parts), first.shape[1], width + room, first.shape[3])
    merged = np.empty(shape, first.dtype) if isinstance(first, np.ndarray) else first.new_empty(shape)
    at = 0
    for array, rows in parts:
        kept = min(width, array.shape[2])
        for row in rows:
            merged[at, :, : width - kept] = 0
            merged[at, :, width - kept : width] = array[row, :, array.shape[2] - kept :]
            at += 1
    return merged
