"""What the graph of a prior for a card (bfloat16 or float16, ONNX Runtime's CUDA provider) has that others have not.

:func:`prepare` works on the graph with logits. What its kernels ask for was found by opening and running graphs with the
provider itself; ``tests/card`` does so without a card.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from toedit import _chunks
from toedit._graph import Graph

LOGITS_BYTES = 1 << 30
"""The most bytes of logits at a time: a card wants large products. Their log-softmax takes as much again."""

_PRODUCTS = frozenset({"Attention", "Conv", "Einsum", "Gemm", "MatMul"})
_COMPARING = frozenset({"ArgMax", "Clip", "ReduceMax", "TopK"})


def half_precision(network: Any, dtype: str) -> Any:
    """A copy of a float32 torch model in *dtype*, in the form that a graph for a card is traced from.

    Its parameters are rounded, and not what it reckons with: a rotary embedding's frequencies, rounded to bfloat16, turn the
    thousandth position by radians. Where it writes GELU's tanh form out it names it: ONNX Runtime knows the written form in
    float32 and float16 and leaves it in seven operators in bfloat16.
    """
    import torch
    from transformers import activations

    element = getattr(torch, dtype)
    # Handed to deepcopy as copied already: a copy in float32 that is rounded afterwards takes three times the memory.
    made: dict[int, Any] = {
        id(p): torch.nn.Parameter(p.detach().to(element), requires_grad=False)
        for p in network.parameters()
        if p.is_floating_point()
    }
    for module in network.modules():
        for name in module._buffers.keys() - module._non_persistent_buffers_set:  # those that checkpoints hold
            buffer = module._buffers[name]
            if buffer is not None and buffer.is_floating_point():
                made[id(buffer)] = buffer.detach().to(element)
    half = copy.deepcopy(network, made)
    for name, module in list(half.named_modules(remove_duplicate=False)):
        if isinstance(module, activations.NewGELUActivation | activations.FastGELUActivation):
            half.set_submodule(name, torch.nn.GELU(approximate="tanh"))
    return half


def fuse_rotary(graph: Graph) -> None:
    """Write rotary embeddings as the one operator that the exporter finds in float32 alone: here casts are in its pattern.

    x cos + rotate_half(x) sin, with x [B, N, T, H] and the cosine and sine of [f, f], f [B, T, H/2].
    """
    for node in [n for n in graph.nodes if n.op_type == "Add"]:
        found = _rotary(graph, node)
        if found is None:
            continue
        x, tables = found
        new = [graph.node("RotaryEmbedding", [x, *tables], list(node.output), interleaved=0)]
        for op, table, (angles, element) in zip(("Cos", "Sin"), tables, tables.values(), strict=True):
            if table not in graph.maker:
                new[:0] = [
                    graph.node(op, [angles], [f"{table}.wide"]),
                    graph.node("Cast", [f"{table}.wide"], [table], to=element),
                ]
        graph.replace([node], new, node)
    graph.prune()  # what the sums read


def _rotary(graph: Graph, add: Any) -> tuple[str, dict[str, tuple[str, int]]] | None:
    """What a sum rotates, and the names of the cosine and sine that it does so with, each with its angles and its type."""

    def maker(name: str, op: str) -> Any:
        node = graph.maker.get(name)
        return node if node is not None and node.op_type == op else None

    def ints(name: str) -> list[int] | None:
        value = graph.constant(name)
        return None if value is None else value.reshape(-1).tolist()

    tables: dict[str, tuple[str, int]] = {}
    factors = []
    for product, op in zip((maker(side, "Mul") for side in add.input), ("Cos", "Sin"), strict=True):
        if product is None or (unsqueeze := maker(product.input[1], "Unsqueeze")) is None:
            return None
        if ints(unsqueeze.input[1]) != [1] or (cast := maker(unsqueeze.input[0], "Cast")) is None:
            return None
        if (wave := maker(cast.input[0], op)) is None or (twice := maker(wave.input[0], "Concat")) is None:
            return None
        if len(twice.input) != 2 or twice.input[0] != twice.input[1]:
            return None
        element = next(a.i for a in cast.attribute if a.name == "to")
        tables[f"{twice.input[0]}.{op}.{element}"] = twice.input[0], element
        factors.append(product.input[0])
    x, rotated = factors
    concat = maker(rotated, "Concat")
    negated = None if concat is None or len(concat.input) != 2 else maker(concat.input[0], "Neg")
    halves = None if negated is None else [maker(negated.input[0], "Slice"), maker(concat.input[1], "Slice")]
    if halves is None or any(half is None or half.input[0] != x or len(half.input) < 4 for half in halves):
        return None
    (upper_start, upper_end, *upper), (lower_start, lower_end, *lower) = ([ints(i) for i in h.input[1:]] for h in halves)
    axis = next(a.i for a in concat.attribute if a.name == "axis")
    if lower_start != [0] or lower_end != upper_start or upper_end != [np.iinfo(np.int64).max] or upper != lower:
        return None
    # axis 3 of 4 by its number alone, steps of 1; the angles of a half are as many as it
    width = graph.constant(_frequencies(graph, next(iter(tables.values()))[0]))
    if axis != -1 or upper[0] != [3] or upper[1:] not in ([], [[1]]) or width is None or [width.size] != lower_end:
        return None
    return (x, tables) if len({angles for angles, _ in tables.values()}) == 1 else None


def _frequencies(graph: Graph, angles: str) -> str:
    """The constant side of the product that makes *angles*, or no name."""
    node = graph.maker.get(angles)
    sides = [] if node is None or node.op_type != "Mul" else [s for s in node.input if graph.constant(s) is not None]
    return sides[0] if len(sides) == 1 else ""


def prepare(graph: Graph) -> tuple[Graph, bool]:
    """Rewrite a half-precision ``context -> logits`` graph for a card.

    Returns it, and whether all its float32 products are exact in TensorFloat-32, so that they may be computed in it.
    """
    types = _element_types(graph)
    exact = all(_is_exact_in_tf32(graph, node, types) for node in graph.nodes if node.op_type in _PRODUCTS)
    _wide_norms(graph, types)
    _wide_comparisons(graph, types)
    _caches(graph)
    return _float_head(graph.finish()), exact


def _element_types(graph: Graph) -> dict[str, int]:
    """Element types of values; of operators that are not known here, that of their first input."""
    from onnx import TensorProto, helper

    types = {name: int(helper.np_dtype_to_tensor_dtype(value.dtype)) for name, value in graph.weights.items()}
    types.update({i.name: int(i.type.tensor_type.elem_type) for i in graph.model.graph.input})
    for node in graph.nodes:
        known = [types.get(name, 0) for name in node.input if name]
        if node.op_type in ("Cast", "Constant"):
            values = [a.t.data_type if a.name == "value" else a.i for a in node.attribute if a.name in ("to", "value")]
            element = int(values[0]) if values else 0
        elif node.op_type == "Shape":
            element = int(TensorProto.INT64)
        elif node.op_type in ("RMSNormalization", "Where"):
            element = known[1]  # of the scale; of what is chosen
        else:
            element = known[0] if known else 0
        types.update(dict.fromkeys(node.output, element))
    return types


def _is_exact_in_tf32(graph: Graph, product: Any, types: dict[str, int]) -> bool:
    """Whether TensorFloat-32, whose significands have ten bits behind the point, holds all that a product reads."""
    from onnx import TensorProto

    halves = (TensorProto.BFLOAT16, TensorProto.FLOAT16)
    for name in product.input[:2]:
        if types.get(name) != TensorProto.FLOAT:
            continue
        while (maker := graph.maker.get(name)) is not None and maker.op_type in ("Reshape", "Transpose"):
            name = maker.input[0]
        value = graph.constant(name)
        if value is not None and not (np.ascontiguousarray(value).view(np.uint32) & 0x1FFF).any():
            continue
        if maker is None or maker.op_type != "Cast" or types.get(maker.input[0]) not in halves:
            return False
    return True


def _wide_norms(graph: Graph, types: dict[str, int]) -> None:
    """Give norms whose scale is in float32 their vectors in float32: they compute in it, and CUDA's kernel wants one type."""
    for node in [n for n in graph.nodes if n.op_type == "RMSNormalization"]:
        vectors, scale = node.input[:2]
        if types.get(scale) != types.get(vectors):
            wide = f"{node.output[0]}.wide"
            cast = graph.node("Cast", [vectors], [wide], to=types[scale])
            graph.replace([node], [cast, *_chunks.renamed([node], {vectors: wide})], node)


