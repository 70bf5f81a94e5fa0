"""The head of a prior's graph, worked in chunks of rows, for vocabularies that are large.

Logits are the largest thing that a language model makes: 8,192 tokens with a vocabulary of 152,000 are 5 GB, and their
log-softmax as much again. A ``Loop`` takes as many rows as fit a limit, multiplies them with the output embedding and keeps
of the product what a prior answers: ln P of the next token and the top k where somebody wants it. The rows of a chunk are as
alike as can be, so that no last chunk of a few rows reads the whole embedding for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from toedit._graph import Graph

LARGE_VOCAB = 16_384
"""From this size on the head is worked in chunks. Below it, the runs that :class:`toedit.Prior` makes are one chunk."""
LOGITS_BYTES = 64 << 20
"""The most bytes of logits at a time; their log-softmax and the rows whose top-k is wanted take as many again, each.

Measured with 512 positions on a Zen 5, against the head that is not in chunks: at 64 MB a vocabulary of 50,257 took as long in
fp32 and in int8; at 16 MB it took a tenth longer, since every chunk reads the output embedding anew.
"""
_ROWS = 8  # chunks are multiples of this: products of fewer rows are slow

_UNARY = frozenset({"Cast", "Identity", "Tanh"})
_BINARY = frozenset({"Add", "Div", "Mul", "Sub"})


@dataclass
class Head:
    """What lies between the hidden states and the logits."""

    nodes: list[Any] = field(default_factory=list)
    cuts: dict[str, int] = field(default_factory=dict)
    """The values [B, T, width] that it reads, and their widths."""


def find(graph: Graph) -> Head | None:
    """The head of a graph whose output is ``logits``, or None if something in it is not known to work row by row.

    Known are one product with a constant matrix, biases, scales and soft caps after it, and an int8 product's row factors.
    """
    head, name = Head(), graph.model.graph.output[0].name
    while True:
        node = graph.maker.get(name)
        if node is None or (head.nodes and graph.only_reader(name) is None):
            return None
        head.nodes.insert(0, node)
        if node.op_type in ("MatMul", "MatMulIntegerToFloat"):
            height = graph.rows_of(node.input[1])
            if height is None:
                return None
            head.cuts[node.input[0]] = height
            return head
        if node.op_type in _UNARY:
            name = node.input[0]
            continue
        if node.op_type not in _BINARY:
            return None
        constants = [graph.constant(side) for side in node.input]
        plain = [i for i in (0, 1) if constants[i] is not None and _broadcasts(constants[i])]
        if len(plain) == 1:
            name = node.input[1 - plain[0]]
            continue
        products = [i for i in (0, 1) if getattr(graph.maker.get(node.input[i]), "op_type", "") == "MatMulIntegerToFloat"]
        if plain or node.op_type != "Mul" or len(products) != 1:
            return None
        head.cuts[node.input[1 - products[0]]] = 1
        name = node.input[products[0]]


def _broadcasts(value: Any) -> bool:
    """Whether a constant means the same to rows [R, V] as to [B, T, V]."""
    return bool(value.size == 1 or value.ndim == 1)


def build(graph: Graph, head: Head, vocab: int, logits_bytes: int) -> list[Any]:
    """The nodes that take the place of *head* and make the outputs ``logp``, ``topk_row``, ``topk_ids`` and ``topk_logp``.

    They read ``targets`` int64 [B, T], ``k``, ``keep_low`` and ``keep_high``. A chunk's logits take *logits_bytes* at most, or
    what 8 rows take, whatever B and T.
    """
    from onnx import TensorProto, helper

    def ints(name: str, *values: int) -> str:
        return graph.add_constant(name, np.array(values, dtype=np.int64))

    node = graph.node
    limit = max(_ROWS, logits_bytes // (4 * vocab) // _ROWS * _ROWS)
    zero, one, last = ints("i0", 0), ints("i1", 1), ints("im1", -1)
    multiple, below = ints("chunk.multiple", _ROWS), ints("chunk.below", _ROWS - 1)
    empty = graph.add_constant("chunk.empty", np.zeros(0, dtype=np.float32))
    outside = [
        node("Reshape", ["targets", last], ["targets.flat"]),
        node("Shape", ["targets.flat"], ["chunk.total"]),
        # as few chunks as the limit allows, and all of one size
        node("Add", ["chunk.total", ints("chunk.limit_below", limit - 1)], ["chunk.total.up"]),
        node("Div", ["chunk.total.up", ints("chunk.limit", limit)], ["chunk.count"]),
        node("Add", ["chunk.total", "chunk.count"], ["chunk.share"]),
        node("Sub", ["chunk.share", one], ["chunk.share.up"]),
        node("Div", ["chunk.share.up", "chunk.count"], ["chunk.least"]),
        node("Add", ["chunk.least", below], ["chunk.least.up"]),
        node("Div", ["chunk.least.up", multiple], ["chunk.multiples"]),
        node("Mul", ["chunk.multiples", multiple], ["chunk.rows"]),
        node("Squeeze", ["chunk.count", zero], ["chunk.trips"]),
        node("Concat", [zero, "k"], ["chunk.no_rows"], axis=0),
        node("Expand", [empty_table(graph), "chunk.no_rows"], ["chunk.no_logp"]),
        node("Cast", ["chunk.no_logp"], ["chunk.no_ids"], to=TensorProto.INT32),
    ]
    inside = [
        node("Mul", ["chunk.index", "chunk.rows"], ["chunk.start"]),
        node("Add", ["chunk.start", "chunk.rows"], ["chunk.end"]),
    ]
    renamed = {}
    for name, width in head.cuts.items():
        outside.append(node("Reshape", [name, ints(f"chunk.rows_of_{width}", -1, width)], [f"{name}.rows"]))
        renamed[name] = f"{name}.chunk"
        inside.append(node("Slice", [f"{name}.rows", "chunk.start", "chunk.end", zero], [renamed[name]]))
    for original in head.nodes:
        inner = type(original)()
        inner.CopyFrom(original)
        for i, name in enumerate(inner.input):
            inner.input[i] = renamed.get(name, name)
        inside.append(inner)
    inside += [
        node("LogSoftmax", [head.nodes[-1].output[0]], ["logprobs"], axis=-1),
        node("Slice", ["targets.flat", "chunk.start", "chunk.end", zero], ["chunk.targets"]),
        node("Unsqueeze", ["chunk.targets", last], ["chunk.column"]),
        node("GatherElements", ["logprobs", "chunk.column"], ["chunk.logp"], axis=1),
        node("GreaterOrEqual", ["chunk.logp", "keep_low"], ["above"]),
        node("LessOrEqual", ["chunk.logp", "keep_high"], ["below"]),
        node("And", ["above", "below"], ["inside"]),
        node("Cast", ["inside"], ["inside.number"], to=TensorProto.INT32),
        node("ReduceMax", ["inside.number", last], ["wanted.number"], keepdims=0),
        node("Cast", ["wanted.number"], ["wanted"], to=TensorProto.BOOL),
        node("NonZero", ["wanted"], ["wanted.rows"]),
        node("Squeeze", ["wanted.rows", zero], ["chunk.wanted"]),
        # TopK of the wanted rows alone, though they are copied for it: with a quarter of the rows wanted that is 3 times as
        # fast as TopK of all, with half 1.5 times; all wanted, it takes half as long again (vocabularies of 4,096 to 151,936).
        node("Gather", ["logprobs", "chunk.wanted"], ["logprobs.wanted"], axis=0),
        node("TopK", ["logprobs.wanted", "k"], ["topk.values", "topk.indices"], axis=-1, largest=1, sorted=1),
        node("Cast", ["topk.indices"], ["chunk.ids"], to=TensorProto.INT32),
        node("Squeeze", ["chunk.logp", last], ["chunk.logp.flat"]),
        node("Add", ["chunk.wanted", "chunk.start"], ["chunk.wanted.row"]),
        # The answers of a chunk are few beside its logits, and how many they are is known here only: they are appended.
        node("Concat", ["logp.before", "chunk.logp.flat"], ["logp.after"], axis=0),
        node("Concat", ["row.before", "chunk.wanted.row"], ["row.after"], axis=0),
        node("Concat", ["ids.before", "chunk.ids"], ["ids.after"], axis=0),
        node("Concat", ["top.before", "topk.values"], ["top.after"], axis=0),
        node("Identity", ["chunk.go"], ["chunk.go_on"]),
    ]
    value = helper.make_tensor_value_info
    kinds = {
        "logp": (TensorProto.FLOAT, [None]),
        "row": (TensorProto.INT64, [None]),
        "ids": (TensorProto.INT32, [None, None]),
        "top": (TensorProto.FLOAT, [None, None]),
    }
    body = helper.make_graph(
        inside,
        "chunk",
        [
            value("chunk.index", TensorProto.INT64, []),
            value("chunk.go", TensorProto.BOOL, []),
            *(value(f"{name}.before", *kind) for name, kind in kinds.items()),
        ],
        [value("chunk.go_on", TensorProto.BOOL, []), *(value(f"{name}.after", *kind) for name, kind in kinds.items())],
    )
    no_row = graph.add_constant("chunk.no_row", np.zeros(0, dtype=np.int64))
    return [
        *outside,
        node(
            "Loop",
            ["chunk.trips", "", empty, no_row, "chunk.no_ids", "chunk.no_logp"],
            ["logp.flat", "topk_row", "topk_ids", "topk.all"],
            body=body,
        ),
        node("Shape", ["targets"], ["targets.shape"]),
        node("Reshape", ["logp.flat", "targets.shape"], ["logp"]),
        node("Cast", ["topk.all"], ["topk.half"], to=TensorProto.FLOAT16),
        node("Cast", ["topk.half"], ["topk_logp"], to=TensorProto.FLOAT),
    ]


def empty_table(graph: Graph) -> str:
    """A float32 [0, 1] that expands to [0, k]."""
    return graph.add_constant("chunk.empty_table", np.zeros((0, 1), dtype=np.float32))
