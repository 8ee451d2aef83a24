"""A student's decoder as an ONNX graph with keys and values of the tokens so far, and its weights in 8 bits.

The graph is written node by node, so it depends on no exporter: tokens (B, T), their positions (B, T) and a bias
(B, 1, T, S) that hides padding and the future go in with the past, 2 L arrays (B, H, S - T, D). The likeliest next
tokens (B,), their log-probabilities (B,) and the past (B, H, S, D) come out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.errors import InputError

Floats = NDArray[np.float32]
FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
ROTATIONS = ("default", "linear", "llama3", "yarn")  # that do not depend on the length of the text
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")
OPSET = 20


def check(config: Mapping[str, Any], where: str) -> None:
    """Raise InputError when no graph can be written for a model of this config.json."""
    family, problem = config.get("model_type"), ""
    rotation = (config.get("rope_parameters") or config.get("rope_scaling") or {}).get("rope_type", "default")
    activation = config.get("hidden_act") or config.get("activation_function") or "silu"
    if family not in FAMILIES:
        problem = f"is of the family {family!r}, and only {', '.join(FAMILIES)} are known"
    elif _slides(config):
        problem = "attends within a sliding window"
    elif rotation not in ROTATIONS:
        problem = f"has the position encoding {rotation!r}, which depends on the length of the text"
    elif activation not in ACTIVATIONS:
        problem = f"has the activation {activation!r}"
    elif family == "gpt2" and (config.get("add_cross_attention") or not config.get("scale_attn_weights", True)):
        problem = "has cross-attention or unscaled attention"
    if problem:
        raise InputError(f"packaging.format = 'onnx-int8': {where} {problem}; choose packaging.format = 'torch'")


def _slides(config: Mapping[str, Any]) -> bool:
    window = config.get("sliding_window")
    if "use_sliding_window" in config:
        window = window if config["use_sliding_window"] else None
    return window is not None


def write(checkpoint: Path, file: Path, *, vocabulary: int, longest: int) -> None:
    """Write the graph of a checkpoint with 8-bit weights; no text is longer than `longest` tokens, answer included."""
    import onnx
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    onnx.save_model(_Decoder(model, vocabulary, longest).model(), str(file))


class _Graph:
    """Nodes and constants; each call adds a node and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.quantised: dict[str, tuple[str, str]] = {}  # name -> its rows in 8 bits, and their scales

    def constant(self, array: Any, name: str = "") -> str:
        import onnx

        name = name or f"c{len(self.constants)}"
        self.constants[name] = onnx.numpy_helper.from_array(np.array(array, order="C"), name)
        return name

    def add(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        import onnx

        out = out or f"n{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def linear(self, x: str, weight: Floats, bias: Floats | None) -> str:
        """Return x (..., I) @ weight (I, O) + bias (O,), multiplied as integers.

        Each row of x has a scale of its own, so that a row's answer does not depend on what else is in its batch (ONNX
        Runtime's own dynamic quantisation has one for all); each column of the weight has one too.
        """
        if x not in self.quantised:
            axes = self.constant(np.array([-1], np.int64))
            most = self.add("ReduceMax", self.add("Abs", x), axes)
            scale = self.add("Add", self.add("Mul", most, self.scalar(1 / 127)), self.scalar(1e-12))
            steps = self.add("Add", self.add("Round", self.add("Div", x, scale)), self.scalar(128))
            self.quantised[x] = self.add("Cast", steps, to=2), scale  # uint8
        rows, scale = self.quantised[x]
        columns = np.maximum(np.abs(weight).max(0), 1e-12) / 127  # (O,)
        # Both unsigned: of unsigned with signed, processors without VNNI add two products in 16 bits, which overflow.
        whole = self.constant((np.rint(weight / columns) + 128).astype(np.uint8))
        zero = self.constant(np.array(128, np.uint8))
        product = self.add("Cast", self.add("MatMulInteger", rows, whole, zero, zero), to=1)
        out = self.add("Mul", self.add("Mul", product, scale), self.constant(columns.astype(np.float32)))
        return out if bias is None else self.add("Add", out, self.constant(bias))

    def split(self, x: str, *sizes: int) -> list[str]:
        """Return parts of the last dimension, of these sizes."""
        import onnx

        names = [f"{x}_{part}" for part in range(len(sizes))]
        inputs = [x, self.constant(np.array(sizes, np.int64))]
        self.nodes.append(onnx.helper.make_node("Split", inputs, names, axis=-1))
        return names

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("Reshape", x, self.constant(np.array(shape, np.int64)))

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def norm(self, x: str, weight: Floats, bias: Floats | None, eps: float) -> str:
        """Return layer normalisation with a bias, and root-mean-square normalisation without one."""
        if bias is not None:
            return self.add("LayerNormalization", x, self.constant(weight), self.constant(bias), axis=-1, epsilon=eps)
        axes = self.constant(np.array([-1], np.int64))
        mean = self.add("ReduceMean", self.add("Mul", x, x), axes)
        root = self.add("Sqrt", self.add("Add", mean, self.scalar(eps)))
        return self.add("Mul", self.add("Div", x, root), self.constant(weight))

    def activation(self, x: str, name: str) -> str:
        if name in ("silu", "swish"):
            return self.add("Mul", x, self.add("Sigmoid", x))
        if name == "relu":
            return self.add("Relu", x)
        return self.add("Gelu", x, approximate="none" if name == "gelu" else "tanh")


class _Decoder(_Graph):
    """The graph of one model."""

    def __init__(self, model: Any, vocabulary: int, longest: int) -> None:
        super().__init__()
        self.config, self.longest = model.config, longest
        self.gpt2 = self.config.model_type == "gpt2"
        self.weights = {name: value.detach().float().numpy() for name, value in model.state_dict().items()}
        self.layers = int(self.config.num_hidden_layers)
        self.heads = int(self.config.num_attention_heads)
        self.kv_heads = self.heads if self.gpt2 else int(self.config.num_key_value_heads)
        own = getattr(self.config, "head_dim", None)
        self.width = int(own or self.config.hidden_size // self.heads)
        self.vocabulary = vocabulary
        if not self.gpt2:
            self.cos, self.sin = self._rotations(model.model.rotary_emb)

    def model(self) -> Any:
        """Return the graph as an ONNX model."""
        import onnx

        floats, integers = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
        x = self._embedded()
        pasts, presents = [], []
        for layer in range(self.layers):
            pasts += [f"past_k{layer}", f"past_v{layer}"]
            x, kept = self._layer(x, layer)
            presents += kept
        self._choice(x)
        value, shape = onnx.helper.make_tensor_value_info, ("B", self.kv_heads, "P", self.width)
        inputs = [
            value("tokens", integers, ("B", "T")),
            value("positions", integers, ("B", "T")),
            value("bias", floats, ("B", 1, "T", "S")),
            *(value(name, floats, shape) for name in pasts),
        ]
        outputs = [value("best", integers, ("B",)), value("logprob", floats, ("B",))]
        outputs += [value(name, floats, ("B", self.kv_heads, "S", self.width)) for name in presents]
        graph = onnx.helper.make_graph(self.nodes, "student", inputs, outputs, list(self.constants.values()))
        opsets = [onnx.helper.make_opsetid("", OPSET)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="redistill")
        about = {"names": pasts, "heads": self.kv_heads, "width": self.width}
        onnx.helper.set_model_props(model, {"past": json.dumps(about)})
        return model

    def _weight(self, name: str) -> Floats:
        found: Floats = self.weights[name]
        return found

    def _rotations(self, rotary: Any) -> list[str]:
        """Return cosines and sines of the tokens' positions, (B, 1, T, D) each."""
        import torch

        every = torch.arange(self.longest)[None]
        tables = rotary(torch.zeros(1, self.longest, self.width), every)
        return [self._of_positions(table[0].numpy()) for table in tables]

    def _embedded(self) -> str:
        """Return the embedded tokens, (B, T, E); the table is kept in 16 bits, which costs no token in practice."""
        name = "transformer.wte.weight" if self.gpt2 else "model.embed_tokens.weight"
        table = self.constant(self._weight(name).astype(np.float16), "embeddings")
        x = self.add("Cast", self.add("Gather", table, "tokens"), to=1)
        if not self.gpt2:
            return x
        places = self.constant(self._weight("transformer.wpe.weight")[: self.longest])
        return self.add("Add", x, self.add("Gather", places, "positions"))

    def _layer(self, x: str, layer: int) -> tuple[str, list[str]]:
        if self.gpt2:
            at, attention, mlp, eps = f"transformer.h.{layer}.", "ln_1", "ln_2", self.config.layer_norm_epsilon
        else:
            at, attention, mlp = f"model.layers.{layer}.", "input_layernorm", "post_attention_layernorm"
            eps = self.config.rms_norm_eps
        y, kept = self._attention(self._norm(x, at + attention, eps), at, layer)
        x = self.add("Add", x, y)
        y = self._norm(x, at + mlp, eps)
        return self.add("Add", x, self._gpt2_mlp(y, at) if self.gpt2 else self._gated_mlp(y, at)), kept

    def _norm(self, x: str, name: str, eps: float) -> str:
        return self.norm(x, self._weight(name + ".weight"), self.weights.get(name + ".bias"), eps)

    def _projected(self, x: str, *names: str) -> str:
        """Return x @ these weights, one beside the other, with their biases."""
        weights = [self._weight(name + ".weight") for name in names]
        biases = [self.weights[name + ".bias"] for name in names if name + ".bias" in self.weights]
        weight = np.concatenate(weights if self.gpt2 else [each.T for each in weights], 1)
        return self.linear(x, weight, np.concatenate(biases) if biases else None)

    def _gpt2_mlp(self, x: str, at: str) -> str:
        hidden = self.activation(self._projected(x, at + "mlp.c_fc"), self.config.activation_function)
        return self._projected(hidden, at + "mlp.c_proj")

    def _gated_mlp(self, x: str, at: str) -> str:
        size = int(self.config.intermediate_size)
        gate, up = self.split(self._projected(x, at + "mlp.gate_proj", at + "mlp.up_proj"), size, size)
        return self._projected(self.add("Mul", self.activation(gate, self.config.hidden_act), up), at + "mlp.down_proj")

    def _attention(self, x: str, at: str, layer: int) -> tuple[str, list[str]]:
        """Return softmax(q k' / sqrt(D) + bias) v for all heads, and the names of keys and values."""
        q, k, v = self._heads(x, at, layer)
        kept = []
        for name, new in (("k", k), ("v", v)):
            kept.append(self.add("Concat", f"past_{name}{layer}", new, out=f"present_{name}{layer}", axis=2))
        group = self.heads // self.kv_heads
        # Queries that share keys stand in one dimension with the tokens: (B, H, G * T, D) needs no copies of the keys.
        q = self.reshape(q, 0, self.kv_heads, -1, self.width) if group > 1 else q
        scale = self.width**-0.5
        if self.gpt2 and self.config.scale_attn_by_inverse_layer_idx:
            scale /= layer + 1
        q = self.add("Mul", q, self.scalar(scale))
        scores = self.add("MatMul", q, self.add("Transpose", kept[0], perm=[0, 1, 3, 2]))
        if group > 1:
            bias = self.add("Concat", *["bias"] * group, axis=2)  # (B, 1, G * T, S)
            scores = self.add("Add", scores, bias)
        else:
            scores = self.add("Add", scores, "bias")
        out = self.add("MatMul", self.add("Softmax", scores, axis=-1), kept[1])  # (B, H, G * T, D)
        out = self._side_by_side(out, group)
        return self._projected(out, at + ("attn.c_proj" if self.gpt2 else "self_attn.o_proj")), kept

    def _side_by_side(self, out: str, group: int) -> str:
        """Return (B, H, G * T, D) as (B, T, H * G * D)."""
        if group > 1:  # the -1 is T
            out = self.reshape(out, 0, self.heads, -1, self.width)
        return self.reshape(self.add("Transpose", out, perm=[0, 2, 1, 3]), 0, 0, self.heads * self.width)

    def _heads(self, x: str, at: str, layer: int) -> tuple[str, str, str]:
        """Return queries, keys and values of the new tokens, (B, heads, T, D)."""
        names = [at + "attn.c_attn"] if self.gpt2 else [f"{at}self_attn.{part}_proj" for part in "qkv"]
        counts = self.heads, self.kv_heads, self.kv_heads
        parts = self.split(self._projected(x, *names), *(count * self.width for count in counts))
        q, k, v = (self.reshape(part, 0, 0, n, self.width) for part, n in zip(parts, counts, strict=True))
        if f"{at}self_attn.q_norm.weight" in self.weights:
            eps = self.config.rms_norm_eps
            q, k = self._norm(q, at + "self_attn.q_norm", eps), self._norm(k, at + "self_attn.k_norm", eps)
        q, k, v = (self.add("Transpose", part, perm=[0, 2, 1, 3]) for part in (q, k, v))
        if self.gpt2:
            return q, k, v
        return self._rotated(q), self._rotated(k), v

    def _of_positions(self, table: Floats) -> str:
        """Return a table's rows at the positions, (B, 1, T, D)."""
        found = self.add("Gather", self.constant(table), "positions")
        return self.add("Unsqueeze", found, self.constant(np.array([1], np.int64)))

    def _rotated(self, x: str) -> str:
        """Return x * cos + (-x2, x1) * sin (Su et al. 2021)."""
        first, second = self.split(x, self.width // 2, self.width // 2)
        turned = self.add("Concat", self.add("Neg", second), first, axis=-1)
        return self.add("Add", self.add("Mul", x, self.cos), self.add("Mul", turned, self.sin))

    def _choice(self, x: str) -> None:
        """Choose of the last column's states, (B, E), the likeliest token and its log-probability."""
        last = self.constant(np.array(-1, np.int64))
        x = self.add("Gather", x, last, axis=1)
        eps = self.config.layer_norm_epsilon if self.gpt2 else self.config.rms_norm_eps
        x = self._norm(x, "transformer.ln_f" if self.gpt2 else "model.norm", eps)
        # Rows beyond the vocabulary are padding: no text has these ids.
        scores = self.linear(x, self._weight("lm_head.weight")[: self.vocabulary].T, None)
        self.add("ArgMax", scores, out="best", axis=-1, keepdims=0)
        axes = self.constant(np.array([-1], np.int64))
        highest = self.add("ReduceMax", scores, axes, keepdims=0)
        every = self.add("ReduceLogSumExp", scores, axes, keepdims=0)
        self.add("Sub", highest, every, out="logprob")