def _wide_comparisons(graph: Graph, types: dict[str, int]) -> None:
    """Let what compares bfloat16 values, as the choice of experts does, compare them in float32, which holds them all: CUDA's
    provider has no kernel that does it in bfloat16."""
    from onnx import TensorProto

    half = TensorProto.BFLOAT16
    for node in [n for n in graph.nodes if n.op_type in _COMPARING and types.get(n.input[0]) == half]:
        wide = {name: f"{node.output[0]}.of.{name}" for name in node.input if types.get(name) == half}
        (compared,) = _chunks.renamed([node], wide)
        new = [graph.node("Cast", [name], [wider], to=TensorProto.FLOAT) for name, wider in wide.items()]
        new.append(compared)
        if node.op_type != "ArgMax":  # whose output is places
            compared.output[0] = f"{node.output[0]}.wide"
            new.append(graph.node("Cast", [compared.output[0]], [node.output[0]], to=half))
        graph.replace([node], new, node)


def _caches(graph: Graph) -> None:
    """Give every GroupQueryAttention the cache that CUDA's kernel insists on writing, though nothing reads it."""
    for node in graph.nodes:
        if node.op_type == "GroupQueryAttention":
            stem = node.output[0]
            node.output.extend([f"{stem}.present_key", f"{stem}.present_value"])


