"""ONNX graphs: scores and best items of users and of histories, for onnxruntime and others.

The graphs are those of ``kd_jax/runtime`` with ONNX's operators, written with the helper of the
``onnx`` package (extra ``onnx``). Vectors are initializers of the graphs (``programs.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.runtime.contexts import (
    EPSILON,
    PAD,
    GatedTransformer,
    HistoryMap,
    MeanTower,
    Recurrent,
    Transformer,
)
from kd_jax.runtime.store import Export
from kd_jax.serving.exporters import programs
from kd_jax.serving.exporters.bundle import Bundle
from kd_jax.serving.exporters.packages import needed
from kd_jax.serving.exporters.runtime import export_of, served_vectors

FORM = "onnx"
OPSET, IR_VERSION = 18, 10  # of 2023 and 2024: later readers have them
FLOAT = 1  # TensorProto.FLOAT


def check() -> None:
    """Raises InputError if the package ``onnx`` is not installed."""
    needed("onnx", "onnx", "onnx")


def write(bundle: Bundle, folder: Path) -> tuple[Path, ...]:
    """``user_scores.onnx``, ``history_scores.onnx`` and ``onnx.json``.

    The inputs are ``user``, int32 [batch], or ``history``, int32 [batch, L], oldest first, padded
    on the left with -1; and ``k``, int64 [1], from 1 to I. The outputs are ``scores``, f32
    [batch, I], ``top_items``, int64 [batch, k], and ``top_scores``, f32 [batch, k], best first.
    There is no graph of histories for a student whose context is a program of JAX. Nothing is
    written for a student without a runtime (``runtime.export_of``). Raises InputError for vectors
    of more than 2 GB.
    """
    export = export_of(bundle)
    if export is None:
        return ()
    programs.check_size(export, FORM)
    written = {}
    graph = Graph()
    vectors = graph.add("Gather", graph.constant(served_vectors(export)), programs.USER)
    written[programs.USER] = _model(graph, export, vectors, programs.USER)
    graph = Graph()
    contexts = _contexts(graph, export)
    if contexts is not None:
        length = export.context.length
        written[programs.HISTORY] = _model(graph, export, contexts, programs.HISTORY, length)
    about = {
        "opset": OPSET,
        "k": "an input of all graphs, int64 [1]: the number of best items",
        "top_items, top_scores": "the k best items, as places in 'items', and their scores",
    }
    return programs.write(folder, FORM, export, written, about)


class Graph:
    """Nodes and constants of a graph, by the names of their outputs."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._items: str | None = None

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds an operator with one output, of this ``name``; returns the name."""
        from onnx import helper

        name = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value, order="C")
        return name

    def linear(self, x: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        product = self.add("MatMul", x, self.constant(kernel))
        return self.add("Add", product, self.constant(bias))

    def norm(self, x: str, scale_and_bias: np.ndarray) -> str:
        scale, bias = map(self.constant, scale_and_bias)
        return self.add("LayerNormalization", x, scale, bias, epsilon=EPSILON)

    def gated(self, change: str, x: str, kernel: np.ndarray, bias: np.ndarray) -> str:
        return self.add("Mul", change, self.add("Sigmoid", self.linear(x, kernel, bias)))

    def items(self, export: Export) -> str:
        """The item vectors: one constant, however often it is read."""
        self._items = self._items or self.constant(export.item_vectors)
        return self._items


def _model(graph: Graph, export: Export, contexts: str, source: str, *length: int) -> bytes:
    """The graph from ``source`` to scores and best items, checked and serialised."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    _scores(graph, export, contexts)
    count = len(export.item_ids)
    graph.nodes.append(
        helper.make_node("TopK", [programs.SCORES, "k"], ["top_scores", "top_items"])
    )
    value, batch = helper.make_tensor_value_info, programs.BATCH
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "kd_jax",
            [
                value(source, TensorProto.INT32, [batch, *length]),
                value("k", TensorProto.INT64, [1]),
            ],
            [
                value(programs.SCORES, TensorProto.FLOAT, [batch, count]),
                value("top_items", TensorProto.INT64, [batch, "k"]),
                value("top_scores", TensorProto.FLOAT, [batch, "k"]),
            ],
            [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="kd_jax",
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _scores(graph: Graph, export: Export, contexts: str) -> None:
    """``Runtime.scores``."""
    hidden = export.hidden
    if hidden is None:
        items = graph.add("Transpose", graph.items(export))
        product, bias = graph.add("MatMul", contexts, items), export.item_bias
    else:
        axis, last = graph.constant(np.array([1])), graph.constant(np.array([2]))
        user = graph.add("Unsqueeze", graph.linear(contexts, hidden.user, hidden.user_bias), axis)
        both = graph.add("Add", user, graph.constant(hidden.of_items(export.item_vectors)))
        each = graph.add("MatMul", graph.add("Relu", both), graph.constant(hidden.out))
        product, bias = graph.add("Squeeze", each, last), export.item_bias + hidden.out_bias
    graph.add("Add", product, graph.constant(bias), name=programs.SCORES)


def _contexts(graph: Graph, export: Export) -> str | None:
    """The context vectors of ``history``; None for a context that is a program of JAX."""
    context, zero = export.context, graph.constant(np.int32(0))
    rows = graph.add("Gather", graph.items(export), graph.add("Max", programs.HISTORY, zero))
    missing = graph.add("Equal", programs.HISTORY, graph.constant(np.int32(PAD)))
    valid = graph.add("Not", missing)
    if isinstance(context, HistoryMap):
        return _map(graph, context, rows, valid)
    if isinstance(context, MeanTower):
        return _tower(graph, context, rows, valid)
    if isinstance(context, Recurrent):
        return _recurrent(graph, context, rows, missing)
    return _transformer(graph, context, rows, valid) if isinstance(context, Transformer) else None


def _average(graph: Graph, rows: str, weights: str, least: float, more: float = 0.0) -> str:
    """The sum of ``rows`` [B, L, D] by ``weights`` [B, L], over max(their sum + more, least)."""
    one, last = graph.constant(np.array([1])), graph.constant(np.array([2]))
    total = graph.add("ReduceSum", weights, one, keepdims=1)
    total = graph.add("Add", total, graph.constant(np.float32(more)))
    total = graph.add("Max", total, graph.constant(np.float32(least)))
    shares = graph.add("Unsqueeze", graph.add("Div", weights, total), last)
    return graph.add("ReduceSum", graph.add("Mul", rows, shares), one, keepdims=0)


def _map(graph: Graph, context: HistoryMap, rows: str, valid: str) -> str:
    age = np.arange(context.length - 1, -1, -1, dtype=np.float32)
    known = graph.add("Cast", valid, to=FLOAT)
    weights = graph.add("Mul", known, graph.constant(np.exp(-age / np.float32(context.decay))))
    mean = _average(graph, rows, weights, 1e-30, context.shrink)
    return graph.linear(mean, context.weight, context.intercept)


def _tower(graph: Graph, context: MeanTower, rows: str, valid: str) -> str:
    mean = _average(graph, rows, graph.add("Cast", valid, to=FLOAT), 1.0)
    up = graph.linear(mean, context.up_kernel, context.up_bias)
    # The tanh approximation of GELU: x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
    square = graph.add("Mul", up, up)
    inner = graph.add("Mul", square, graph.constant(np.float32(0.044715 * (2 / np.pi) ** 0.5)))
    inner = graph.add("Add", inner, graph.constant(np.float32((2 / np.pi) ** 0.5)))
    tanh = graph.add("Tanh", graph.add("Mul", up, inner))
    half = graph.add("Mul", up, graph.constant(np.float32(0.5)))
    hidden = graph.add("Add", half, graph.add("Mul", half, tanh))
    down = graph.linear(hidden, context.down_kernel, context.down_bias)
    return graph.add("Add", graph.linear(mean, context.linear_kernel, context.linear_bias), down)


def _recurrent(graph: Graph, context: Recurrent, rows: str, missing: str) -> str:
    """``Recurrent``, with the operator GRU, whose gates are update, reset and new state.

    A further number of the input is 1 in the padding, with a weight that sets the update gate to 1:
    the state then stays as it is, 0.
    """
    width, dim = len(context.state_kernel), len(context.given_kernel)
    order = np.r_[width : 2 * width, :width, 2 * width : 3 * width]
    closed = np.repeat(np.array([[1e4, 0, 0]], np.float32), width, axis=1)
    weights = np.concatenate([context.given_kernel[:, order], closed])
    bias = np.concatenate([context.given_bias[order], np.zeros(3 * width, np.float32)])
    x = graph.add("Mul", rows, graph.constant(np.float32(dim**0.5)))
    padding = graph.add("Unsqueeze", missing, graph.constant(np.array([2])))
    x = graph.add("Concat", x, graph.add("Cast", padding, to=FLOAT), axis=2)
    x = graph.add("Transpose", x, perm=[1, 0, 2])  # [L, B, D + 1]
    arrays = (weights.T[None], context.state_kernel[:, order].T[None], bias[None])
    given = [graph.constant(array.astype(np.float32)) for array in arrays]
    states = graph.add("GRU", x, *given, hidden_size=width, linear_before_reset=1)
    last = graph.add("Gather", states, graph.constant(np.array(-1)), axis=0)  # [1, B, H]
    state = graph.add("Squeeze", last, graph.constant(np.array([0])))
    return graph.linear(state, context.out_kernel, context.out_bias)


def _transformer(graph: Graph, context: Transformer, rows: str, valid: str) -> str:
    length, dim = context.position.shape
    x = graph.add("Mul", rows, graph.constant(np.float32(dim**0.5)))
    x = graph.add("Add", x, graph.constant(context.position))
    known = graph.add("Unsqueeze", valid, graph.constant(np.array([2])))
    x = graph.add("Mul", x, graph.add("Cast", known, to=FLOAT))
    # A padded query attends to itself, so that no softmax row is empty.
    keys = graph.add("Unsqueeze", valid, graph.constant(np.array([1, 2])))  # [B, 1, 1, L]
    causal = graph.constant(np.tril(np.ones((length, length), bool)))
    mask = graph.add("And", keys, causal)
    mask = graph.add("Or", mask, graph.constant(np.eye(length, dtype=bool)))
    for n in range(len(context.qkv_kernel)):
        x = _block(graph, context, n, x, mask)
    last = graph.add("Gather", x, graph.constant(np.array(length - 1)), axis=1)
    return graph.norm(last, context.norm)


def _block(graph: Graph, context: Transformer, n: int, x: str, mask: str) -> str:
    """Block ``n`` over x [B, L, D]."""
    length, dim = context.position.shape
    heads, width = context.heads, dim // context.heads
    normed = graph.norm(x, context.norms[n, 0])
    qkv = graph.linear(normed, context.qkv_kernel[n], context.qkv_bias[n])
    shape = graph.constant(np.array([0, length, 3, heads, width]))  # 0: as it is
    qkv = graph.add("Transpose", graph.add("Reshape", qkv, shape), perm=[2, 0, 3, 1, 4])
    q, k, v = (graph.add("Gather", qkv, graph.constant(np.array(i)), axis=0) for i in range(3))
    logits = graph.add("MatMul", q, graph.add("Transpose", k, perm=[0, 1, 3, 2]))
    logits = graph.add("Mul", logits, graph.constant(np.float32(width**-0.5)))
    logits = graph.add("Where", mask, logits, graph.constant(np.float32(-np.inf)))
    attended = graph.add("MatMul", graph.add("Softmax", logits, axis=-1), v)
    attended = graph.add("Transpose", attended, perm=[0, 2, 1, 3])
    attended = graph.add("Reshape", attended, graph.constant(np.array([0, length, dim])))
    change = graph.linear(attended, context.out_kernel[n], context.out_bias[n])
    if isinstance(context, GatedTransformer):
        gate = context.attention_gate_kernel[n], context.attention_gate_bias[n]
        change = graph.gated(change, x, *gate)
    x = graph.add("Add", x, change)
    normed = graph.norm(x, context.norms[n, 1])
    hidden = graph.linear(normed, context.up_kernel[n], context.up_bias[n])
    if isinstance(context, GatedTransformer):
        hidden = graph.add("Mul", hidden, graph.add("Sigmoid", hidden))
        side = graph.linear(normed, context.side_kernel[n], context.side_bias[n])
        hidden = graph.add("Mul", hidden, side)
    else:
        hidden = graph.add("Relu", hidden)
    change = graph.linear(hidden, context.down_kernel[n], context.down_bias[n])
    if isinstance(context, GatedTransformer):
        change = graph.gated(change, x, context.mlp_gate_kernel[n], context.mlp_gate_bias[n])
    return graph.add("Add", x, change)
