"""Row-wise int8 for a prior's graph: every token's vector is quantised by itself, so no row depends on its neighbours.

For y = x W with a constant W the graph computes, for each token t and output channel n,

    m_t  = max_k |x_tk|
    a_tk = round(127 x_tk / m_t) + 128                            uint8
    y_tn = m_t s_n / 127 * sum_k (a_tk - 128) W8_kn               float32; the sum is exact, in int32

with W8 the weight rounded per output channel to [-64, 64] and s_n its scale. Seven bits, not eight: two products of a uint8
and such a weight stay below 2^15, so the processors whose instruction adds them in 16 bits do not saturate.

Never dynamic quantisation (``DynamicQuantizeLinear``): its scale spans the whole tensor, so a row's scores would depend on
the rows and the padding it is run with.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from toedit._chunks import LARGE_VOCAB
from toedit._graph import CONTRIB, Graph

WEIGHT_LIMIT = 64
TABLE_LIMIT = 127
# A row of zeros has no largest value to divide by; added to any other it changes nothing.
_SMALLEST = np.float32(1e-20)
_STEP = np.array(1 / 127, dtype=np.float32)
_ZERO = np.array(128, dtype=np.uint8)
# Behind these there is no product that makes a choice.
_NO_CHOICE = frozenset({"Attention", "Gemm", "GroupQueryAttention", "LayerNormalization", "RMSNormalization"})

_Array = npt.NDArray[Any]


def quantize_columns(weight: _Array, limit: int = WEIGHT_LIMIT) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """(int8 [K, N], float32 scale [N]) with weight ~ int8 * scale, each column rounded by its own largest value."""
    largest = np.abs(weight).max(axis=0).astype(np.float32)
    scale = np.where(largest > 0, largest / np.float32(limit), np.float32(1)).astype(np.float32)
    return np.clip(np.rint(weight / scale), -limit, limit).astype(np.int8), scale


def to_int8(graph: Graph) -> Graph:
    """Rewrite every product with a constant matrix, and the embedding table, of *graph* (changed in place and returned).

    *graph* is in float32, as :func:`toedit._graph.trace` makes it. Products that read the same vectors
    share one quantisation. What is not a product with a constant (attention, norms, the softmax) stays in float32, and so does
    the choice of experts: a small product, where a little rounding makes a token another expert's.

    A large table (:data:`toedit._chunks.LARGE_VOCAB` rows) that is the output embedding too is stored once, for both, in the
    output embedding's 7 bits: |difference of ln P| grew by 2.5 % with the bundled prior's weights, the file of a GPT-2 shrinks
    by a quarter. Small tables have 8 bits of their own.
    """
    _unfold_affine(graph)
    _rewrite_products(graph, tied := _tied_tables(graph))
    _rewrite_tables(graph, tied)
    return graph.finish()


def _unfold_affine(graph: Graph) -> None:
    """Write Gemm with a constant matrix (transformers' Conv1D, a linear layer on flat rows) as a product and a sum."""
    for node in [n for n in graph.nodes if n.op_type == "Gemm"]:
        has = {a.name: a for a in node.attribute}
        weight = graph.constant(node.input[1])
        if weight is None or weight.dtype != np.float32 or ("transA" in has and has["transA"].i):
            continue
        if any(key in has and has[key].f != 1 for key in ("alpha", "beta")):
            continue
        name = node.input[1]
        if "transB" in has and has["transB"].i:
            name = graph.add_constant(f"{node.output[0]}.matrix", np.ascontiguousarray(weight.T))
        biased = len(node.input) > 2 and node.input[2] != ""
        product = f"{node.output[0]}.product" if biased else node.output[0]
        new = [graph.node("MatMul", [node.input[0], name], [product])]
        if biased:
            new.append(graph.node("Add", [product, node.input[2]], list(node.output)))
        graph.replace([node], new, node)


def _tied_tables(graph: Graph) -> dict[str, tuple[str, str]]:
    """Large tables that a Gather and, transposed, a MatMul read; the names are those of their int8 rows and scales."""
    tables = {}
    for node in graph.nodes:
        if node.op_type != "Transpose" or not _is_table(table := graph.constant(node.input[0])) or len(table) < LARGE_VOCAB:
            continue
        readers = graph.readers[node.input[0]]
        if any(n.op_type == "Gather" for n in readers) and any(n.op_type == "MatMul" for n in graph.readers[node.output[0]]):
            tables[node.input[0]] = (f"{node.input[0]}.int8", f"{node.input[0]}.scale")
    return tables


def _rewrite_products(graph: Graph, tied: dict[str, tuple[str, str]]) -> None:
    quantized: dict[str, tuple[str, str]] = {}
    # value -> its rows' scale, for products whose scaling is left to the one quantisation that reads them
    unscaled: dict[str, str] = {}
    choices = _choices(graph)
    for node in [n for n in graph.nodes if n.op_type == "MatMul" and id(n) not in choices]:
        weight = _weight(graph, node.input[1])
        if weight is None:
            continue
        source = node.input[0]
        new: list[Any] = []
        # The rows of an expert are those of all, some of them, and so is what becomes of them.
        taken = _taken(graph, source)
        whole = taken.input[0] if taken is not None else source
        if whole not in quantized:
            quantized[whole] = _quantize(graph, whole, weight.shape[0], unscaled, new)
        if source not in quantized:
            quantized[source] = f"{source}.int8", f"{source}.largest"
            for value, some in zip(quantized[whole], quantized[source], strict=True):
                new.append(graph.node("Gather", [value, taken.input[1]], [some], axis=0))
        rows, scale = quantized[source]
        stem = node.output[0]
        product = f"{stem}.unscaled"
        values, columns = _store(graph, node.input[1], weight, stem, tied, new)
        new.append(
            graph.node(
                "MatMulIntegerToFloat",
                [
                    rows,
                    values,
                    graph.add_constant("int8.step", _STEP),
                    columns,
                    graph.add_constant("int8.zero", _ZERO),
                ],
                [product],
                CONTRIB,
            )
        )
        gated = _gate(graph, stem)
        if gated is None:
            new.append(graph.node("Mul", [product, scale], [stem]))
            graph.replace([node], new, node)
            continue
        # gate * (m u) = m (gate * u): leave m out of the wide product and give it to the quantisation that follows.
        other = gated.input[1] if gated.input[0] == stem else gated.input[0]
        unscaled[gated.output[0]] = scale
        graph.replace([node], new, node)
        graph.replace([gated], [graph.node("Mul", [other, product], list(gated.output))], gated)


def _choices(graph: Graph) -> set[int]:
    """The ids of the products whose largest values choose a token's experts."""
    found = set()
    names = [node.input[0] for node in graph.nodes if node.op_type in ("ArgMax", "TopK")]
    seen = set(names)
    while names:
        node = graph.maker.get(names.pop())
        if node is not None and node.op_type == "MatMul":
            found.add(id(node))
        elif node is not None and node.op_type not in _NO_CHOICE:
            names += [name for name in node.input if name and name not in seen]
            seen.update(node.input)
    return found


def _taken(graph: Graph, name: str) -> Any:
    """The node that takes *name* [N, K] from the rows of a value that is computed [T, K], or None."""
    node = graph.maker.get(name)
    if node is None or node.op_type != "Gather" or graph.constant(node.input[0]) is not None:
        return None
    return node if next((a.i for a in node.attribute if a.name == "axis"), 0) == 0 else None


def _store(
    graph: Graph, name: str, weight: _Array, stem: str, tied: dict[str, tuple[str, str]], new: list[Any]
) -> tuple[str, str]:
    """Store *weight* [K, N] in int8; returns the names of the matrix and of its scales [N]."""
    values, columns = quantize_columns(weight)
    maker = graph.maker.get(name)
    if maker is None or maker.op_type != "Transpose" or maker.input[0] not in tied:
        return graph.add_constant(f"{stem}.weight", values), graph.add_constant(f"{stem}.scale", columns)
    # ONNX Runtime transposes constants when it opens a graph, so the file needs no second copy.
    rows, scales = tied[maker.input[0]]
    new.append(
        graph.node("Transpose", [graph.add_constant(rows, np.ascontiguousarray(values.T))], [f"{stem}.weight"], perm=[1, 0])
    )
    return f"{stem}.weight", graph.add_constant(scales, columns)


def _gate(graph: Graph, name: str) -> Any:
    """The product of *name* with something else, if all that reads it are products with constants; else None."""
    node = graph.only_reader(name)
    if node is None or node.op_type != "Mul" or node.input[0] == node.input[1]:
        return None
    other = node.input[1] if node.input[0] == name else node.input[0]
    # The other factor must be as wide: a row's scalar or a constant would do too, but is not what this saves.
    if graph.constant(other) is not None or node.output[0] in graph.outputs:
        return None
    readers = graph.readers.get(node.output[0], [])
    if not readers or any(
        r.op_type != "MatMul" or _weight(graph, r.input[1]) is None or r.input[0] != node.output[0] for r in readers
    ):
        return None
    return node


def _quantize(graph: Graph, source: str, width: int, unscaled: dict[str, str], new: list[Any]) -> tuple[str, str]:
    """Append the nodes that quantise *source* [..., K = *width*] row by row.

    Returns the names of the uint8 rows [..., K] and of the factors [..., 1] that their products are to be multiplied with.
    """
    axis = graph.ints("int8.axis", -1)
    flat = graph.ints(f"int8.rows_of_{width}", -1, width)
    step, zero = graph.add_constant("int8.step", _STEP), graph.add_constant("int8.zero", _ZERO)

    def name(part: str) -> str:
        return f"{source}.{part}"

    new += [
        # max(max x, -min x) reads the rows twice; max |x| would write and read a copy of them
        graph.node("ReduceMax", [source, axis], [name("highest")], keepdims=1),
        graph.node("ReduceMin", [source, axis], [name("lowest")], keepdims=1),
        graph.node("Neg", [name("lowest")], [name("depth")]),
        graph.node("Max", [name("highest"), name("depth")], [name("reach")]),
        graph.node("Add", [name("reach"), graph.add_constant("int8.smallest", np.array(_SMALLEST))], [name("largest")]),
        # QuantizeLinear with a scale for each row: division and rounding in one pass
        graph.node("Mul", [name("largest"), step], [name("steps")]),
        graph.node("Reshape", [name("steps"), axis], [name("steps.flat")]),
        graph.node("Shape", [name("steps.flat")], [name("count")]),
        graph.node("Expand", [zero, name("count")], [name("zeros")]),
        graph.node("Shape", [source], [name("shape")]),
        graph.node("Reshape", [source, flat], [name("flat")]),
        graph.node("QuantizeLinear", [name("flat"), name("steps.flat"), name("zeros")], [name("flat.int8")], axis=0),
        graph.node("Reshape", [name("flat.int8"), name("shape")], [name("int8")]),
    ]
    if source not in unscaled:
        return name("int8"), name("largest")
    new.append(graph.node("Mul", [name("largest"), unscaled[source]], [name("factor")]))
    return name("int8"), name("factor")


def _weight(graph: Graph, name: str) -> _Array | None:
    """A constant float32 matrix [K, N], through a transposition if need be, else None."""
    value = graph.constant(name)
    if value is None:
        node = graph.maker.get(name)
        if node is None or node.op_type != "Transpose" or (value := graph.constant(node.input[0])) is None or value.ndim != 2:
            return None
        value = value.T
    return value if value.ndim == 2 and value.dtype == np.float32 else None


def _is_table(table: _Array | None) -> TypeGuard[_Array]:
    return table is not None and table.ndim == 2 and table.dtype == np.float32 and min(table.shape) >= 8


def _rewrite_tables(graph: Graph, tied: dict[str, tuple[str, str]]) -> None:
    for node in [n for n in graph.nodes if n.op_type == "Gather"]:
        table = graph.constant(node.input[0])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if not _is_table(table) or axis != 0:
            continue
        stem, ids = node.output[0], node.input[1]
        if node.input[0] in tied:
            rows, scales = tied[node.input[0]]
            last = graph.ints("int8.axis", -1)
            scale_of_ids = [
                graph.node("Gather", [scales, ids], [f"{stem}.flat_scale"], axis=0),
                graph.node("Unsqueeze", [f"{stem}.flat_scale", last], [f"{stem}.row_scale"]),
            ]
        else:
            values, scale = quantize_columns(np.ascontiguousarray(table.T), TABLE_LIMIT)
            rows = graph.add_constant(f"{stem}.weight", np.ascontiguousarray(values.T))
            scales = graph.add_constant(f"{stem}.scale", scale[:, None])
            scale_of_ids = [graph.node("Gather", [scales, ids], [f"{stem}.row_scale"], axis=0)]
        gathered = f"{stem}.int8"
        if gathered in graph.maker:  # where a product reads the embedding itself, as in OLMo 2, its rows have that name
            gathered = graph.fresh(gathered)
        new = [
            graph.node("Gather", [rows, ids], [gathered], axis=0),
            *scale_of_ids,
            graph.node("Cast", [gathered], [f"{stem}.unscaled"], to=1),
            graph.node("Mul", [f"{stem}.unscaled", f"{stem}.row_scale"], [stem]),
        ]
        graph.replace([node], new, node)