def _float_head(graph: Graph) -> Graph:
    """Let a half-precision model's last product, and what is behind it, compute in float32.

    A bfloat16 logit of 20 is off by up to 0.06, which would move every ln P near the threshold. Products of bfloat16 values are
    exact in TensorFloat-32, so on a card this costs half of the product's speed and no more. Models that do something unknown
    behind their last product stay as they are.
    """
    from onnx import TensorProto

    found = _chunks.find(graph)
    if found is None or found.nodes[0].op_type != "MatMul" or found.nodes[-1].op_type != "Cast":
        return graph
    product, *between = found.nodes[:-1]
    read = {side for node in between for side in node.input if graph.constant(side) is not None} | {product.input[1]}
    values = {side: graph.constant(side) for side in read}
    table = graph.maker.get(product.input[1])
    if table is not None and table.op_type == "Transpose":  # of the embedding, where the two are tied
        tied = graph.constant(table.input[0])
        values[product.input[1]] = None if tied is None else tied.T
    if any(value is None for value in values.values()):
        return graph
    wide = {side: graph.add_constant(f"{side}.float", np.asarray(v, dtype=np.float32)) for side, v in values.items()}
    hidden = f"{product.input[0]}.float"
    wide[product.input[0]] = hidden
    new = [graph.node("Cast", [product.input[0]], [hidden], to=TensorProto.FLOAT)]
    for node in (product, *between):
        (wider,) = _chunks.renamed([node], wide)
        new.append(graph.node("Identity", list(wider.input), list(node.output)) if node.op_type == "Cast" else wider)
    last = found.nodes[-1]
    new.append(graph.node("Identity", [last.input[0]], list(last.output)))
    graph.replace(found.nodes, new, last)
    return graph.finish()
